# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The captioned emoji set: pictures with labels, and edits between them, as `datasets` on disk.

    python examples/emoji/emoji_data.py data/emoji

Pictures come from five sets of icons (Noto, Fluent flat, Fluent in 3D, Twemoji, Noto of 2017), labels from emojibase.
Everything about the build is a function of the pinned packages: the same call gives the same pictures in the same
order.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from emoji_edits import find_edits
from emoji_packages import (
    DEFAULT_STYLES,
    FOOD,
    GROUPS,
    PACKAGES,
    PEOPLE,
    STYLES,
    TONES,
    EmojiEntry,
    NpmPackage,
    check_packages,
    fetch_packages,
    open_style,
    read_entries,
)
from tqdm.auto import tqdm


DATA = "data/emoji"
SPLITS = ("train", "validation", "test", "test_combinations", "test_styles")
EDIT_SPLITS = (*SPLITS, "test_edits")
# Splits of source and target of an edit that belongs to the second one.
ACROSS_SPLITS = {("train", "test_combinations"), ("train", "test_styles")}
INFO_FILE = "emoji.json"


def concept_split(concept: str) -> str:
    """Return the split of a concept from the sha256 of its hexcode (of the untoned emoji) modulo 20.

    0 is "test", 1 is "validation", everything else "train".
    """
    return {0: "test", 1: "validation"}.get(_sha256_int(concept) % 20, "train")


def picture_split(concept: str, style: str, tone: str) -> str:
    """Return the split of one picture: that of its concept, or "test_combinations".

    About a tenth of the toned pictures of training concepts are held out, as combinations of style and tone that
    training never shows for that concept (it does show the concept, the style and the tone).
    """
    split = concept_split(concept)
    if split == "train" and tone and _sha256_int(f"{concept}/{style}/{tone}") % 10 == 0:
        return "test_combinations"
    return split


