# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Drawn faces and written words with captions: a stand-in for the data of the last stage of training (paper 3.4).

    python examples/emoji/faces_and_text.py data/faces_and_text

Small errors in faces and letters are what people see first, so the paper anneals on such pictures. Real ones come from
corpora that can't be shipped; these are drawn by `python-avatars` (faces of exactly known attributes) and by Pillow's
own font, and are a function of the seed. Whole combinations of attributes and whole words are kept for testing.
"""

import argparse
import importlib.util
import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from emoji_data import MIT_LICENCE, concept_split
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm


SPLITS = ("train", "validation", "test")
INFO_FILE = "faces_and_text.json"
AVATARS = "python-avatars==1.4.1"

# What a face can have: words -> name in `python-avatars`. Left out is what is not drawn in the colour it is given, or
# what hides the face.
SKIN = {
    "pale": "PALE",
    "light": "LIGHT",
    "yellow": "YELLOW",
    "brown": "BROWN",
    "dark brown": "DARK_BROWN",
    "black": "BLACK",
}
HAIR = {
    "a bald head": "NONE",
    "short {hair_colour} hair": "SHORT_FLAT",
    "short curly {hair_colour} hair": "SHORT_CURLY",
    "a {hair_colour} buzz cut": "BUZZCUT",
    "a {hair_colour} mohawk": "MOHAWK",
    "a {hair_colour} quiff": "QUIFF",
    "a {hair_colour} bun": "BUN",
    "a {hair_colour} bob": "BOB",
    "curly {hair_colour} hair": "CURLY",
    "long wavy {hair_colour} hair": "BIG_HAIR",
    "long straight {hair_colour} hair": "STRAIGHT_STRAND",
    "{hair_colour} dreadlocks": "DREADS",
    "a {hair_colour} afro": "FRO",
    "wild {hair_colour} hair": "WILD",
}
HATS = {
    "a {clothing_colour} hat": "HAT",
    "a {clothing_colour} turban": "TURBAN",
    "a {clothing_colour} hijab": "HIJAB",
    "a {clothing_colour} winter hat": "WINTER_HAT_3",
    "a {clothing_colour} hat with cat ears": "WINTER_HAT_4",
}
HAIR_COLOUR = {
    "black": "BLACK",
    "brown": "BROWN",
    "blond": "BLONDE_GOLDEN",
    "red": "RED",
    "pink": "PASTEL_PINK",
    "grey": "SILVER_GRAY",
}
EYES = {
    "open eyes": "DEFAULT",
    "closed eyes": "CLOSED",
    "a tear": "CRY",
    "rolling eyes": "EYE_ROLL",
    "happy eyes": "HAPPY",
    "heart eyes": "HEART",
    "wide eyes": "SURPRISED",
    "a wink": "WINK",
    "crossed-out eyes": "X_DIZZY",
}
EYEBROWS = {
    "calm eyebrows": "DEFAULT_NATURAL",
    "angry eyebrows": "ANGRY_NATURAL",
    "sad eyebrows": "SAD_CONCERNED_NATURAL",
    "raised eyebrows": "RAISED_EXCITED_NATURAL",
    "flat eyebrows": "FLAT_NATURAL",
}
MOUTH = {
    "a smile": "SMILE",
    "a slight smile": "TWINKLE",
    "a sad mouth": "SAD",
    "a serious mouth": "SERIOUS",
    "a screaming mouth": "SCREAM_OPEN",
    "the tongue out": "TONGUE",
    "gritted teeth": "GRIMACE",
    "full cheeks": "EATING",
}
BEARD = {
    "": "NONE",
    "a short {hair_colour} beard": "BEARD_LIGHT",
    "a full {hair_colour} beard": "BEARD_MEDIUM",
    "a long {hair_colour} beard": "BEARD_MAGESTIC",
    "a {hair_colour} moustache": "MOUSTACHE_MAGNUM",
}
GLASSES = {
    "": "NONE",
    "glasses": "PRESCRIPTION_2",
    "round glasses": "ROUND",
    "sunglasses": "WAYFARERS",
    "white sunglasses": "KURT",
}
DARK_GLASSES = ("sunglasses", "white sunglasses")
CLOTHING = {
    "T-shirt": "SHIRT_CREW_NECK",
    "V-neck": "SHIRT_V_NECK",
    "hoodie": "HOODIE",
    "sweater with a collar": "COLLAR_SWEATER",
    "shirt under a blazer": "BLAZER_SHIRT",
    "pair of dungarees": "OVERALL",
}
CLOTHING_COLOUR = {
    "black": "BLACK",
    "white": "WHITE",
    "grey": "GRAY_02",
    "blue": "BLUE_02",
    "dark blue": "BLUE_03",
    "light green": "PASTEL_GREEN",
    "light yellow": "PASTEL_YELLOW",
    "pink": "PINK",
    "red": "RED",
}
# Nearer than this the clothes would be out of the picture.
MAX_ZOOM = 1.3
# Colours of backgrounds and letters.
COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 22),
    "grey": (128, 130, 134),
    "red": (205, 40, 45),
    "orange": (240, 140, 40),
    "yellow": (250, 220, 75),
    "green": (45, 135, 70),
    "mint": (180, 232, 208),
    "sky blue": (150, 205, 245),
    "blue": (40, 85, 185),
    "purple": (105, 55, 145),
    "pink": (248, 180, 205),
    "brown": (110, 70, 45),
    "cream": (250, 240, 215),
}
# Letters and background differ by so much in brightness, of 255.
CONTRAST = 90
VOCABULARY = """
apple arrow autumn baker ball banana barn basket beach bean bear bell bird boat bone book bottle box bread brick bridge
brush bucket butter button cabin cable cake camel camera candle card carpet castle chain chair chalk cheese cherry
circle city clock cloud coat coffee coin comb copper corn cotton crown cup curtain dance desk diamond door dragon drum
duck eagle earth engine evening fabric farm feather fence field finger fire fish flag flower forest fork fountain fox
frame friend frog fruit garden ghost giant glass globe glove goat gold grape grass guitar hammer harbour harvest hill
honey horse hotel house island ivory jacket jar jewel journey juice jungle kettle key king kitchen kite knife ladder
lake lamp lantern leaf lemon letter library light lion lock machine magnet map marble market meadow melon metal milk
mirror money monkey moon morning mountain mouse music nail needle nest night north notebook number oak ocean olive
onion open orange orchard oven owl page paint palace panda paper parade peach pearl pencil penguin pepper piano picnic
pillow pilot pine planet plate pocket pond potato present prince pumpkin puzzle queen quiet rabbit radio rain raven
ribbon rice ring river road robot rocket roof rope rose salad sand school scissors seed shadow shark sheep ship shoe
silver sister sky smoke snow soap song south spider spoon spring square stairs star station stone storm street sugar
summer sun swan table tea tent theatre ticket tiger tomato tower train treasure tree tulip tunnel turtle umbrella
valley velvet village violin voice wagon wall water wave west whale wheat wheel whistle window winter wolf wood yard
yellow zebra zoo
"""
WORDS = VOCABULARY.split()


def build_faces_and_text(output_dir: str | os.PathLike, size: int = 128, count: int = 4000, seed: int = 0) -> Path:
    """Build the set and save it in `output_dir`.

    `output_dir/pictures` is a `DatasetDict` for `datasets.load_from_disk` with the splits train, validation and test:
    `id` ("face/000017"), `image` (RGB PNG, `size` x `size`), `kind` ("face" or "text"), `caption`, `attributes` (JSON;
    of faces) and `words` (what is written, line by line; of texts). No combination of hair, eyes and mouth, and no
    word or number, is in two splits.

    Args:
        output_dir: must not exist, or be empty, or hold a finished set of the same settings, which is then returned.
        size: side of the pictures in pixels.
        count: number of pictures; every other one is a face.
        seed: of all choices.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: an argument is wrong.
        FileExistsError: `output_dir` holds something else.
        ImportError: `python-avatars`, `resvg-py` or `datasets` is not installed.
    """
    if not isinstance(size, int) or not 16 <= size <= 4096:
        raise ValueError(f"`size` is {size!r}; accepted: a whole number of pixels from 16 to 4096.")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"`count` is {count!r}; accepted: a number of pictures of at least 1.")
    settings = {"size": size, "count": count, "seed": seed, "avatars": AVATARS}
    output_dir = Path(output_dir)
    if _is_finished(output_dir, settings):
        return output_dir
    _require_packages()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as work:
        unfinished = Path(work, "set")
        unfinished.mkdir()
        rows = []
        for index in tqdm(range(count), desc="drawing faces and text", unit="pictures"):
            make_row, kind = ((_face_row, "face"), (_text_row, "text"))[index % 2]
            # Strings seed `Random` the same way in every process.
            rows.append(make_row(f"{kind}/{index:06d}", random.Random(f"{seed}/{index}"), size))
        _save(rows, unfinished / "pictures")
        (unfinished / "README.md").write_text(_describe(rows, size, seed), encoding="utf-8")
        (unfinished / INFO_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():  # empty, as checked above
            output_dir.rmdir()
        unfinished.rename(output_dir)
    return output_dir


def choose_face(choices: random.Random) -> dict[str, str]:
    """Attributes of a face, each with the words of its table. What can't be seen is ""."""
    hair = choices.choice([*HAIR, *HATS])
    beard = choices.choice([*BEARD] + [""] * (len(BEARD) - 2))
    glasses = choices.choice([*GLASSES] + [""] * (len(GLASSES) - 2))
    face = {
        "skin": choices.choice([*SKIN]),
        "hair": hair,
        "hair_colour": choices.choice([*HAIR_COLOUR]),
        "eyes": choices.choice([*EYES]),
        "eyebrows": choices.choice([*EYEBROWS]),
        "mouth": choices.choice([*MOUTH]),
        "beard": beard,
        "glasses": glasses,
        "clothing": choices.choice([*CLOTHING]),
        "clothing_colour": choices.choice([*CLOTHING_COLOUR]),
        "background": choices.choice([*COLOURS]),
    }
    if "hijab" in hair:
        face["beard"] = face["clothing"] = ""
    if glasses in DARK_GLASSES:
        face["eyes"] = face["eyebrows"] = ""
    if "{hair_colour}" not in hair + face["beard"]:
        face["hair_colour"] = ""
    return face


