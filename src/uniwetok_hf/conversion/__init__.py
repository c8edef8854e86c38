"""Converts published checkpoints to folders that `from_pretrained` loads."""

from .converter import convert_checkpoint
from .tensors import ConversionError


__all__ = ["ConversionError", "convert_checkpoint"]