def held_out_style(concept: str, group: str, styles: Sequence[str]) -> str | None:
    """Return the style in which training never shows a concept, or None: one for about one in twelve of the training
    concepts that are no people and come in three `styles` or more (listed in the order of `STYLES`)."""
    number = _sha256_int(f"{concept}/style")
    if group == PEOPLE or concept_split(concept) != "train" or len(styles) < 3 or number % 12:
        return None
    return styles[number // 12 % len(styles)]


def one_tone(split: str):
    """The pictures of a split of `data/emoji`, with one skin tone beside the yellow for each concept and style: for
    trainings that read picture after picture, in which five skin tones would make people more than half of all.

        data: [{path: emoji_data.py:one_tone}]

    Returns:
        A `datasets.Dataset`.
    """
    from datasets import load_from_disk

    rows = load_from_disk(f"{DATA}/pictures")[split]
    kept = []
    for index, (concept, style, tone) in enumerate(
        zip(*(rows[name] for name in ("concept", "style", "tone")), strict=True)
    ):
        chosen = TONES[_sha256_int(f"{concept}/{style}/one tone") % len(TONES)]
        if tone in ("", f"{chosen} skin tone"):
            kept.append(index)
    return rows.select(kept)  # `filter` would write a cache beside the set


def food(split: str):
    """The pictures of food and drink of a split of `data/emoji`: a small set of classes, in the column `name`.

    Returns:
        A `datasets.Dataset`.
    """
    from datasets import load_from_disk

    rows = load_from_disk(f"{DATA}/pictures")[split]
    return rows.select([index for index, group in enumerate(rows["group"]) if group == FOOD])


def build_emoji_dataset(
    output_dir: str | os.PathLike,
    size: int = 128,
    package_dir: str | os.PathLike | None = None,
    styles: Sequence[str] | None = None,
    limit: int | None = None,
    *,
    packages: Mapping[str, NpmPackage] = PACKAGES,
) -> Path:
    """Build the captioned emoji set and save it in `output_dir`.

    `output_dir/pictures` and `output_dir/edits` are `DatasetDict`s for `datasets.load_from_disk`, with the splits
    train, validation, test (by concept, see `concept_split`), test_combinations (see `picture_split`) and test_styles
    (see `held_out_style`):

    - pictures: `id` ("noto/1F44B-1F3FF"), `image` (RGB PNG, `size` x `size`, on white), `style`, `label` (with the
      tone), `name` (without), `keywords`, `group`, `subgroup`, `tone` ("" or "light skin tone", ...), `hexcode`,
      `concept` (the hexcode of the untoned emoji);
    - edits: `source` and `target` (picture ids), `instruction`, `kind`; see `emoji_edits.find_edits`. An edit is in
      the split that holds both its pictures; one from a training picture to a held-out combination or style is in
      test_combinations or test_styles; all others across splits are dropped. The further split test_edits holds one in
      twenty of the changes of style between two training pictures that show no people: known pictures, but as an edit
      never trained on.

    What is in: every emoji of emojibase that the icon set draws; country flags in the styles noto and twemoji. What is
    not: regional indicators and components (bare skin swatches and hair), emoji with two skin tones, hidden icons
    (withdrawn by the artists), and of emoji that a style draws alike (astronauts, families, the flags of France and
    its islands) all but one. Hexcodes are written as emojibase writes them, and men, women and hair styles that have
    a hexcode of their own are concepts of their own.

    Args:
        output_dir: must not exist, or be empty, or hold a finished set of the same settings, which is then returned.
        size: side of the pictures in pixels; the icons are vectors but for those of "fluent", of 256 pixels.
        package_dir: folder with the `.tgz` files as `npm pack` names them. None fetches them with `npm pack`.
        styles: of `STYLES`; None is `DEFAULT_STYLES`, "noto", "fluent flat", "fluent", "twemoji" and "noto v1".
        limit: take only the first `limit` concepts of emojibase, for a quick try.
        packages: the pinned packages; give another table to build from other versions.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: an argument is wrong, or a package file has not the pinned sha256.
        FileExistsError: `output_dir` holds something else.
        FileNotFoundError: `package_dir` lacks a package file.
        ImportError: `resvg-py` or `datasets` is not installed (extra `emoji`).
        RuntimeError: `npm` is needed and missing, or failed.
    """
    styles = _check_arguments(size, styles, limit)
    needed = {key: packages[key] for key in ("labels", *(key for style in styles for key in STYLES[style]))}
    settings = {
        "size": size,
        "styles": styles,
        "limit": limit,
        "packages": {package.spec: package.sha256 for package in needed.values()},
    }
    output_dir = Path(output_dir)
    if _is_finished(output_dir, settings):
        return output_dir
    _require_extras()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as work:
        if package_dir is None:
            package_dir = Path(work, "packages")
            package_dir.mkdir()
            fetch_packages(needed, package_dir)
        paths = check_packages(needed, package_dir)
        unfinished = Path(work, "set")
        unfinished.mkdir()
        pictures = _draw_pictures(paths, styles, size, limit)
        edits = _split_edits(pictures)
        _save(pictures, edits, unfinished)
        (unfinished / "README.md").write_text(_describe(pictures, edits, size, needed), encoding="utf-8")
        (unfinished / INFO_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():  # empty, as checked above
            output_dir.rmdir()
        unfinished.rename(output_dir)
    return output_dir


def _sha256_int(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def _check_arguments(size: int, styles: Sequence[str] | None, limit: int | None) -> list[str]:
    """Refuse wrong arguments; return the styles in the order of `STYLES`."""
    if not isinstance(size, int) or not 1 <= size <= 4096:
        raise ValueError(f"`size` is {size!r}; accepted: a whole number of pixels from 1 to 4096.")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"`limit` is {limit!r}; accepted: None, or a number of concepts of at least 1.")
    if styles is None:
        return list(DEFAULT_STYLES)
    styles = [styles] if isinstance(styles, str) else list(styles)
    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        raise ValueError(f"`styles` is {styles!r}; accepted: None, or one or more of {list(STYLES)}.")
    return [style for style in STYLES if style in styles]


def _is_finished(output_dir: Path, settings: dict) -> bool:
    """True for a finished set with these settings, False where nothing is; anything else is refused."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    info = output_dir / INFO_FILE
    if not info.is_file():
        raise FileExistsError(
            f"`output_dir` exists and is no finished emoji set (no {INFO_FILE} in it): {output_dir}. "
            "Give a new folder, or delete this one."
        )
    found = json.loads(info.read_text(encoding="utf-8"))
    different = [key for key in settings if found.get(key) != settings[key]]
    if different:
        had, wanted = ({key: values.get(key) for key in different} for values in (found, settings))
        raise FileExistsError(
            f"`output_dir` holds an emoji set built with {had}, not {wanted}: {output_dir}. "
            "Give a new folder, or delete this one."
        )
    return True


def _require_extras() -> None:
    for module, package in (("resvg_py", "resvg-py"), ("datasets", "datasets")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"building the emoji set needs `{package}`: install it with `pip install uniwetok-hf[emoji]`."
            )


def _draw_pictures(paths: dict[str, Path], styles: list[str], size: int, limit: int | None) -> list[dict]:
    """Draw every emoji in every style that has it: the rows of `pictures`, with the PNG bytes and the split."""
    entries = read_entries(paths["labels"])
    if limit is not None:
        concepts = set(list(dict.fromkeys(entry.concept for entry in entries))[:limit])
        entries = [entry for entry in entries if entry.concept in concepts]
    jobs, drawn_in = [], defaultdict(list)
    for style in styles:
        sets = open_style(style, paths)
        for entry in entries:
            found = next(((icons, name) for icons in sets if (name := icons.find(entry)) is not None), None)
            if found is None:
                continue
            jobs.append((style, *found, entry))
            if not entry.tone:
                drawn_in[entry.concept].append(style)
    rows = []
    for style, icons, name, entry in tqdm(jobs, desc="drawing emoji", unit="pictures"):
        split = picture_split(entry.concept, style, entry.tone)
        if style == held_out_style(entry.concept, entry.group, drawn_in[entry.concept]):
            split = "test_styles"
        rows.append(_picture_row(entry, style, icons.render(name, size), split))
    return _without_doubles(rows)


def _without_doubles(rows: list[dict]) -> list[dict]:
    """Of the pictures of a style that are the same, keep the one with the shortest label, or else the first: nobody
    can tell the others by their picture, and they lie in several splits."""
    kept: dict[tuple[str, bytes], dict] = {}
    for row in rows:
        key = row["style"], row["image"]["bytes"]
        if key not in kept or len(row["label"]) < len(kept[key]["label"]):
            kept[key] = row
    ids = {row["id"] for row in kept.values()}
    return [row for row in rows if row["id"] in ids]


def _picture_row(entry: EmojiEntry, style: str, png: bytes, split: str) -> dict:
    return {
        "id": f"{style}/{entry.hexcode}",
        "image": {"bytes": png, "path": None},
        "style": style,
        "label": entry.label,
        "name": entry.name,
        "keywords": list(entry.keywords),
        "group": entry.group,
        "subgroup": entry.subgroup,
        "tone": entry.tone,
        "hexcode": entry.hexcode,
        "concept": entry.concept,
        "split": split,
    }


def _split_edits(pictures: list[dict]) -> list[dict]:
    """Give every edit its split and drop those that would carry pictures from one split into another."""
    by_id = {picture["id"]: picture for picture in pictures}
    kept = []
    for edit in find_edits(pictures):
        source, target = by_id[edit["source"]], by_id[edit["target"]]
        split = target["split"]
        if source["split"] != split and (source["split"], split) not in ACROSS_SPLITS:
            continue
        is_redrawn_thing = edit["kind"] == "style" and target["group"] != PEOPLE
        if split == "train" and is_redrawn_thing and _sha256_int(f"{edit['source']} {edit['target']} edit") % 20 == 0:
            split = "test_edits"
        kept.append(edit | {"split": split})
    return kept


def _save(pictures: list[dict], edits: list[dict], folder: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, Image, List, Value

    text = Value("string")
    picture_features = Features(
        {
            "id": text,
            "image": Image(),
            "style": text,
            "label": text,
            "name": text,
            "keywords": List(text),
            "group": text,
            "subgroup": text,
            "tone": text,
            "hexcode": text,
            "concept": text,
        }
    )
    edit_features = Features(dict.fromkeys(("source", "target", "instruction", "kind"), text))
    for name, rows, features, names in (
        ("pictures", pictures, picture_features, SPLITS),
        ("edits", edits, edit_features, EDIT_SPLITS),
    ):
        splits = {}
        for split in names:
            chosen = [row for row in rows if row["split"] == split]
            splits[split] = Dataset.from_dict(
                {column: [row[column] for row in chosen] for column in features}, features=features
            )
        # `datasets` writes no file for an empty split, and then cannot load it: ask for one.
        shards = {split: None if len(rows) else 1 for split, rows in splits.items()}
        DatasetDict(splits).save_to_disk(folder / name, num_shards=shards)


def _table(rows: list[dict], column: str, splits: Sequence[str]) -> str:
    """Count rows by a column and by split, as a Markdown table."""
    counts = Counter((row[column], row["split"]) for row in rows)
    lines = [f"| {column} | " + " | ".join(splits) + " | all |", "| --- |" + " ---: |" * (len(splits) + 1)]
    for value in [*dict.fromkeys(row[column] for row in rows), None]:
        numbers = [sum(n for (v, s), n in counts.items() if value in (v, None) and s == split) for split in splits]
        lines.append("| " + " | ".join(map(str, [value or "all", *numbers, sum(numbers)])) + " |")
    return "\n".join(lines)


def _group_table(pictures: list[dict]) -> str:
    """Count the concepts of each group, and those that each style has, as a Markdown table."""
    styles = list(dict.fromkeys(picture["style"] for picture in pictures))
    lines = ["| group | concepts | " + " | ".join(styles) + " |", "| --- |" + " ---: |" * (len(styles) + 1)]
    for group in [*dict.fromkeys(picture["group"] for picture in pictures), None]:
        of_group = [picture for picture in pictures if group in (picture["group"], None)]
        found = {style: {p["concept"] for p in of_group if p["style"] == style} for style in styles}
        numbers = [len(set().union(*found.values())), *map(len, found.values())]
        lines.append("| " + " | ".join(map(str, [GROUPS.get(group, group) or "all", *numbers])) + " |")
    return "\n".join(lines)


MIT_LICENCE = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def _describe(pictures: list[dict], edits: list[dict], size: int, packages: dict[str, NpmPackage]) -> str:
    """Write the README of a built set: counts, sources with their sha256, licences."""
    sources = "\n".join(f"- `{p.spec}`, sha256 `{p.sha256}`: {p.attribution}" for p in packages.values())
    return f"""\
# Emoji with captions and edits

{len(pictures)} pictures of {len({p["concept"] for p in pictures})} concepts, {size} x {size} pixels, RGB on white, and
{len(edits)} edits between them. Built by `examples/emoji/emoji_data.py` of uniwetok-hf; load with
`datasets.load_from_disk(".../pictures")` and `datasets.load_from_disk(".../edits")`.

Splits are by concept: sha256 of the hexcode of the untoned emoji, modulo 20: 0 is test, 1 is validation, the rest
train. `test_combinations` holds combinations of style and skin tone of training concepts, left out of train;
`test_styles` holds one style of one in twelve training concepts that are no people. `test_edits` holds edits between
training pictures, left out of the edits of train.

## Pictures

{_table(pictures, "style", SPLITS)}

{_table(pictures, "group", SPLITS)}

Concepts of each group, and how many of them each style has:

{_group_table(pictures)}

## Edits

{_table(edits, "kind", EDIT_SPLITS)}

## Sources and licences

The pictures were rasterized from these packages and put on white, otherwise unchanged. Noto Emoji is under the Apache
License 2.0 (https://www.apache.org/licenses/LICENSE-2.0; its flags are in the public domain or otherwise exempt from
copyright), Twemoji under CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/), the others are under the MIT
licence below.

{sources}

{MIT_LICENCE}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Captioned pictures of emoji in five styles, and edits between them. Fetches the icons with npm "
        "unless --package-dir has them. A finished set of the same settings is left as it is."
    )
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side in pixels (default: 128)")
    parser.add_argument("--package-dir", metavar="DIR", help="folder with the .tgz files of `npm pack`")
    parser.add_argument(
        "--styles", nargs="+", metavar="STYLE", help=f"of {', '.join(STYLES)} (default: all but the last)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N concepts, for a quick try")
    args = parser.parse_args()
    try:
        print(build_emoji_dataset(args.out, args.size, args.package_dir, args.styles, args.limit))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
