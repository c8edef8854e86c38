"""The emoji set: built here from tiny packages of the real format, and read from the fixture."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
from datasets import load_from_disk
from emoji_data import (
    EDIT_SPLITS,
    SPLITS,
    build_emoji_dataset,
    concept_split,
    held_out_style,
    one_tone,
    picture_split,
)
from emoji_edits import KINDS, find_edits
from emoji_packages import PACKAGES, IconSet, NpmPackage, read_entries
from PIL import Image


RED, BLUE = (255, 0, 0), (0, 0, 255)
SQUARE = '<path fill="#f00" d="M0 0h32v32h-32z"/>'
LEFT_HALF = '<path fill="#00f" d="M0 0h16v32h-16z"/>'
WAVE = "1F44B"


def emoji(hexcode, label, group=1, **more):
    return {"hexcode": hexcode, "label": label, "tags": ["tag"], "group": group, "subgroup": 0, "type": 1} | more


LABELS = [
    emoji(
        WAVE,
        "waving hand",
        skins=[
            emoji(f"{WAVE}-1F3FB", "waving hand: light skin tone", tone=1),
            emoji(f"{WAVE}-1F3FF", "waving hand: dark skin tone", tone=5),
            emoji(f"{WAVE}-1F3FB-1F3FF", "waving hand: light skin tone, dark skin tone", tone=[1, 5]),
        ],
    ),
    emoji("2764", "red heart", group=0),
    emoji("1F449", "hand pointing right"),
    emoji("1F355", "pizza", group=0),
    emoji("1F43A", "wolf", group=0),
    emoji("1F3FB", "light skin tone", group=2),
    {key: value for key, value in emoji("1F1E6", "regional indicator A").items() if key != "group"},
    emoji("1F9F6", "withdrawn yarn", group=0),
    emoji("1F1F3-1F1F4", "flag: Norway", group=3, subgroup=1),
    emoji("1F46A", "family"),
    emoji("1FAA7", "placard", group=0),
    emoji("1F6A7", "placard of the same look", group=0),
]
GROUPS = {
    "groups": {"0": "things", "1": "people-body", "2": "component", "3": "flags"},
    "subgroups": {"0": "all", "1": "country-flag"},
}
ICONS = {
    "prefix": "tiny",
    "width": 32,
    "height": 32,
    "icons": {
        "wave": {"body": SQUARE},
        "wave-light": {"body": LEFT_HALF},
        "wave-dark": {"body": '<path fill="#420" d="M0 0h32v32h-32z"/>'},
        "heart": {"body": '<path fill="#f00" d="M0 0h16v32h-16z"/>', "width": 16},
        "hand-pointing-left": {"body": LEFT_HALF},
        "pizza": {"body": '<path fill="#fc0" d="M4 4h8v8h-8z"/>'},
        "wolf": {"body": '<path fill="#888" d="M8 8h8v8h-8z"/>'},
        "withdrawn-yarn": {"body": SQUARE, "hidden": True},
        "light-skin-tone": {"body": SQUARE},
        "regional-indicator-a": {"body": SQUARE},
        "placard": {"body": '<path fill="#0ff" d="M2 2h8v8h-8z"/>'},
        "placard-of-the-same-look": {"body": '<path fill="#0ff" d="M2 2h8v8h-8z"/>'},
    },
    "aliases": {"hand-pointing-right": {"parent": "hand-pointing-left", "hFlip": True}},
}
CHARS = {
    "1f44b": "wave",
    "1f44b-1f3fb": "wave-light",
    "1f44b-1f3ff": "wave-dark",
    "2764-fe0f": "heart",
    "1f355": "pizza",
    "1f43a": "wolf",
    "1f1e6": "regional-indicator-a",
    "1f3fb": "light-skin-tone",
}


def restyled(mark):
    """The same icons with a mark in the corner: another style."""
    icons = {name: icon | {"body": icon["body"] + mark} for name, icon in ICONS["icons"].items()}
    return ICONS | {"icons": icons}


def webp(colour, size=(64, 64), box=None):
    """A WebP with transparent pixels around `box`."""
    picture = Image.new("RGBA", size)
    picture.paste(colour, box or (0, 0, *size))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


FLAT_ICONS = restyled('<path fill="#0f0" d="M0 28h4v4h-4z"/>')
SHADED_ICONS = restyled('<path fill="#080" d="M0 28h4v4h-4z"/>')
TWEMOJI_ICONS = restyled('<path fill="#00f" d="M0 28h4v4h-4z"/>')
# Pictures by code points; the flag is that of another set, and no other style has the family.
FLUENT_PICTURES = {
    "1f44b": webp("red"),
    "1f44b-1f3ff": webp("black"),
    "2764-fe0f": webp("red", size=(64, 80), box=(0, 8, 64, 72)),
    "1f43a": webp("grey", box=(16, 16, 48, 48)),
    "1faa7": webp("cyan"),
    "1f1f3-1f1f4": webp("red", box=(0, 16, 64, 48)),
    "1f46a": webp("yellow"),
}


def write_package(folder, package, files):
    """Write a `.tgz` as `npm pack` does; return the package with the sha256 of that file."""
    path = folder / package.file_name
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def tiny(tmp_path):
    """A folder with tiny packages under their real names, and their table."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {
        "labels": {"en/data.json": LABELS, "meta/groups.json": GROUPS},
        "noto": {"icons.json": ICONS, "chars.json": CHARS},
        "fluent flat": {"icons.json": FLAT_ICONS, "chars.json": CHARS},
        "fluent": {f"assets/{name}.webp": content for name, content in FLUENT_PICTURES.items()},
        "twemoji": {"icons.json": TWEMOJI_ICONS, "chars.json": CHARS},
        "noto v1": {"icons.json": ICONS, "chars.json": {}},  # as the real one: names only
        "shaded fluent": {"icons.json": SHADED_ICONS, "chars.json": {}},
    }
    return folder, {key: write_package(folder, PACKAGES[key], files) for key, files in contents.items()}


