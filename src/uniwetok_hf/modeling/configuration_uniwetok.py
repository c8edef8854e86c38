# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Configuration of the UniWeTok image tokenizer (arXiv 2602.14178, section 3 and tables 14-33; docs/method.md 1.1).

Unusual points:
- One config covers two published architectures: `"hybrid"` (convolution + attention + SigLu, the paper's) and
  `"convolutional"` (the WeTok/BitDance autoencoder that public text-to-image weights were trained on).
- The defaults are the paper's model: 265,729,664 encoder + 355,896,451 decoder parameters.
"""

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


class CheckedTypeMixin:
    """A config that refuses the file of a model of another type, of which transformers would make one with random
    weights, as large as the defaults say."""

    model_type: ClassVar[str]

    @cached_property
    def auto_map(self) -> dict[str, str]:
        """Which class of the folder's own code an Auto class loads; empty where the folder has none. TRL asks each
        config for it whose model is not in transformers. Not the class' own `{}`: transformers writes into it."""
        return {}

    def to_dict(self) -> dict:
        fields = super().to_dict()  # ty: ignore[missing-attribute]  (a mixin)
        if not fields.get("auto_map"):
            fields.pop("auto_map", None)
        return fields

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"The config is of a model of the type {found!r}, {cls.__name__} reads {cls.model_type!r}. The model "
                "of a pipeline lies in its folder `mllm`; the authors' own files are converted first, by `uniwetok "
                "convert`."
            )
        return super().from_dict(config_dict, **kwargs)  # ty: ignore[missing-attribute]  (a mixin)


def swiglu_width(hidden_size: int) -> int:
    """Width of a SwiGLU by the rule of the published models: 8/3 of `hidden_size`, up to a multiple of 256."""
    return 256 * -(-int(8 * hidden_size / 3) // 256)


@strict
class UniWeTokConfig(CheckedTypeMixin, PreTrainedConfig):
    r"""
    Args:
        architecture (`str`, defaults to `"hybrid"`):
            `"hybrid"`: levels of constant width, the strided convolution widens, attention stage, latents squashed to
            (-1, 1). `"convolutional"`: the first residual block of a level widens, a convolutional middle instead of
            attention, latents not squashed.
        num_channels (`int`, defaults to 3): Channels of a picture.
        num_bits (`int`, defaults to 128): Bits of one token, the channels of the latents. A multiple of 8.
        bits_per_group (`int`, defaults to 8): Bits that share one histogram in the batch entropy (paper: d').
        base_channels (`int`, defaults to 128): Channels at full resolution before the first multiplier.
        channel_multipliers (`list[int]`, defaults to `[1, 1, 2, 2, 4, 8]`):
            Width of each level over `base_channels`; each level but the last halves the resolution.
        num_res_blocks (`int`, defaults to 2): Residual blocks of a level.
        num_hidden_layers (`int`, defaults to 16): Attention blocks of each half. Only the hybrid has any.
        num_attention_heads (`int`, defaults to 16): Attention heads.
        intermediate_size (`int`, *optional*): Width of the SwiGLU; 8/3 of the hidden size rounded up to a multiple of
            256 when not given.
        num_register_tokens (`int`, defaults to 4): Learned tokens put before the picture's in the attention stage.
        num_norm_groups (`int`, defaults to 32): Groups of every GroupNorm. Small models need fewer.
        norm_eps (`float`, defaults to 1e-6): Epsilon of every norm.
        rope_theta (`float`, defaults to 10000.0): Base of the 2-D rotary frequencies.
        decoder_noise (`bool`, defaults to `True`): Whether the decoder reads Gaussian noise beside the codes.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the register tokens at the start.

    Raises:
        ValueError: when sizes don't fit each other; the message names the field.
    """

    model_type = "uniwetok"
    base_config_key = "vision_config"

    architecture: Literal["hybrid", "convolutional"] = "hybrid"
    num_channels: int = 3
    num_bits: int = 128
    bits_per_group: int = 8
    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4, 8)
    num_res_blocks: int = 2
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    if TYPE_CHECKING:
        intermediate_size: int = 0  # never None once `__post_init__` has run
    else:
        intermediate_size: int | None = None
    num_register_tokens: int = 4
    num_norm_groups: int = 32
    norm_eps: float = 1e-6
    rope_theta: float | int = 10000.0
    decoder_noise: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        counts = ("num_bits", "bits_per_group", "base_channels", "num_res_blocks", "num_attention_heads")
        for name in (*counts, "num_norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        for name in ("num_hidden_layers", "num_register_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0 < self.rope_theta < 1e38:  # a number of float32
            raise ValueError(f"`rope_theta` must be above 0 and below 1e38, got {self.rope_theta}.")
        self.channel_multipliers = list(self.channel_multipliers)
        if any(multiplier < 1 for multiplier in self.channel_multipliers):
            raise ValueError(f"`channel_multipliers` must be 1 or more each, got {self.channel_multipliers}.")
        if len(self.channel_multipliers) < 2:
            raise ValueError(f"`channel_multipliers` needs two levels or more, got {self.channel_multipliers}.")
        if self.architecture == "convolutional":
            self.num_hidden_layers = 0
        elif self.channel_multipliers[0] != 1:
            raise ValueError(
                "`channel_multipliers` of the hybrid architecture must start with 1 (nothing widens before the first "
                f"level), got {self.channel_multipliers}."
            )
        if self.intermediate_size is None:
            self.intermediate_size = swiglu_width(self.hidden_size)
        self._check_divisibility()
        super().__post_init__(**kwargs)

    def _check_divisibility(self):
        if self.num_bits % 8 or self.num_bits % self.bits_per_group:
            raise ValueError(
                f"`num_bits` must be a multiple of 8 (codes are packed in bytes) and of `bits_per_group`="
                f"{self.bits_per_group}, got {self.num_bits}."
            )
        for width in self.level_channels:
            if width % self.num_norm_groups:
                raise ValueError(
                    f"`num_norm_groups`={self.num_norm_groups} does not divide the level width {width}; widths are "
                    f"`base_channels` x `channel_multipliers` = {self.level_channels}."
                )
        if self.num_hidden_layers and self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"`num_attention_heads`={self.num_attention_heads} must divide the hidden size {self.hidden_size} "
                "into heads of a multiple of 4 channels (2-D rotary positions)."
            )

    @property
    def level_channels(self) -> list[int]:
        """Width of each level, full resolution first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def hidden_size(self) -> int:
        """Width of the attention stage, that of the last level."""
        return self.level_channels[-1]

    @property
    def num_recorded_layers(self) -> int:
        """Attention blocks of both halves, whose `hidden_states` a forward returns on request."""
        return 2 * self.num_hidden_layers

    @property
    def stride(self) -> int:
        """Pixels of one token's side."""
        return 2 ** (len(self.channel_multipliers) - 1)


__all__ = ["UniWeTokConfig", "swiglu_width"]
