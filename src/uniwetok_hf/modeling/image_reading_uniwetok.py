# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The one way of a picture into this package: whatever it is, it comes out as 8-bit RGB.

- Upright: the EXIF orientation is applied. Of an animation the first frame is read.
- Transparency is composited on white. A transparent colour is compared in the depth that the file has.
- 16-bit and float pictures are scaled to 8 bits; Pillow's own conversion of them differs between its versions.
- An embedded colour profile is converted to sRGB, as browsers do. Without one, with one that can't be read or does not
  fit the picture, and where Pillow was built without LittleCMS, the numbers in the file are taken as they are.
- Other metadata is not looked at, and never costs a picture.
- Whatever is wrong with a file ends in one `ImageReadError` that names the file.

This file travels to the Hub as remote code: it imports nothing of this package but its siblings.
"""

import base64
import http.client
import io
import os
import struct
import urllib.request
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # chunks that the pixels of a first frame depend on
PNG_GREY, PNG_RGB = 0, 2  # colour types
UPRIGHT = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageReadError(ValueError):
    """A picture could not be read. The message is one line: which picture, and what is wrong with it."""


def read_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image,
    max_pixels: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """
    Read a picture of any kind as 8-bit RGB.

    Args:
        source: A path, the bytes of a file, an object with `read()`, or a PIL image (its pixels and metadata stay as
            they are; of an animation the frame it stands at is taken). Pillow forgets the depth of a PNG when it loads
            the pixels: an image that was loaded before has its transparent colour compared in 8 bits.
        max_pixels: Of a file, the most pixels that are decoded.
        formats: Of a file, the formats that are tried, as Pillow names them; by default all that it knows.

    Returns:
        A new PIL image of mode "RGB" without metadata: upright, in sRGB, transparency on white. 16-bit values keep
        their high byte; float values are taken as [0, 1] when none exceeds 1, as [0, 255] otherwise.

    Raises:
        ImageReadError: The source is missing, a folder, empty, truncated, no picture, too large to open safely (more
            than twice `PIL.Image.MAX_IMAGE_PIXELS`) or for `max_pixels`, or holds values outside the ranges above.
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
        image = _open_image(source, max_pixels, formats)
        return _to_rgb(_upright(image), source=image)
    except ImageReadError as error:
        raise ImageReadError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageReadError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageReadError(f"{name}: is a folder, not a picture") from None
    except UnidentifiedImageError:
        known = "not a picture that Pillow can read" if formats is None else f"it must be one of {', '.join(formats)}"
        raise ImageReadError(f"{name}: {known}") from None
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"{name}: too many pixels to open safely ({image_error_line(error)})") from error
    except MemoryError as error:
        raise ImageReadError(f"{name}: not enough memory to decode it") from error
    except Exception as error:
        # On damaged bytes the decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
        if isinstance(error, OSError) and error.strerror:
            raise ImageReadError(f"{name}: {error.strerror}") from error
        raise ImageReadError(f"{name}: damaged or truncated picture ({image_error_line(error)})") from error


