"""Measures of how well pictures come back."""

from .metrics import psnr, ssim


__all__ = ["psnr", "ssim"]
