"""Sheets of labelled pictures."""

import numpy as np
import pytest
from PIL import Image

from uniwetok_hf.cli import sheets


def ink(picture):
    """Where something is drawn, [H, W]."""
    return (np.asarray(picture) < 255).any(-1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("man’s shoe", "man's shoe"), ("café “naïve”", 'cafe "naive"'), ("日本 ok", "?? ok"), ("a\tb", "a?b")],
)
def test_printable(text, expected):
    assert sheets.printable(text) == expected


def test_text_stays_inside_its_block():
    for text in ("short", "several words that need more than one line", "x" * 200, ""):
        block = sheets.text_block(text, 14, 100, max_lines=3)
        assert block.width == 100
        assert block.height in (18, 36, 54)
        assert not ink(block)[:, -1].any()
    assert sheets.text_block("long " * 50, 14, 100, max_lines=3).height == 54
    assert sheets.text_block("short", 14, 100, num_lines=2).height == 36
    assert ink(sheets.text_block("short")).any()


def test_long_text_is_cut_with_dots():
    cut = sheets.text_block("one two three", 14, 60, max_lines=1)
    assert cut.tobytes() == sheets.text_block("one tw...", 14, 60).tobytes()
    assert sheets.text_block("one two three", 14, 60, max_lines=5).height == 36


def test_pictures_are_laid_out_whole():
    red, blue = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 8), "blue")
    row = np.asarray(sheets.beside([red, blue], gap=5))
    assert row.shape == (20, 45, 3)
    assert (row[:, :10] == (255, 0, 0)).all() and (row[:8, 15:] == (0, 0, 255)).all() and (row[8:, 10:] == 255).all()
    middle = np.asarray(sheets.beside([red, blue], gap=5, middle=True))
    assert (middle[6:14, 15:] == (0, 0, 255)).all()
    column = np.asarray(sheets.below([red, blue], gap=5))
    assert column.shape == (33, 30, 3)
    assert (column[:20, :10] == (255, 0, 0)).all() and (column[25:] == (0, 0, 255)).all()
    assert sheets.grid([red] * 5, 2, gap=5).size == (25, 70)


def test_framed_scales_and_lines():
    framed = np.asarray(sheets.framed(Image.new("RGB", (10, 20), "red"), height=40))
    assert framed.shape == (42, 22, 3)
    assert (framed[1:-1, 1:-1] == (255, 0, 0)).all()
    assert (framed[0] == framed[-1]).all() and (framed[0] != 255).all()


def test_pages_have_margins_and_columns_balance():
    tall, low = Image.new("RGB", (10, 100), "red"), Image.new("RGB", (20, 10), "blue")
    page = ink(sheets.page([tall, low]))
    assert page.shape == (100 + 10 + 4 * sheets.MARGIN, 20 + 2 * sheets.MARGIN)
    assert not page[: sheets.MARGIN].any() and not page[:, -sheets.MARGIN :].any()
    columns = np.asarray(sheets.columns([tall, low, low]))
    assert columns.shape == (100, 10 + 2 * sheets.MARGIN + 20, 3)
    assert (columns[:, :10] == (255, 0, 0)).all()
    assert sheets.columns([low]).size == low.size


def test_section_has_heading_note_and_body():
    body = Image.new("RGB", (500, 50), "red")
    section = sheets.section("Title", "What it is", body)
    assert section.width == 500
    assert (np.asarray(section)[-50:] == (255, 0, 0)).all()
    assert ink(section)[:-50].any()
