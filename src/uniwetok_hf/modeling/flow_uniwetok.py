# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The binary rectified flow: noise at t = 0, bits at t = 1 (docs/method.md 3.4); and what generations by it check.

The formulas are written here, once, with torch only; `BinaryFlowScheduler` gives them diffusers' interface.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from .noise_uniwetok import Generators, draw_noise


FINAL_TIMESTEP = 0.95
MIN_REMAINING_TIME = 0.05


def shift_timesteps(timesteps: torch.Tensor, shift: float) -> torch.Tensor:
    """t / (t + s (1 - t)); s > 1 spends more of the flow near the noise."""
    return timesteps / (timesteps + shift * (1 - timesteps))


def flow_timesteps(num_inference_steps: int, shift: float = 1.0) -> torch.Tensor:
    """The N + 1 ascending times of the sampler, from 0 to 0.95, float32.

    With a shift the grid bends between the same two ends: the published code shifts the last time too, but keeps a
    fixed last step of 0.05, which then no longer ends at t = 1.
    """
    return FINAL_TIMESTEP * shift_timesteps(
        torch.linspace(0, 1, num_inference_steps + 1, dtype=torch.float32, device="cpu"), shift
    )


def flow_velocity(prediction: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
    """Velocity that leads from `sample` at `timestep` to the predicted bits: (x - z) / max(1 - t, 0.05)."""
    return (prediction - sample) / max(1 - float(timestep), MIN_REMAINING_TIME)


def flow_step(
    prediction: torch.Tensor,
    sample: torch.Tensor,
    timestep: torch.Tensor | float,
    next_timestep: torch.Tensor | float | None,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """One Euler-Maruyama step from `timestep` to `next_timestep` (docs/method.md 3.4): the drift (1 + t) v - z and
    noise of variance 2 (1 - t) dt. The last step, with `next_timestep=None`, gives the prediction itself."""
    if next_timestep is None:
        return prediction
    time, step = float(timestep), float(next_timestep) - float(timestep)
    drift = (1 + time) * flow_velocity(prediction, sample, time) - sample
    return sample + drift * step + math.sqrt(2 * (1 - time) * step) * noise  # ty: ignore[unsupported-operator]


def guidance_by_patch(guidance_scale: float | Callable[[int], float]) -> tuple[bool, Callable[[int], float]]:
    """Whether a generation is guided, and a function that gives the weight of each patch by its index.

    Raises:
        ValueError: by the function, when guidance begins after the first patch.
    """
    scale_at: Any = guidance_scale if callable(guidance_scale) else lambda step: guidance_scale
    guided = scale_at(0) > 1

    def checked(step: int) -> float:
        scale = scale_at(step)
        if scale > 1 and not guided:
            raise ValueError(f"`guidance_scale` must be over 1 from the first patch on to be {scale} at a later one.")
        return scale

    return guided, checked


def check_shapes(shape: tuple[int, ...], **tensors: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: when one of `tensors`, which are arguments by name, is given and not of `shape`.
    """
    for name, given in tensors.items():
        if given is not None and given.shape != shape:
            raise ValueError(f"`{name}` must be of shape {list(shape)}, got {list(given.shape)}.")


class BinaryFlow:
    """The sampler of the head: `set_timesteps`, then `advance` at each of `timesteps`. Torch only; diffusers users
    have `BinaryFlowScheduler`, which is this with a config.

    Args:
        shift: s of [`shift_timesteps`].
        temperature: what all noise is multiplied with: that of the start, and that of each step.

    Raises:
        ValueError: for a shift that is not above 0, or a temperature below 0.
    """

    def __init__(self, shift: float = 1.0, temperature: float = 1.0):
        if not (_is_number(shift) and shift > 0):
            raise ValueError(f"`shift` must be a number above 0, got {shift!r}.")
        if not (_is_number(temperature) and temperature >= 0):
            raise ValueError(f"`temperature` must be a number of 0 or more, got {temperature!r}.")
        self.shift, self.temperature = float(shift), float(temperature)
        self.num_inference_steps: int | None = None  # until `set_timesteps`
        self.timesteps = flow_timesteps(1, shift)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Makes the N + 1 `timesteps` of `num_inference_steps` steps, kept on the CPU whatever the `device`: only
        scalars are read from them, for which a sampler would wait for the device.

        Raises:
            ValueError: for fewer than 1 step.
        """
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be 1 or more, got {num_inference_steps}.")
        self.num_inference_steps = num_inference_steps
        self.timesteps = flow_timesteps(num_inference_steps, self.shift)

    def advance(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
    ) -> torch.Tensor:
        """[`flow_step`] from `timestep`, one of `timesteps`, to the one after; noise comes from `generator`, and is
        multiplied with the temperature."""
        later = self.timesteps[self.timesteps > float(timestep) + 1e-6]
        if len(later) == 0:
            return flow_step(model_output, sample, timestep, None, None)
        noise = self.temperature * draw_noise(sample.shape, generator, sample.device, sample.dtype)
        return flow_step(model_output, sample, timestep, later[0], noise)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


__all__ = ["BinaryFlow", "flow_step", "flow_timesteps", "flow_velocity", "shift_timesteps"]