def face_caption(face: dict[str, str]) -> str:
    """Say what [`choose_face`] chose."""
    parts = [f"{face['skin']} skin", *(face[key] for key in ("hair", "eyes", "eyebrows", "mouth", "beard", "glasses"))]
    parts.append(face["clothing"] and f"a {{clothing_colour}} {face['clothing']}")
    caption = f"a face with {', '.join(part for part in parts if part)}, on {face['background']}"
    return caption.format(**face)


def draw_face(face: dict[str, str], size: int, zoom: float = 1.0) -> Image.Image:
    """Draw the face of [`choose_face`]; a `zoom` above 1 comes closer to the eyes and mouth."""
    import python_avatars as avatars
    import resvg_py

    is_hat = face["hair"] in HATS
    hair_colour = avatars.HairColor[HAIR_COLOUR[face["hair_colour"] or "brown"]]
    clothing_colour = avatars.ClothingColor[CLOTHING_COLOUR[face["clothing_colour"]]]
    svg = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=avatars.HatType[HATS[face["hair"]]] if is_hat else avatars.HairType[HAIR[face["hair"]]],
        hat_color=clothing_colour,
        eyebrows=avatars.EyebrowType[EYEBROWS[face["eyebrows"] or "calm eyebrows"]],
        eyes=avatars.EyeType[EYES[face["eyes"] or "open eyes"]],
        mouth=avatars.MouthType[MOUTH[face["mouth"]]],
        facial_hair=avatars.FacialHairType[BEARD[face["beard"]]],
        skin_color=avatars.SkinColor[SKIN[face["skin"]]],
        hair_color=hair_colour,
        facial_hair_color=hair_colour,
        accessory=avatars.AccessoryType[GLASSES[face["glasses"]]],
        clothing=avatars.ClothingType[CLOTHING[face["clothing"] or "T-shirt"]],
        clothing_color=clothing_colour,
    ).render()
    # The drawing is 264 wide and 280 high; the middle of the face is at (132, 110).
    side = 280 / zoom
    box = f"{132 - side / 2:g} {110 - 110 / zoom:g} {side:g} {side:g}"
    frame = 'width="264px" height="280px" viewBox="0 0 264 280"'
    if frame not in svg:
        raise RuntimeError(f"`python-avatars` draws another frame than version {AVATARS} does.")
    svg = svg.replace(frame, f'width="{size}" height="{size}" viewBox="{box}"', 1)
    drawn = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    background = Image.new("RGBA", picture.size, COLOURS[face["background"]])
    return Image.alpha_composite(background, picture).convert("RGB")


