# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Nodes for ComfyUI, which loads them by the folder examples/comfyui (docs/comfyui.md).

An IMAGE of ComfyUI is float32 [B, H, W, C] in [0, 1], on the CPU. 0 in a number of a node is the model's own value.
"""

from collections.abc import Callable

import torch
from PIL import Image

from ..embedded import DEFAULT, embedded_names, embedded_path
from ..pipelines import UniWeTokEditPipeline, UniWeTokPipeline
from ..pipelines.writing import answer_question


CATEGORY = "UniWeTok"
LARGEST_SEED = 2**64 - 1
MODEL = ("UNIWETOK_MODEL",)
SEED = ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True})
TEXT = ("STRING", {"default": "", "multiline": True})
STEPS = ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "diffusion steps per patch; 0: the model's own"})
GUIDANCE = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: the model's own"})
SIDE = ("INT", {"default": 0, "min": 0, "max": 4096, "step": 32, "tooltip": "pixels; 0: the model's own"})


class UniWeTokLoadModel:
    """A pipeline by the name of an embedded model, its folder, or its Hub id."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = MODEL
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "name": ("STRING", {"default": DEFAULT}),
                "device": (["auto", "cpu", "cuda", "mps"],),
            }
        }

    def load(self, name: str, device: str = "auto") -> tuple[UniWeTokPipeline]:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = embedded_path(name) if name in embedded_names() else name
        dtype = torch.float32 if device == "cpu" else torch.bfloat16  # bfloat16 is slow on CPUs
        return (UniWeTokPipeline.from_pretrained(folder, dtype=dtype).to(device),)


class UniWeTokTextToImage:
    """Pictures of a prompt. Picture i of a batch is the one that seed + i gives alone."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": MODEL,
                "prompt": TEXT,
                "seed": SEED,
                "width": SIDE,
                "height": SIDE,
                "steps": STEPS,
                "guidance_scale": GUIDANCE,
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
            }
        }

    def generate(
        self,
        model: UniWeTokPipeline,
        prompt: str,
        seed: int,
        width: int = 0,
        height: int = 0,
        steps: int = 0,
        guidance_scale: float = 0.0,
        batch_size: int = 1,
    ) -> tuple[torch.Tensor]:
        images = model(
            prompt,
            height=height or None,
            width=width or None,
            num_inference_steps=steps or None,
            guidance_scale=guidance_scale or None,
            num_images_per_prompt=batch_size,
            generator=generators(seed, batch_size),
            output_type="pt",
            callback_on_step_end=progress(),
        ).images
        return (to_comfy(images),)


class UniWeTokEditImage:
    """Each picture changed as an instruction says; the result has the size of the picture."""

    CATEGORY = CATEGORY
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": MODEL,
                "image": ("IMAGE",),
                "instruction": TEXT,
                "seed": SEED,
                "steps": STEPS,
                "guidance_scale": GUIDANCE,
            }
        }

    def edit(
        self,
        model: UniWeTokPipeline,
        image: torch.Tensor,
        instruction: str,
        seed: int,
        steps: int = 0,
        guidance_scale: float = 0.0,
    ) -> tuple[torch.Tensor]:
        pipe = UniWeTokEditPipeline.from_pipe(model)
        edited = pipe(
            from_comfy(image),
            instruction,
            num_inference_steps=steps or None,
            guidance_scale=guidance_scale or None,
            generator=generators(seed, len(image)),
            output_type="pt",
            callback_on_step_end=progress(),
        ).images
        return (to_comfy(edited),)


class UniWeTokDescribeImage:
    """The answer to a question about each picture, as a list of texts."""

    CATEGORY = CATEGORY
    FUNCTION = "describe"
    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": MODEL,
                "image": ("IMAGE",),
                "question": ("STRING", {"default": "what is this?", "multiline": True}),
                "max_new_tokens": ("INT", {"default": 40, "min": 1, "max": 4096}),
            }
        }

    def describe(
        self, model: UniWeTokPipeline, image: torch.Tensor, question: str, max_new_tokens: int = 40
    ) -> tuple[list[str]]:
        return (answer_question(model.mllm, model.processor, from_comfy(image), question, max_new_tokens),)


class UniWeTokEncodeImage:
    """The codes of each picture: a list of [`EncodedImage`]."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("UNIWETOK_CODES",)
    RETURN_NAMES = ("codes",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": MODEL, "image": ("IMAGE",)}}

    def encode(self, model: UniWeTokPipeline, image: torch.Tensor) -> tuple[list]:
        return (model.encode_image(from_comfy(image)),)


class UniWeTokDecodeCodes:
    """Pictures of codes; the seed is that of the decoder's noise."""

    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": MODEL, "codes": ("UNIWETOK_CODES",), "seed": SEED}}

    @torch.no_grad()
    def decode(self, model: UniWeTokPipeline, codes: list, seed: int = 0) -> tuple[torch.Tensor]:
        sizes = [encoded.content_size for encoded in codes]
        stacked = torch.stack([encoded.codes for encoded in codes])
        return (to_comfy(model.decode(stacked, generators(seed, len(codes)), "pt", sizes)),)


def from_comfy(image: torch.Tensor) -> list[Image.Image]:
    """An IMAGE of 3 or 4 channels as PIL pictures; values that a filter left outside [0, 1] are clamped."""
    return [Image.fromarray(pixels) for pixels in (255 * image.float()).round().clamp(0, 255).byte().cpu().numpy()]


def to_comfy(images: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in [0, 1] as an IMAGE."""
    return images.permute(0, 2, 3, 1).float().cpu().contiguous()


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each of `count` pictures, so that none depends on the size of its batch."""
    return [torch.Generator().manual_seed((seed + i) % (LARGEST_SEED + 1)) for i in range(count)]


def progress() -> Callable | None:
    """A callback that moves the bar of the node that runs, and ends the generation where the user cancels it; None
    outside ComfyUI."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = ProgressBar(1)

    def callback(pipe, step: int, num_patches: int, tensors: dict) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(step + 1, num_patches)

    return callback


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        UniWeTokLoadModel,
        UniWeTokTextToImage,
        UniWeTokEditImage,
        UniWeTokDescribeImage,
        UniWeTokEncodeImage,
        UniWeTokDecodeCodes,
    )
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "UniWeTokLoadModel": "Load UniWeTok model",
    "UniWeTokTextToImage": "UniWeTok text to image",
    "UniWeTokEditImage": "UniWeTok edit image",
    "UniWeTokDescribeImage": "UniWeTok describe image",
    "UniWeTokEncodeImage": "UniWeTok encode image",
    "UniWeTokDecodeCodes": "UniWeTok decode codes",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
