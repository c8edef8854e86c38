# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The binary diffusion head: how a language model predicts 128 bits at once (docs/method.md 3.3, 3.4).

A token is drawn by a rectified flow from Gaussian noise (t = 0) to its bits in {-1, +1} (t = 1). The network is told
the language model's hidden state and predicts the clean bits; the flow's velocity follows from that. What is unusual:

- all P tokens of a patch are drawn together and attend to each other, so one step can write many tokens;
- the modulation of consecutive blocks is one shared linear layer;
- sampling is stochastic (Euler-Maruyama) and ends at t = 0.95, where the prediction itself is the sample.

The formulas of the flow and its sampler are in `flow_uniwetok.py`.
Shapes: M patches, P tokens of a patch, C the head's width.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .configuration_uniwetok_mllm import UniWeTokHeadConfig
from .flow_uniwetok import MIN_REMAINING_TIME, BinaryFlow, shift_timesteps
from .modeling_uniwetok import UniWeTokConstantLinear, eager_attention_forward
from .noise_uniwetok import Generators, draw_noise, draw_uniform


class UniWeTokHeadTimeLinear(nn.Linear):
    """Linear layer of the time embedding, with starting weights of its own."""


class UniWeTokHeadTimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, cosines first, then two linear layers."""

    def __init__(self, config: UniWeTokHeadConfig):
        super().__init__()
        self.size = config.timestep_embedding_size
        self.fc1 = UniWeTokHeadTimeLinear(self.size, config.hidden_size)
        self.fc2 = UniWeTokHeadTimeLinear(config.hidden_size, config.hidden_size)

    def forward(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = torch.arange(self.size // 2, device=timesteps.device, dtype=torch.float32)
        frequencies = torch.exp(-math.log(10000.0) * half / (self.size // 2))
        angles = 1000 * timesteps.float()[:, None] * frequencies  # [M, size / 2]
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.fc2(F.silu(self.fc1(embedding)))


class UniWeTokHeadAttention(nn.Module):
    """Self-attention over the tokens of one patch, without positions (the condition carries them)."""

    def __init__(self, config: UniWeTokHeadConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        input_shape = hidden_states.shape[:-1]  # [M, P]
        if input_shape[1] == 1:  # attention over one token is its value
            return self.o_proj(self.v_proj(hidden_states))
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(head_shape).transpose(1, 2)  # [M, heads, P, head_dim]
        key = self.k_proj(hidden_states).view(head_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, _ = attention_interface(
            self, query, key, value, attention_mask=None, scaling=self.scaling, is_causal=False
        )
        return self.o_proj(attended.reshape(*input_shape, -1))


class UniWeTokHeadMLP(nn.Module):
    """SwiGLU or a plain SiLU feed-forward, with biases."""

    def __init__(self, config: UniWeTokHeadConfig):
        super().__init__()
        self.is_gated = config.hidden_act == "swiglu"
        if self.is_gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(hidden_states)
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * up if self.is_gated else F.silu(up))


class UniWeTokHeadLayer(GradientCheckpointingLayer):
    """One block, modulated by six vectors a token: scale, shift and gate of attention, then of the feed-forward."""

    def __init__(self, config: UniWeTokHeadConfig):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = UniWeTokHeadAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = UniWeTokHeadMLP(config)

    def forward(self, hidden_states: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, dim=-1)
        modulated = self.input_layernorm(hidden_states) * (1 + scale1) + shift1
        hidden_states = hidden_states + gate1 * self.self_attn(modulated)
        modulated = self.post_attention_layernorm(hidden_states) * (1 + scale2) + shift2
        return hidden_states + gate2 * self.mlp(modulated)


class UniWeTokBinaryHead(PreTrainedModel):
    """Predicts the bits of the tokens of a patch from a noisy version of them and the language model's hidden
    states."""

    config: UniWeTokHeadConfig
    base_model_prefix = "image_head"
    main_input_name = "noisy_codes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniWeTokHeadLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UniWeTokHeadConfig):
        super().__init__(config)
        self.input_proj = nn.Linear(config.num_bits, config.hidden_size)
        self.condition_proj = nn.Linear(config.condition_size, config.hidden_size)
        self.time_embed = UniWeTokHeadTimeEmbedding(config)
        self.layers = nn.ModuleList([UniWeTokHeadLayer(config) for _ in range(config.num_hidden_layers)])
        self.modulations = nn.ModuleList(
            [
                UniWeTokConstantLinear(config.hidden_size, 6 * config.hidden_size)
                for _ in range(config.num_modulation_layers)
            ]
        )
        self.norm_out = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.modulation_out = UniWeTokConstantLinear(config.hidden_size, 2 * config.hidden_size)
        self.proj_out = UniWeTokConstantLinear(config.hidden_size, config.num_bits)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Starting weights:

        - linear layers: Xavier uniform, biases 0
        - time embedding: normal, `initializer_range`
        - every modulation and the output: 0, so that the blocks start as the identity and predictions as 0
        """
        super()._init_weights(module)
        if isinstance(module, UniWeTokConstantLinear):
            init.zeros_(module.weight)
        elif isinstance(module, UniWeTokHeadTimeLinear):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)

    def forward(self, noisy_codes: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """
        Args:
            noisy_codes: [M, P, bits], (1 - t) noise + t codes.
            timesteps: [M] in [0, 1], one a patch.
            condition: [M, P, condition_size], what the language model says of each token.

        Returns:
            Predicted codes [M, P, bits], float32.
        """
        dtype = condition.dtype
        time = self.time_embed(timesteps, dtype)[:, None]
        condition = F.silu(time + self.condition_proj(condition))  # [M, P, C]
        hidden_states = self.input_proj(noisy_codes.to(dtype))
        shared_by = len(self.layers) // len(self.modulations)
        for index, layer in enumerate(self.layers):
            if index % shared_by == 0:
                modulation = self.modulations[index // shared_by](condition)
            hidden_states = layer(hidden_states, modulation)
        scale, shift = self.modulation_out(condition).chunk(2, dim=-1)
        output = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift).float()
        return 2 * torch.sigmoid(output) - 1 if self.config.squash_output else output

    def draw_timesteps(self, count: int, generator: Generators, device: torch.device) -> torch.Tensor:
        """Training times [count] in (0, 1) by the config's law, shifted."""
        if self.config.timestep_schedule == "uniform":
            timesteps = draw_uniform((count,), generator, device)
        else:
            normal = draw_noise((count,), generator, device)
            timesteps = torch.sigmoid(normal * self.config.timestep_std + self.config.timestep_mean)
        return shift_timesteps(timesteps, self.config.timestep_shift)

    def compute_losses(
        self,
        codes: torch.Tensor,
        condition: torch.Tensor,
        generator: Generators = None,
        num_draws: int = 1,
        timesteps: Sequence[float] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity matching losses, mean over all bits of a patch: |x - x'|^2 / max(1 - t, 0.05)^2, in float32
        (docs/method.md 3.3).

        Args:
            codes: clean codes [M, P, bits] of {-1, +1}.
            condition: [M, P, condition_size].
            generator: source of times and noise; a list with one a patch makes a patch independent of the others.
            num_draws: how many times each patch is noised anew.
            timesteps: instead of drawn times, one for all patches of a draw; they stand for `num_draws`.

        Returns:
            Losses [num_draws, M], and the share of bits [num_draws, M] whose sign was predicted right.
        """
        num_draws = num_draws if timesteps is None else len(timesteps)
        codes = codes.float().repeat(num_draws, 1, 1)  # [num_draws * M, P, bits]
        condition = condition.repeat(num_draws, 1, 1)
        if isinstance(generator, (list, tuple)):
            generator = [*generator] * num_draws
        if timesteps is None:
            times = self.draw_timesteps(len(codes), generator, codes.device)
        else:
            times = torch.tensor(timesteps, device=codes.device).repeat_interleave(len(codes) // num_draws)
        noise = draw_noise(codes.shape, generator, codes.device)
        time = times[:, None, None]
        prediction = self(torch.lerp(noise, codes, time), times, condition)
        losses = ((codes - prediction) / (1 - time).clamp_min(MIN_REMAINING_TIME)).square().mean((1, 2))
        right = ((prediction > 0) == (codes > 0)).float().mean((1, 2))
        return losses.view(num_draws, -1), right.view(num_draws, -1)

    def compute_loss(
        self, codes: torch.Tensor, condition: torch.Tensor, generator: Generators = None, num_draws: int = 1
    ) -> torch.Tensor:
        """Mean of [`compute_losses`] over draws and patches."""
        return self.compute_losses(codes, condition, generator, num_draws)[0].mean()

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor,
        scheduler: BinaryFlow,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        image_guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """Draws tokens.

        Args:
            condition: [M, P, condition_size]; with a `guidance_scale` over 1 [2M, ...], conditional rows first, or
                [3M, ...] when there is an `image_guidance_scale`: conditional, of the picture alone, unconditional.
            scheduler: a [`BinaryFlow`] or `BinaryFlowScheduler` whose timesteps are set.
            guidance_scale: w of classifier-free guidance, unconditional + w (conditional - unconditional).
            generator: one for all rows in turn, or a list with one a row.
            image_guidance_scale: v of guidance by picture and words apart (arXiv 2211.09800, equation 3):
                unconditional + v (picture - unconditional) + w (conditional - picture); v = w is the above.

        Returns:
            [M, P, bits] float32 around {-1, +1}; the signs are the codes.
        """
        repeats = 1 if guidance_scale <= 1 else 2 if image_guidance_scale is None else 3
        shape = (len(condition) // repeats, condition.shape[1], self.config.num_bits)
        sample = draw_noise(shape, generator, condition.device)
        for timestep in scheduler.timesteps:
            inputs = torch.cat([sample] * repeats)
            prediction = self(inputs, timestep.to(condition.device).expand(len(inputs)), condition)
            if repeats == 2:
                conditional, unconditional = prediction.chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            elif repeats == 3:
                conditional, picture, unconditional = prediction.chunk(3)
                prediction = unconditional + image_guidance_scale * (picture - unconditional)
                prediction = prediction + guidance_scale * (conditional - picture)
            sample = scheduler.advance(prediction, timestep, sample, generator=generator)
        return sample


__all__ = ["UniWeTokBinaryHead"]