def draw_text(
    lines: list[str], size: int, colour: str, background: str, fill: float = 1.0, left: float = 0.5, top: float = 0.5
) -> Image.Image:
    """Write `lines` on a picture. `fill` is their size over the largest that fits; `left` and `top` are 0 at one edge
    and 1 at the other."""
    picture = Image.new("RGB", (size, size), COLOURS[background])
    draw, text, room = ImageDraw.Draw(picture), "\n".join(lines), 0.92 * size
    # Letters grow with the font's size but for a pixel or so: measured once at 100.
    box = draw.multiline_textbbox((0, 0), text, ImageFont.load_default(100))
    largest = min(100 * room / (box[2] - box[0]), 100 * room / (box[3] - box[1]), size / 2)
    font = ImageFont.load_default(min(max(fill * largest, 8), largest))  # 8 can still be read
    box = draw.multiline_textbbox((0, 0), text, font)
    width, height, margin = box[2] - box[0], box[3] - box[1], 0.04 * size
    x = margin + left * max(room - width, 0) - box[0]
    y = margin + top * max(room - height, 0) - box[1]
    draw.multiline_text((round(x), round(y)), text, COLOURS[colour], font)
    return picture


def _face_row(name: str, choices: random.Random, size: int) -> dict:
    face = choose_face(choices)
    picture = draw_face(face, size, zoom=choices.uniform(1.0, MAX_ZOOM))
    row = {"attributes": json.dumps(face), "words": [], "caption": face_caption(face)}
    return _row(name, picture, concept_split("/".join(face[key] for key in ("hair", "eyes", "mouth"))), **row)


