"""Reading pictures and building datasets."""

from .emoji import build_emoji_dataset
from .images import ImageReadError, read_image


__all__ = ["ImageReadError", "build_emoji_dataset", "read_image"]
