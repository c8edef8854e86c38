"""The commands that choose steps and guidance, and that show failures, on a small set."""

import sys

import edit_guidance
import failures
import generation_quality
import pytest
from datasets import DatasetDict, load_from_disk
from PIL import Image
from tiny_judges import build_clip
from tiny_models import build_tiny_pipeline


@pytest.fixture(scope="module")
def folders(fixtures, tmp_path_factory):
    """Data, judge and pipeline. The small set has no split of edits between known things; here they are some of
    those that training shows."""
    folder = tmp_path_factory.mktemp("models")
    build_tiny_pipeline().save_pretrained(folder / "pipeline")
    (folder / "data").mkdir()
    (folder / "data" / "pictures").symlink_to(fixtures / "emoji" / "pictures")
    edits = load_from_disk(str(fixtures / "emoji" / "edits"))
    DatasetDict({**edits, "test_edits": edits["train"]}).save_to_disk(folder / "data" / "edits")
    return {"data": str(folder / "data"), "judge": build_clip(folder / "judge"), "model": str(folder / "pipeline")}


def test_steps_and_guidance_of_drawings(folders, tmp_path, monkeypatch, capsys):
    figure = tmp_path / "figure.svg"
    arguments = [folders["data"], folders["judge"], folders["model"], "--count", "1", "--figure", str(figure)]
    arguments += ["--steps", "1", "2", "--guidance", "1", "2", "--temperature", "0.5", "--scored", "0"]
    monkeypatch.setattr(sys, "argv", ["generation_quality.py", *arguments])
    generation_quality.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 ")]
    settings = [tuple(cell.strip() for cell in row[1:4]) for row in rows]
    assert settings == [("1", "0.5", "1"), ("1", "0.5", "2"), ("2", "0.5", "1"), ("2", "0.5", "2")]
    assert all("%" in cell for row in rows for cell in row[5:]) and len(rows[0]) == 9
    assert figure.read_text(encoding="utf-8").startswith("<?xml")


def test_scales_of_edits(folders, monkeypatch, capsys):
    arguments = [folders["data"], folders["model"], "--judge", folders["judge"], "--split", "test_combinations"]
    arguments += ["--count", "2", "--steps", "1", "--image-guidance", "3", "5", "--temperature", "0"]
    monkeypatch.setattr(sys, "argv", ["edit_guidance.py", *arguments])
    edit_guidance.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| 5 ")]
    assert [(row[1].strip(), row[3].strip()) for row in rows] == [
        ("3", "pixels"),
        ("3", "judge"),
        ("5", "pixels"),
        ("5", "judge"),
    ]


def test_failures_on_one_page(folders, tmp_path, monkeypatch, capsys):
    arguments = [folders["data"], folders["judge"], folders["model"], "--count", "8", "--shown", "2"]
    monkeypatch.setattr(sys, "argv", ["failures.py", *arguments, "--output", str(tmp_path)])
    failures.main()
    printed = capsys.readouterr().out
    for title in ("Generations", "Edits", "Names"):  # a model that knows nothing
        assert f"{title}: " in printed
    with Image.open(tmp_path / "failures.jpg") as page:
        assert page.width > 4 * 112
