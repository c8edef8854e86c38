# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The sampler of the binary head with diffusers' interface.

The formulas are in `modeling/flow_uniwetok.py`; here are the config, saving, and `step`.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ..modeling.flow_uniwetok import BinaryFlow
from ..modeling.noise_uniwetok import Generators


@dataclass
class BinaryFlowSchedulerOutput(BaseOutput):
    """
    Args:
        prev_sample: float [..., bits], the sample at the next, less noisy time; after the last step, the prediction
            itself.
    """

    prev_sample: torch.Tensor


class BinaryFlowScheduler(BinaryFlow, SchedulerMixin, ConfigMixin):
    """Euler-Maruyama sampler of the binary rectified flow (docs/method.md 3.4): noise at t = 0, bits at t = 1.

    `timesteps` ascend from 0 to 0.95. `num_inference_steps` steps of the flow have one time more: at the last, the
    prediction is the result.

    Args:
        shift: s in t / (t + s (1 - t)), by which the even grid of times is shifted; 1 leaves it even.
        temperature: what all noise is multiplied with, that of the start and that of each step. 1 samples what the
            head has learnt, below 1 what it finds more likely: less varied, with fewer slips. At 0 nothing is random.

    Raises:
        ValueError: for a shift that is not above 0, or a temperature below 0.
    """

    order = 1

    @register_to_config
    def __init__(self, shift: float = 1.0, temperature: float = 1.0):
        super().__init__(shift, temperature)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that the flow starts from."""
        return self.temperature

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """`sample` as it is: the head reads it unscaled. For code that is written for any scheduler."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """What the flow turns bits into: (1 - t) `noise` + t `original_samples`.

        Args:
            original_samples: bits, or the head's tokens, float [B, ...].
            noise: standard normal, shaped like them.
            timesteps: in [0, 1], one for each of B rows, or one for all.

        Raises:
            ValueError: for bits that are no floats, noise or timesteps of another shape, or timesteps out of range.
        """
        if not original_samples.is_floating_point():
            raise ValueError(f"`original_samples` must be floats, got {original_samples.dtype}.")
        if noise.shape != original_samples.shape:
            raise ValueError(
                f"`noise` must be of the shape of `original_samples`, {list(original_samples.shape)}, got "
                f"{list(noise.shape)}."
            )
        times = torch.as_tensor(timesteps, device=original_samples.device, dtype=original_samples.dtype)
        if times.numel() not in (1, len(original_samples)) or times.min() < 0 or times.max() > 1:
            raise ValueError(
                f"`timesteps` must be from 0 (noise) to 1 (bits), one or one per row, {len(original_samples)}, got "
                f"{timesteps!r:.200}."
            )
        return torch.lerp(noise, original_samples, times.reshape(-1, *[1] * (original_samples.ndim - 1)))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> BinaryFlowSchedulerOutput | tuple[torch.Tensor]:
        """One sampling step.

        Args:
            model_output: the head's prediction of the bits after guidance, float [..., bits].
            timestep: one of `timesteps`, in [0, 1].
            sample: the noisy bits at that time, shaped like `model_output`.
            generator: source of the step's noise; the last step has none.
            return_dict: whether to return a [`BinaryFlowSchedulerOutput`] or a tuple.
        """
        prev_sample = self.advance(model_output, timestep, sample, generator)
        return BinaryFlowSchedulerOutput(prev_sample) if return_dict else (prev_sample,)


__all__ = ["BinaryFlowScheduler", "BinaryFlowSchedulerOutput"]
