# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the pipelines for text-to-image and for editing share: parts, settings, and the phases in which they are alike.

A call runs `check_inputs`, `encode_prompt`, `prepare_latents`, `generate_codes` and `decode`, in this order; an edit
runs `encode_image` before `encode_prompt`. What these phases call latents is what is being generated: codes [B, bits,
h, w] of {-1, +1}, and 0 where nothing is generated yet. The noise of each patch is sampled when its turn comes; that
which a call is given as `latents` goes to `generate_codes` as `noise`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..modeling.noise_uniwetok import Generators
from .image_intake import EncodedImage, as_encoded_images
from .pipeline_base import UniWeTokPipelineBase, bring_to_device, check_count, check_number


class UniWeTokPipelineMixin(UniWeTokPipelineBase):
    """Goes before `DiffusionPipeline` among the base classes of a pipeline, whose documentation has the arguments."""

    model_cpu_offload_seq = "mllm"

    processor: Any
    mllm: Any

    def __init__(
        self,
        processor: ProcessorMixin,
        mllm: PreTrainedModel,
        scheduler: SchedulerMixin,
        default_size: int = 1024,
        default_num_inference_steps: int = 50,
        default_guidance_scale: float = 7.5,
        default_image_guidance_scale: float | None = None,
        default_negative_prompt: str = "",
        default_describe_first: bool = False,
    ):
        super().__init__()
        check_count("default_size", default_size)
        check_count("default_num_inference_steps", default_num_inference_steps)
        check_number("default_guidance_scale", default_guidance_scale)
        if default_image_guidance_scale is not None:
            check_number("default_image_guidance_scale", default_image_guidance_scale)
        if not isinstance(default_negative_prompt, str):
            raise ValueError(f"`default_negative_prompt` must be text, got {default_negative_prompt!r:.100}.")
        if not isinstance(default_describe_first, bool):
            raise ValueError(f"`default_describe_first` must be true or false, got {default_describe_first!r:.100}.")
        if processor is not None and mllm is not None:  # loaded without a part
            processor.check_model(mllm.config)  # ty: ignore[missing-attribute]  (of our processor)
        self.register_modules(processor=processor, mllm=mllm, scheduler=scheduler)
        self.register_to_config(
            default_size=default_size,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_image_guidance_scale=default_image_guidance_scale,
            default_negative_prompt=default_negative_prompt,
            default_describe_first=default_describe_first,
        )

    def value_or_default(self, name: str, value):
        """`value`, or the pipeline's `default_{name}` when it is None; `name` is size, num_inference_steps,
        guidance_scale, image_guidance_scale, negative_prompt or describe_first."""
        return self.config[f"default_{name}"] if value is None else value

    def encode_image(
        self, image: Image.Image | EncodedImage | Sequence[Image.Image | EncodedImage]
    ) -> list[EncodedImage]:
        """The codes of a picture, or of several, with the sizes that belong to them. Wherever these pipelines take a
        picture, they take its [`EncodedImage`] too, and don't encode it again.

        Raises:
            ValueError: when a picture comes out at a size that the model can't read.
        """
        self.maybe_load_model()
        images = list(image) if isinstance(image, list | tuple) else [image]
        return as_encoded_images(self.mllm, self.processor, images, self._execution_device)

    def check_length(self, argument: str, input_ids: torch.Tensor, height: int, width: int) -> None:
        """
        Raises:
            ValueError: when the prompts [B, L] and a picture of `height` x `width` pixels behind them are longer than
                the model's positions reach; the message names `argument`.
        """
        stride = self.processor.stride
        self.mllm.config.check_positions(input_ids.shape[1], (height // stride) * (width // stride), argument)

    def prepare_latents(self, batch_size: int, height: int, width: int) -> torch.Tensor:
        """Zeros [B, bits, h, w] for [`generate_codes`] to fill in; `height` and `width` are in pixels."""
        shape = self.latents_shape(batch_size, height, width)
        return torch.zeros(shape, device=self._execution_device, dtype=torch.float32)

    def latents_shape(self, batch_size: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, bits, h, w) of pictures of `height` x `width` pixels."""
        stride, bits = self.processor.stride, self.mllm.config.vision_config.num_bits
        return batch_size, bits, height // stride, width // stride

    def generate_codes(
        self,
        latents: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generators = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
        **prompt_inputs,
    ) -> torch.Tensor:
        """Fills in the latents of a batch patch by patch; shows progress, calls back, and can be interrupted. The loop
        over the patches is that of [`UniWeTokForCausalLM.generate_codes`].

        Args:
            latents: what [`prepare_latents`] returns, of the size with which the prompts end.
            num_inference_steps, guidance_scale, generator, callback_on_step_end, callback_on_step_end_tensor_inputs:
                as in a call of the pipeline.
            prompt_inputs: what [`encode_prompt`] returns, or other arguments of the model's `generate_codes`.

        Returns:
            Codes [B, bits, h, w] of {-1, +1}, 0 where an interrupted run did not get.
        """
        self.maybe_load_model()
        count = latents.shape[2] * latents.shape[3] // self.processor.patch_size**2
        generation = self._generation(
            guidance_scale, count, callback_on_step_end, callback_on_step_end_tensor_inputs, latents
        )
        with generation as (scale_at, on_patch):
            return self.mllm.generate_codes(
                guidance_scale=scale_at,
                num_inference_steps=num_inference_steps,
                scheduler=self.scheduler,
                generator=generator,
                callback=on_patch,
                latents=latents,
                **prompt_inputs,
            ).codes

    @torch.no_grad()
    def decode(
        self,
        codes: torch.Tensor,
        generator: Generators,
        output_type: str,
        content_sizes: Sequence[tuple[int, int]] | None = None,
    ):
        """Pictures of codes [B, bits, h, w].

        Args:
            codes: of {-1, +1}; zeros, of an unfinished picture, are decoded too.
            generator: source of the decoder's noise.
            output_type: "pil", "np", "pt" or "latent", as in a call of the pipeline.
            content_sizes: (height, width) in pixels of the top left part of each picture to keep. "latent" keeps all;
                so do "np" and "pt" when the sizes differ, since they return one array or tensor.
        """
        if output_type == "latent":
            return codes
        self.maybe_load_model()
        codes = codes.to(self._execution_device, self.mllm.dtype)  # those of a file are on the CPU
        sample = self.mllm.vision_model.decode(codes, generator=generator).sample
        if content_sizes is not None and output_type != "pil" and len(set(content_sizes)) > 1:
            content_sizes = None
        return self.processor.image_processor.postprocess(
            sample.float(), content_sizes=content_sizes, output_type=output_type
        )

    def maybe_load_model(self) -> None:
        """Brings an offloaded model to its device."""
        bring_to_device(self.mllm)


__all__ = ["UniWeTokPipelineMixin"]
