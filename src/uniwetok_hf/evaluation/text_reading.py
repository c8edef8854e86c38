# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Reads the words in pictures by RapidOCR, whose models come inside its package: what is left of text in a
reconstruction."""

import os
from importlib.metadata import version

import numpy as np
from PIL import Image


class TextReader:
    """
    RapidOCR with its default models. onnxruntime, which computes them, is told to keep no records of its use.

    Raises:
        ImportError: when it is not installed.
    """

    def __init__(self):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else a data base in the user's cache
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError(f'Reading text needs rapidocr: pip install "uniwetok-hf[ocr]" ({error})') from error
        self._read = RapidOCR(params={"Global.log_level": "error"})

    def __call__(self, picture: Image.Image) -> str:
        """The text in an RGB picture, line by line; "" without one."""
        found = self._read(np.asarray(picture)[..., ::-1])  # BGR, as OpenCV has it
        return " ".join(found.txts or ())

    def describe(self) -> str:
        """Name and version."""
        return f"RapidOCR {version('rapidocr')}"
