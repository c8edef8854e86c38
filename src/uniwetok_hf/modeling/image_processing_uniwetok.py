"""Image processor of UniWeTok: pictures of any size -> tensors in [-1, 1] whose sides are multiples of the stride.

- PIL only. transformers prefers torchvision, which this project does not install: it has no CPU build that matches the
  pinned torch, and nothing here needs more than PIL's resampling.
- Three ways to reach the stride grid (`fit`): pad, resize or crop. The processor returns what `postprocess` needs to
  give back the original size.
- Values: x / 127.5 - 1 going in, clamp(127.5 x + 128, 0, 255) truncated coming out, as the published code does. Both
  are fixed by the method, so the usual mean, std and scale options are refused instead of ignored.

This file travels to the Hub as remote code: it imports nothing of this package but its siblings.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_reading_uniwetok import read_image, read_image_address


FITS = ("pad", "resize", "crop")
SIZE_KEYS = ({"height", "width"}, {"longest_edge"})

# A picture that is scaled and then cropped is nowhere larger than so many times what goes in or comes out.
MOST_ENLARGED = 8

# Options of the base class that have no meaning here: `size`, `fit` and `stride` decide the shape, and the model fixes
# the range of values. Ignoring them silently would be worse than refusing them.
REFUSED_OPTIONS = (
    "do_resize",
    "do_center_crop",
    "crop_size",
    "do_pad",
    "pad_size",
    "do_normalize",
    "image_mean",
    "image_std",
    "rescale_factor",
)


class UniWeTokImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    stride (`int`, *optional*, defaults to `self.stride`):
        Number of pixels per code in each direction; both sides of every output are multiples of it.
    fit (`str`, *optional*, defaults to `self.fit`):
        How a picture reaches such a size: `"pad"` repeats its right and bottom edge, `"resize"` resizes it, `"crop"`
        cuts out its centre.
    """

    stride: int | None
    fit: str | None


