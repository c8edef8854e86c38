# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Configurations of the unified language model and of its binary head (docs/method.md 3).

`UniWeTokMLLMConfig` is composite: any causal language model as `text_config`, the image tokenizer as `vision_config`,
the diffusion head that predicts the bits of a token as `head_config`.
"""

from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_uniwetok import CheckedTypeMixin, UniWeTokConfig


@strict
class UniWeTokHeadConfig(CheckedTypeMixin, PreTrainedConfig):
    r"""
    Args:
        num_bits (`int`, defaults to 128): Bits of a token.
        condition_size (`int`, defaults to 4096): Width of the language model's hidden states.
        hidden_size (`int`, defaults to 2048): Width of the head.
        num_hidden_layers (`int`, defaults to 6): Blocks.
        num_modulation_layers (`int`, defaults to 2): Modulation layers; consecutive blocks share each of them.
        head_dim (`int`, defaults to 128): Channels of an attention head.
        intermediate_size (`int`, *optional*): Width of the feed-forward; 1.5 x `hidden_size` when not given.
        hidden_act (`str`, defaults to `"swiglu"`): Feed-forward, `"swiglu"` or `"silu"`.
        has_attention (`bool`, defaults to `True`): Whether the tokens of a patch attend to each other in a block. The
            ImageNet models of one token per step have feed-forwards only.
        squash_output (`bool`, defaults to `True`): Whether predictions pass 2 sigmoid(x) - 1 (the language models') or
            are linear (the ImageNet models').
        timestep_schedule (`str`, defaults to `"logit_normal"`): Law of t in training, `"logit_normal"` or `"uniform"`.
        timestep_mean, timestep_std (`float`, default to -0.8 and 0.8): Parameters of the logit-normal law.
        timestep_shift (`float`, defaults to 1.0): s in t / (t + s (1 - t)), in training and sampling.
        timestep_embedding_size (`int`, defaults to 256): Width of the sinusoids of t.
        norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the time embedding's weights.

    Raises:
        ValueError: when sizes don't divide each other; the message names the field.
    """

    model_type = "uniwetok_head"
    base_config_key = "head_config"

    num_bits: int = 128
    condition_size: int = 4096
    hidden_size: int = 2048
    num_hidden_layers: int = 6
    num_modulation_layers: int = 2
    head_dim: int = 128
    if TYPE_CHECKING:
        intermediate_size: int = 0  # never None once `__post_init__` has run
    else:
        intermediate_size: int | None = None
    hidden_act: Literal["swiglu", "silu"] = "swiglu"
    has_attention: bool = True
    squash_output: bool = True
    timestep_schedule: Literal["logit_normal", "uniform"] = "logit_normal"
    timestep_mean: float = -0.8
    timestep_std: float = 0.8
    timestep_shift: float = 1.0
    timestep_embedding_size: int = 256
    norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size * 3 // 2
        if self.has_attention and self.hidden_size % self.head_dim:
            raise ValueError(f"`head_dim`={self.head_dim} must divide `hidden_size`={self.hidden_size}.")
        if self.num_hidden_layers % self.num_modulation_layers:
            raise ValueError(
                f"`num_modulation_layers`={self.num_modulation_layers} must divide `num_hidden_layers`="
                f"{self.num_hidden_layers}."
            )
        super().__post_init__(**kwargs)

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of a block."""
        return self.hidden_size // self.head_dim


@strict
class UniWeTokMLLMConfig(CheckedTypeMixin, PreTrainedConfig):
    r"""
    Args:
        text_config: Config of the causal language model; Qwen3 when not given.
        vision_config: [`UniWeTokConfig`] of the image tokenizer.
        head_config: [`UniWeTokHeadConfig`]; its `num_bits` and `condition_size` follow from the other two.
        patch_size (`int`, defaults to 1): Side p of the square of tokens that are generated per step (p x p tokens).
        image_token_id (`int`): `<|image_pad|>`, which stands for one token of a picture.
        vision_start_token_id, vision_end_token_id (`int`): `<|vision_start|>` and `<|vision_end|>`.
        size_token_id (`int`): `<|res_1|>`; `<|res_n|>` is `size_token_id + n - 1`.
        num_size_tokens (`int`, defaults to 128): How many of them, the longest side in tokens.
        query_token_id (`int`): `<|query_1|>`, of which there are p x p - 1.
        projector_hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of the projector.
        text_loss_weight, image_loss_weight (`float`, default to 0.01 and 1.0): Parts of the loss.
        bit_flip_probability (`float`, defaults to 0.1): In training, the largest probability with which a bit of a
            picture to be generated is flipped on input (targets stay clean).
        num_diffusion_draws (`int`, defaults to 1): In training, noise levels per token.
        tie_word_embeddings (`bool`, *optional*): Whether text output and input embeddings are one matrix; what the
            text config says when not given.

    Raises:
        ValueError: when `patch_size` is less than 1 or the parts' sizes don't fit.
    """

    model_type = "uniwetok_mllm"
    # What remains of the outputs are the logits, which transformers' Trainer gives to `compute_metrics`.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "text_loss",
        "image_loss",
        "row_text_losses",
        "row_image_losses",
        "bit_accuracy",
    ]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
        "vision_config": SubConfigSpec(config_class=UniWeTokConfig),
        "head_config": SubConfigSpec(config_class=UniWeTokHeadConfig),
    }

    if TYPE_CHECKING:  # once `__post_init__` has run
        text_config: PreTrainedConfig
        vision_config: UniWeTokConfig
        head_config: UniWeTokHeadConfig
    else:
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
        head_config: dict | PreTrainedConfig | None = None
    patch_size: int = 1
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    size_token_id: int = 151669
    num_size_tokens: int = 128
    query_token_id: int = 151797
    projector_hidden_act: str = "gelu_pytorch_tanh"
    text_loss_weight: float = 0.01
    image_loss_weight: float = 1.0
    bit_flip_probability: float = 0.1
    num_diffusion_draws: int = 1
    tie_word_embeddings: bool | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        given = self.head_config is not None
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for name in ("patch_size", "num_size_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.text_config.hidden_size % 4:
            size = self.text_config.hidden_size
            raise ValueError(f"`text_config.hidden_size` must be a multiple of 4 (2-D sinusoids), got {size}.")
        wanted = {"num_bits": self.vision_config.num_bits, "condition_size": self.text_config.hidden_size}
        for name, value in wanted.items():
            if not given:
                setattr(self.head_config, name, value)
            elif getattr(self.head_config, name) != value:
                raise ValueError(f"`head_config.{name}` must be {value}, got {getattr(self.head_config, name)}.")

    @property
    def tokens_per_patch(self) -> int:
        """P, the tokens that are read or generated per step."""
        return self.patch_size**2

    def count_fitting(self, given: int, wanted: int) -> int:
        """How many of `wanted` tokens have positions behind `given` ones."""
        most = getattr(self.text_config, "max_position_embeddings", None)
        return wanted if most is None else max(0, min(wanted, most - given))

    def check_positions(self, given: int, following: int, argument: str = "prompt") -> None:
        """
        Raises:
            ValueError: when `given` tokens and those `following` them are more than the language model has positions;
                the message blames `argument`.
        """
        most = getattr(self.text_config, "max_position_embeddings", None)
        if most is not None and given + following > most:
            rest = f", and {following} that follow them," if following else ""
            raise ValueError(
                f"`{argument}`: {given} tokens{rest} are more than the {most} that the model's positions reach; use "
                "a shorter text or a smaller picture, or start a new conversation."
            )


__all__ = ["UniWeTokHeadConfig", "UniWeTokMLLMConfig"]
