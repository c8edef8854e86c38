# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Reading pictures, as `modeling.image_reading_uniwetok` does for all of the package, and saving them safely."""

import io
import os
from pathlib import Path

from PIL import Image

from ..files import whole_file, writing
from ..modeling.image_reading_uniwetok import ImageReadError, image_error_line, read_image


MOST_PIXELS = 50_000_000  # of a picture that somebody else sends, which takes up to a gigabyte to read
# Formats that are read without another program, and whose header says how many pixels there are.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def read_strange_image(source: bytes | str | os.PathLike) -> Image.Image:
    """[`read_image`] of a file that somebody else sent: of one of `FORMATS`, and of at most `MOST_PIXELS`.

    Raises:
        ImageReadError: as [`read_image`] does.
    """
    Image.init()
    return read_image(source, MOST_PIXELS, tuple(name for name in FORMATS if name in Image.OPEN))  # builds differ


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the file of a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_image(image: Image.Image, path: str | os.PathLike) -> Path:
    """
    Save a PIL image in the format that the suffix of `path` names, creating missing parent folders.

    The file is written under a temporary name beside `path` and then renamed, so a reader never sees half a file.
    JPEG and WebP are lossy here (quality 95); PNG is the right choice where pixels matter.

    Raises:
        ValueError: The suffix is not one of a format that Pillow can write, `path` is a folder, or the format cannot
            hold the image's mode (JPEG and transparency).
        OSError: naming `path`, when it can't be written.
    """
    path = Path(path)
    image_format = Image.registered_extensions().get(path.suffix.lower())
    if image_format not in Image.SAVE:
        raise ValueError(
            f"path: cannot tell a picture format from the suffix {path.suffix!r} of {path}; use .png, .jpg or .webp"
        )
    if path.is_dir():
        raise ValueError(f"path: {path} is a folder")

    options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, is_shared=True) as temporary:
        try:
            image.save(temporary, format=image_format, **options)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(
                f"image: mode {image.mode} cannot be saved as {image_format} ({image_error_line(error)})"
            ) from error
    return path


__all__ = ["ImageReadError", "png_bytes", "read_image", "read_strange_image", "save_image"]
