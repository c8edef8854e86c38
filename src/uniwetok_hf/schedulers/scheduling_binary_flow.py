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

    Args:
        shift: s in t / (t + s (1 - t)), by which the even grid of times is shifted; 1 leaves it even.
    """

    order = 1

    @register_to_config
    def __init__(self, shift: float = 1.0):
        super().__init__(shift)

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
