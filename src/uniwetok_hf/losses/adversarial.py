# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Adversarial loss: PatchGAN discriminator, hinge loss for it, non-saturating loss for the decoder, LeCam
(docs/method.md 2.3).

- Discriminator: conv 4x4 stride 2, twice more with norm, conv 4x4 stride 1 with norm, conv 4x4 to one logit per patch;
  LeakyReLU 0.2. **GroupNorm stands where the published one has BatchNorm**, so a logit depends on its own picture
  alone: the loss does not depend on the batch size or on the number of processes.
- Its loss: 0.5 (mean relu(1 - D(x)) + mean relu(1 + D(x'))) plus a weight (0.05) times LeCam.
- The decoder's: mean over pictures of softplus(-d), where d is D(x') averaged over the patches of a picture *before*
  the softplus. Weighted 0.1, not adaptively.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .processes import sum_over_processes


class PatchDiscriminator(nn.Module):
    """Logits of how real each patch of a picture looks; 70 x 70 pixels per patch with 3 layers.

    New weights come from torch's global generator: convolutions N(0, 0.02) without bias values, norms N(1, 0.02).
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3, num_norm_groups: int = 32, in_channels: int = 3):
        super().__init__()
        self.min_side = 3 * 2**num_layers  # the two last convolutions take away a pixel each
        widths = [base_channels * min(2**level, 8) for level in range(num_layers + 1)]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1)
        strides = [2] * (num_layers - 1) + [1]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, next_width, 4, stride=stride, padding=1, bias=False)
            for width, next_width, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(num_norm_groups, width) for width in widths[1:])
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.apply(_init_weights)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1, h, w] in float32 of pictures [B, 3, H, W] in [-1, 1], h about H / 8 - 2 with 3 layers.

        Raises:
            ValueError: when a picture is too small for one patch.
        """
        height, width = pixel_values.shape[-2:]
        if min(height, width) < self.min_side:
            raise ValueError(
                f"`pixel_values` must have sides of at least {self.min_side} pixels for a discriminator of "
                f"{len(self.convs)} layers, got {height}x{width}."
            )
        hidden_states = F.leaky_relu(self.conv_in(pixel_values), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden_states = F.leaky_relu(norm(conv(hidden_states)), 0.2)
        return self.conv_out(hidden_states).float()


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of logits [B, 1, h, w] of pictures and of reconstructions. Scalar.

    The reconstructions should have been detached: this loss is the discriminator's.
    """
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating loss of logits [B, 1, h, w] of reconstructions. Scalar."""
    return F.softplus(-fake_logits.float().flatten(1).mean(1)).mean()


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al. 2021): holds the logits of real pictures to the average logit of fakes, and
    the reverse, which keeps a discriminator from running away on little data.

    The averages are over the training so far, from 0, with `decay`; they are buffers of the state dict. The penalty
    reads the averages of the steps *before*, and [`update`] comes after it, once an optimizer step. (The published
    code updates first.) So the penalty of a batch is the mean over its parts, however they are spread over micro-
    batches and processes.
    """

    real_mean: torch.Tensor
    fake_mean: torch.Tensor

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("fake_mean", torch.zeros((), dtype=torch.float32))

    def forward(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        """Mean relu(real - average fake)^2 + mean relu(average real - fake)^2 of logits [B, 1, h, w]. Scalar."""
        too_real, too_fake = real_logits.float() - self.fake_mean, self.real_mean - fake_logits.float()
        return F.relu(too_real).square().mean() + F.relu(too_fake).square().mean()

    @torch.no_grad()
    def update(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> None:
        """Averages in the logits of one optimizer step, of all processes; with gradient accumulation give the
        concatenated logits of all micro-batches."""
        logits = (real_logits.float(), fake_logits.float())
        numbers = [value for part in logits for value in (part.sum(), part.new_full((), part.numel()))]
        real_sum, real_count, fake_sum, fake_count = sum_over_processes(torch.stack(numbers))
        self.real_mean.lerp_(real_sum / real_count, 1 - self.decay)
        self.fake_mean.lerp_(fake_sum / fake_count, 1 - self.decay)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
        nn.init.zeros_(bias)
