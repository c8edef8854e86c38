"""Reading any picture file as 8-bit RGB, and saving pictures safely. Needs Pillow and numpy only.

- 16-bit and float pictures are scaled to 8 bits; Pillow's own conversion of them differs between its versions.
- Transparency is composited on white.
- The EXIF orientation is applied; of an animation the first frame is read.
- Colour profiles are not applied: numbers in the file are numbers in the model, as in most training sets.
- Whatever is wrong with a file ends in one `ImageReadError` that names the file.
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError


class ImageReadError(ValueError):
    """A picture could not be read. The message is one line: which picture, and what is wrong with it."""


def read_image(source: str | os.PathLike | bytes | BinaryIO | Image.Image) -> Image.Image:
    """
    Read a picture of any kind as 8-bit RGB.

    Args:
        source: A path, the bytes of a file, an object with `read()`, or a PIL image (never modified; of an animation
            the frame it stands at is taken).

    Returns:
        A new PIL image of mode "RGB" without metadata, upright, transparency on white. 16-bit values keep their high
        byte; float values are taken as [0, 1] when none exceeds 1, as [0, 255] otherwise.

    Raises:
        ImageReadError: The source is missing, a folder, empty, truncated, no picture, too large to open safely (more
            than twice `PIL.Image.MAX_IMAGE_PIXELS`), or holds values outside the ranges above.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
    elif isinstance(source, bytes | bytearray | Image.Image):
        name = f"the given {'image' if isinstance(source, Image.Image) else 'bytes'}"
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "the given stream"))
    else:
        raise ImageReadError(
            f"source must be a path, bytes, a binary stream or a PIL image, got {type(source).__name__}"
        )

    try:
        image = _open(source)
        return _to_rgb(ImageOps.exif_transpose(image), source=image)
    except ImageReadError as error:
        raise ImageReadError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageReadError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageReadError(f"{name}: is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise ImageReadError(f"{name}: not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"{name}: too many pixels to open safely ({_one_line(error)})") from error
    except MemoryError as error:
        raise ImageReadError(f"{name}: not enough memory to decode it") from error
    except Exception as error:
        # On damaged bytes the decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
        if isinstance(error, OSError) and error.strerror:
            raise ImageReadError(f"{name}: {error.strerror}") from error
        raise ImageReadError(f"{name}: damaged or truncated picture ({_one_line(error)})") from error


def save_image(image: Image.Image, path: str | os.PathLike) -> Path:
    """
    Save a PIL image in the format that the suffix of `path` names, creating missing parent folders.

    The file is written under a temporary name beside `path` and then renamed, so a reader never sees half a file.
    JPEG and WebP are lossy here (quality 95); PNG is the right choice where pixels matter.

    Raises:
        ValueError: The suffix is not one of a format that Pillow can write, `path` is a folder, or the format cannot
            hold the image's mode (JPEG and transparency).
    """
    path = Path(path)
    image_format = Image.registered_extensions().get(path.suffix.lower())
    if image_format not in Image.SAVE:
        raise ValueError(
            f"path: cannot tell a picture format from the suffix {path.suffix!r} of {path}; use .png, .jpg or .webp"
        )
    if path.is_dir():
        raise ValueError(f"path: {path} is a folder")

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
        try:
            image.save(temporary, format=image_format, **options)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(
                f"image: mode {image.mode} cannot be saved as {image_format} ({_one_line(error)})"
            ) from error
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _open(source: str | os.PathLike | bytes | BinaryIO | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str | os.PathLike):
        source = Path(source).read_bytes()
    content = source if isinstance(source, bytes | bytearray) else source.read()
    if not content:
        raise ImageReadError("the file is empty")
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def _to_rgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Upright `image` -> 8-bit RGB; `source` is the same picture as opened, which still has its format and tags."""
    if image.width == 0 or image.height == 0:
        raise ImageReadError("the picture has no pixels")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(_integers_to_uint8(image, source), image)
    if image.mode == "F":
        return _grey_to_rgb(_floats_to_uint8(image), image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(image, mask=image.getchannel("A"))
        return on_white
    image = image.convert("RGB")
    image.info = {}  # a stale transparency or colour profile entry would be written again by the next save
    return image


def _integers_to_uint8(image: Image.Image, source: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits -> uint8 [H, W]: the high byte, as Pillow itself keeps of 16-bit RGB."""
    values = np.asarray(image).astype(np.int64)
    bits, white_is_zero = 16, False
    if source.format == "TIFF":
        # Pillow unpacks 12-bit samples without scaling, and does not invert deep "white is zero" pictures.
        bits = min(source.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0], 16)
        white_is_zero = source.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    low, high = values.min(), values.max()
    if low < 0 or high >= 2**bits:
        raise ImageReadError(f"grey values from {low} to {high}; integers must lie in 0..{2**bits - 1}")
    values = (values >> (bits - 8)).astype(np.uint8)
    return 255 - values if white_is_zero else values


def _floats_to_uint8(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN fails this test too
        raise ImageReadError(f"float values from {low:g} to {high:g}; they must lie in [0, 1] or in [0, 255]")
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)


def _grey_to_rgb(values: np.ndarray, image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if transparent is not None:  # PNG names one 16-bit grey value as transparent
        values = np.where(np.asarray(image) == transparent, np.uint8(255), values)
    return Image.fromarray(values).convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
