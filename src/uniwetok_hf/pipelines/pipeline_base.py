# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What all pipelines share: settings, the state of a call, and callbacks.

A pipeline may be used from several threads at once, as may pipelines that share its parts (`from_pipe`): what a call
writes is its own. `guidance_scale`, `num_timesteps` and `interrupt` are those of the call that runs in the thread that
asks, or of its last one.

A step of a callback is a patch here, where in diffusers it denoises the whole picture: `num_timesteps` counts
patches, and the third argument of `callback_on_step_end` is that number in every call. The state after a step is the
codes so far, [B, bits, h, w], called `codes` or, as in diffusers, `latents`; those in the dict that the callback
returns take their place. The model goes on from the codes of the patch just generated. Earlier patches it has read
already: changed ones change the picture only.

The `latents` of a call are noise, as in diffusers: what the flow of each patch starts from. The arguments of diffusers
for ready embeddings (`prompt_embeds`, `negative_prompt_embeds`) are not taken: the language model reads the tokens of
a whole conversation, in which size and queries of the picture follow the words.
"""

import functools
import math
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..files import save_whole
from ..modeling.noise_uniwetok import Generators


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


class UniWeTokPipelineBase:
    """Goes before `DiffusionPipeline` among the base classes of a pipeline."""

    _callback_tensor_inputs = ["codes", "latents"]

    # Attributes of `DiffusionPipeline`. The parts are not typed by this package's classes, here and in `__init__`: as
    # remote code those are in files of their own.
    scheduler: Any
    components: Any
    config: Any
    register_modules: Any
    register_to_config: Any
    progress_bar: Any
    maybe_free_model_hooks: Any
    _execution_device: Any

    def __init__(self):
        super().__init__()
        self._state_of_thread = _StateOfThread()
        self._running: list[GenerationState] = []

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """As in diffusers, but the models, which `pipeline` goes on using, keep their dtype where the call names none
        (of different ones, the widest). Diffusers makes them float32 then."""
        dtypes = [part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        if dtypes and "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = functools.reduce(torch.promote_types, dtypes)
        return super().from_pipe(pipeline, **kwargs)  # ty: ignore[missing-attribute]

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Saves the pipeline: an older one in `save_directory` is replaced when the new one is written. Weights of
        another `variant` stay.

        Raises:
            OSError: naming `save_directory`, which is as before, when it can't be written.
            ValueError: when adapters are loaded: transformers would save one of them instead of the model. And for
                `safe_serialization=False`.
        """
        for name, part in self.components.items():
            if isinstance(part, torch.nn.Module) and any(getattr(one, "peft_config", None) for one in part.modules()):
                raise ValueError(
                    f"The pipeline has adapters, in `{name}`. `save_lora_weights`, or "
                    "`uniwetok_hf.adapters.save_adapter`, saves one; to save the pipeline, take them out first "
                    "(`unload_lora_weights`, or `delete_adapter` of the model), after `fuse_lora` if it is to keep "
                    "what they learnt."
                )
        if not kwargs.get("safe_serialization", True):
            raise ValueError("`safe_serialization` must be True: weights are saved as safetensors.")
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        save = super().save_pretrained  # ty: ignore[missing-attribute]
        save_whole(lambda folder: save(str(folder), *args, **kwargs), Path(save_directory))

    @property
    def guidance_scale(self) -> float:
        """Weight of classifier-free guidance of this thread's last call. As in diffusers, a callback changes it for
        the patches that follow: `pipe._guidance_scale = 1.0` ends guidance, which can't begin after the first
        patch."""
        return self._guidance_scale

    @property
    def _guidance_scale(self) -> float:
        return self._last_state("guidance_scale").guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        """In a callback: the weight from the next patch on."""
        check_number("_guidance_scale", value)
        self._last_state("guidance_scale").guidance_scale = value

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
        self._check_tensor_inputs(callback_on_step_end_tensor_inputs)
        if not hasattr(self.scheduler, "advance"):
            raise ValueError(
                "`scheduler` must be a BinaryFlowScheduler: no other samples bits. It is a "
                f"{type(self.scheduler).__name__}."
            )

    def _check_tensor_inputs(self, names: Sequence[str]) -> None:
        if unknown := set(names) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    @contextmanager
    def _generation(
        self,
        guidance_scale: float,
        num_patches: int,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        latents: torch.Tensor,
    ) -> Generator[tuple[Callable[[int], float], Callable[[int, torch.Tensor], bool]]]:
        """A generation into `latents` that runs meanwhile, with its progress bar. Gives two functions: which
        `guidance_scale` a patch has, and what a model is to call after each patch with its index and a copy of the
        codes so far, which answers whether the run ends."""
        names = callback_on_step_end_tensor_inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):  # of diffusers, which say it
            names = callback_on_step_end.tensor_inputs
            self._check_tensor_inputs(names)
        with (
            self._new_state(guidance_scale, num_patches) as state,
            self.progress_bar(total=num_patches) as progress_bar,
        ):

            def on_patch(step: int, codes: torch.Tensor) -> bool:
                progress_bar.update()
                if callback_on_step_end is not None:
                    callback_kwargs = dict.fromkeys(names, codes)
                    returned = callback_on_step_end(self, step, num_patches, callback_kwargs)
                    if (replaced := returned_codes(returned, codes)) is not None:
                        latents.copy_(replaced)
                return state.interrupt

            yield lambda step: state.guidance_scale, on_patch


def bring_to_device(model: Any) -> None:
    """Brings an offloaded model to its device: `enable_model_cpu_offload` waits for a call of the whole model, and
    these pipelines call parts. `maybe_free_model_hooks` is the way back."""
    if hasattr(model, "_hf_hook"):
        model._hf_hook.pre_forward(model)


def returned_codes(returned: Any, given: torch.Tensor) -> torch.Tensor | None:
    """The codes in what a callback returned, None when there are none. When it was `given` them under two names and
    changed one, it is that one.

    Raises:
        ValueError: when they are no tensor of the same shape.
    """
    names = [name for name in ("codes", "latents") if isinstance(returned, dict) and returned.get(name) is not None]
    if not names:
        return None
    name = next((name for name in names if returned[name] is not given), names[0])
    if getattr(returned[name], "shape", None) != given.shape:
        got = list(returned[name].shape) if isinstance(returned[name], torch.Tensor) else returned[name]
        raise ValueError(
            f"`callback_on_step_end` must return `{name}` as a tensor of the shape that it was given, "
            f"{list(given.shape)}, got {got!r:.100}."
        )
    return returned[name]


def check_latents(latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: when the argument `latents` is given and is no noise of `shape`, (B, bits, h, w).
    """
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        got = f"a tensor of {latents.dtype}" if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` must be a tensor of floats, standard normal noise, got {got}.")
    if latents.shape != shape:
        raise ValueError(
            f"`latents` must be of shape {list(shape)}: pictures, bits, height and width in tokens; got "
            f"{list(latents.shape)}."
        )


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


__all__ = ["UniWeTokPipelineBase"]