def build(tiny, output_dir, **arguments):
    folder, packages = tiny
    return build_emoji_dataset(output_dir, **{"size": 32, "package_dir": folder, "packages": packages} | arguments)


def rows_by_id(folder):
    return {row["id"]: row for split in load_from_disk(folder / "pictures").values() for row in split}


def test_file_names_are_those_of_npm_pack():
    assert PACKAGES["fluent flat"].file_name == "iconify-json-fluent-emoji-flat-1.2.6.tgz"
    assert NpmPackage("emojibase-data", "17.0.0", "", "").file_name == "emojibase-data-17.0.0.tgz"


@pytest.mark.parametrize(
    ("concept", "split"), [("1F355", "test"), ("1F43A", "validation"), ("1F44B", "train"), ("2764", "train")]
)
def test_concept_split(concept, split):
    assert (
        int(hashlib.sha256(concept.encode()).hexdigest(), 16) % 20
        in {
            "test": [0],
            "validation": [1],
            "train": range(2, 20),
        }[split]
    )
    assert concept_split(concept) == split


def test_held_out_combinations_are_toned_pictures_of_training_concepts():
    assert picture_split(WAVE, "noto", "dark skin tone") == "test_combinations"
    assert picture_split(WAVE, "noto", "light skin tone") == "train"
    assert picture_split(WAVE, "fluent", "dark skin tone") == "train"
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    for concept in ("1F355", "1F43A"):  # of test and validation: never moved
        found = {picture_split(concept, f"style {n}", f"{tone} skin tone") for n in range(20) for tone in tones}
        assert found == {concept_split(concept)}


