"""Faces and text, drawn for real: what the caption says can be seen, and nothing of a test word is in training."""

import json
import random
import sys

import numpy as np
import pytest
from datasets import load_from_disk
from emoji_data import concept_split
from faces_and_text import (
    BEARD,
    CLOTHING,
    CLOTHING_COLOUR,
    COLOURS,
    DARK_GLASSES,
    EYEBROWS,
    EYES,
    GLASSES,
    HAIR,
    HAIR_COLOUR,
    HATS,
    MAX_ZOOM,
    MOUTH,
    SKIN,
    SPLITS,
    WORDS,
    build_faces_and_text,
    choose_face,
    draw_face,
    draw_text,
    face_caption,
)


pytest.importorskip("python_avatars")

TABLES = {"skin": SKIN, "hair": [*HAIR, *HATS], "hair_colour": HAIR_COLOUR, "eyes": EYES, "eyebrows": EYEBROWS}
TABLES |= {"mouth": MOUTH, "beard": BEARD, "glasses": GLASSES, "clothing": CLOTHING}
TABLES |= {"clothing_colour": CLOTHING_COLOUR, "background": COLOURS}
FACE = {
    "skin": "light",
    "hair": "short {hair_colour} hair",
    "hair_colour": "red",
    "eyes": "open eyes",
    "eyebrows": "calm eyebrows",
    "mouth": "a smile",
    "beard": "",
    "glasses": "",
    "clothing": "hoodie",
    "clothing_colour": "blue",
    "background": "orange",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_faces_and_text(tmp_path_factory.mktemp("built") / "set", size=32, count=120)


@pytest.fixture(scope="module")
def rows(built):
    splits = load_from_disk(built / "pictures")
    assert tuple(splits) == SPLITS
    return [{**row, "split": split} for split in SPLITS for row in splits[split]]


def test_every_other_picture_is_a_face(rows):
    rows = sorted(rows, key=lambda row: row["id"].split("/")[1])
    assert [row["id"] for row in rows[:3]] == ["face/000000", "text/000001", "face/000002"]
    assert len(rows) == 120 and sum(row["kind"] == "face" for row in rows) == 60
    assert all((row["image"].mode, row["image"].size, row["image"].format) == ("RGB", (32, 32), "PNG") for row in rows)
    assert {bool(row["attributes"]) for row in rows if row["kind"] == "text"} == {False}
    assert {bool(row["words"]) for row in rows if row["kind"] == "face"} == {False}


def test_rows_are_what_they_say(rows):
    for row in rows:
        if row["kind"] == "face":
            face = json.loads(row["attributes"])
            assert list(face) == list(FACE) and row["caption"] == face_caption(face)
            assert row["split"] == concept_split(f"{face['hair']}/{face['eyes']}/{face['mouth']}")
        else:
            assert row["caption"].startswith(f'the text "{" ".join(row["words"])}" in ')
            words = [word.lower() for word in row["words"]]
            assert {concept_split(word) for word in words} == {row["split"]}
            assert all(word in WORDS or (word.isdigit() and int(word) < 10_000) for word in words)
            colours = set(row["image"].get_flattened_data())
            background = row["caption"].split(" on ")[-1]
            assert COLOURS[background] in colours and len(colours) > 5  # letters are there
    assert {row["split"] for row in rows} == set(SPLITS)


def test_captions_name_all_that_can_be_seen():
    assert face_caption(FACE) == (
        "a face with light skin, short red hair, open eyes, calm eyebrows, a smile, a blue hoodie, on orange"
    )
    hidden = {
        **FACE,
        "hair": "a {clothing_colour} hijab",
        "clothing": "",
        "hair_colour": "",
        "eyes": "",
        "eyebrows": "",
    }
    assert face_caption({**hidden, "glasses": "sunglasses"}) == (
        "a face with light skin, a blue hijab, a smile, sunglasses, on orange"
    )


def test_what_is_hidden_is_not_claimed():
    faces = [choose_face(random.Random(seed)) for seed in range(400)]
    for face in faces:
        assert (face["hair_colour"] == "") == ("{hair_colour}" not in face["hair"] + face["beard"])
        assert (face["eyes"] == face["eyebrows"] == "") == (face["glasses"] in DARK_GLASSES)
        if "hijab" in face["hair"]:
            assert face["beard"] == face["clothing"] == ""
        assert "{" not in face_caption(face)
    for attribute, table in TABLES.items():
        assert {face[attribute] for face in faces} | {""} == {*table, ""}, attribute
    assert 0.4 < sum(face["glasses"] == "" for face in faces) / 400 < 0.65


@pytest.mark.parametrize("attribute", TABLES)
@pytest.mark.parametrize("more", [{}, {"glasses": "glasses", "beard": "a full {hair_colour} beard"}])
def test_every_attribute_can_be_seen(attribute, more):
    pictures = {}
    for value in TABLES[attribute]:
        picture = draw_face({**FACE, **more, attribute: value}, 64, MAX_ZOOM)
        assert pictures.setdefault(picture.tobytes(), value) == value
    arrays = [np.frombuffer(pixels, np.uint8).astype(int) for pixels in pictures]
    for index, one in enumerate(arrays):
        assert all((abs(one - other) > 24).sum() > 8 for other in arrays[:index])


@pytest.mark.parametrize("hat", HATS)
def test_hats_and_clothes_share_a_colour_and_show_the_face(hat):
    def draw(**changes):
        return np.asarray(draw_face({**FACE, "hair": hat, **changes}, 64)).astype(int)

    plain = draw()
    changed = abs(plain - draw(clothing_colour="red")).max(-1) > 24
    assert changed[:24].sum() > 60  # the hat itself
    for change in (
        {"mouth": "a sad mouth"},
        {"eyes": "a wink"},
        {"eyebrows": "raised eyebrows"},
        {"glasses": "glasses"},
    ):
        assert (abs(plain - draw(**change)) > 24).sum() > 5


def test_beards_have_the_colour_of_the_hair():
    face = {**FACE, "hair": "a bald head", "beard": "a long {hair_colour} beard", "hair_colour": "black"}
    one, other = (np.asarray(draw_face({**face, "hair_colour": name}, 64)).astype(int) for name in ("black", "pink"))
    assert (abs(one - other).max(-1) > 60).sum() > 100
    assert face_caption(face).count("black") == 1


def test_the_background_is_the_named_one():
    for name in ("white", "purple"):
        assert draw_face({**FACE, "background": name}, 32).getpixel((1, 1)) == COLOURS[name]


@pytest.mark.parametrize("lines", [["i"], ["WWW"], ["mountain", "LIBRARY"], ["gypq"]])
@pytest.mark.parametrize("size", [32, 128])
def test_letters_fill_and_never_leave_the_picture(lines, size):
    for left, top in ((0, 0), (1, 1), (0.5, 0.5)):
        picture = draw_text(lines, size, "black", "white", 1.0, left, top)
        dark = np.asarray(picture.convert("L")) < 128
        assert not (dark[0].any() or dark[-1].any() or dark[:, 0].any() or dark[:, -1].any())
        ys, xs = np.nonzero(dark)
        assert max(np.ptp(ys), np.ptp(xs)) > size / 3
    small = np.asarray(draw_text(lines, 128, "black", "white", 0.4).convert("L")) < 128
    assert small.sum() < (np.asarray(draw_text(lines, 128, "black", "white").convert("L")) < 128).sum()


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(built, tmp_path):
    random.seed(5)  # which `python-avatars` would use
    again = build_faces_and_text(tmp_path / "again", size=32, count=120)
    for split in SPLITS:
        name = f"pictures/{split}/data-00000-of-00001.arrow"
        assert (built / name).read_bytes() == (again / name).read_bytes()
    assert (built / "README.md").read_bytes() == (again / "README.md").read_bytes()
    other = build_faces_and_text(tmp_path / "other", size=32, count=8, seed=1)
    one, two = (load_from_disk(folder / "pictures")["train"][0]["image"].tobytes() for folder in (built, other))
    assert one != two


def test_a_finished_set_is_returned_and_anything_else_refused(built, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert build_faces_and_text(built, size=32, count=120) == built
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"`output_dir`.* 'seed': 0.*not.* 'seed': 3"):
        build_faces_and_text(built, size=32, count=120, seed=3)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="no finished set"):
        build_faces_and_text(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_beside_it_and_empty_splits_load(tmp_path):
    (tmp_path / "set").mkdir()
    folder = build_faces_and_text(tmp_path / "set", size=16, count=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "faces_and_text.json", "pictures"]
    assert sum(len(split) for split in load_from_disk(folder / "pictures").values()) == 1


def test_the_readme_counts_and_gives_the_licence(built, rows):
    text = (built / "README.md").read_text(encoding="utf-8")
    assert "120 pictures of 32 x 32 pixels" in text and "Permission is hereby granted" in text
    counts = [sum(row["split"] == split and row["kind"] == "face" for row in rows) for split in SPLITS]
    assert f"| face | {' | '.join(map(str, counts))} |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 8}, "`size` is 8"), ({"size": 64.0}, "`size` is 64.0"), ({"count": 0}, "`count` is 0")],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_faces_and_text(tmp_path / "set", **arguments)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_avatars", None)
    with pytest.raises(ImportError, match=r"needs `python-avatars==1\.4\.1`"):
        build_faces_and_text(tmp_path / "set")
