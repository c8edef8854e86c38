"""The sections of `uniwetok demo`, and its pictures, which ship with the package."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uniwetok_hf.evaluation.reconstruction import reconstruct
from uniwetok_hf.pipelines.writing import answer_question

from . import sheets
from .reconstruct import quality
from .sampling import as_edit_pipeline, generate_pictures


PICTURES = Path(__file__).parent.parent / "embedded" / "pictures"
TILE = 128
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")  # inside the scikit-image wheel
PROMPTS = (  # of what the embedded model knows
    "a noto emoji of red apple",
    "a fluent flat emoji of rocket",
    "a fluent flat emoji of dog face",
    "a twemoji emoji of light bulb",
    "a noto emoji of grinning face",
    "a fluent emoji of woman running: light skin tone",
    "a noto emoji of flag: Italy",
)
UNSEEN_PROMPTS = (  # of concepts that training left out
    "a noto emoji of pizza",
    "a fluent flat emoji of guitar",
    "a fluent emoji of teddy bear",
    "a twemoji emoji of dolphin",
    "a noto v1 emoji of soccer ball",
)
EDITS = (  # of shipped pictures, or of generations from a prompt
    ("a noto emoji of red heart", "make it blue"),
    ("a twemoji emoji of three o’clock", "set the time to six o’clock"),
    ("a fluent emoji of woman running: light skin tone", "make the skin tone dark"),
    ("a fluent flat emoji of green apple", "redraw in noto style"),
    ("fluent-man-farmer-medium-dark-skin-tone", "make the skin tone light"),
    ("fluent-woman-in-tuxedo-medium-light-skin-tone", "change the woman into a man"),
    ("noto-thumbs-down", "use dark skin"),
    ("fluent-flat-guitar", "redraw in noto style"),
)
QUESTIONS = ("what is this?", "which style is this?")


@dataclass
class Shipped:
    """A shipped picture: the image, what it shows in which style, and whether the embedded model was trained on the
    concept, in other styles or skin tones."""

    image: Image.Image
    label: str
    style: str
    name: str
    is_known: bool


def shipped_pictures() -> list[Shipped]:
    """The pictures of `embedded/pictures`, in the order of its list."""
    rows = json.loads((PICTURES / "pictures.json").read_text(encoding="utf-8"))
    shipped = []
    for row in rows:
        with Image.open(PICTURES / row["file"]) as image:
            is_known = row["split"] in ("test_combinations", "test_styles")
            name = Path(row["file"]).stem
            shipped.append(Shipped(image.convert("RGB"), row["label"], row["style"], name, is_known))
    return shipped


def reconstructions(pipeline, seed: int) -> Image.Image:
    """Emoji and their reconstructions."""
    cells = []
    for picture in [picture for picture in shipped_pictures() if not picture.is_known]:
        pair, metrics = _pair(pipeline, picture.image, seed, TILE)
        name = sheets.text_block(f"{picture.label} ({picture.style})", width=pair.width, max_lines=1)
        cells.append(sheets.below([pair, sheets.below([name, metrics], gap=0)], gap=4))
    note = "Left the original, right its reconstruction. uniwetok-emoji was trained on none of these."
    return sheets.section("Reconstruction", note, sheets.grid(cells, 4))


def photographs(pipeline, seed: int) -> Image.Image | None:
    """Photographs and their reconstructions, or None without scikit-image."""
    try:
        from skimage import data
    except ImportError:
        return None
    cells = []
    for name in PHOTOGRAPHS:
        pair, metrics = _pair(pipeline, Image.fromarray(getattr(data, name)()), seed, 300)
        cells.append(sheets.below([pair, metrics], gap=4))
    note = "Photographs from scikit-image at their own sizes. uniwetok-emoji was not trained on these."
    return sheets.section("Any size", note, sheets.below(cells, gap=2 * sheets.GAP))


def _pair(pipeline, picture: Image.Image, seed: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Original and reconstruction side by side, and the line of metrics below them."""
    (result,) = reconstruct(pipeline.mllm.vision_model, [picture], seed)
    pair = sheets.beside([sheets.framed(image, height) for image in (result.original, result.result)], gap=4)
    metrics = f"{result.num_bytes} bytes, {quality(result)}"
    return pair, sheets.text_block(metrics, 13, pair.width, sheets.GREY, 1)


