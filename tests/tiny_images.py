"""Pictures of the tests as arrays."""

import os

import numpy as np
from PIL import Image


def pixels(path: str | os.PathLike) -> np.ndarray:
    """The values of a picture file, uint8 [H, W, 3]."""
    return np.asarray(Image.open(path))
