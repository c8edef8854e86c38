"""`uniwetok demo`, end to end, and the pictures that ship for it."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniwetok_hf.cli import demo_sections
from uniwetok_hf.cli.loading import load_pipeline
from uniwetok_hf.cli.main import main


SHEETS = ("reconstructions", "photographs", "text_to_image", "edits", "captions", "contact_sheet")


def test_shipped_pictures():
    rows = json.loads((demo_sections.PICTURES / "pictures.json").read_text())
    files = {path.name for path in demo_sections.PICTURES.glob("*.png")}
    assert files == {row["file"] for row in rows} and len(rows) == 28
    splits = [row["split"] for row in rows]
    kinds = ("test", "validation", "test_combinations", "test_styles")
    assert [splits.count(name) for name in kinds] == [12, 2, 7, 7]
    assert {row["style"] for row in rows} == {"noto", "fluent flat", "fluent", "twemoji", "noto v1"}
    shipped = demo_sections.shipped_pictures()
    assert [picture.is_known for picture in shipped] == [split.startswith("test_") for split in splits]
    for picture in shipped:
        assert (picture.image.mode, picture.image.size) == ("RGB", (128, 128))
    readme = (demo_sections.PICTURES / "README.md").read_text()
    assert all(licence in readme for licence in ("Apache License 2.0", "MIT", "CC-BY 4.0"))


def test_edits_name_shipped_pictures():
    names = {picture.name for picture in demo_sections.shipped_pictures()}
    assert {name for name, _ in demo_sections.EDITS if " " not in name} <= names


@pytest.fixture(scope="module")
def first_demo(pipeline_folder, tmp_path_factory):
    """A folder with the demo's pictures and what the command printed."""
    folder = tmp_path_factory.mktemp("demo") / "output"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", "--model", str(pipeline_folder), "--output", str(folder)]) == 0
    return folder, printed.getvalue().splitlines()


def test_demo_prints_where_things_are_and_how_long_they_took(first_demo):
    folder, lines = first_demo
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.png" for name in SHEETS)
    places = {name.replace("_", " "): str(folder / f"{name}.png") for name in SHEETS}
    expected = {"loading the model": "", **places, "all together": str(folder)}
    printed = [re.fullmatch(r"(.*?) +\d+\.\d s *(.*)", line).groups() for line in lines]
    assert printed == list(expected.items())


def test_sheets_show_the_pictures(first_demo):
    folder, _ = first_demo
    pages = {name: np.asarray(Image.open(folder / f"{name}.png")) for name in SHEETS}
    for page in pages.values():
        assert (page[:24] == 255).all() and (page[-24:] == 255).all() and (page[:, :24] == 255).all()
    shipped = {picture.name: np.asarray(picture.image) for picture in demo_sections.shipped_pictures()}
    for name in ("reconstructions", "edits", "captions", "contact_sheet"):
        assert contains(pages[name], shipped["noto-thumbs-down"]), name
    # The contact sheet holds every section in full.
    area = sum((page.shape[0] - 48) * (page.shape[1] - 48) for name, page in pages.items() if name != "contact_sheet")
    assert pages["contact_sheet"][..., 0].size > area


def contains(page, picture):
    """Whether `picture` is somewhere in `page`, looked for by the row through its middle."""
    height, width = picture.shape[:2]
    for y, row in enumerate(page):
        x = row.tobytes().find(picture[height // 2].tobytes()) // 3
        if x >= 0 and (page[y - height // 2 : y + height // 2, x : x + width] == picture).all():
            return True
    return False


def test_same_seed_same_pictures_and_no_need_of_scikit_image(first_demo, pipeline_folder, succeeds, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    folder, _ = first_demo
    succeeds("demo", "--model", pipeline_folder, "--output", "again")
    again = {path.stem: Image.open(path).copy() for path in Path("again").iterdir()}
    assert sorted(again) == sorted(set(SHEETS) - {"photographs"})
    for name in ("text_to_image", "edits", "captions"):
        assert again[name].tobytes() == Image.open(folder / f"{name}.png").tobytes(), name
    # Without SSIM under the pictures.
    assert again["reconstructions"].tobytes() != Image.open(folder / "reconstructions.png").tobytes()


def test_seed_changes_what_is_drawn(pipeline_folder, monkeypatch):
    monkeypatch.setattr(demo_sections, "PROMPTS", demo_sections.PROMPTS[:1])
    pipeline = load_pipeline(str(pipeline_folder), "cpu")
    assert demo_sections.text_to_image(pipeline, 0).tobytes() != demo_sections.text_to_image(pipeline, 9).tobytes()


def test_bad_input(fails, photo, vision_folder):
    assert fails("demo", "--output", photo) == "--output photo.png is a file, not a folder"
    assert "but this command needs a pipeline folder" in fails("demo", "--model", vision_folder)
