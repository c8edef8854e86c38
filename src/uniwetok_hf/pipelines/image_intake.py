# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The one way of a picture into the language model: PIL image -> `pixel_values` -> codes, once.

Whatever needs the picture afterwards (descriptions, the branches of guidance, generation, the next turn of a
conversation) takes the [`EncodedImage`]. The commands, the pipelines, the conversation and the web page all come in
here. Which call to use:

- with a pipeline, `pipe.encode_image(pictures)`
- with a language model and its processor, [`as_encoded_images`], which is behind it
- with `pixel_values`, `mllm.model.encode_pictures` for codes alone, or `UniWeTokModel.encode` for latents too
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image


@dataclass(frozen=True)
class EncodedImage:
    """A picture as the language model reads it.

    Args:
        codes: float32 [bits, h, w] of {-1, +1}.
        pixel_size: (height, width) in pixels of the picture that was encoded, padding included.
        content_size: (height, width) in pixels of its top left part that is no padding.
    """

    codes: torch.Tensor
    pixel_size: tuple[int, int]
    content_size: tuple[int, int]


@torch.no_grad()
def as_encoded_images(
    mllm: Any,
    processor: Any,
    images: Sequence[Image.Image | EncodedImage],
    device: torch.device | None = None,
) -> list[EncodedImage]:
    """Preprocesses and encodes all pictures in one call each; those that are encoded already stay as they are.

    Args:
        mllm ([`UniWeTokForCausalLM`]): its image tokenizer encodes.
        processor ([`UniWeTokProcessor`]): its image processor decides how pictures reach the model's sizes.
        images: pictures of any sizes.
        device: where the model computes; by default where its weights are.

    Raises:
        ValueError: when one of `images` holds several pictures, or comes out at a size that the model can't read.
    """
    encoded = [image for image in images if isinstance(image, EncodedImage)]
    if len(encoded) == len(images):
        return encoded
    given = [image for image in images if not isinstance(image, EncodedImage)]
    inputs = processor.image_processor(given)
    sizes = [tuple(picture.shape[-2:]) for picture in inputs["pixel_values"]]
    if len(sizes) != len(given):
        raise ValueError(f"`image` must be one picture, or a list of them; {len(given)} here hold {len(sizes)}.")
    for size in sizes:
        processor.check_size(*size)  # before a picture that is too large is encoded
    device = mllm.device if device is None else device
    pixel_values = inputs["pixel_values"]
    if torch.is_tensor(pixel_values):
        pixel_values = pixel_values.to(device, mllm.dtype)
    else:
        pixel_values = [picture.to(device, mllm.dtype) for picture in pixel_values]
    codes = [picture.float() for picture in mllm.model.encode_pictures(pixel_values)]
    new = iter([EncodedImage(*parts) for parts in zip(codes, sizes, inputs["content_sizes"], strict=True)])
    return [image if isinstance(image, EncodedImage) else next(new) for image in images]


__all__ = ["EncodedImage", "as_encoded_images"]
