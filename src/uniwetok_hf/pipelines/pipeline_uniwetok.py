# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text to image with the unified model: prompt -> codes, patch by patch -> picture (spec 3.3)."""

import math
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from transformers import PreTrainedModel, ProcessorMixin

from ..modeling.noise_uniwetok import Generators
from .lora_pipeline import UniWeTokLoraMixin
from .pipeline_output import UniWeTokPipelineOutput


class UniWeTokPipeline(UniWeTokLoraMixin, DiffusionPipeline):
    r"""
    Draws pictures from text. Adapters are loaded, mixed and merged as in diffusers ([`UniWeTokLoraMixin`]).

    Args:
        processor ([`UniWeTokProcessor`]): prompts and pictures to model inputs.
        mllm ([`UniWeTokForCausalLM`]): the unified model; the image tokenizer is its `vision_model`.
        scheduler ([`BinaryFlowScheduler`]): sampler of the binary head.
        default_size (`int`, defaults to 1024): side in pixels of pictures whose `height` or `width` is not given.
        default_num_inference_steps (`int`, defaults to 50), default_guidance_scale (`float`, defaults to 7.5): used
            when a call gives none. All are saved with the pipeline, since small models were tuned to other values.
        default_image_guidance_scale (`float`, *optional*), default_negative_prompt (`str`, defaults to ""),
            default_describe_first (`bool`, defaults to `False`): the same for edits; a scale of None is that of the
            words ([`UniWeTokEditPipeline`]).

    Example:

    ```python
    >>> pipe = UniWeTokPipeline.from_pretrained(uniwetok_hf.embedded_path("uniwetok-emoji"), dtype=torch.float32)
    >>> pipe("a noto emoji of a red apple", generator=torch.Generator().manual_seed(0)).images[0].save("apple.png")
    ```
    """

    model_cpu_offload_seq = "mllm"
    _callback_tensor_inputs = ["codes"]

    def __init__(
        self,
        # The libraries' base classes: as remote code, the parts are classes of files of their own.
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
        self.register_modules(processor=processor, mllm=mllm, scheduler=scheduler)
        self.register_to_config(
            default_size=default_size,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_image_guidance_scale=default_image_guidance_scale,
            default_negative_prompt=default_negative_prompt,
            default_describe_first=default_describe_first,
        )

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Patches of the pictures being drawn: the callback fires once for each."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after the current patch."""
        return self._interrupt

    def check_inputs(
        self,
        prompt: str | list[str],
        num_inference_steps: int,
        guidance_scale: float,
        num_images_per_prompt: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> list[str]:
        """The prompts as a list, if everything is as it should be; ValueError naming the argument if not."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ValueError(f"`prompt` must be a text or a list of texts, none of them empty, got {prompt!r}.")
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_images_per_prompt", num_images_per_prompt),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of 1 or more, got {value!r}.")
        _check_number("guidance_scale", guidance_scale)
        if not all(isinstance(one, torch.Generator) for one in _listed(generator)):
            raise ValueError(
                "`generator` must be a torch.Generator, or a list with one a picture, such as "
                f"torch.Generator().manual_seed(0), got {generator!r}."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        count = len(prompts) * num_images_per_prompt
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"`generator` holds {len(generator)} generators, but {count} pictures are drawn.")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        if not hasattr(self.scheduler, "advance"):
            raise ValueError(
                f"`scheduler` must be a BinaryFlowScheduler: bits are drawn by a flow of their own. It is a "
                f"{type(self.scheduler).__name__}."
            )
        return prompts

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("codes",),
    ) -> UniWeTokPipelineOutput | tuple:
        """Draws `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what to draw.
            height, width: size in pixels, multiples of the model's stride x patch size; `default_size` when not given.
            num_inference_steps: diffusion steps of each patch.
            guidance_scale: weight of classifier-free guidance; 1 or less is none and halves the work.
            num_images_per_prompt: pictures a prompt; those of one prompt lie side by side in the result.
            generator: source of all randomness; a list with one a picture makes each independent of its batch.
            output_type: "pil", "np" ([B, H, W, 3] in [0, 1]), "pt" ([B, 3, H, W] in [0, 1]) or "latent" (codes).
            return_dict: whether to return a [`UniWeTokPipelineOutput`] or a tuple.
            callback_on_step_end: called after each patch with the pipeline, the patch's index, the number of patches
                and a dict with the `codes` so far [B, bits, h, w], 0 where not drawn yet. What it returns is
                not used.
            callback_on_step_end_tensor_inputs: what that dict holds.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        num_inference_steps = _given(num_inference_steps, self.config.default_num_inference_steps)
        guidance_scale = _given(guidance_scale, self.config.default_guidance_scale)
        prompts = self.check_inputs(
            prompt,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        prompts = [words for words in prompts for _ in range(num_images_per_prompt)]
        codes = self.draw(
            prompts,
            _given(height, self.config.default_size),
            _given(width, self.config.default_size),
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        images = self.decode(codes, generator, output_type)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=images) if return_dict else (images,)

    def draw(
        self,
        prompts: list[str],
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generators,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...],
        images: list | None = None,
        negative_prompts: list[str] | None = None,
        image_guidance_scale: float | None = None,
        descriptions: list[str] | None = None,
    ) -> torch.Tensor:
        """Codes [B, bits, h, w] of the pictures that `prompts` ask for, or that edit `images`; words are then measured
        against `negative_prompts` where there is an `image_guidance_scale`. `descriptions` were said before."""
        device = self._execution_device
        inputs, negative = self.processor.drawing_inputs(prompts, height, width, images, descriptions)
        beside = {}
        if image_guidance_scale is not None:
            others, _ = self.processor.drawing_inputs(negative_prompts, height, width, images)
            beside = {f"image_{name}": others[name].to(device) for name in ("input_ids", "attention_mask")}
            beside["image_guidance_scale"] = image_guidance_scale
        return self.draw_codes(
            height,
            width,
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            pixel_values=inputs["pixel_values"].to(device, self.mllm.dtype) if images is not None else None,
            image_sizes=inputs.get("image_sizes"),
            negative_input_ids=negative["input_ids"].to(device),
            **beside,
        )

    def draw_codes(
        self,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generators,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("codes",),
        **inputs,
    ) -> torch.Tensor:
        """Codes [B, bits, h, w] of pictures of `height` x `width` pixels, which the prompts in `inputs` begin: further
        arguments of [`UniWeTokForCausalLM.generate_codes`]. Shows progress, calls back, and may be interrupted."""
        self._load_model()
        stride, patch_size = self.processor.stride, self.processor.patch_size
        for name, argument in (("input_ids", "prompt"), ("image_input_ids", "negative_prompt")):
            if name in inputs:
                num_drawn = (height // stride) * (width // stride)
                self.mllm.config.check_positions(inputs[name].shape[1], num_drawn, argument)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        self._num_timesteps = (height // stride // patch_size) * (width // stride // patch_size)
        with self.progress_bar(total=self._num_timesteps) as progress:

            def on_patch(step: int, codes: torch.Tensor) -> bool:
                progress.update()
                if callback_on_step_end is not None:
                    tensors = {"codes": codes}
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    callback_on_step_end(self, step, self._num_timesteps, given)
                return self._interrupt

            output = self.mllm.generate_codes(
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                scheduler=self.scheduler,
                generator=generator,
                callback=on_patch,
                **inputs,
            )
        return output.codes

    def decode(self, codes: torch.Tensor, generator: Generators, output_type: str):
        """Pictures of codes [B, bits, h, w], as `output_type` asks."""
        if output_type == "latent":
            return codes
        self._load_model()
        sample = self.mllm.vision_model.decode(codes.to(self.mllm.dtype), generator=generator).sample
        return self.processor.image_processor.postprocess(sample.float(), output_type=output_type)

    def _load_model(self):
        """Model offloading waits for a call of the whole model to bring it to the device, and drawing calls parts."""
        if hasattr(self.mllm, "_hf_hook"):
            self.mllm._hf_hook.pre_forward(self.mllm)


def _listed(generator: Generators) -> list:
    return [] if generator is None else list(generator) if isinstance(generator, list | tuple) else [generator]


def _check_number(name: str, value) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")


def _given(value, default):
    return default if value is None else value


__all__ = ["UniWeTokPipeline"]
