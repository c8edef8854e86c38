# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of classes, as diffusers' `DiTPipeline` makes them (docs/method.md 4)."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..modeling.modeling_uniwetok_class_to_image import GUIDANCE_SCHEDULES
from ..modeling.noise_uniwetok import Generators
from .pipeline_base import (
    UniWeTokPipelineBase,
    bring_to_device,
    check_count,
    check_latents,
    check_number,
    repeat_each,
)
from .pipeline_output import UniWeTokPipelineOutput


class UniWeTokClassToImagePipeline(UniWeTokPipelineBase, DiffusionPipeline):
    r"""
    Pipeline for generating pictures of classes.

    Args:
        transformer ([`UniWeTokClassToImageModel`]): classes to codes.
        vision_model ([`UniWeTokModel`]): the image tokenizer that makes pictures of the codes.
        image_processor ([`UniWeTokImageProcessor`]): decoded samples to pictures.
        scheduler ([`BinaryFlowScheduler`]): sampler of the binary head.
        id2label (`dict`, *optional*): names of the classes by number; several names of one stand with commas between
            them.
        default_num_inference_steps (`int`, defaults to 100), default_guidance_scale (`float`, defaults to 4.0),
            default_guidance_schedule (`str`, defaults to `"linear"`): used when a call gives none. They are saved with
            the pipeline, since each size was tuned to its own.

    Raises:
        ValueError: when the parts don't fit each other, or a default is out of range.

    Example:

    ```python
    >>> pipe = UniWeTokClassToImagePipeline.from_pretrained(path)
    >>> labels = pipe.get_label_ids(["golden retriever", "otter"])
    >>> pipe(labels, generator=torch.Generator().manual_seed(0)).images[0].save("retriever.png")
    ```
    """

    model_cpu_offload_seq = "transformer->vision_model"

    transformer: Any
    vision_model: Any
    image_processor: Any

    def __init__(
        self,
        transformer: PreTrainedModel,
        vision_model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        default_num_inference_steps: int = 100,
        default_guidance_scale: float = 4.0,
        default_guidance_schedule: str = "linear",
    ):
        super().__init__()
        check_count("default_num_inference_steps", default_num_inference_steps)
        check_number("default_guidance_scale", default_guidance_scale)
        check_schedule("default_guidance_schedule", default_guidance_schedule)
        if transformer is not None and vision_model is not None:  # loaded without a part
            bits, vision_bits = transformer.config.num_bits, vision_model.config.num_bits
            if bits != vision_bits:
                raise ValueError(
                    f"`vision_model` has tokens of {vision_bits} bits, `transformer` generates tokens of {bits}: give "
                    "the image tokenizer whose codes it was trained on."
                )
        id2label = {int(number): name for number, name in (id2label or {}).items()}
        if id2label and transformer is not None and sorted(id2label) != list(range(transformer.config.num_classes)):
            raise ValueError(
                f"`id2label` must have a name for each number from 0 to {transformer.config.num_classes - 1}, got "
                f"{len(id2label)} names."
            )
        self.register_modules(
            transformer=transformer, vision_model=vision_model, image_processor=image_processor, scheduler=scheduler
        )
        self.register_to_config(
            id2label=id2label,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_guidance_schedule=default_guidance_schedule,
        )
        self._ids_of: dict[str, list[int]] = {}
        for number, names in id2label.items():
            for name in {names, *names.split(",")}:
                self._ids_of.setdefault(name.strip(), []).append(number)

    @property
    def labels(self) -> dict[str, int]:
        """Numbers of the classes by name, in the order of the names; those that two classes have are left out."""
        return {name: numbers[0] for name, numbers in sorted(self._ids_of.items()) if len(numbers) == 1}

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures."""
        return self.transformer.config.grid_size * self.vision_model.config.stride

    def latents_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        """(B, bits, h, w) of the codes of pictures."""
        config = self.transformer.config
        return batch_size, config.num_bits, config.grid_size, config.grid_size

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Numbers of classes by their names.

        Raises:
            ValueError: for a name that no class has, or two have; the message has the nearest names, or the numbers.
        """
        return [self._label_id(name) for name in ([label] if isinstance(label, str) else label)]

    def _label_id(self, name: object) -> int:
        numbers = self._ids_of.get(name.strip(), []) if isinstance(name, str) else []
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            named = ", ".join(f"{number} ({self.config.id2label[number]})" for number in numbers)
            raise ValueError(f"`class_labels`: {name!r} is the name of several classes: {named}. Give a number.")
        if not self._ids_of:
            raise ValueError(f"`class_labels`: this pipeline has no names of classes, give numbers, got {name!r}.")
        nearest = difflib.get_close_matches(str(name), self._ids_of, n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(map(repr, nearest))}" if nearest else ""
        raise ValueError(f"`class_labels`: no class is called {name!r}{hint}.")

    def check_inputs(
        self,
        class_labels: int | str | Sequence[int | str],
        num_inference_steps: int,
        guidance_scale: float,
        guidance_schedule: str,
        num_images_per_label: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        latents: torch.Tensor | None = None,
    ) -> list[int]:
        """The numbers of the classes, one for each picture.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.tolist()
        labels = [class_labels] if isinstance(class_labels, int | str) else class_labels
        if not isinstance(labels, list | tuple) or not labels:
            raise ValueError(f"`class_labels` must be a class, or a list of classes, got {class_labels!r}.")
        numbers = [label if type(label) is int else self._label_id(label) for label in labels]
        num_classes = self.transformer.config.num_classes
        if wrong := [number for number in numbers if not 0 <= number < num_classes]:
            raise ValueError(f"`class_labels` must be from 0 to {num_classes - 1}, got {wrong[0]}.")
        check_count("num_images_per_label", num_images_per_label)
        check_schedule("guidance_schedule", guidance_schedule)
        self.check_settings(
            num_inference_steps,
            guidance_scale,
            generator,
            num_images_per_label * len(numbers),
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        check_latents(latents, self.latents_shape(num_images_per_label * len(numbers)))
        return repeat_each(numbers, num_images_per_label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str],
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        num_inference_steps: int | None = None,
        num_images_per_label: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("codes",),
        latents: torch.Tensor | None = None,
    ) -> UniWeTokPipelineOutput | tuple:
        """Generates `num_images_per_label` pictures of each class.

        Args:
            class_labels: number or name of a class, or a list of them.
            guidance_scale: weight of classifier-free guidance; 1 or less is none and halves the work.
            guidance_schedule: "linear", from no guidance at the first patch towards `guidance_scale`, or "constant".
            num_inference_steps: diffusion steps per patch.
            num_images_per_label: pictures per class; those of one class lie side by side in the result.
            generator: source of all randomness; a list with one per picture makes each independent of its batch.
            output_type: "pil", "np" ([B, H, W, 3] in [0, 1]), "pt" ([B, 3, H, W] in [0, 1]) or "latent" (codes [B,
                bits, h, w] of {-1, +1}).
            return_dict: whether to return a [`UniWeTokPipelineOutput`] or a tuple.
            callback_on_step_end: called after each patch with the pipeline, the patch's index, the number of patches
                and a dict with the `codes` so far [B, bits, h, w], 0 where not generated yet. Codes in the dict that
                it returns take their place: the model goes on from those of this patch, earlier patches change in the
                picture only.
            callback_on_step_end_tensor_inputs: what that dict holds: "codes", or "latents", diffusers' name for them.
            latents: noise [B, bits, h, w], B = labels x `num_images_per_label`: what the flow of each patch starts
                from. Drawn from `generator` when not given; so is the noise of the steps, in any case.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        # 1. Defaults and checks.
        config = self.config
        guidance_scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
        guidance_schedule = config.default_guidance_schedule if guidance_schedule is None else guidance_schedule
        if num_inference_steps is None:
            num_inference_steps = config.default_num_inference_steps
        numbers = self.check_inputs(
            class_labels,
            num_inference_steps,
            guidance_scale,
            guidance_schedule,
            num_images_per_label,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
            latents,
        )

        # 2. Classes to codes, patch by patch.
        bring_to_device(self.transformer)
        count = self.transformer.config.num_tokens // self.transformer.config.tokens_per_patch
        shape = self.latents_shape(len(numbers))
        codes = torch.zeros(shape, device=self._execution_device, dtype=torch.float32)
        generation = self._generation(
            guidance_scale, count, callback_on_step_end, callback_on_step_end_tensor_inputs, codes
        )
        with generation as (scale_at, on_patch):

            def call_back(step: int, codes: torch.Tensor) -> bool:
                is_interrupted = on_patch(step, codes)
                if callback_on_step_end is not None:  # which decodes, it may be, by the model that takes the place
                    bring_to_device(self.transformer)
                return is_interrupted

            codes = self.transformer.generate_codes(
                torch.tensor(numbers, device=self._execution_device),
                scale_at,
                guidance_schedule,
                num_inference_steps,
                self.scheduler,
                generator,
                call_back,
                latents=codes,
                noise=latents,
            ).codes

        # 3. Codes to pictures.
        images = self.decode(codes, generator, output_type)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, generator: Generators, output_type: str):
        """Pictures of codes [B, bits, h, w] of {-1, +1}, or 0 where a picture is unfinished; `output_type` is "pil",
        "np", "pt" or "latent", and `generator` the source of the decoder's noise."""
        if output_type == "latent":
            return codes
        bring_to_device(self.vision_model)
        codes = codes.to(self._execution_device, self.vision_model.dtype)  # those of a file are on the CPU
        sample = self.vision_model.decode(codes, generator=generator).sample
        return self.image_processor.postprocess(sample.float(), output_type=output_type)


def check_schedule(name: str, value) -> None:
    """
    Raises:
        ValueError: when the argument `name` is no schedule of the guidance.
    """
    if value not in GUIDANCE_SCHEDULES:
        raise ValueError(f"`{name}` must be one of {list(GUIDANCE_SCHEDULES)}, got {value!r}.")


__all__ = ["UniWeTokClassToImagePipeline"]
