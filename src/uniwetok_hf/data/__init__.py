"""Reading pictures and building datasets."""

from .images import ImageReadError, read_image


__all__ = ["ImageReadError", "read_image"]
