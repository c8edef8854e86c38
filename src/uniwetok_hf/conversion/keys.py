# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Names of the published tensors (spec 1.6, 1.8, 3.1, 3.3) and what they are called here.

A rule is (pattern of a published name, native names). One native name renames; several split the tensor in equal parts
along dimension 0, since the published files fuse query|key|value and gate|up.
"""

import re
from collections.abc import Iterator

import torch


Rules = tuple[tuple[str, tuple[str, ...]], ...]

_RES = r"(norm1\.weight|norm1\.bias|norm2\.weight|norm2\.bias|conv1\.weight|conv2\.weight)"
_HALF = r"(encoder|decoder)"

VISION_RULES: Rules = (
    (rf"{_HALF}\.(conv_in|norm_out|conv_out)\.(weight|bias)", (r"\1.\2.\3",)),
    (rf"encoder\.down\.(\d+)\.block\.(\d+)\.{_RES}", (r"encoder.down_blocks.\1.blocks.\2.\3",)),
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.nin_shortcut\.weight", (r"encoder.down_blocks.\1.blocks.\2.shortcut.weight",)),
    (r"encoder\.down\.(\d+)\.downsample\.(weight|bias)", (r"encoder.down_blocks.\1.downsample.\2",)),
    (rf"{_HALF}\.mid_block\.(\d+)\.{_RES}", (r"\1.mid_blocks.\2.\3",)),
    (rf"decoder\.up\.(\d+)\.block\.(\d+)\.{_RES}", (r"decoder.up_blocks.\1.blocks.\2.\3",)),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.nin_shortcut\.weight", (r"decoder.up_blocks.\1.blocks.\2.shortcut.weight",)),
    (r"decoder\.up\.(\d+)\.upsample\.conv1\.(weight|bias)", (r"decoder.up_blocks.\1.upsample.\2",)),
    (r"decoder\.adaptive\.(\d+)\.gamma\.(weight|bias)", (r"decoder.up_blocks.\1.adaptive_norm.gain.\2",)),
    (r"decoder\.adaptive\.(\d+)\.beta\.(weight|bias)", (r"decoder.up_blocks.\1.adaptive_norm.shift.\2",)),
    (rf"{_HALF}\.register_token\.weight", (r"\1.transformer.register_tokens.weight",)),
    (
        rf"{_HALF}\.mid_attn_blocks\.(\d+)\.attention\.wqkv\.weight",
        tuple(rf"\1.transformer.layers.\2.self_attn.{part}_proj.weight" for part in "qkv"),
    ),
    (rf"{_HALF}\.mid_attn_blocks\.(\d+)\.attention\.wo\.weight", (r"\1.transformer.layers.\2.self_attn.o_proj.weight",)),
    (
        rf"{_HALF}\.mid_attn_blocks\.(\d+)\.feed_forward\.w1\.weight",
        (r"\1.transformer.layers.\2.mlp.gate_proj.weight", r"\1.transformer.layers.\2.mlp.up_proj.weight"),
    ),
    (rf"{_HALF}\.mid_attn_blocks\.(\d+)\.feed_forward\.w2\.weight", (r"\1.transformer.layers.\2.mlp.down_proj.weight",)),
    (rf"{_HALF}\.mid_attn_blocks\.(\d+)\.attention_norm\.weight", (r"\1.transformer.layers.\2.input_layernorm.weight",)),
    (
        rf"{_HALF}\.mid_attn_blocks\.(\d+)\.ffn_norm\.weight",
        (r"\1.transformer.layers.\2.post_attention_layernorm.weight",),
    ),
)


def to_native(name: str, tensor: torch.Tensor, rules: Rules) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the native (name, tensor) pairs of one published tensor; nothing for a name that no rule knows."""
    for pattern, targets in rules:
        if match := re.fullmatch(pattern, name):
            for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                yield match.expand(target), part
            return


HEAD_RULES: Rules = (
    (r"net\.time_embed\.mlp\.0\.(weight|bias)", (r"time_embed.fc1.\1",)),
    (r"net\.time_embed\.mlp\.2\.(weight|bias)", (r"time_embed.fc2.\1",)),
    (r"net\.cond_embed\.(weight|bias)", (r"condition_proj.\1",)),
    (r"net\.input_proj\.(weight|bias)", (r"input_proj.\1",)),
    (r"net\.res_blocks\.(\d+)\.norm1\.(weight|bias)", (r"layers.\1.input_layernorm.\2",)),
    (r"net\.res_blocks\.(\d+)\.norm2\.(weight|bias)", (r"layers.\1.post_attention_layernorm.\2",)),
    (r"net\.res_blocks\.(\d+)\.attn\.wqkv\.(weight|bias)", tuple(rf"layers.\1.self_attn.{p}_proj.\2" for p in "qkv")),
    (r"net\.res_blocks\.(\d+)\.attn\.wo\.(weight|bias)", (r"layers.\1.self_attn.o_proj.\2",)),
    (r"net\.res_blocks\.(\d+)\.w1\.(weight|bias)", (r"layers.\1.mlp.gate_proj.\2", r"layers.\1.mlp.up_proj.\2")),
    (r"net\.res_blocks\.(\d+)\.w2\.(weight|bias)", (r"layers.\1.mlp.down_proj.\2",)),
    (r"net\.ada_ln_blocks\.(\d+)\.(weight|bias)", (r"modulations.\1.\2",)),
    (r"net\.final_layer\.ada_ln_modulation\.(weight|bias)", (r"modulation_out.\1",)),
    (r"net\.final_layer\.linear\.(weight|bias)", (r"proj_out.\1",)),
)

PLAIN_MLP_RULE: Rules = ((r"net\.res_blocks\.(\d+)\.w1\.(weight|bias)", (r"layers.\1.mlp.up_proj.\2",)),)

PROJECTOR_RULES: Rules = ((r"(fc1|fc2)\.(weight|bias)", (r"\1.\2",)),)
