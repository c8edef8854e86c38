"""Converts published checkpoints to folders that `from_pretrained` loads."""

from .convert import convert_checkpoint
from .sources import ConversionError


__all__ = ["ConversionError", "convert_checkpoint"]