def read_image_address(address: str) -> Image.Image:
    """
    [`read_image`] of what transformers takes as the text that names a picture: a path, an http(s) address, or a
    picture in base64, with or without `data:image/...;base64,` before it.

    Raises:
        ImageReadError: as [`read_image`] does, when the address can't be fetched, or the text is none of these.
    """
    if address.startswith(("http://", "https://")):
        request = urllib.request.Request(address, headers={"User-Agent": "uniwetok-hf"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ImageReadError(f"{address}: {image_error_line(error)}") from error
        stream = io.BytesIO(content)
        stream.name = address
        return read_image(stream)
    if os.path.exists(address):
        return read_image(address)
    try:
        encoded = address.split(",", 1)[1] if address.startswith("data:image/") else address
        content = base64.b64decode(encoded, validate=True)
    except (ValueError, IndexError):
        content = b""
    if not content or (len(address) < 256 and os.path.splitext(address)[1]):
        raise ImageReadError(f"{address[:200]}: no such file, and no address or base64 of a picture")
    return read_image(content)


def image_error_line(error: Exception) -> str:
    """The message of an exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _open_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image, max_pixels: int | None, formats: tuple[str, ...] | None
) -> Image.Image:
    """The picture with its pixels loaded."""
    if isinstance(source, Image.Image):
        content = _unread_png(source)
        if content is None:
            source.load()
            return source
    elif isinstance(source, str | os.PathLike):
        content = Path(source).read_bytes()
    else:
        content = source if isinstance(source, bytes | bytearray) else source.read()
    if not content:
        raise ImageReadError("the file is empty")
    try:
        return _decode(content, max_pixels, formats)
    except (MemoryError, Image.DecompressionBombError, ImageReadError):
        raise
    except Exception as error:
        # Pillow refuses a PNG whose metadata is damaged or larger than it likes: without it once more.
        for kept in (PNG_PIXELS | {b"eXIf", b"iCCP"}, PNG_PIXELS) if content[:8] == PNG_SIGNATURE else ():
            try:
                return _decode(_png_with(content, kept), max_pixels, formats)
            except ImageReadError:
                raise
            except Exception:
                continue
        raise error


def _unread_png(image: Image.Image) -> bytes | None:
    """The file of a PNG that was opened and not loaded yet: it knows the depth, which the loaded image does not."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or not getattr(image, "tile", None) or getattr(image, "is_animated", False) or not file:
        return None
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _decode(content: bytes | bytearray, max_pixels: int | None, formats: tuple[str, ...] | None) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=formats)
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ImageReadError(f"{image.width} x {image.height} pixels; at most {max_pixels // 10**6} million are read")
    image.load()
    key = image.info.get("transparency")
    if content[:8] != PNG_SIGNATURE or content[12:16] != b"IHDR" or key is None:
        return image
    bits, colour_type = content[24], content[25]
    most = 2**bits - 1
    if colour_type == PNG_GREY and bits in (2, 4, 8):  # pixels were scaled to 8 bits, the transparent one was not
        image.info["transparency"] = (key & most) * 255 // most
    elif colour_type == PNG_RGB and bits == 8:
        image.info["transparency"] = tuple(value & most for value in key)
    elif colour_type == PNG_RGB and bits == 16:
        low = Image.open(io.BytesIO(content))
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # the other byte order: the low bytes
        low.load()
        values = 256 * np.asarray(image, np.uint16) + np.asarray(low, np.uint16)  # [H, W, 3]
        is_opaque = (values != np.array(key, np.uint16)).any(-1)
        del image.info["transparency"]
        image.putalpha(Image.fromarray(is_opaque.astype(np.uint8) * np.uint8(255)))
    return image


def _png_with(content: bytes | bytearray, kept: set[bytes]) -> bytes:
    """A PNG with the chunks `kept` alone."""
    parts, place = [PNG_SIGNATURE], 8
    while place + 8 <= len(content):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        if name in kept:
            parts.append(bytes(content[place : place + 12 + length]))
        place += 12 + length
    return b"".join(parts)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of damaged EXIF Pillow raises nearly anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Upright `image` -> 8-bit RGB; `source` is the same picture as opened, which still has its format and tags."""
    if image.width == 0 or image.height == 0:
        raise ImageReadError("the picture has no pixels")
    profile, key, alpha = image.info.get("icc_profile"), image.info.get("transparency"), None
    if image.mode == "I" or image.mode.startswith("I;16"):
        if key is not None:  # PNG names one 16-bit grey value as transparent
            alpha = Image.fromarray(np.where(np.asarray(image) == key, np.uint8(0), np.uint8(255)))
        image = Image.fromarray(_integers_to_uint8(image, source))
    elif image.mode == "F":
        image = Image.fromarray(_floats_to_uint8(image))
    elif image.has_transparency_data:
        if (
            image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255
        ):  # of 16 bits, in an image that was loaded before
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    image = _to_srgb(image, profile)
    if alpha is not None:
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(image, mask=alpha)
        image = on_white
    image.info = {}  # a stale transparency or colour profile entry would be written again by the next save
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """8-bit `image` without alpha -> RGB. What is marked as sRGB already is not touched."""
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    try:
        source = None
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source and not (source.profile.profile_description or "").startswith("sRGB"):
            converted = ImageCms.profileToProfile(
                image,
                source,
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            image = image if converted is None else converted
    except (
        ImageCms.PyCMSError,
        ImportError,
        OSError,
        TypeError,
        ValueError,
    ):  # unreadable, or of another colour space
        pass
    return image.convert("RGB")


def _integers_to_uint8(image: Image.Image, source: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits -> uint8 [H, W]: the high byte, as Pillow itself keeps of 16-bit RGB."""
    values = np.asarray(image)
    bits, white_is_zero = 16, False
    if isinstance(source, TiffImagePlugin.TiffImageFile):
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


__all__ = ["ImageReadError", "read_image", "read_image_address"]
