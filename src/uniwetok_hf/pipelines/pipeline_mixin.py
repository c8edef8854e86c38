# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the pipelines for text-to-image and for editing share: parts, settings, and the phases in which they are alike.

A call runs `check_inputs`, `encode_prompt`, `prepare_latents`, `generate_codes` and `decode`, in this order; an edit
runs `encode_image` before `encode_prompt`. Latents are codes here, [B, bits, h, w] of {-1, +1}, and 0 where nothing is
generated yet: the noise of each patch is sampled when its turn comes.

A pipeline may be used from several threads at once, as may pipelines that share its parts (`from_pipe`): what a call
writes is its own. `guidance_scale`, `num_timesteps` and `interrupt` are those of the call that runs in the thread that
asks, or of its last one.

Callbacks differ from those of diffusers, where a step denoises the whole picture. Here a step generates a patch:
`num_timesteps` counts patches, the third argument of `callback_on_step_end` is that number in every call, and what the
callback returns is not used.
"""

import math
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..modeling.noise_uniwetok import Generators
from .image_intake import EncodedImage, as_encoded_images


@dataclass(eq=False)
class GenerationState:
    """What a pipeline tells of a generation while it runs, and afterwards."""

    guidance_scale: float
    num_timesteps: int
    interrupt: bool = False


class _StateOfThread(threading.local):
    """The state of the last generation of each thread. A copy of it, in a copy of the pipeline, is empty."""

    last: GenerationState | None = None

    def __reduce__(self):
        return type(self), ()


class UniWeTokPipelineMixin:
    """Goes before `DiffusionPipeline` among the base classes of a pipeline, whose documentation has the arguments."""

    model_cpu_offload_seq = "mllm"
    _callback_tensor_inputs = ["codes"]

    # Attributes of `DiffusionPipeline`. The parts are not typed by this package's classes, here and in `__init__`: as
    # remote code those are in files of their own.
    processor: Any
    mllm: Any
    scheduler: Any
    config: Any
    register_modules: Any
    register_to_config: Any
    progress_bar: Any
    _execution_device: Any

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
        self._state_of_thread = _StateOfThread()
        self._running: list[GenerationState] = []
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
        """Weight of classifier-free guidance of this thread's last call."""
        return self._last_state("guidance_scale").guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether this thread's last call was guided."""
        return self.guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Number of patches of a picture in this thread's last call: the callback is called once for each."""
        return self._last_state("num_timesteps").num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether this thread's last call was interrupted. Set `pipe._interrupt = True` in a callback to stop that
        call after the current patch; set in a thread that generates nothing, it stops all calls that run."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        state = self._state_of_thread.last
        return state is not None and state.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        state = self._state_of_thread.last
        for one in [state] if state in self._running else list(self._running):
            one.interrupt = value

    def _last_state(self, name: str) -> GenerationState:
        if self._state_of_thread.last is None:
            raise AttributeError(f"`{name}` is known once this thread has generated something.")
        return self._state_of_thread.last

    @contextmanager
    def _new_state(self, guidance_scale: float, num_timesteps: int) -> Generator[GenerationState]:
        """The state of a generation that runs meanwhile; a callback may run another one in it."""
        outer = self._state_of_thread.last
        self._state_of_thread.last = state = GenerationState(guidance_scale, num_timesteps)
        self._running.append(state)
        try:
            yield state
        finally:
            self._running.remove(state)
            if outer in self._running:
                self._state_of_thread.last = outer

    def value_or_default(self, name: str, value):
        """`value`, or the pipeline's `default_{name}` when it is None; `name` is size, num_inference_steps,
        guidance_scale, image_guidance_scale, negative_prompt or describe_first."""
        return self.config[f"default_{name}"] if value is None else value

    def check_settings(
        self,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Generators,
        num_images: int,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
    ) -> None:
        """Checks what all kinds of generation have in common; `num_images` are generated in all.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        check_count("num_inference_steps", num_inference_steps)
        check_number("guidance_scale", guidance_scale)
        generators = generator if isinstance(generator, list | tuple) else [generator]
        if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
            raise ValueError(
                "`generator` must be a torch.Generator, or a list with one per picture, such as "
                f"torch.Generator().manual_seed(0), got {generator!r}."
            )
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"`generator` holds {len(generator)} generators, but {num_images} pictures are generated."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        if not hasattr(self.scheduler, "advance"):
            raise ValueError(
                "`scheduler` must be a BinaryFlowScheduler: no other samples bits. It is a "
                f"{type(self.scheduler).__name__}."
            )

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
        stride, bits = self.processor.stride, self.mllm.config.vision_config.num_bits
        shape = (batch_size, bits, height // stride, width // stride)
        return torch.zeros(shape, device=self._execution_device, dtype=torch.float32)

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
        with self._new_state(guidance_scale, count) as state, self.progress_bar(total=count) as progress_bar:

            def on_patch(step: int, codes: torch.Tensor) -> bool:
                progress_bar.update()
                if callback_on_step_end is not None:
                    tensors = {"codes": codes}
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    callback_on_step_end(self, step, count, callback_kwargs)
                return state.interrupt

            return self.mllm.generate_codes(
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                scheduler=self.scheduler,
                generator=generator,
                callback=on_patch,
                latents=latents,
                **prompt_inputs,
            ).codes

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
        """Brings an offloaded model to its device: `enable_model_cpu_offload` waits for a call of the whole model, and
        these pipelines call its parts. `maybe_free_model_hooks` is the way back."""
        if hasattr(self.mllm, "_hf_hook"):
            self.mllm._hf_hook.pre_forward(self.mllm)


def check_number(name: str, value) -> None:
    """
    Raises:
        ValueError: when the argument `name` is no finite number.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")


def check_count(name: str, value) -> None:
    """
    Raises:
        ValueError: when the argument `name` is no whole number of 1 or more.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of 1 or more, got {value!r}.")


def check_texts(name: str, value, may_be_empty: bool = False) -> None:
    """
    Raises:
        ValueError: when the argument `name` is neither a text nor a list of texts, or one is empty that may not be.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` must be a text or a list of texts, got {value!r}.")
    if not may_be_empty and not all(text.strip() for text in texts):
        raise ValueError(f"`{name}` must not be empty, got {value!r}.")


def repeat_each(values: Sequence, count: int) -> list:
    """Each of `values`, `count` times in a row."""
    return [value for value in values for _ in range(count)]


__all__ = ["UniWeTokPipelineMixin"]
