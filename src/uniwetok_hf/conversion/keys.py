# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Names of the published tensors (docs/method.md 1.3) and what they are called here.

A rule is (pattern of a published name, native names). One native name renames; several split the tensor in equal parts
along dimension 0, since the published files fuse query|key|value and gate|up.
"""

import re


Rules = tuple[tuple[str, tuple[str, ...]], ...]

_HALF = r"(encoder|decoder)"
_RES = r"(norm1\.weight|norm1\.bias|norm2\.weight|norm2\.bias|conv1\.weight|conv2\.weight)"
_DOWN, _NATIVE_DOWN = r"encoder\.down\.(\d+)", r"encoder.down_blocks.\1"
_UP, _NATIVE_UP = r"decoder\.up\.(\d+)", r"decoder.up_blocks.\1"
_LAYER, _NATIVE_LAYER = rf"{_HALF}\.mid_attn_blocks\.(\d+)", r"\1.transformer.layers.\2"


def _block_rules(block: str, native: str) -> Rules:
    """Rules of an attention block of the image tokenizer and of the class-to-image models."""
    return (
        (rf"{block}\.attention\.wqkv\.weight", tuple(rf"{native}.self_attn.{part}_proj.weight" for part in "qkv")),
        (rf"{block}\.attention\.wo\.weight", (rf"{native}.self_attn.o_proj.weight",)),
        (
            rf"{block}\.feed_forward\.w1\.weight",
            (rf"{native}.mlp.gate_proj.weight", rf"{native}.mlp.up_proj.weight"),
        ),
        (rf"{block}\.feed_forward\.w2\.weight", (rf"{native}.mlp.down_proj.weight",)),
        (rf"{block}\.attention_norm\.weight", (rf"{native}.input_layernorm.weight",)),
        (rf"{block}\.ffn_norm\.weight", (rf"{native}.post_attention_layernorm.weight",)),
    )


VISION_RULES: Rules = (
    (rf"{_HALF}\.(conv_in|norm_out|conv_out)\.(weight|bias)", (r"\1.\2.\3",)),
    (rf"{_DOWN}\.block\.(\d+)\.{_RES}", (rf"{_NATIVE_DOWN}.blocks.\2.\3",)),
    (rf"{_DOWN}\.block\.(\d+)\.nin_shortcut\.weight", (rf"{_NATIVE_DOWN}.blocks.\2.shortcut.weight",)),
    (rf"{_DOWN}\.downsample\.(weight|bias)", (rf"{_NATIVE_DOWN}.downsample.\2",)),
    (rf"{_HALF}\.mid_block\.(\d+)\.{_RES}", (r"\1.mid_blocks.\2.\3",)),
    (rf"{_UP}\.block\.(\d+)\.{_RES}", (rf"{_NATIVE_UP}.blocks.\2.\3",)),
    (rf"{_UP}\.block\.(\d+)\.nin_shortcut\.weight", (rf"{_NATIVE_UP}.blocks.\2.shortcut.weight",)),
    (rf"{_UP}\.upsample\.conv1\.(weight|bias)", (rf"{_NATIVE_UP}.upsample.\2",)),
    (r"decoder\.adaptive\.(\d+)\.gamma\.(weight|bias)", (rf"{_NATIVE_UP}.adaptive_norm.gain.\2",)),
    (r"decoder\.adaptive\.(\d+)\.beta\.(weight|bias)", (rf"{_NATIVE_UP}.adaptive_norm.shift.\2",)),
    (rf"{_HALF}\.register_token\.weight", (r"\1.transformer.register_tokens.weight",)),
    *_block_rules(_LAYER, _NATIVE_LAYER),
)

_HEAD_RULES: Rules = (
    (r"net\.time_embed\.mlp\.0\.(weight|bias)", (r"time_embed.fc1.\1",)),
    (r"net\.time_embed\.mlp\.2\.(weight|bias)", (r"time_embed.fc2.\1",)),
    (r"net\.cond_embed\.(weight|bias)", (r"condition_proj.\1",)),
    (r"net\.input_proj\.(weight|bias)", (r"input_proj.\1",)),
    (r"net\.res_blocks\.(\d+)\.norm1\.(weight|bias)", (r"layers.\1.input_layernorm.\2",)),
    (r"net\.res_blocks\.(\d+)\.norm2\.(weight|bias)", (r"layers.\1.post_attention_layernorm.\2",)),
    (r"net\.res_blocks\.(\d+)\.attn\.wqkv\.(weight|bias)", tuple(rf"layers.\1.self_attn.{p}_proj.\2" for p in "qkv")),
    (r"net\.res_blocks\.(\d+)\.attn\.wo\.(weight|bias)", (r"layers.\1.self_attn.o_proj.\2",)),
    (r"net\.ada_ln_blocks\.(\d+)\.(weight|bias)", (r"modulations.\1.\2",)),
    (r"net\.final_layer\.ada_ln_modulation\.(weight|bias)", (r"modulation_out.\1",)),
    (r"net\.final_layer\.linear\.(weight|bias)", (r"proj_out.\1",)),
)

# With a SwiGLU, `"use_swiglu": true`, and with the plain feed-forward, whose names differ.
HEAD_RULES: Rules = (
    *_HEAD_RULES,
    (r"net\.res_blocks\.(\d+)\.w1\.(weight|bias)", (r"layers.\1.mlp.gate_proj.\2", r"layers.\1.mlp.up_proj.\2")),
    (r"net\.res_blocks\.(\d+)\.w2\.(weight|bias)", (r"layers.\1.mlp.down_proj.\2",)),
)
PLAIN_HEAD_RULES: Rules = (
    *_HEAD_RULES,
    (r"net\.res_blocks\.(\d+)\.mlp\.0\.(weight|bias)", (r"layers.\1.mlp.up_proj.\2",)),
    (r"net\.res_blocks\.(\d+)\.mlp\.2\.(weight|bias)", (r"layers.\1.mlp.down_proj.\2",)),
)

_CLASS_TO_IMAGE_RULES: Rules = (
    (r"cls_embedding\.weight", ("class_embedding.weight",)),
    (r"query_token", ("queries.weight",)),
    (r"proj_in\.w1\.(weight|bias)", (r"projector.gate_proj.\1", r"projector.up_proj.\1")),
    (r"proj_in\.w2\.(weight|bias)", (r"projector.down_proj.\1",)),
    (r"emb_norm\.weight", ("embedding_norm.weight",)),
    (r"norm\.weight", ("norm.weight",)),
    (r"pos_for_diff\.weight", ("position_embedding.weight",)),
    *_block_rules(r"layers\.(\d+)", r"layers.\1"),
)

PROJECTOR_RULES: Rules = ((r"(fc1|fc2)\.(weight|bias)", (r"\1.\2",)),)


def class_to_image_rules(has_attention: bool) -> Rules:
    """Rules of a class-to-image model. A head without attention, of the models of one token per step, has one norm a
    block."""
    norm = (r"net\.res_blocks\.(\d+)\.norm\.(weight|bias)", (r"layers.\1.input_layernorm.\2",))
    head_rules = HEAD_RULES if has_attention else (norm, *HEAD_RULES)
    return (
        *_CLASS_TO_IMAGE_RULES,
        *(
            (rf"head\.{pattern}", tuple(f"image_head.{target}" for target in targets))
            for pattern, targets in head_rules
        ),
    )


def language_rules(base_model_prefix: str) -> Rules:
    """Rules of a causal language model of transformers whose model without the head is called `base_model_prefix`."""
    return (
        (rf"{re.escape(base_model_prefix)}\.(.+)", (r"model.language_model.\1",)),
        (r"(lm_head\.weight)", (r"\1",)),
    )


def native_names(name: str, rules: Rules) -> tuple[str, ...]:
    """Native names of the equal parts of a published tensor; none for a name that no rule knows."""
    for pattern, targets in rules:
        if match := re.fullmatch(pattern, name):
            return tuple(match.expand(target) for target in targets)
    return ()


def published_name(native: str, rules: Rules) -> str | None:
    """The published name of the tensor that holds `native`: the rules read backwards. None when no rule gives it."""
    for pattern, targets in rules:
        parts = re.split(r"\(([^()]*)\)", pattern)  # literal, group, literal, group, ..., literal
        literals, groups = [part.replace("\\", "") for part in parts[::2]], parts[1::2]
        for target in targets:
            if match := re.fullmatch(_invert(target, groups), native):
                values = [match[f"group{number}"] for number in range(1, len(groups) + 1)] + [""]
                return "".join(literal + value for literal, value in zip(literals, values, strict=True))
    return None


def _invert(target: str, groups: list[str]) -> str:
    """The pattern of what `target` expands to: each \\1 becomes the group that it stands for, by name."""
    pattern = target.replace(".", r"\.")
    for number, group in enumerate(groups, start=1):
        pattern = pattern.replace(rf"\{number}", f"(?P<group{number}>{group})")
    return pattern