def test_rows_say_what_the_packages_say(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", styles=["noto"]))
    codes = [WAVE, f"{WAVE}-1F3FB", "2764", "1F449", "1F1F3-1F1F4", "1FAA7", "1F43A", "1F355", f"{WAVE}-1F3FF"]
    # No component, regional, two-toned or hidden one, and of two placards that look alike that with the shorter label.
    assert list(rows) == [f"noto/{code}" for code in codes]
    row = rows[f"noto/{WAVE}-1F3FF"]
    row.pop("image")
    assert row == {
        "id": f"noto/{WAVE}-1F3FF",
        "style": "noto",
        "label": "waving hand: dark skin tone",
        "name": "waving hand",
        "keywords": ["tag"],
        "group": "people-body",
        "subgroup": "all",
        "tone": "dark skin tone",
        "hexcode": f"{WAVE}-1F3FF",
        "concept": WAVE,
    }


def test_icons_fill_the_square_on_white(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", styles=["noto"], size=48))
    full, half, heart, mirrored = (rows[f"noto/{code}"]["image"] for code in (WAVE, f"{WAVE}-1F3FB", "2764", "1F449"))
    assert (full.mode, full.size, full.format) == ("RGB", (48, 48), "PNG")
    assert full.getcolors() == [(48 * 48, RED)]
    assert (half.getpixel((4, 24)), half.getpixel((40, 24))) == (BLUE, (255, 255, 255))
    # The alias with hFlip has its blue half on the right.
    assert (mirrored.getpixel((4, 24)), mirrored.getpixel((40, 24))) == ((255, 255, 255), BLUE)
    # 16 wide, 32 high: the middle half of the picture.
    assert [heart.getpixel((x, 24)) == RED for x in (6, 16, 31, 42)] == [False, True, True, False]
    assert [heart.getpixel((24, y)) for y in (0, 47)] == [RED, RED]


def test_chains_of_aliases_add_up_their_turns():
    icons = {
        "width": 32,
        "height": 32,
        "icons": {"corner": {"body": '<path fill="#00f" d="M0 0h8v8h-8z"/>'}},
        "aliases": {
            "turned": {"parent": "corner", "rotate": 1},
            "turned-twice": {"parent": "turned", "rotate": 1},
            "mirrored": {"parent": "turned-twice", "hFlip": True},
            "mirrored-back": {"parent": "mirrored", "hFlip": True},
            "circle": {"parent": "circle"},
        },
    }
    icon_set = IconSet(icons, {})

    corners = {"corner": (2, 2), "turned": (29, 2), "turned-twice": (29, 29), "mirrored": (2, 29)}
    for name, at in corners.items():
        assert Image.open(io.BytesIO(icon_set.render(name, 32))).getpixel(at) == BLUE, name
    assert Image.open(io.BytesIO(icon_set.render("mirrored", 32))).getpixel((29, 29)) == (255, 255, 255)
    assert icon_set.render("mirrored-back", 32) == icon_set.render("turned-twice", 32)
    assert icon_set.resolve("circle") is None


def test_shaded_fluent_uses_the_code_points_of_the_flat_set(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", styles=["shaded fluent"]))
    assert {row["style"] for row in rows.values()} == {"shaded fluent"}
    assert rows["shaded fluent/1F43A"]["image"].getpixel((1, 30)) == (0, 136, 0)  # its own icon
    assert f"shaded fluent/{WAVE}-1F3FF" in rows


def test_fluent_is_scaled_onto_white_and_has_what_the_flat_set_has(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", styles=["fluent"]))
    assert {name.split("/")[1] for name in rows} == {
        WAVE,
        f"{WAVE}-1F3FF",
        "2764",
        "1F43A",
        "1FAA7",
    }  # no family, flag
    wolf, heart = (rows[f"fluent/{code}"]["image"] for code in ("1F43A", "2764"))
    assert (wolf.mode, wolf.size) == ("RGB", (32, 32))
    assert wolf.getpixel((1, 1)) == (255, 255, 255) and wolf.getpixel((16, 16)) == (128, 128, 128)
    # The picture is higher than wide: it is centred in a square.
    assert [heart.getpixel((x, 16))[1] < 10 for x in (1, 16, 30)] == [False, True, False]


def test_country_flags_of_noto_lie_in_the_package_of_fluent(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set"))
    assert {name for name, row in rows.items() if row["group"] == "flags"} == {"noto/1F1F3-1F1F4"}
    flag = rows["noto/1F1F3-1F1F4"]["image"]
    assert flag.getpixel((16, 2)) == (255, 255, 255) and flag.getpixel((16, 16))[1] < 10


def test_noto_v1_has_the_names_of_noto_and_no_skin_tones(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", styles=["noto v1"]))
    assert {row["tone"] for row in rows.values()} == {""}
    assert f"noto v1/{WAVE}" in rows  # "wave" is no label


def test_one_style_in_twelve_is_held_out():
    styles = ["noto", "fluent flat", "twemoji"]
    concepts = [f"{number:X}" for number in range(0x1F300, 0x1F700)]
    held = {concept: held_out_style(concept, "objects", styles) for concept in concepts}
    assert set(held.values()) == {None, *styles}
    share = sum(style is not None for style in held.values()) / len(concepts)
    assert abs(share - 0.9 / 12) < 0.02
    assert all(concept_split(concept) == "train" for concept, style in held.items() if style)
    assert not any(held_out_style(concept, "people-body", styles) for concept in concepts)
    assert not any(held_out_style(concept, "objects", styles[:2]) for concept in concepts)


def test_held_out_styles_are_in_no_other_split_and_are_targets_of_edits(tiny, tmp_path):
    folder, packages = tiny
    concept = next(f"{n:X}" for n in range(0x1F300, 0x1F700) if held_out_style(f"{n:X}", "things", list("abcde")))
    chars = CHARS | {concept.lower(): "pizza"}
    labels = [*LABELS, emoji(concept, "kite", group=0)]
    contents = {
        "labels": {"en/data.json": labels, "meta/groups.json": GROUPS},
        "noto": {"icons.json": ICONS, "chars.json": chars},
        "fluent flat": {"icons.json": FLAT_ICONS, "chars.json": chars},
        "twemoji": {"icons.json": TWEMOJI_ICONS, "chars.json": chars},
    }
    changed = {key: write_package(folder, PACKAGES[key], files) for key, files in contents.items()}
    styles = ["noto", "fluent flat", "twemoji"]
    output = build((folder, packages | changed), tmp_path / "set", styles=styles)
    held = held_out_style(concept, "things", styles)
    pictures, edits = (load_from_disk(output / name) for name in ("pictures", "edits"))
    assert pictures["test_styles"]["id"] == [f"{held}/{concept}"]
    assert set(edits["test_styles"]["target"]) == {f"{held}/{concept}"}
    assert len(edits["test_styles"]) == 2 and set(edits["test_styles"]["kind"]) == {"style"}
    for split in set(EDIT_SPLITS) - {"test_styles"}:
        assert f"{held}/{concept}" not in [*edits[split]["source"], *edits[split]["target"]]


def test_one_tone_keeps_the_yellow_and_a_tone(fixtures, monkeypatch):
    monkeypatch.setattr("emoji_data.DATA", str(fixtures / "emoji"))
    before = set((fixtures / "emoji").rglob("*"))
    everything = load_from_disk(fixtures / "emoji" / "pictures")["train"]
    kept = one_tone("train")
    assert {row["id"] for row in everything if not row["tone"]} <= set(kept["id"])
    toned = [(row["concept"], row["style"]) for row in kept if row["tone"]]
    assert set((fixtures / "emoji").rglob("*")) == before
    assert 0 < len(toned) == len(set(toned)) < sum(bool(tone) for tone in everything["tone"])


def test_same_pictures_and_same_order_twice(tiny, tmp_path):
    first, second = (rows_by_id(build(tiny, tmp_path / name)) for name in ("one", "two"))
    assert list(first) == list(second)
    assert [row["image"].tobytes() for row in first.values()] == [row["image"].tobytes() for row in second.values()]


def test_readme_gives_counts_checksums_and_licences(tiny, tmp_path):
    text = (build(tiny, tmp_path / "set") / "README.md").read_text(encoding="utf-8")
    assert "36 pictures of 7 concepts, 32 x 32 pixels" in text
    used = [package for key, package in tiny[1].items() if key != "shaded fluent"]
    assert all(package.sha256 in text and package.attribution in text for package in used)
    assert "| people | 2 | 2 | 2 | 1 | 2 | 2 |" in text  # concepts, and those of each style
    assert "Permission is hereby granted" in text


def test_limit_counts_concepts(tiny, tmp_path):
    rows = rows_by_id(build(tiny, tmp_path / "set", limit=2))
    assert {row["concept"] for row in rows.values()} == {WAVE, "2764"}


def test_finished_set_is_returned_and_anything_else_refused(tiny, tmp_path):
    output = build(tiny, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert build(tiny, output) == output
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"'size': 32.*not.*'size': 64"):
        build(tiny, output, size=64)
    (output / "emoji.json").unlink()
    with pytest.raises(FileExistsError, match="no finished emoji set"):
        build(tiny, output)


def test_empty_folder_is_filled_and_nothing_is_left_beside_it(tiny, tmp_path):
    output = tmp_path / "out" / "set"
    output.mkdir(parents=True)
    build(tiny, output)
    assert [path.name for path in output.parent.iterdir()] == ["set"]
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "edits", "emoji.json", "pictures"]


def test_wrong_checksum_names_file_and_both_sums(tiny, tmp_path):
    folder, packages = tiny
    path = folder / packages["noto"].file_name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"{path.name}.*expected {packages['noto'].sha256}"):
        build(tiny, tmp_path / "out" / "set")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_package_names_file_and_command(tiny, tmp_path):
    (tiny[0] / "emojibase-data-17.0.0.tgz").unlink()
    with pytest.raises(FileNotFoundError, match=r"emojibase-data-17\.0\.0\.tgz.*npm pack emojibase-data@17\.0\.0"):
        build(tiny, tmp_path / "set")


def test_missing_npm_says_what_to_do_instead(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"`npm` was not found.*npm pack .*@iconify-json/noto@1\.2\.9.*package_dir"):
        build(tiny, tmp_path / "set", package_dir=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "`size` is 0"),
        ({"size": 64.0}, "`size` is 64.0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"styles": []}, r"`styles` is \[\]"),
        ({"styles": ["noto", "openmoji"]}, "`styles` is .*accepted.*'fluent flat'"),
    ],
)
def test_wrong_arguments_are_refused(tiny, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(tiny, tmp_path / "set", **arguments)


def test_entries_keep_tones_and_groups(tiny):
    folder, packages = tiny
    entries = read_entries(folder / packages["labels"].file_name)
    assert [entry.tone for entry in entries[:3]] == ["", "light skin tone", "dark skin tone"]
    assert {entry.concept for entry in entries[:3]} == {WAVE}


def picture(name, style="noto", tone="", hexcode=None, concept=None):
    """A row for `find_edits`; every picture differs from the others."""
    hexcode = hexcode or f"{name}{tone}"
    png = f"{style}{name}{tone}".encode()
    return {
        "id": f"{style}/{hexcode}",
        "style": style,
        "name": name,
        "tone": tone,
        "hexcode": hexcode,
        "concept": concept or name,
        "image": {"bytes": png, "path": None},
    }


def edits_between(*names, **more):
    edits = find_edits([picture(name, **more) for name in names])
    return {(e["source"].split("/")[1], e["target"].split("/")[1]): (e["kind"], e["instruction"]) for e in edits}


@pytest.mark.parametrize(
    ("names", "kind", "there", "back"),
    [
        (("man running", "woman running"), "gender", "a woman", "a man"),
        (("person running", "man running"), "gender", "person", None),
        (("teacher", "woman teacher"), "gender", "teacher", None),
        (("men wrestling", "women wrestling"), "gender", "women", "men"),
        (("man: red hair", "man: bald"), "hair", "man", "red hair"),
        (("red heart", "light blue heart"), "colour", "light blue", "red"),
        (("red square", "white large square"), "colour", "white", "red"),
        (("three o’clock", "four-thirty"), "clock", "half past four", "three o'clock"),
        (("man walking", "man walking: facing right"), "direction", "right", "left"),
    ],
)
def test_edits_inside_a_style(names, kind, there, back):
    edits = edits_between(*names)
    assert len(edits) == 1 + (back is not None)
    assert edits[names][0] == kind
    assert there in edits[names][1]
    if back is not None:
        assert back in edits[names[::-1]][1]


@pytest.mark.parametrize(
    "names",
    [
        ("man", "man: red hair"),  # Noto draws the plain man closer
        ("man: red hair", "woman: bald"),
        ("kiss: man, man", "kiss: woman, woman"),
        ("man’s shoe", "woman’s shoe"),
        ("red heart", "blue square"),
        ("closed book", "blue book"),
    ],
)
def test_what_differs_in_more_than_one_thing_is_no_edit(names):
    assert edits_between(*names) == {}


def test_tone_edits_go_from_any_to_any():
    tones = ["", "light skin tone", "dark skin tone"]
    edits = find_edits([picture("baby", tone=tone) for tone in tones])
    assert [e["kind"] for e in edits] == ["tone"] * 6
    wanted = {"baby": "yellow", "babylight skin tone": "light", "babydark skin tone": "dark"}
    assert all(wanted[e["target"].split("/")[1]] in e["instruction"] for e in edits)


def test_style_edits_need_the_same_tone_and_name_the_style():
    rows = [
        picture("baby", style=style, tone=tone)
        for style in ("noto", "fluent flat")
        for tone in ("", "light skin tone")
    ]
    edits = [e for e in find_edits(rows) if e["kind"] == "style"]
    assert len(edits) == 4
    assert all(e["source"].split("/")[1] == e["target"].split("/")[1] for e in edits)
    assert all(e["target"].split("/")[0] in e["instruction"] for e in edits)


def test_identical_pictures_are_no_edit():
    rows = [picture(name) for name in ("astronaut", "man astronaut", "woman astronaut")]
    rows[2]["image"] = rows[1]["image"]
    pairs = {(e["source"], e["target"]) for e in find_edits(rows)}
    assert pairs == {("noto/astronaut", "noto/man astronaut"), ("noto/astronaut", "noto/woman astronaut")}


def test_edits_across_splits_are_dropped_but_for_held_out_targets(tiny, tmp_path):
    edits = load_from_disk(build(tiny, tmp_path / "set") / "edits")
    pairs = {split: {(row["source"], row["target"]) for row in edits[split]} for split in SPLITS}
    light, dark = f"noto/{WAVE}-1F3FB", f"noto/{WAVE}-1F3FF"  # train and held out
    assert (light, dark) in pairs["test_combinations"]
    assert all((dark, light) not in found for found in pairs.values())
    assert (f"noto/{WAVE}", light) in pairs["train"]
    assert ("noto/1F355", "twemoji/1F355") in pairs["test"]
    assert (dark, f"fluent flat/{WAVE}-1F3FF") in pairs["test_combinations"]  # both held out


@pytest.fixture(scope="module")
def fixture_set(fixtures):
    return load_from_disk(fixtures / "emoji" / "pictures"), load_from_disk(fixtures / "emoji" / "edits")


def test_fixture_has_the_documented_layout(fixture_set):
    pictures, edits = fixture_set
    # It was made before styles were held out: of three concepts one style would be missing.
    assert tuple(pictures) == tuple(edits) == SPLITS[:4]
    assert all(len(split) > 0 for split in (*pictures.values(), *edits.values()))
    columns = ["id", "image", "style", "label", "name", "keywords", "group", "subgroup", "tone", "hexcode", "concept"]
    for split in pictures.values():
        assert split.column_names == columns
        assert all((row["image"].mode, row["image"].size) == ("RGB", (64, 64)) for row in split)
        assert all(row["id"] == f"{row['style']}/{row['hexcode']}" for row in split)
    for split in edits.values():
        assert split.column_names == ["source", "target", "instruction", "kind"]
        assert set(split["kind"]) <= set(KINDS)
    assert {kind for split in edits.values() for kind in split["kind"]} == {
        "tone",
        "gender",
        "colour",
        "clock",
        "style",
    }


def test_fixture_splits_follow_the_rule(fixture_set):
    pictures, _ = fixture_set
    for name, split in pictures.items():
        assert {picture_split(row["concept"], row["style"], row["tone"]) for row in split} == {name}
    concepts = {name: set(split["concept"]) for name, split in pictures.items()}
    assert not concepts["train"] & concepts["test"]
    assert not concepts["train"] & concepts["validation"]
    assert not concepts["validation"] & concepts["test"]
    assert concepts["test_combinations"] <= concepts["train"]
    assert not set(pictures["test_combinations"]["id"]) & set(pictures["train"]["id"])


def test_fixture_edits_refer_to_pictures_of_allowed_splits(fixture_set):
    pictures, edits = fixture_set
    split_of = {picture: name for name, split in pictures.items() for picture in split["id"]}
    for name, split in edits.items():
        allowed = {name, "train"} if name == "test_combinations" else {name}
        assert {split_of[target] for target in split["target"]} == {name}
        assert {split_of[source] for source in split["source"]} <= allowed
        assert len(set(zip(split["source"], split["target"], strict=True))) == len(split)
