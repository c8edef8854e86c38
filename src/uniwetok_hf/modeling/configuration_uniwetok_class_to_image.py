# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Configuration of the class-to-image model (docs/method.md 4), with which the paper generates ImageNet."""

from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_uniwetok import CheckedTypeMixin, swiglu_width
from .configuration_uniwetok_mllm import UniWeTokHeadConfig


@strict
class UniWeTokClassToImageConfig(CheckedTypeMixin, PreTrainedConfig):
    r"""
    The defaults are the paper's size B: 242.6 M parameters, pictures of 8 x 8 tokens of 128 bits.

    Args:
        num_bits (`int`, defaults to 128): Bits of a token, those of the image tokenizer.
        grid_size (`int`, defaults to 8): Tokens of a picture's side: `grid_size` x `grid_size` tokens are generated.
        patch_size (`int`, defaults to 1): Side p of the square of tokens that are generated per step (p x p tokens).
        num_classes (`int`, defaults to 1000): Classes. One more, the last one, stands for none of them.
        num_class_tokens (`int`, defaults to 64): Positions that tell the class, before those of the picture.
        hidden_size (`int`, defaults to 768): Width of the transformer.
        num_hidden_layers (`int`, defaults to 24): Blocks of the transformer.
        num_attention_heads (`int`, defaults to 12): Attention heads of a block.
        intermediate_size (`int`, *optional*): Width of the SwiGLU; 8/3 of `hidden_size` rounded up to a multiple of
            256 when not given.
        head_config: [`UniWeTokHeadConfig`]. When not given, it is as wide as the transformer, with a linear output,
            and its blocks attend where more than one token is generated per step. `num_bits` and `condition_size`
            follow from this config.
        class_dropout (`float`, defaults to 0.1): In training, the probability of reading no class.
        bit_flip_probability (`float`, defaults to 0.1): In training, the largest probability with which a bit is
            flipped on input (targets stay clean).
        num_diffusion_draws (`int`, defaults to 4): In training, noise levels per token.
        is_first_patch_apart (`bool`, defaults to `False`): Whether the rows without a class go on from a first patch
            of their own where it is not guided, as in the authors' script, in place of the picture's.
        norm_eps (`float`, defaults to 1e-6): Epsilon of every norm.
        rope_theta (`float`, defaults to 10000.0): Base of the 2-D rotary frequencies.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the transformer's weights at the start.

    Raises:
        ValueError: when sizes don't fit each other; the message names the field.
    """

    model_type = "uniwetok_class_to_image"
    sub_configs_defaults = {"head_config": SubConfigSpec(config_class=UniWeTokHeadConfig)}

    num_bits: int = 128
    grid_size: int = 8
    patch_size: int = 1
    num_classes: int = 1000
    num_class_tokens: int = 64
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 12
    if TYPE_CHECKING:  # once `__post_init__` has run
        intermediate_size: int = 0
        head_config: UniWeTokHeadConfig
    else:
        intermediate_size: int | None = None
        head_config: dict | PreTrainedConfig | None = None
    class_dropout: float = 0.1
    bit_flip_probability: float = 0.1
    num_diffusion_draws: int = 4
    is_first_patch_apart: bool = False
    norm_eps: float = 1e-6
    rope_theta: float | int = 10000.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        counts = ("num_bits", "grid_size", "patch_size", "num_classes", "num_class_tokens", "hidden_size")
        for name in (*counts, "num_hidden_layers", "num_attention_heads", "num_diffusion_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        for name in ("class_dropout", "bit_flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(self, name)}.")
        if self.grid_size % self.patch_size:
            raise ValueError(f"`patch_size`={self.patch_size} must divide `grid_size`={self.grid_size}.")
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"`num_attention_heads`={self.num_attention_heads} must divide `hidden_size`={self.hidden_size} into "
                "heads of a multiple of 4 channels (2-D rotary positions)."
            )
        if self.intermediate_size is None:
            self.intermediate_size = swiglu_width(self.hidden_size)
        if self.head_config is None:
            self.head_config = UniWeTokHeadConfig(
                num_bits=self.num_bits,
                condition_size=self.hidden_size,
                hidden_size=self.hidden_size,
                head_dim=self.hidden_size // self.num_attention_heads,
                has_attention=self.patch_size > 1,
                squash_output=False,
            )
        super().__post_init__(**kwargs)
        for name, value in {"num_bits": self.num_bits, "condition_size": self.hidden_size}.items():
            if getattr(self.head_config, name) != value:
                raise ValueError(f"`head_config.{name}` must be {value}, got {getattr(self.head_config, name)}.")

    @property
    def tokens_per_patch(self) -> int:
        """P, the tokens that are generated per step."""
        return self.patch_size**2

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture."""
        return self.grid_size**2

    @property
    def num_prefix_positions(self) -> int:
        """Positions before the picture: its class, and P - 1 queries that make room for its first patch."""
        return self.num_class_tokens + self.tokens_per_patch - 1


__all__ = ["UniWeTokClassToImageConfig"]
