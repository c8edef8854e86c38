# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The UniWeTok image tokenizer (arXiv 2602.14178, section 3, figure 3; docs/method.md 1.1).

What is unusual, top to bottom:
- A picture becomes one token per 32x32 pixels; a token is `num_bits` signs, and no codebook is stored.
- The encoder is convolutions, then attention over all tokens with four learned registers; its output is squashed by
  SigLu(x) = tanh(x / 2). (Equation 9 prints the opposite sign; the published weights need this one.)
- The decoder reads Gaussian noise beside the codes, sampled anew in each call, and normalises every level with gains
  and shifts computed from the spatial statistics of the codes: it is not local, so tiles can't be decoded apart.
- Rotary positions squeeze any grid into the 8x8 of training, with different grids in the encoder and the decoder.
- The same classes build the convolutional tokenizer of WeTok/BitDance (`config.architecture = "convolutional"`).

Shapes: B pictures, C channels, H x W a feature map, h x w the token grid, D the hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapters_uniwetok import UniWeTokAdapterMixin
from .codes_uniwetok import Pictures, binarize
from .configuration_uniwetok import UniWeTokConfig
from .noise_uniwetok import Generators, draw_noise


@dataclass
class UniWeTokEncoderOutput(ModelOutput):
    """`latents`, the continuous encoder output, and `codes`, its signs in {-1, +1}: both [B, bits, h, w], or lists of
    [bits, h, w] when the pictures came as a list."""

    latents: torch.Tensor | list[torch.Tensor] | None = None
    codes: torch.Tensor | list[torch.Tensor] | None = None


@dataclass
class UniWeTokDecoderOutput(ModelOutput):
    """`sample`, the decoded pictures [B, 3, H, W], unclamped around [-1, 1], or a list of [3, H, W]."""

    sample: torch.Tensor | list[torch.Tensor] | None = None


@dataclass
class UniWeTokOutput(ModelOutput):
    """`sample`, the reconstructions; `latents` and `codes` as in [`UniWeTokEncoderOutput`]. `hidden_states` and
    `attentions` of the attention blocks, encoder first, on request."""

    sample: torch.Tensor | list[torch.Tensor] | None = None
    latents: torch.Tensor | list[torch.Tensor] | None = None
    codes: torch.Tensor | list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def depth_to_space(hidden_states: torch.Tensor) -> torch.Tensor:
    """[B, 4C, H, W] to [B, C, 2H, 2W] in DCR order: channel (2a + b) C + c lands at offset (a, b).
    `nn.PixelShuffle` would read 4c + 2a + b."""
    batch, channels, height, width = hidden_states.shape
    blocks = hidden_states.reshape(batch, 2, 2, channels // 4, height, width)  # [B, a, b, C, H, W]
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)


def for_convolution(hidden_states: torch.Tensor) -> torch.Tensor:
    """Feature maps [B, C, H, W] in the order of bytes that the device's convolutions are written for: channels last on
    an NVIDIA GPU. (Not the weights: FSDP2 and safetensors refuse parameters that are not contiguous.)"""
    if hidden_states.is_cuda and torch.version.cuda:
        return hidden_states.contiguous(memory_format=torch.channels_last)
    return hidden_states


def encoder_grid(length: int, device: torch.device) -> torch.Tensor:
    """Token positions of an axis in the encoder: `length` points from 0.5 to 7.5, in float32. A single token sits at
    0.5, where the published code divides zero by zero."""
    steps = torch.arange(length, device=device, dtype=torch.float32)
    return steps * 7 / torch.sym_max(length - 1, 1) + 0.5  # of a length that torch.export leaves open, too


