"""Any picture comes in as the same upright RGB pixels through each door, or as one clear error, in little memory."""

import base64
import io
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_png, flip_bit
from nasty_pictures import chunk, noise, pictures, png, stored, turned
from PIL import Image

from uniwetok_hf import UniWeTokImageProcessor
from uniwetok_hf.data.images import ImageReadError, read_image
from uniwetok_hf.data.sources import read_cell
from uniwetok_hf.modeling.image_processing_uniwetok import to_uint8
from uniwetok_hf.modeling.image_reading_uniwetok import PNG_SIGNATURE, read_image_address
from uniwetok_hf.web_app import read_upload


pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's of damaged metadata
PROCESSOR = UniWeTokImageProcessor(stride=1)
TURNS = {  # EXIF orientation -> what shows [H, W, ...] upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] over white, rounded."""
    alpha = alpha[..., None].astype(np.float64) / 255
    return np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None].astype(np.uint8), 3, -1)


def grey_png(bits: int, values: np.ndarray, key: int | None, extra: bytes) -> tuple[bytes, np.ndarray]:
    """A grey PNG of 1 to 16 bits, whose value `key` is transparent."""
    width = values.shape[1]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        places = np.unpackbits(values.astype(np.uint8)[..., None], -1)[..., 8 - bits :]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in places]
    seen = grey(values >> 8 if bits == 16 else values * 255 // (2**bits - 1))
    if key is not None:
        seen[values == key] = 255
    transparent = b"" if key is None else key.to_bytes(2, "big")
    return png(rows, width, bits, 0, transparent, before=extra), seen


def rgb_png(bits: int, values: np.ndarray, has_key: bool, extra: bytes) -> tuple[bytes, np.ndarray]:
    """A PNG of 8 or 16 bits a colour; the first pixel's colour may be the transparent one."""
    rows = [row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in values]
    seen = (values >> 8 if bits == 16 else values).astype(np.uint8)
    if has_key:
        seen[(values == values[0, 0]).all(-1)] = 255
    transparent = values[0, 0].astype(">u2").tobytes() if has_key else b""
    return png(rows, values.shape[1], bits, 2, transparent, before=extra), seen


@st.composite
def any_pictures(draw) -> tuple[bytes, np.ndarray]:
    """A file, and the RGB pixels that it shows."""
    shape = draw(st.integers(1, 19)), draw(st.integers(1, 19))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    turn = draw(st.sampled_from([None, 1, 9, *TURNS]))
    kind = draw(st.sampled_from(["grey", "colours", "alpha", "grey and alpha", "palette", "floats", "deep TIFF"]))
    exif = {} if turn is None else {"exif": turned(turn)}
    if kind in ("grey", "colours"):
        extra = chunk(b"eXIf", turned(turn).tobytes().removeprefix(b"Exif\0\0")) if turn else b""
        bits = draw(st.sampled_from([1, 2, 4, 8, 16] if kind == "grey" else [8, 16]))
        values = chance.integers(0, 2**bits, shape if kind == "grey" else (*shape, 3), dtype=np.int64)
        has_key = draw(st.booleans())
        if kind == "grey":
            content, seen = grey_png(bits, values, int(values[0, 0]) if has_key else None, extra)
        else:
            content, seen = rgb_png(bits, values, has_key, extra)
    elif kind in ("alpha", "grey and alpha"):
        values = chance.integers(0, 256, (*shape, 4 if kind == "alpha" else 2), dtype=np.uint8)
        content = stored(Image.fromarray(values, "RGBA" if kind == "alpha" else "LA"), **exif)
        rgb = values[..., :3] if kind == "alpha" else grey(values[..., 0])
        seen = on_white(rgb, values[..., -1])
    elif kind == "palette":
        colours, places = chance.integers(0, 256, (256, 3), dtype=np.uint8), chance.integers(0, 256, shape)
        image = Image.fromarray(places.astype(np.uint8), "P")
        image.putpalette(colours.tobytes())
        content, seen = stored(image, draw(st.sampled_from(["PNG", "TIFF"])), **exif), colours[places]
    elif kind == "floats":
        values = chance.uniform(0, draw(st.sampled_from([1.0, 255.0])), shape).astype(np.float32)
        content = stored(Image.fromarray(values), "TIFF", **exif)
        seen = grey(np.rint(values * 255 if values.max() <= 1 else values))
    else:
        values = chance.integers(0, 2**16, shape, dtype=np.uint16)
        content, seen = stored(Image.fromarray(values), "TIFF", **exif), grey(values >> 8)
    return content, TURNS.get(turn, lambda pixels: pixels)(seen)


def as_seen(pixel_values) -> np.ndarray:
    return to_uint8(pixel_values[0]).permute(1, 2, 0).numpy()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


# Each takes the file's content and its path, and returns uint8 [H, W, 3].
DOORS = {
    "bytes": lambda content, path: np.asarray(read_image(content)),
    "path": lambda content, path: np.asarray(read_image(path)),
    "stream": lambda content, path: np.asarray(read_image(io.BytesIO(content))),
    "base64": lambda content, path: np.asarray(read_image_address(base64.b64encode(content).decode())),
    "row of a dataset": lambda content, path: np.asarray(read_cell({"bytes": content, "path": None}, "row 1")),
    "upload": lambda content, path: np.asarray(read_upload(str(path))),
    "processor, path": lambda content, path: as_seen(PROCESSOR(str(path))["pixel_values"]),
    "processor, bytes": lambda content, path: as_seen(PROCESSOR(content)["pixel_values"]),
}


def check_same_through_each_door(example, folder):
    content, seen = example
    path = folder / "picture"
    path.write_bytes(content)
    doors = DOORS | {
        "PIL": lambda content, path: np.asarray(read_image(opened(content))),
        "processor, PIL": lambda content, path: as_seen(PROCESSOR(opened(content))["pixel_values"]),
    }
    for name, door in doors.items():
        found = door(content, path)
        assert found.dtype == np.uint8 and found.shape == seen.shape, name
        assert np.abs(found.astype(int) - seen).max() <= 1, name  # Pillow rounds alpha and grey in its own way


@given(any_pictures())
def test_the_pixels_are_those_that_the_file_shows(tmp_path_factory, example):
    check_same_through_each_door(example, tmp_path_factory.mktemp("picture"))


@pytest.mark.slow
@settings(max_examples=1000)
@given(any_pictures())
def test_the_pixels_are_those_that_many_files_show(tmp_path_factory, example):
    check_same_through_each_door(example, tmp_path_factory.mktemp("picture"))


FILES = {name: content for name, content in pictures().items() if "long text" not in name}
COLOURS = Image.fromarray(noise())
FILES |= {kind: stored(COLOURS, kind) for kind in ("BMP", "JPEG", "WEBP", "GIF", "TIFF", "PPM", "TGA", "ICO")}


def outcome(door, content: bytes, path) -> tuple | str:
    """What comes out of a door: shape and pixels, or the reason of a clear error."""
    try:
        found = door(content, path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return re.sub(r"^.*?: ", "", str(error))
    assert found.ndim == 3 and found.shape[2] == 3 and found.size
    return found.shape, found.tobytes()


def check_damaged(content: bytes, folder) -> None:
    path = folder / "damaged.jpg"  # whatever it is
    path.write_bytes(content)
    found = {name: outcome(door, content, path) for name, door in DOORS.items()}
    if isinstance(found["upload"], str) and "it must be one of PNG" in found["upload"]:  # the page takes fewer formats
        del found["upload"]
    kinds = {name: type(one) for name, one in found.items()}
    if content:  # an empty text is no picture in base64
        assert len(set(kinds.values())) == 1, kinds
        assert len({one for one in found.values() if isinstance(one, tuple)}) <= 1
    try:
        read_image(path)
    except ImageReadError as error:
        assert str(error).startswith(f"{path}: ")


@given(st.sampled_from(sorted(FILES)), st.lists(st.floats(0, 1, exclude_max=True), max_size=4), st.floats(0, 1))
def test_a_damaged_picture_is_one_clear_error_or_the_same_picture(tmp_path_factory, name, flips, kept):
    content = FILES[name]
    for place in flips:
        content = flip_bit(content, int(place * 8 * len(content)))
    if kept < 0.5:
        content = content[: int(2 * kept * len(content))]
    check_damaged(content, tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("name", ["colours", "GIF", "JPEG", "TIFF"])
def test_mutated_files(tmp_path, name):
    content = stored(COLOURS) if name == "colours" else FILES[name]
    cases = damaged_bytes(content) | (damaged_png(content) if name == "colours" else {})
    for changed in cases.values():
        check_damaged(changed, tmp_path)


@settings(max_examples=15)
@given(
    st.integers(1, 3), st.integers(1, 20_000), st.booleans(), st.sampled_from(["crop", "pad", "resize"]), st.booleans()
)
def test_memory_is_bounded_by_what_goes_in_and_comes_out(short, long, lies, fit, exact):
    """Of Pillow: it counts the blocks that it allocates."""
    height, width = (short, long) if lies else (long, short)
    size = {"height": 64, "width": 64} if exact else {"longest_edge": 64}
    if fit == "crop" and not exact:
        size = None
        height, width = max(height, 32), max(width, 32)
    picture = Image.new("RGB", (width, height), "red")
    block, before = 2**16, Image.core.get_block_size()
    Image.core.set_block_size(block)
    Image.core.clear_cache()
    try:
        Image.core.reset_stats()
        found = UniWeTokImageProcessor(size=size, fit=fit)(picture)["pixel_values"]
        used = block * Image.core.get_stats()["allocated_blocks"]
    finally:
        Image.core.set_block_size(before)
    assert used <= 40 * 4 * (height * width + found[0, 0].numel()) + 40 * block


def test_too_many_pixels():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    with pytest.raises(ImageReadError, match="too many pixels to open safely"):
        read_image(content)