def text_to_image(pipeline, seed: int) -> Image.Image:
    """One row per prompt, one column per seed, and a row of unseen concepts, one of each."""
    size, num_seeds = pipeline.config.default_size, len(UNSEEN_PROMPTS)
    prompts = [prompt for prompt in PROMPTS for _ in range(num_seeds)] + list(UNSEEN_PROMPTS)
    seeds = [seed + i for _ in PROMPTS for i in range(num_seeds)] + [seed] * num_seeds
    pictures = generate_pictures(pipeline, prompts, seeds, height=size, width=size)
    tiles = [sheets.framed(picture, TILE) for picture in pictures]
    for place, prompt in enumerate(UNSEEN_PROMPTS, start=len(PROMPTS) * num_seeds):
        words = sheets.text_block(prompt, 12, tiles[place].width, sheets.GREY, 2)
        tiles[place] = sheets.below([tiles[place], words], gap=3)
    labels = [*PROMPTS, "concepts that training left out, one of each:"]
    rows = []
    for index, label in enumerate(labels):
        row = tiles[index * num_seeds : (index + 1) * num_seeds]
        rows.append(sheets.beside([sheets.text_block(label, 15, 150, max_lines=4), *row], middle=True))
    note = (
        f"Left the prompt, right the generations with seeds {seed} to {seed + num_seeds - 1}. The training of "
        "uniwetok-emoji had all of these; it did not learn the rocket. docs/embedded-model.md has two hundred that "
        "nobody picked."
    )
    return sheets.section("Text to image", note, sheets.below(rows))


def edits(pipeline, seed: int) -> Image.Image:
    """Source, instruction, result."""
    shipped = {picture.name: picture.image for picture in shipped_pictures()}
    prompts = [source for source, _ in EDITS if source not in shipped]
    size = pipeline.config.default_size
    pictures = generate_pictures(pipeline, prompts, [seed] * len(prompts), height=size, width=size)
    generated = dict(zip(prompts, pictures, strict=True))
    sources = [shipped[source] if source in shipped else generated[source] for source, _ in EDITS]
    instructions = [instruction for _, instruction in EDITS]
    edit_pipeline = as_edit_pipeline(pipeline)
    images = edit_pipeline.encode_image(sources)
    height, width = images[0].pixel_size
    results = generate_pictures(edit_pipeline, instructions, [seed] * len(EDITS), height, width, images=images)
    rows = []
    for source, instruction, result in zip(sources, instructions, results, strict=True):
        words = sheets.text_block(instruction, 15, 130, max_lines=4)
        rows.append(sheets.beside([sheets.framed(source, TILE), words, sheets.framed(result, TILE)], middle=True))
    note = (
        f"Source, instruction, result. The first {len(generated)} sources are generated; the training set has "
        "the concepts of the next two in other skin tones, and not those of the last two."
    )
    return sheets.section("Editing", note, sheets.grid(rows, 2, gap=2 * sheets.MARGIN))


def captions(pipeline, seed: int) -> Image.Image:
    """Pictures with the model's answers below them. Decoding is greedy, so `seed` has no effect."""
    pictures = sorted(shipped_pictures(), key=lambda picture: not picture.is_known)
    images = pipeline.encode_image([picture.image for picture in pictures])
    whats, styles = (
        answer_question(pipeline.mllm, pipeline.processor, images, question, 24) for question in QUESTIONS
    )
    cells = []
    for picture, what, style in zip(pictures, whats, styles, strict=True):
        lines = [
            sheets.text_block(f"{what} ({style})", 14, TILE, max_lines=3, num_lines=3),
            sheets.text_block(f"is: {picture.label} ({picture.style})", 12, TILE, sheets.GREY, 2, 2),
        ]
        cells.append(sheets.below([sheets.framed(picture.image, TILE), sheets.below(lines, gap=2)], gap=6))
    note = (
        'Answers to "what is this?" ("which style is this?"); in grey the right ones. Of the first two rows the '
        "training set has the concepts, but not in this style and skin tone; those of the others it does not have."
    )
    return sheets.section("Description", note, sheets.grid(cells, 7))


# What the demo shows, in this order: the name of the file, and what makes the section.
SECTIONS = {
    "reconstructions": reconstructions,
    "photographs": photographs,
    "text_to_image": text_to_image,
    "edits": edits,
    "captions": captions,
}
