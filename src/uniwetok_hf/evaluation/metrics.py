"""PSNR, SSIM and perceptual distance between pictures.

One protocol for all numbers of this package: both pictures are 8-bit RGB of the same size, the measure is taken
over all pixels and channels of one picture, and the value of a set of pictures is the mean of the values of its
pictures (not the PSNR of the mean error). SSIM is scikit-image's, from the `eval` extra; a perceptual distance needs a
network with weights, which results name.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image


Pictures = np.ndarray | Image.Image | Sequence[np.ndarray | Image.Image]


def psnr(images: Pictures, references: Pictures) -> float | np.ndarray:
    """
    Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE), of each picture. Identical pictures give infinity.

    Args:
        images: One picture (PIL image, or uint8 array of shape [H, W, 3] or [H, W]), a uint8 batch [B, H, W, 3], or a
            sequence of pictures whose sizes may differ.
        references: The same number of pictures with the same sizes.

    Returns:
        A float for one picture, else a float64 array of shape [B].

    Raises:
        ValueError: A picture is not uint8, or shapes or numbers of pictures differ.
    """

    def one(image: np.ndarray, reference: np.ndarray) -> float:
        error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
        return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

    return _per_picture(one, images, references)


def ssim(images: Pictures, references: Pictures) -> float | np.ndarray:
    """
    Structural similarity of each picture: scikit-image's `structural_similarity` at its default settings (uniform
    7x7 window, sample covariance), with `data_range=255`, averaged over the channels. Arguments and returns as `psnr`.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: As `psnr`, or a picture has a side of less than 7 pixels.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError('ssim needs scikit-image: pip install "uniwetok-hf[eval]"') from error

    def one(image: np.ndarray, reference: np.ndarray) -> float:
        if min(image.shape[:2]) < 7:
            raise ValueError(f"images: SSIM needs sides of at least 7 pixels, got {image.shape[0]}x{image.shape[1]}")
        channel_axis = -1 if image.ndim == 3 else None
        return float(structural_similarity(image, reference, data_range=255, channel_axis=channel_axis))

    return _per_picture(one, images, references)


def perceptual_distance(images: Pictures, references: Pictures, network) -> float | np.ndarray:
    """
    Distance of each picture to its reference in the features of a network. Arguments and returns as `psnr`.

    Args:
        network: a `PerceptualLoss` (any vision model) or `LPIPS` of `uniwetok_hf.losses.perceptual`.

    Raises:
        ValueError: As `psnr`, or a picture is too small for the network.
    """
    parameter = next(network.parameters())

    @torch.no_grad()
    def one(image: np.ndarray, reference: np.ndarray) -> float:
        pair = []
        for array in (image, reference):
            array = np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array
            values = torch.from_numpy(array.astype(np.float32) / np.float32(127.5) - 1).permute(2, 0, 1)
            pair.append(values[None].to(parameter.device))  # [1, 3, H, W] in [-1, 1]
        return network.distances(*pair).item()

    return _per_picture(one, images, references)


def _per_picture(
    measure: Callable[[np.ndarray, np.ndarray], float], images: Pictures, references: Pictures
) -> float | np.ndarray:
    if _is_one_picture(images) and _is_one_picture(references):
        return measure(*_checked_pair(images, references))
    if _is_one_picture(images) or _is_one_picture(references):
        raise ValueError("images and references must both be one picture or both be several pictures")
    if len(images) != len(references):
        raise ValueError(f"images and references must be equally many, got {len(images)} and {len(references)}")
    pairs = zip(images, references, strict=True)
    return np.array([measure(*_checked_pair(image, reference)) for image, reference in pairs], dtype=np.float64)


def _is_one_picture(pictures: Pictures) -> bool:
    return isinstance(pictures, Image.Image) or (isinstance(pictures, np.ndarray) and pictures.ndim in (2, 3))


def _checked_pair(
    image: np.ndarray | Image.Image, reference: np.ndarray | Image.Image
) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name, picture in (("images", image), ("references", reference)):
        if isinstance(picture, Image.Image) and picture.mode not in ("RGB", "L"):
            raise ValueError(f"{name}: PIL images must have mode RGB or L, got {picture.mode}")
        array = np.asarray(picture)
        if array.dtype != np.uint8:
            raise ValueError(f"{name}: pictures must be uint8 (0..255), got {array.dtype}")
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or array.size == 0:
            raise ValueError(f"{name}: pictures must have shape [H, W, 3] or [H, W], got {list(array.shape)}")
        arrays.append(array)
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(
            f"images and references must have equal shapes, got {list(arrays[0].shape)} and {list(arrays[1].shape)}"
        )
    return arrays[0], arrays[1]