def decoder_grid(length: int, device: torch.device) -> torch.Tensor:
    """Token positions of an axis in the decoder: (j + 0.5) 7.5 / (length - 0.5), in float32. A single token sits at
    7.5. Equal to [`encoder_grid`] only for 8 tokens."""
    return (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * 7.5 / (length - 0.5)


def rotary_tables(
    x_positions: torch.Tensor, y_positions: torch.Tensor, num_registers: int, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [registers + h*w, head_dim / 2] in float32 for a row-major grid of tokens.

    The first half of the angles belongs to x + 1, the second to y + 1; registers are not rotated.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 4, device=x_positions.device, dtype=torch.float32) / head_dim)
    y, x = torch.meshgrid(y_positions + 1, x_positions + 1, indexing="ij")  # [h, w]
    angles = torch.cat([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies], dim=-1)
    angles = F.pad(angles, (0, 0, num_registers, 0))
    return angles.cos(), angles.sin()


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates adjacent channel pairs (2m, 2m + 1) of `states` [B, heads, N, head_dim] in float32; dtype is kept."""
    even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, [B, heads, N, head_dim] in, [B, N, heads, head_dim] and the weights out."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class UniWeTokRMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain, computed in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        scaled = hidden_states.float()
        scaled = scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(hidden_states.dtype)


class UniWeTokAttention(nn.Module):
    """Self-attention with 2-D rotary positions on queries and keys: in the image tokenizer over all tokens; the
    class-to-image model has a mask, and a cache of which this is the layer `layer_idx`."""

    def __init__(self, config: UniWeTokConfig, layer_idx: int = 0):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        is_causal: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]  # [B, N]
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(head_shape).transpose(1, 2)  # [B, heads, N, head_dim]
        key = self.k_proj(hidden_states).view(head_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        query = apply_rotary(query, *position_embeddings)
        key = apply_rotary(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask=attention_mask,
            scaling=self.scaling,
            is_causal=is_causal,
            **kwargs,
        )
        return self.o_proj(attended.reshape(*input_shape, -1)), weights


class UniWeTokMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: UniWeTokConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class UniWeTokLayer(GradientCheckpointingLayer):
    """One pre-norm attention block."""

    def __init__(self, config: UniWeTokConfig, layer_idx: int = 0):
        super().__init__()
        self.input_layernorm = UniWeTokRMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = UniWeTokAttention(config, layer_idx)
        self.post_attention_layernorm = UniWeTokRMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = UniWeTokMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **kwargs
    ) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class UniWeTokTransformer(nn.Module):
    """The attention stage of one half: registers in front, `num_hidden_layers` blocks, registers dropped.

    `axis_grid` is [`encoder_grid`] or [`decoder_grid`].
    """

    def __init__(self, config: UniWeTokConfig, axis_grid: Callable[[int, torch.device], torch.Tensor]):
        super().__init__()
        self.config = config
        self.axis_grid = axis_grid
        # The published checkpoints hold registers even without attention blocks, so they always exist.
        self.register_tokens = nn.Embedding(config.num_register_tokens, config.hidden_size)
        self.layers = nn.ModuleList([UniWeTokLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if len(self.layers) == 0:
            return hidden_states
        batch, _, height, width = hidden_states.shape
        num_registers = self.config.num_register_tokens
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        device = hidden_states.device
        position_embeddings = rotary_tables(
            self.axis_grid(width, device),
            self.axis_grid(height, device),
            num_registers,
            head_dim,
            self.config.rope_theta,
        )
        # By a call, not by the weight: a hook brings weights that are kept elsewhere for calls only.
        registers = self.register_tokens(torch.arange(num_registers, device=device)).expand(batch, -1, -1)
        tokens = hidden_states.flatten(2).transpose(1, 2)  # [B, h*w, D], row by row
        tokens = torch.cat([registers.to(tokens.dtype), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, position_embeddings, **kwargs)
        return tokens[:, num_registers:].transpose(1, 2).unflatten(2, (height, width))  # [B, D, h, w]


class UniWeTokResidualBlock(GradientCheckpointingLayer):
    """Two 3x3 convolutions with GroupNorm and SiLU before each, and a skip."""

    def __init__(self, config: UniWeTokConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.num_norm_groups, in_channels, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(config.num_norm_groups, out_channels, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        hidden_states = self.conv1(for_convolution(F.silu(self.norm1(hidden_states))))
        return residual + self.conv2(for_convolution(F.silu(self.norm2(hidden_states))))


class UniWeTokDownBlock(nn.Module):
    """One level of the encoder. In the hybrid the strided convolution widens ("channel double", paper table 5), in
    the convolutional tokenizer the first residual block does."""

    def __init__(self, config: UniWeTokConfig, level: int):
        super().__init__()
        widths = config.level_channels
        is_last = level == len(widths) - 1
        if config.architecture == "hybrid":
            in_channels = widths[level]
            next_channels = widths[level] if is_last else widths[level + 1]
        else:
            in_channels = widths[level - 1] if level > 0 else config.base_channels
            next_channels = widths[level]
        self.blocks = nn.ModuleList(
            [
                UniWeTokResidualBlock(config, in_channels if index == 0 else widths[level], widths[level])
                for index in range(config.num_res_blocks)
            ]
        )
        self.downsample = None if is_last else nn.Conv2d(widths[level], next_channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states if self.downsample is None else self.downsample(hidden_states)


class UniWeTokEncoder(nn.Module):
    """Pictures [B, 3, H, W] to latents [B, bits, h, w]."""

    def __init__(self, config: UniWeTokConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.config = config
        self.conv_in = nn.Conv2d(config.num_channels, config.base_channels, 3, padding=1, bias=False)
        self.down_blocks = nn.ModuleList([UniWeTokDownBlock(config, i) for i in range(len(config.level_channels))])
        if config.architecture == "hybrid":
            self.transformer = UniWeTokTransformer(config, encoder_grid)
        else:
            self.mid_blocks = nn.ModuleList(
                [UniWeTokResidualBlock(config, hidden_size, hidden_size) for _ in range(config.num_res_blocks)]
            )
        self.norm_out = nn.GroupNorm(config.num_norm_groups, hidden_size, eps=config.norm_eps)
        self.conv_out = nn.Conv2d(hidden_size, config.num_bits, 1)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = self.conv_in(for_convolution(pixel_values.to(self.conv_in.weight.dtype)))
        for block in self.down_blocks:
            hidden_states = block(hidden_states)
        if self.config.architecture == "hybrid":
            hidden_states = self.norm_out(
                self.transformer(hidden_states, **kwargs)
            )  # no activation here, unlike below
            return torch.tanh(self.conv_out(hidden_states) / 2)  # SigLu, equation 9 with the sign of the weights
        for block in self.mid_blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class UniWeTokConstantLinear(nn.Linear):
    """A linear layer that starts as a constant: weight 0, bias `start`. It is a class of its own because transformers
    initialises out-of-tree models leaf by leaf, and a leaf knows only its class."""

    def __init__(self, in_features: int, out_features: int, start: float = 0.0):
        super().__init__(in_features, out_features)
        self.start = start


class UniWeTokAdaptiveGroupNorm(nn.Module):
    """GroupNorm whose gain and shift come from the codes' standard deviation and mean over space."""

    def __init__(self, config: UniWeTokConfig, channels: int):
        super().__init__()
        self.eps = config.norm_eps
        self.norm = nn.GroupNorm(config.num_norm_groups, channels, eps=config.norm_eps, affine=False)
        self.gain = UniWeTokConstantLinear(config.num_bits, channels, start=1.0)
        self.shift = UniWeTokConstantLinear(config.num_bits, channels)

    def forward(self, hidden_states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        tokens = codes.flatten(2)  # [B, bits, h*w]
        # The variance is the unbiased one; of a single token it is 0, where the published code gives NaN.
        count = tokens.shape[-1]
        variance = tokens.var(-1, correction=0) * (count / torch.sym_max(count - 1, 1))
        gain = self.gain((variance + self.eps).sqrt())[:, :, None, None]
        shift = self.shift(tokens.mean(-1))[:, :, None, None]
        return gain * self.norm(hidden_states) + shift


class UniWeTokUpBlock(nn.Module):
    """One level of the decoder: adaptive norm, residual blocks, then twice the resolution but at full size."""

    def __init__(self, config: UniWeTokConfig, level: int):
        super().__init__()
        widths = config.level_channels
        in_channels = widths[min(level + 1, len(widths) - 1)]
        self.adaptive_norm = UniWeTokAdaptiveGroupNorm(config, in_channels)
        self.blocks = nn.ModuleList(
            [
                UniWeTokResidualBlock(config, in_channels if index == 0 else widths[level], widths[level])
                for index in range(config.num_res_blocks)
            ]
        )
        self.upsample = nn.Conv2d(widths[level], 4 * widths[level], 3, padding=1) if level > 0 else None

    def forward(self, hidden_states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        hidden_states = self.adaptive_norm(hidden_states, codes)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states if self.upsample is None else depth_to_space(self.upsample(hidden_states))


class UniWeTokDecoder(nn.Module):
    """Codes [B, bits, h, w] (and noise of that shape) to pictures [B, 3, H, W]."""

    def __init__(self, config: UniWeTokConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.config = config
        in_channels = 2 * config.num_bits if config.decoder_noise else config.num_bits
        self.conv_in = nn.Conv2d(in_channels, hidden_size, 3, padding=1)
        if config.architecture == "hybrid":
            self.transformer = UniWeTokTransformer(config, decoder_grid)
        self.mid_blocks = nn.ModuleList(
            [UniWeTokResidualBlock(config, hidden_size, hidden_size) for _ in range(config.num_res_blocks)]
        )
        # Index = level as in the encoder, so the decoder walks the list backwards.
        self.up_blocks = nn.ModuleList([UniWeTokUpBlock(config, i) for i in range(len(config.level_channels))])
        self.norm_out = nn.GroupNorm(config.num_norm_groups, config.level_channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(config.level_channels[0], config.num_channels, 3, padding=1)

    def forward(self, codes: torch.Tensor, noise: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        codes = codes.to(self.conv_in.weight.dtype)
        inputs = codes if noise is None else torch.cat([codes, noise.to(codes.dtype)], dim=1)
        hidden_states = self.conv_in(for_convolution(inputs))
        if self.config.architecture == "hybrid":
            hidden_states = self.transformer(hidden_states, **kwargs)
        for block in self.mid_blocks:
            hidden_states = block(hidden_states)
        for block in reversed(self.up_blocks):
            hidden_states = block(hidden_states, codes)
        return self.conv_out(for_convolution(F.silu(self.norm_out(hidden_states))))


class UniWeTokPreTrainedModel(UniWeTokAdapterMixin, PreTrainedModel):
    config: UniWeTokConfig
    # Where the tokenizer lives inside a UniWeTokForCausalLM: `UniWeTokModel.from_pretrained(pipeline,
    # subfolder="mllm")` strips this prefix and so loads the tokenizer alone.
    base_model_prefix = "model.vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # ty: ignore[invalid-assignment]  (as in transformers)
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniWeTokLayer", "UniWeTokResidualBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(UniWeTokLayer, num_hidden_layers_key="num_recorded_layers"),
        "attentions": OutputRecorder(UniWeTokAttention, index=1),
    }
    _keys_to_ignore_on_load_unexpected = [r"^model\.(projector|language_model)\.", r"^(lm_head|image_head)\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Starting weights:

        - convolutions and linear layers: uniform in +-1 / sqrt(fan in) (torch's own default), biases 0
        - register tokens: normal, `initializer_range`
        - norms: gain 1, shift 0; adaptive norm: gain and shift read nothing from the codes at first (gain 1, shift 0)
        """
        super()._init_weights(module)
        if isinstance(module, UniWeTokConstantLinear):
            init.zeros_(module.weight)
            init.constant_(module.bias, module.start)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)


class UniWeTokModel(UniWeTokPreTrainedModel):
    """The UniWeTok image tokenizer: pictures to binary codes and back.

    Example:

    ```python
    >>> from uniwetok_hf import UniWeTokModel, UniWeTokImageProcessor
    >>> inputs = UniWeTokImageProcessor.from_pretrained(path)(picture, return_tensors="pt")
    >>> model = UniWeTokModel.from_pretrained(path)
    >>> codes = model.encode(inputs.pixel_values).codes  # [1, 128, h, w] of {-1, +1}
    >>> sample = model.decode(codes, generator=torch.Generator().manual_seed(0)).sample
    ```
    """

    use_slicing = False

    def __init__(self, config: UniWeTokConfig):
        super().__init__(config)
        self.encoder = UniWeTokEncoder(config)
        self.decoder = UniWeTokDecoder(config)
        self.post_init()

    def enable_slicing(self):
        """Encodes and decodes batches picture by picture from now on, with the memory of one picture. Noise is still
        sampled for the whole batch at once, so the results are the same up to rounding. For use without gradients:
        what a backward pass needs is kept for all pictures anyway; `activation_checkpointing_enable` is for training.
        `hidden_states` and `attentions` come picture by picture."""
        self.use_slicing = True

    def disable_slicing(self):
        """Back to whole batches."""
        self.use_slicing = False

    def _in_slices(self, function: Callable[..., torch.Tensor], *batches: torch.Tensor) -> torch.Tensor:
        """`function` of whole batches, or of one picture after the other."""
        if not self.use_slicing or len(batches[0]) == 1:
            return function(*batches)
        return torch.cat([function(*single) for single in zip(*(batch.split(1) for batch in batches), strict=True)])

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """Signs of `latents` [B, bits, h, w] in {-1, +1}. In training the gradient passes straight through."""
        codes = binarize(latents)
        return codes + (latents - latents.detach()) if self.training else codes

    @can_return_tuple
    def encode(self, pixel_values: Pictures, **kwargs) -> UniWeTokEncoderOutput:
        """Encodes pictures. In training the gradient of the codes passes straight through to the latents.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1], or a list of [3, H, W] of any sizes; computed with in the model's
                dtype. H and W are multiples of `config.stride`; [`UniWeTokImageProcessor`] sees to that.
            kwargs: options of the attention function; `return_dict`.

        Raises:
            ValueError: for another shape, or a side that is no multiple of the stride.
        """
        if not torch.is_tensor(pixel_values):
            if len(pixel_values) == 0:
                raise ValueError("`pixel_values` is an empty list.")
            latents, codes = {}, {}
            for members in _same_shapes(pixel_values):
                batch = torch.stack([pixel_values[index] for index in members])
                encoded = self.encode(batch, return_dict=True, **kwargs)
                latents |= zip(members, encoded.latents, strict=True)
                codes |= zip(members, encoded.codes, strict=True)
            in_order = range(len(pixel_values))
            return UniWeTokEncoderOutput([latents[i] for i in in_order], [codes[i] for i in in_order])
        self._check_pixel_values(pixel_values)
        latents = self._in_slices(partial(self.encoder, **kwargs), pixel_values)
        return UniWeTokEncoderOutput(latents=latents, codes=self.quantize(latents))

    @can_return_tuple
    def decode(
        self,
        codes: Pictures,
        generator: Generators = None,
        noise: Pictures | None = None,
        **kwargs,
    ) -> UniWeTokDecoderOutput:
        """Decodes codes.

        Args:
            codes: [B, bits, h, w] of {-1, +1}, or a list of [bits, h, w] of any sizes; of any signed dtype, such as
                float32 or int8.
            generator: source of the decoder's noise; one for all pictures in turn, or a list with one per picture.
            noise: the noise itself, shaped like `codes`, instead of sampling it. Not used without `decoder_noise`.
            kwargs: options of the attention function; `return_dict`.

        Returns:
            `sample`, [B, 3, h * stride, w * stride] or a list of [3, H, W]; unclamped.

        Raises:
            ValueError: when the codes are not of this model's bits or of a dtype without -1, or `noise` is not shaped
                like them.
        """
        if not torch.is_tensor(codes):
            noise = self._noise_for_list(codes, generator, noise)
            samples = {}
            for members in _same_shapes(codes):
                batches = [torch.stack([tensors[index] for index in members]) for tensors in (codes, noise)]
                decoded = self.decode(batches[0], noise=batches[1], return_dict=True, **kwargs)
                samples |= zip(members, decoded.sample, strict=True)
            return UniWeTokDecoderOutput(sample=[samples[i] for i in range(len(codes))])
        self._check_codes(codes, noise)
        inputs: list = [codes]
        if self.config.decoder_noise:
            inputs.append(_noise_for(codes, generator) if noise is None else noise)
        return UniWeTokDecoderOutput(sample=self._in_slices(partial(self.decoder, **kwargs), *inputs))

    @capture_outputs
    def forward(
        self,
        pixel_values: Pictures,
        generator: Generators = None,
        noise: Pictures | None = None,
        **kwargs,
    ) -> UniWeTokOutput:
        """[`encode`] and [`decode`] in one: `sample`, `latents` and `codes`. In training, gradients reach the encoder
        straight through the signs."""
        encoded = self.encode(pixel_values, return_dict=True, **kwargs)
        decoded = self.decode(encoded.codes, generator=generator, noise=noise, return_dict=True, **kwargs)
        return UniWeTokOutput(sample=decoded.sample, latents=encoded.latents, codes=encoded.codes)

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        stride, channels = self.config.stride, self.config.num_channels
        shape = pixel_values.shape
        if len(shape) != 4 or 0 in shape or shape[1] != channels or shape[2] % stride or shape[3] % stride:
            raise ValueError(
                f"`pixel_values` must be [B, {channels}, H, W] with H and W multiples of {stride}, got "
                f"{tuple(shape)}; UniWeTokImageProcessor pads, crops or resizes to such sizes."
            )

    def _check_codes(self, codes: torch.Tensor, noise: Pictures | None):
        if codes.ndim != 4 or codes.shape[1] != self.config.num_bits:
            raise ValueError(f"`codes` must be [B, {self.config.num_bits}, h, w], got {tuple(codes.shape)}.")
        if not codes.dtype.is_signed or codes.is_complex():
            raise ValueError(
                f"`codes` must be of a dtype that holds -1 and +1, such as float32 or int8, got {codes.dtype}."
            )
        if noise is not None and (not torch.is_tensor(noise) or noise.shape != codes.shape):
            found = tuple(noise.shape) if torch.is_tensor(noise) else f"a {type(noise).__name__}"
            raise ValueError(f"`noise` must be shaped like `codes` {tuple(codes.shape)}, got {found}.")

    def _noise_for_list(
        self, codes: Sequence[torch.Tensor], generator: Generators, noise: Pictures | None
    ) -> Pictures:
        if len(codes) == 0:
            raise ValueError("`codes` is an empty list.")
        if noise is None:
            generators = generator if isinstance(generator, (list, tuple)) else [generator] * len(codes)
            if len(generators) != len(codes):
                raise ValueError(
                    f"`generator` is a list of {len(generators)}, but `codes` holds {len(codes)} pictures."
                )
            noise = [_noise_for(picture, one) for picture, one in zip(codes, generators, strict=True)]
        if [n.shape for n in noise] != [c.shape for c in codes]:
            raise ValueError("`noise` must hold one tensor per picture, shaped like its codes.")
        return noise


def _noise_for(codes: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Noise shaped like `codes`, in their precision; in float32 for codes that are integers."""
    dtype = codes.dtype if codes.is_floating_point() else torch.float32
    return draw_noise(codes.shape, generator, codes.device, dtype)


def _same_shapes(pictures: Sequence[torch.Tensor]) -> list[list[int]]:
    """The indices of `pictures`, those of one shape together: they are computed as one batch."""
    groups: dict[torch.Size, list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(index)
    return list(groups.values())


__all__ = [
    "UniWeTokDecoderOutput",
    "UniWeTokEncoderOutput",
    "UniWeTokModel",
    "UniWeTokOutput",
    "UniWeTokPreTrainedModel",
]