def plan_sizes(
    height: int, width: int, stride: int, fit: str, size: SizeDict | dict | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """
    Decide to which size a picture is scaled, and then to which size it is padded or cropped.

    Args:
        height, width: Size of the picture in pixels.
        stride: Both sides of the output are multiples of it.
        fit: "pad", "resize" or "crop".
        size: `None`, `{"height": h, "width": w}` or `{"longest_edge": n}`.

    Returns:
        `(scaled, target)`, each `(height, width)`. They are equal for "resize"; `scaled` is nowhere larger than
        `target` for "pad" and nowhere smaller for "crop".

    Raises:
        ValueError: "crop" without an exact size, and the (scaled) picture is smaller than one stride.
    """
    size = {} if size is None else size
    if "height" in size:
        target = (size["height"], size["width"])
        if fit == "resize":
            return target, target
        choose = min if fit == "pad" else max  # fit inside, or cover
        factor = choose(target[0] / height, target[1] / width)
        return _scale(height, width, factor), target

    factor = min(1.0, size["longest_edge"] / max(height, width)) if "longest_edge" in size else 1.0
    scaled = _scale(height, width, factor)
    if fit == "pad":
        return scaled, _each_side(scaled, lambda side: -(-side // stride) * stride)
    if fit == "resize":
        target = _each_side(scaled, lambda side: max(stride, (side + stride // 2) // stride * stride))
        return target, target
    target = _each_side(scaled, lambda side: side // stride * stride)
    if 0 in target:
        raise ValueError(
            f"images: a picture of {scaled[0]}x{scaled[1]} pixels is smaller than one stride of {stride}, which "
            'fit="crop" cannot do; use fit="pad" or "resize", or give an exact size'
        )
    return scaled, target


def to_uint8(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1], of any shape, as uint8 in 0..255: clamp(127.5 x + 128, 0, 255), truncated."""
    return (127.5 * pixel_values + 128).clamp(0, 255).to(torch.uint8)


def _each_side(size: tuple[int, int], change: Callable[[int], int]) -> tuple[int, int]:
    return change(size[0]), change(size[1])


def _scale(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(1, round(height * factor)), max(1, round(width * factor))


def _as_uint8(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array of integers in 0..255 or floats in [0, 1], any layout -> uint8 in 0..255, same layout."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if image.size == 0:
        raise ValueError(f"images: a picture must have pixels, got shape {list(image.shape)}")
    if image.dtype == np.uint8:
        return image
    is_float = np.issubdtype(image.dtype, np.floating)
    if not is_float and not np.issubdtype(image.dtype, np.integer):
        raise ValueError(f"images: arrays must hold integers in 0..255 or floats in [0, 1], got {image.dtype}")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= (1 if is_float else 255)):  # NaN fails this test too
        accepted = "floats must lie in [0, 1]" if is_float else "integers must lie in 0..255"
        raise ValueError(f"images: {accepted}, got values from {low} to {high}")
    return np.rint(image * 255.0).astype(np.uint8) if is_float else image.astype(np.uint8)


def _as_size_list(
    sizes: list[tuple[int, int]] | torch.Tensor | None, name: str, count: int
) -> list[tuple[int, int]] | list[None]:
    if sizes is None:
        return [None] * count
    found = [tuple(int(side) for side in size) for size in sizes]
    if len(found) != count or any(len(size) != 2 or min(size) < 1 for size in found):
        raise ValueError(f"{name}: must be one (height, width) for each of the {count} pictures, got {found}")
    return [(size[0], size[1]) for size in found]


# auto_docstring would list the options that are refused here, so the two docstrings are written by hand.
class UniWeTokImageProcessor(PilBackend):  # trf-ignore: TRF057
    r"""
    Turns pictures into `pixel_values` for [`UniWeTokModel`] and decoded samples back into pictures.

    What `size` and `fit` do together (`stride` = s):

    | `size` | `fit="pad"` (default) | `fit="resize"` | `fit="crop"` |
    | --- | --- | --- | --- |
    | `None` (default) | pad right and bottom up to multiples of s | each side resized to its nearest multiple of s, at least s | centre crop down to multiples of s |
    | `{"longest_edge": n}` | scale down (never up) to at most n, then as above | the same | the same |
    | `{"height": h, "width": w}` | scale up or down to fit inside, then pad to h x w | resized to h x w, proportions change | scale up or down to cover, then centre crop to h x w (the ADM recipe: halve with a box filter while at least twice too large, then resample) |

    Padding always repeats the edge pixels. n, h and w must be multiples of s.

    Returned by a call, all in the order of the (flattened) input pictures:

    - **pixel_values**: float32 in [-1, 1], a tensor `[B, 3, H, W]` when all pictures come out at one size, otherwise a
      list of `[3, H, W]`. With `return_tensors=None` always a list of arrays; the default is `"pt"`.
    - **original_sizes**: list of `(height, width)`, the size that `postprocess` restores. With `fit="crop"` the cropped
      size, since a crop is not undone.
    - **content_sizes**: list of `(height, width)`, the part of `pixel_values`, from the top left, that shows the picture.

    The sizes stay plain Python tuples for every `return_tensors`: they are needed as Python numbers, and as tensors
    `.to("cuda")` would move them to the device only to fetch them back.

    Accepted pictures: files (paths, bytes, http(s) addresses, base64), PIL images, arrays and tensors of integers in
    0..255 or floats in [0, 1], channels first or last, one or a batch or a (nested) list of them. Files and PIL images
    are read as `uniwetok_hf.data.read_image` does: upright, in sRGB, transparency on white. Floats are rounded to 8
    bits.
    """  # noqa: E501

    valid_kwargs = UniWeTokImageProcessorKwargs
    model_input_names = ["pixel_values"]
    stride = 32
    fit = "pad"
    size = None
    resample = PILImageResampling.BICUBIC
    do_convert_rgb = True
    do_rescale = True
    rescale_factor = None

    def __init__(self, **kwargs: Unpack[UniWeTokImageProcessorKwargs]):
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    def preprocess(  # trf-ignore: TRF057
        self, images: ImageInput, **kwargs: Unpack[UniWeTokImageProcessorKwargs]
    ) -> BatchFeature:
        """
        Same as calling the processor: pictures in, a `BatchFeature` out, as the class describes.

        Keyword arguments replace the attribute of the same name for this call: `size`, `fit`, `stride`, `resample`,
        `do_convert_rgb`, `do_rescale` (`False` leaves values in 0..255); also `input_data_format` ("channels_first" or
        "channels_last", for arrays where it is ambiguous) and `return_tensors` ("pt", "np" or `None`).

        Raises:
            ValueError: An unknown or refused option, a size off the stride grid, no pictures, an array with NaN or
                values out of range, or a picture smaller than one stride with `fit="crop"` and no exact size.
        """
        kwargs.setdefault("return_tensors", "pt")
        return super().preprocess(images, **kwargs)

    def _validate_preprocess_kwargs(self, stride=None, fit=None, size=None, resample=None, **kwargs):
        for name in REFUSED_OPTIONS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name}: not an option of {type(self).__name__}; shapes are set by size, fit and stride, and "
                    "values are always x / 127.5 - 1"
                )
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride: must be a positive integer, got {stride!r}")
        if fit not in FITS:
            raise ValueError(f"fit: must be one of {', '.join(FITS)}, got {fit!r}")
        if resample is None:
            raise ValueError("resample: must be a PIL resampling filter, got None")
        if size is None:
            return
        if set(dict(size)) not in SIZE_KEYS:
            raise ValueError(f'size: must be {{"height", "width"}} or {{"longest_edge"}}, got {sorted(dict(size))}')
        for name, value in dict(size).items():
            if not isinstance(value, int) or value < 1 or value % stride:
                raise ValueError(f"size: {name} must be a positive multiple of the stride {stride}, got {value}")

    def fetch_images(self, image_url_or_urls):
        """Opens what is not a picture yet: paths, bytes, http(s) addresses and base64, also in nested lists.

        Raises:
            ValueError: A picture can't be read; the message names it.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str):
            return read_image_address(image_url_or_urls)
        if isinstance(image_url_or_urls, os.PathLike | bytes | bytearray):
            return read_image(image_url_or_urls)
        try:
            return super().fetch_images(image_url_or_urls)
        except TypeError as error:
            raise ValueError(f"images: {error}") from error

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> np.ndarray:
        """One picture of any accepted kind -> uint8 array of shape [3, height, width], transparency on white."""
        if not isinstance(image, Image.Image):
            image = _as_uint8(image)
            if do_convert_rgb and image.ndim == 3:
                layout = input_data_format or infer_channel_dimension_format(image, num_channels=(1, 3, 4))
                pixels = np.moveaxis(image, 0, -1) if layout == ChannelDimension.FIRST else image
                if pixels.shape[-1] == 4:  # as a PIL image, so that the same colours come out
                    image = Image.fromarray(np.ascontiguousarray(pixels))
        if isinstance(image, Image.Image) and do_convert_rgb:
            try:
                image = read_image(image)
            except ValueError as error:
                raise ValueError(f"images: {error}") from error
        image = super().process_image(image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format)
        if image.shape[0] != 3:
            raise ValueError(f"images: 3 channels are needed without do_convert_rgb, got {image.shape[0]}")
        return image

    def _preprocess(
        self,
        images: list[np.ndarray],
        stride: int,
        fit: str,
        size: SizeDict | None,
        resample: PILImageResampling,
        do_rescale: bool,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        if len(images) == 0:
            raise ValueError("images: must hold at least one picture")
        pixel_values, original_sizes, content_sizes = [], [], []
        for image in images:
            fitted, content_size = self.fit_image(image, stride=stride, fit=fit, size=size, resample=resample)
            values = fitted.astype(np.float32)
            pixel_values.append(values / np.float32(127.5) - np.float32(1) if do_rescale else values)
            original_sizes.append(content_size if fit == "crop" else image.shape[1:])
            content_sizes.append(content_size)

        if return_tensors is not None:
            as_torch = TensorType(return_tensors) == TensorType.PYTORCH
            pixel_values = [torch.from_numpy(values) for values in pixel_values] if as_torch else pixel_values
            if len({tuple(values.shape) for values in pixel_values}) == 1:
                pixel_values = torch.stack(pixel_values) if as_torch else np.stack(pixel_values)
        return BatchFeature(
            {"pixel_values": pixel_values, "original_sizes": original_sizes, "content_sizes": content_sizes}
        )

    def fit_image(
        self, image: np.ndarray, stride: int, fit: str, size: SizeDict | None, resample: PILImageResampling
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """
        Bring one uint8 picture [3, height, width] to the size that `plan_sizes` decides.

        Returns:
            The fitted picture, uint8 [3, H, W], and the (height, width) of the part of it that shows the picture.
        """
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        if fit == "crop" and size is not None and "height" in size:
            while picture.height >= 2 * size["height"] and picture.width >= 2 * size["width"]:
                picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)

        scaled, target = plan_sizes(picture.height, picture.width, stride, fit, size)
        top, left = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2  # of a crop
        largest = MOST_ENLARGED * max(picture.height * picture.width, target[0] * target[1])
        if fit == "crop" and scaled[0] * scaled[1] > largest:
            # A picture of 1 x 20,000 pixels would take gigabytes on its way. Pillow keeps places in 32 bits here, so
            # other pictures, which the published results are of, are scaled first.
            down, right = picture.height / scaled[0], picture.width / scaled[1]
            box = (left * right, top * down, (left + target[1]) * right, (top + target[0]) * down)
            picture = picture.resize(target[::-1], resample, box)
        else:
            if scaled != (picture.height, picture.width):
                picture = picture.resize(scaled[::-1], resample)
            if fit == "crop":
                picture = picture.crop((left, top, left + target[1], top + target[0]))
        fitted = np.moveaxis(np.asarray(picture), -1, 0)
        if fit == "pad":
            fitted = np.pad(fitted, ((0, 0), (0, target[0] - scaled[0]), (0, target[1] - scaled[1])), mode="edge")
        return fitted, scaled if fit == "pad" else target

    def postprocess(
        self,
        pixel_values: torch.Tensor | list[torch.Tensor],
        original_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        content_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> list[Image.Image] | np.ndarray | list[np.ndarray] | torch.Tensor | list[torch.Tensor]:
        """
        Turn decoded samples into pictures: crop to the content, then resize to the original size where they differ.

        Args:
            pixel_values: Floating-point tensor `[B, 3, H, W]`, or list of `[3, H, W]`, nominally in [-1, 1]; values
                outside are clamped.
            original_sizes: `(height, width)` of each picture, as the processor returned it; `None`: no resizing.
            content_sizes: `(height, width)` of each picture, as the processor returned it; `None`: no cropping.
            output_type: `"pil"`: uint8 pictures, clamp(127.5 x + 128, 0, 255) truncated; `"np"` and `"pt"`: float32
                clamp(x / 2 + 0.5, 0, 1), so 8-bit pictures / 255 exactly up to float rounding.

        Returns:
            `"pil"`: list of PIL images. `"np"`: array `[B, H, W, 3]`, or list of `[H, W, 3]` when sizes differ.
            `"pt"`: tensor `[B, 3, H, W]`, or list of `[3, H, W]`, on the device of the input.

        Raises:
            ValueError: Unknown `output_type`, wrong shapes, sizes that do not fit, or NaN in a picture.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: must be one of pil, np, pt, got {output_type!r}")
        samples = list(pixel_values)
        originals = _as_size_list(original_sizes, "original_sizes", len(samples))
        contents = _as_size_list(content_sizes, "content_sizes", len(samples))
        pictures = [
            self._restore(sample, original, content)
            for sample, original, content in zip(samples, originals, contents, strict=True)
        ]

        if output_type == "pil":
            return [Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy()) for picture in pictures]
        pictures = [(picture / 2 + 0.5).clamp(0, 1) for picture in pictures]
        one_size = len({picture.shape for picture in pictures}) == 1
        if output_type == "np":
            pictures = [picture.permute(1, 2, 0).numpy() for picture in pictures]
            return np.stack(pictures) if one_size else pictures
        pictures = [picture.to(sample.device) for picture, sample in zip(pictures, samples, strict=True)]
        return torch.stack(pictures) if one_size else pictures

    def _restore(
        self, sample: torch.Tensor, original_size: tuple[int, int] | None, content_size: tuple[int, int] | None
    ) -> torch.Tensor:
        """One sample [3, H, W] -> float32 on the CPU, cropped and resized."""
        if not isinstance(sample, torch.Tensor) or sample.ndim != 3 or sample.shape[0] != 3:
            shape = list(sample.shape) if hasattr(sample, "shape") else type(sample).__name__
            raise ValueError(
                f"pixel_values: must be a tensor [B, 3, H, W] or a list of tensors [3, H, W], got a picture {shape}"
            )
        picture = sample.detach().to("cpu", torch.float32)
        if picture.isnan().any():
            raise ValueError("pixel_values: a picture contains NaN")
        picture = picture.clamp(-1, 1)  # first: an outlier must not leak into its neighbours when resized
        height, width = picture.shape[1:]
        if content_size is not None:
            if content_size[0] > height or content_size[1] > width:
                raise ValueError(f"content_sizes: {content_size} is larger than the picture, {(height, width)}")
            picture = picture[:, : content_size[0], : content_size[1]]
        if original_size is None or original_size == tuple(picture.shape[1:]):
            return picture
        # Channel by channel as PIL's float images: rounding to 8 bits comes last, whatever the output type.
        channels = [Image.fromarray(channel).resize(original_size[::-1], self.resample) for channel in picture.numpy()]
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


__all__ = ["UniWeTokImageProcessor", "UniWeTokImageProcessorKwargs", "plan_sizes", "to_uint8"]