def _text_row(name: str, choices: random.Random, size: int) -> dict:
    if choices.random() < 0.25:
        words = [str(choices.randrange(10 ** choices.randint(1, 4)))]
    else:
        words = [choices.choice(WORDS)]
    split = concept_split(words[0])
    if choices.random() < 0.25:
        words.append(choices.choice([word for word in WORDS if concept_split(word) == split]))
    write: Callable[[str], str] = choices.choice([str.lower, str.capitalize, str.upper])
    lines = [write(word) for word in words]
    background = choices.choice([*COLOURS])
    colour = choices.choice([name for name in COLOURS if _contrast(name, background) >= CONTRAST])
    places = {"fill": choices.uniform(0.4, 1.0), "left": choices.random(), "top": choices.random()}
    picture = draw_text(lines, size, colour, background, **places)
    caption = f'the text "{" ".join(lines)}" in {colour} letters on {background}'
    return _row(name, picture, split, attributes="", words=lines, caption=caption)


def _row(name: str, picture: Image.Image, split: str, **columns) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": None}
    return {"id": name, "image": image, "kind": name.split("/")[0], "split": split, **columns}


def _contrast(colour: str, other: str) -> float:
    """Difference of two colours in brightness."""
    one, two = (0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue in (COLOURS[colour], COLOURS[other]))
    return abs(one - two)


def _is_finished(output_dir: Path, settings: dict) -> bool:
    """True for a finished set with these settings, False where nothing is; anything else is refused."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    info = output_dir / INFO_FILE
    found = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else None
    if found == settings:
        return True
    what = f"a set built with {found}, not {settings}" if found else f"no finished set (no {INFO_FILE} in it)"
    raise FileExistsError(f"`output_dir` {output_dir} holds {what}. Give a new folder, or delete this one.")


def _require_packages() -> None:
    packages = {"python_avatars": AVATARS, "resvg_py": "resvg-py", "datasets": "datasets"}
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"building faces needs `{package}`: install it with `pip install uniwetok-hf[emoji]`.")


def _save(rows: list[dict], folder: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    features = {"id": text, "image": ImageFeature(), "kind": text, "caption": text, "attributes": text}
    features = Features({**features, "words": List(text)})
    splits = {}
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split]
        splits[split] = Dataset.from_dict(
            {column: [row[column] for row in chosen] for column in features}, features=features
        )
    # `datasets` writes no file for an empty split, and then cannot load it: ask for one.
    shards = {split: None if len(chosen) else 1 for split, chosen in splits.items()}
    DatasetDict(splits).save_to_disk(folder, num_shards=shards)


def _describe(rows: list[dict], size: int, seed: int) -> str:
    """Write the README of a built set: counts, source, licence."""
    counts = Counter((row["kind"], row["split"]) for row in rows)
    table = "\n".join(
        f"| {kind} | " + " | ".join(str(counts[kind, split]) for split in SPLITS) + " |" for kind in ("face", "text")
    )
    return f"""\
# Faces and text with captions

{len(rows)} pictures of {size} x {size} pixels, RGB, drawn with seed {seed}. Built by
`examples/emoji/faces_and_text.py` of uniwetok-hf; load with `datasets.load_from_disk(".../pictures")`.

| kind | {" | ".join(SPLITS)} |
| --- |{" ---: |" * len(SPLITS)}
{table}

Splits are by combination of hair, eyes and mouth (faces), and by word or number (text): sha256 modulo 20: 0 is test,
1 is validation, the rest train. Every single attribute is in train.

## Sources and licences

The faces were drawn by `{AVATARS}` (Copyright (c) 2021 Ibon, MIT licence below,
https://github.com/ibonn/python_avatars) from parts of the Avataaars library, designed by Pablo Stanley
(https://avataaars.com, free for personal and commercial use), the
letters with Pillow's default font (Aileron, in the public domain). They show no real person.

{MIT_LICENCE}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Drawn faces and written words with captions, for the last stage of the image tokenizer. Every "
        "choice follows from the seed. A finished set of the same settings is left as it is."
    )
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side in pixels (default: 128)")
    parser.add_argument("--count", type=int, default=4000, metavar="N", help="how many (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: 0)")
    args = parser.parse_args()
    try:
        print(build_faces_and_text(args.out, args.size, args.count, args.seed))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
