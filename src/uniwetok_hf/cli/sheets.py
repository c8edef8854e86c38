"""Pages of labelled pictures, made with Pillow: the files of the demo."""

import functools
import textwrap
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


INK, GREY, PALE = "#1c1c22", "#6b6b76", "#e3e3e8"
MARGIN, GAP = 24, 12


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def printable(text: str) -> str:
    """`text` in the characters that Pillow's font has: without accents and curly quotes, with "?" for the rest."""
    plain = text.translate({ord("’"): "'", ord("‘"): "'", ord("“"): '"', ord("”"): '"', ord("→"): ">"})
    decomposed = unicodedata.normalize("NFKD", plain)
    kept = [letter for letter in decomposed if not unicodedata.combining(letter)]
    return "".join(letter if " " <= letter <= "~" else "?" for letter in kept)


def text_block(
    text: str,
    size: int = 14,
    width: int | None = None,
    colour: str = INK,
    max_lines: int = 3,
    num_lines: int | None = None,
) -> Image.Image:
    """`text` on white, wrapped to `width` pixels and cut after `max_lines`; `num_lines` high when given, so that
    neighbours align."""
    font = _font(size)
    lines = [printable(text)] if width is None else _wrap(printable(text), font, width, max_lines)
    line_height = round(1.3 * size)
    used = width or max(1, *(round(font.getlength(line)) + 1 for line in lines))
    block = Image.new("RGB", (used, line_height * (num_lines or len(lines))), "white")
    pen = ImageDraw.Draw(block)
    for index, line in enumerate(lines):
        pen.text((0, index * line_height), line, font=font, fill=colour)
    return block


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    lines = [""]
    for word in text.split():
        # A word wider than the block is split.
        letters = max(1, int(width / max(font.getlength("m"), 1)))
        parts = [word] if font.getlength(word) <= width else textwrap.wrap(word, letters)
        for part in parts:
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "..."]
    return lines


def beside(parts: Sequence[Image.Image], gap: int = GAP, middle: bool = False) -> Image.Image:
    """Pictures in a row, aligned at the top or in the middle."""
    height = max(part.height for part in parts)
    row = Image.new("RGB", (sum(part.width for part in parts) + gap * (len(parts) - 1), height), "white")
    left = 0
    for part in parts:
        row.paste(part, (left, (height - part.height) // 2 if middle else 0))
        left += part.width + gap
    return row


def below(parts: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures in a column, aligned at the left."""
    width = max(part.width for part in parts)
    column = Image.new("RGB", (width, sum(part.height for part in parts) + gap * (len(parts) - 1)), "white")
    top = 0
    for part in parts:
        column.paste(part, (0, top))
        top += part.height + gap
    return column


def grid(cells: Sequence[Image.Image], columns: int, gap: int = 2 * GAP) -> Image.Image:
    """Cells row by row."""
    rows = [beside(cells[start : start + columns], gap) for start in range(0, len(cells), columns)]
    return below(rows, gap)


def framed(picture: Image.Image, height: int | None = None) -> Image.Image:
    """A picture with a pale line around it, since most emoji are white at the edge; scaled to `height` when given."""
    if height is not None and picture.height != height:
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (picture.width + 2, picture.height + 2), PALE)
    frame.paste(picture, (1, 1))
    return frame


def section(title: str, note: str, body: Image.Image) -> Image.Image:
    """A heading, a line of explanation, and the body; without margins."""
    width = max(body.width, 420)
    return below([text_block(title, 24, width), text_block(note, 14, width, GREY), body])


def page(parts: Sequence[Image.Image]) -> Image.Image:
    """Sections one below the other, on white with margins."""
    body = below(parts, gap=2 * MARGIN)
    ground = Image.new("RGB", (body.width + 2 * MARGIN, body.height + 2 * MARGIN), "white")
    ground.paste(body, (MARGIN, MARGIN))
    return ground


def columns(parts: Sequence[Image.Image], count: int = 2) -> Image.Image:
    """Sections in columns of about the same height: each is added to the shortest column."""
    stacks: list[list[Image.Image]] = [[] for _ in range(min(count, len(parts)))]
    for part in parts:
        min(stacks, key=lambda stack: sum(member.height for member in stack)).append(part)
    return beside([below(stack, gap=2 * MARGIN) for stack in stacks], gap=2 * MARGIN)
