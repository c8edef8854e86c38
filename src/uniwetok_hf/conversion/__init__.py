"""Converts published checkpoints to folders that `from_pretrained` loads."""

from .converter import convert_checkpoint
from .inception import convert_inception
from .lpips import convert_lpips
from .tensors import ConversionError


__all__ = ["ConversionError", "convert_checkpoint", "convert_inception", "convert_lpips"]
