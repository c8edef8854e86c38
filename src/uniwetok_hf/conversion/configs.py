# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Configs of published models, from the JSON files beside them, from the tensors' names and shapes
(docs/method.md 1.3) and from the text tokenizer's vocabulary (docs/method.md 3.1)."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from ..files import one_line
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig, UniWeTokMLLMConfig
from .imagenet import imagenet_labels
from .layouts import PublishedPart, PublishedTextToImage
from .tensors import ConversionError, TensorSource


Shapes = Mapping[str, tuple[int, ...]]
_ConfigErrors = (ValueError, TypeError, StrictDataclassError)

# What the published code assumes where its JSON is silent.
_PUBLISHED_NUM_HEADS = 16
# Fields of `ddconfig` and what they are called here; each can be told from the tensors too, but for the heads.
_VISION_FIELDS = {
    "z_channels": "num_bits",
    "in_channels": "num_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "num_res_blocks",
    "attn_blocks": "num_hidden_layers",
}
_REQUIRED_HEAD_FIELDS = {
    "ch_target": "num_bits",
    "ch_cond": "condition_size",
    "ch_latent": "hidden_size",
    "depth_latent": "num_hidden_layers",
    "depth_adanln": "num_modulation_layers",
}


def read_vision_config(
    vision: PublishedPart, shapes: Shapes, num_attention_heads: int | None = None
) -> UniWeTokConfig:
    """Config of an image tokenizer.

    Args:
        vision: the published tokenizer.
        shapes: shapes of its tensors by published name.
        num_attention_heads: heads, for a tokenizer whose JSON does not tell them.

    Raises:
        ConversionError: when the JSON and the tensors, or the JSON and `num_attention_heads`, disagree, or something
            is told by neither.
    """
    told = infer_vision_fields(shapes)
    stated = _stated_vision_fields(vision)
    architecture = told["architecture"][0] if "architecture" in told else None
    if architecture == "hybrid":
        stated.pop("decoder_noise", None)  # its decoder always reads noise, whatever the JSON says
    elif architecture is None and stated:  # foreign names: let the JSON alone decide, then all names are reported
        stated.setdefault("num_hidden_layers", (0, "attn_blocks"))
        stated["architecture"] = ("hybrid" if stated["num_hidden_layers"][0] else "convolutional", "attn_blocks")
        stated.setdefault("decoder_noise", (True, "gan_decoder"))
    for field, (value, source) in stated.items():
        if field in told and told[field][0] != value:
            raise ConversionError(
                f"{vision.settings_label} and {vision.source.label} disagree: {source} is {value}, but "
                f"{told[field][1]} says {told[field][0]}."
            )
    fields = {field: value for field, (value, _) in (stated | told).items()}
    missing = [f"{field} ({tensors})" for field, tensors in _EVIDENCE.items() if field not in fields]
    if missing:
        raise ConversionError(
            f"{vision.source.label} holds no published image tokenizer: neither a JSON file nor its tensors tell "
            f"{', '.join(missing)}; it has {abbreviate(shapes)}."
        )
    if fields["architecture"] == "hybrid" and fields["num_hidden_layers"] > 0:
        width = fields["base_channels"] * fields["channel_multipliers"][-1]
        fields["num_attention_heads"] = _choose_num_heads(vision, num_attention_heads, width)
    try:
        return UniWeTokConfig(**fields)
    except _ConfigErrors as error:
        raise ConversionError(
            f"{vision.source.label} is no image tokenizer that can be built: {one_line(error)}"
        ) from error


# What tells each field.
_EVIDENCE = {
    "architecture": "encoder.mid_attn_blocks.* or encoder.mid_block.*",
    "num_bits": "encoder.conv_out.weight",
    "num_channels": "encoder.conv_in.weight",
    "base_channels": "encoder.conv_in.weight",
    "channel_multipliers": "encoder.down.*.block.0.norm2.weight",
    "num_res_blocks": "encoder.down.*.block.*",
    "num_hidden_layers": "encoder.mid_attn_blocks.*",
    "decoder_noise": "decoder.conv_in.weight",
}


def infer_vision_fields(shapes: Shapes) -> dict[str, tuple[object, str]]:
    """What names and shapes tell: fields of [`UniWeTokConfig`], each with its value and the tensors that tell it.

    Fields whose tensors are missing are left out.
    """
    fields: dict[str, object] = {}
    is_hybrid = any(re.match(r"encoder\.(mid_attn_blocks|register_token)\.", name) for name in shapes)
    if is_hybrid or any(name.startswith("encoder.mid_block.") for name in shapes):
        fields["architecture"] = "hybrid" if is_hybrid else "convolutional"
        fields["num_hidden_layers"] = _count(shapes, r"(?:encoder|decoder)\.mid_attn_blocks\.(\d+)\.") or 0
    if is_hybrid:
        fields["decoder_noise"] = True
    if num_res_blocks := _count(shapes, r"(?:encoder\.down|decoder\.up)\.\d+\.block\.(\d+)\."):
        fields["num_res_blocks"] = num_res_blocks
    if shape := _convolution(shapes, "encoder.conv_in.weight"):
        fields["base_channels"], fields["num_channels"] = shape[:2]
        widths = _level_widths(shapes)
        if widths and all(width and width % shape[0] == 0 for width in widths):
            fields["channel_multipliers"] = [width // shape[0] for width in widths]
    if shape := _convolution(shapes, "encoder.conv_out.weight"):
        fields["num_bits"] = shape[0]
        decoder_shape = _convolution(shapes, "decoder.conv_in.weight")
        if decoder_shape and not is_hybrid:
            fields["decoder_noise"] = decoder_shape[1] == 2 * shape[0]
    return {field: (value, _EVIDENCE[field]) for field, value in fields.items()}


def _convolution(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    """Shape of the weight of a convolution, None when it is missing or no such shape."""
    shape = shapes.get(name, ())
    return shape if len(shape) == 4 and min(shape) > 0 else None


def _count(names: Iterable[str], pattern: str) -> int | None:
    """One more than the largest number in the names that start with `pattern`, whose group is the number."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else None


def _level_widths(shapes: Shapes) -> list[int | None]:
    """Channels of each level, None for a level none of whose norms is there."""
    widths = []
    for level in range(_count(shapes, r"(?:encoder\.down|decoder\.up)\.(\d+)\.") or 0):
        pattern = re.compile(rf"(encoder\.down|decoder\.up)\.{level}\.block\.\d+\.norm2\.weight")
        widths.append(next((shape[0] for name, shape in shapes.items() if pattern.fullmatch(name) and shape), None))
    return widths


def _stated_vision_fields(vision: PublishedPart) -> dict[str, tuple[object, str]]:
    """What the JSON file states: fields of [`UniWeTokConfig`], each with its value and what states it."""
    if vision.settings is None:
        return {}
    settings = vision.settings.get("ddconfig", vision.settings)
    if not isinstance(settings, dict) or "z_channels" not in settings:
        raise ConversionError(f"{vision.settings_label} has no ddconfig with z_channels, ch, ch_mult and so on.")
    if settings.get("out_ch", 3) != settings.get("in_channels", 3):
        raise ConversionError(f"{vision.settings_label}: out_ch {settings['out_ch']} differs from in_channels.")
    fields = {ours: (settings[name], name) for name, ours in _VISION_FIELDS.items() if name in settings}
    if "gan_decoder" in vision.settings:
        fields["decoder_noise"] = (bool(vision.settings["gan_decoder"]), "gan_decoder")
    return fields


def _choose_num_heads(vision: PublishedPart, given: int | None, width: int) -> int:
    settings = (vision.settings or {}).get("ddconfig", vision.settings or {})
    stated = settings.get("n_heads")
    if stated is not None and given is not None and stated != given:
        raise ConversionError(
            f"`num_attention_heads` is {given}, but {vision.settings_label} says n_heads is {stated}."
        )
    num_heads = stated or given or _PUBLISHED_NUM_HEADS
    if not isinstance(num_heads, int) or width % (4 * num_heads):
        raise ConversionError(
            f"{num_heads} attention heads don't divide {width} channels into heads of a multiple of 4; pass "
            f"`num_attention_heads`, which the tensors of {vision.source.label} don't tell."
        )
    if vision.settings is None and given is None:
        warnings.warn(
            f"No JSON tells the attention heads of {vision.source.label}: {num_heads} are assumed. Another number "
            "loads just as well but computes something else; pass `num_attention_heads` if you know it.",
            stacklevel=2,
        )
    return num_heads


# The published trainings were called with these. Published JSON files have the defaults of the network's constructor
# instead, which no training used.
_TRAINED_TIMESTEPS = {"timestep_mean": -0.8, "timestep_std": 0.8}
_CONSTRUCTOR_TIMESTEPS = {"timestep_mean": 0.0, "timestep_std": 1.0}


def read_head_config(head: PublishedPart) -> tuple[UniWeTokHeadConfig, int, int]:
    """Config of the binary head, tokens of a patch, and noise levels per token in training.

    Raises:
        ConversionError: when the JSON lacks a field or they don't fit.
    """
    settings = head.settings
    missing = [name for name in (*_REQUIRED_HEAD_FIELDS, "parallel_num") if name not in settings]
    if missing:
        raise ConversionError(f"{head.settings_label} lacks {', '.join(missing)}.")
    fields = {ours: settings[name] for name, ours in _REQUIRED_HEAD_FIELDS.items()}
    try:
        law = {
            "timestep_mean": float(settings.get("P_mean", _CONSTRUCTOR_TIMESTEPS["timestep_mean"])),
            "timestep_std": float(settings.get("P_std", _CONSTRUCTOR_TIMESTEPS["timestep_std"])),
        }
        config = UniWeTokHeadConfig(
            **fields,
            **(_TRAINED_TIMESTEPS if law == _CONSTRUCTOR_TIMESTEPS else law),
            hidden_act="swiglu" if settings.get("use_swiglu", False) else "silu",
            timestep_schedule=settings.get("time_schedule", "logit_normal"),
            timestep_shift=float(settings.get("time_shift", 1.0)),
        )
        tokens_per_patch, num_draws = int(settings["parallel_num"]), int(settings.get("diff_batch_mul", 1))
    except _ConfigErrors as error:
        raise ConversionError(f"{head.settings_label} can't be used: {one_line(error)}") from error
    return config, tokens_per_patch, num_draws


_CLASS_TO_IMAGE_HEAD_DIM = 64  # of all published sizes, in the transformer and in the head
_CLASS_TO_IMAGE_WIDTHS = (768, 1024, 1280)


def read_class_to_image_config(transformer: PublishedPart) -> UniWeTokClassToImageConfig:
    """Config of a class-to-image model.

    Raises:
        ConversionError: when tensors are missing that tell it, or the JSON says something else.
    """
    label, settings = transformer.source.label, transformer.settings or {}
    fields, head_fields = _class_to_image_sizes(transformer.source)
    num_heads, hidden_size = _class_to_image_heads(transformer, fields, head_fields), fields["hidden_size"]
    try:
        return UniWeTokClassToImageConfig(
            **fields,
            num_attention_heads=num_heads,
            bit_flip_probability=0.1 if hidden_size <= 768 else 0.05,
            is_first_patch_apart=True,
            head_config=UniWeTokHeadConfig(
                **head_fields,
                **_TRAINED_TIMESTEPS,
                num_bits=fields["num_bits"],
                condition_size=hidden_size,
                head_dim=_CLASS_TO_IMAGE_HEAD_DIM,
                squash_output=False,
                timestep_schedule=settings.get("time_schedule", "logit_normal"),
                timestep_shift=float(settings.get("time_shift", 1.0)),
            ),
        )
    except (*_ConfigErrors, ZeroDivisionError) as error:
        raise ConversionError(f"{label} is no class-to-image model that can be built: {one_line(error)}") from error


def _class_to_image_sizes(source: TensorSource) -> tuple[dict, dict]:
    """What the shapes of the tensors tell: fields of the config, and of that of the head."""
    shapes = {name: info.shape for name, info in source.tensors.items()}
    wanted = {
        "cls_embedding.weight": 2,
        "emb_norm.weight": 1,
        "proj_in.w1.weight": 2,
        "pos_for_diff.weight": 2,
        "layers.0.feed_forward.w1.weight": 2,
        "head.net.input_proj.weight": 2,
        "head.net.time_embed.mlp.0.weight": 2,
    }
    if missing := [
        name for name, axes in wanted.items() if len(shapes.get(name, ())) != axes or not all(shapes[name])
    ]:
        raise ConversionError(f"{source.label} tells no model: it lacks {', '.join(missing)}.")
    hidden_size, num_tokens = shapes["emb_norm.weight"][0], shapes["pos_for_diff.weight"][0]
    queries = shapes.get("query_token", (1, 0, hidden_size))
    tokens_per_patch = queries[1] + 1 if len(queries) == 3 else 0
    grid_size, patch_size = math.isqrt(num_tokens), math.isqrt(tokens_per_patch)
    if grid_size**2 != num_tokens or patch_size**2 != tokens_per_patch or tokens_per_patch == 0:
        raise ConversionError(
            f"{source.label}: {num_tokens} tokens (pos_for_diff.weight) and {tokens_per_patch} per step (query_token) "
            "must be squares."
        )
    fields = {
        "num_bits": shapes["proj_in.w1.weight"][1],
        "grid_size": grid_size,
        "patch_size": patch_size,
        "num_classes": shapes["cls_embedding.weight"][0] - 1,
        "num_class_tokens": shapes["cls_embedding.weight"][1] // hidden_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(shapes, r"layers\.(\d+)\.") or 0,
        "intermediate_size": shapes["layers.0.feed_forward.w1.weight"][0] // 2,
    }
    head_fields = {
        "hidden_size": shapes["head.net.input_proj.weight"][0],
        "num_hidden_layers": _count(shapes, r"head\.net\.res_blocks\.(\d+)\.") or 0,
        "num_modulation_layers": _count(shapes, r"head\.net\.ada_ln_blocks\.(\d+)\.") or 0,
        "has_attention": any(name.startswith("head.net.res_blocks.0.attn.") for name in shapes),
        "timestep_embedding_size": shapes["head.net.time_embed.mlp.0.weight"][1],
    }
    return fields, head_fields


def _class_to_image_heads(transformer: PublishedPart, fields: dict, head_fields: dict) -> int:
    """Attention heads, which only the JSON tells; what else it says must be as the tensors are."""
    settings, label = transformer.settings or {}, transformer.source.label
    sizes = settings.get("architecture", {})
    sizes = sizes if isinstance(sizes, dict) else {}
    stated = {
        "latent_dim": (settings, fields["num_bits"]),
        "num_classes": (settings, fields["num_classes"]),
        "cls_token_num": (settings, fields["num_class_tokens"]),
        "parallel_num": (settings, fields["patch_size"] ** 2),
        "dim": (sizes, fields["hidden_size"]),
        "n_layer": (sizes, fields["num_hidden_layers"]),
        "diff_dim": (sizes, head_fields["hidden_size"]),
        "diff_layers": (sizes, head_fields["num_hidden_layers"]),
        "diff_adanln_layers": (sizes, head_fields["num_modulation_layers"]),
    }
    if wrong := [
        f"{name} is {place[name]!r}, not {told}"
        for name, (place, told) in stated.items()
        if place.get(name, told) != told
    ]:
        raise ConversionError(f"{transformer.settings_label} and {label} disagree: {'; '.join(wrong)}.")
    if sizes.get("n_head") is not None:
        return sizes["n_head"]
    num_heads = max(1, fields["hidden_size"] // _CLASS_TO_IMAGE_HEAD_DIM)
    if fields["hidden_size"] not in _CLASS_TO_IMAGE_WIDTHS:
        warnings.warn(
            f"No JSON tells the attention heads of {label}: {num_heads} are assumed. Another number loads just as "
            "well but computes something else.",
            stacklevel=3,
        )
    return num_heads


# Guidance scales with which the published scores were measured, by width of the transformer and tokens per step.
_CLASS_TO_IMAGE_GUIDANCE = {(768, 1): 3.2, (768, 4): 3.9, (768, 16): 6.1, (1024, 1): 4.0, (1280, 1): 4.55}


def published_guidance(config: UniWeTokClassToImageConfig) -> float:
    """The guidance scale of a published class-to-image model, 4 for one of another size."""
    return _CLASS_TO_IMAGE_GUIDANCE.get((config.hidden_size, config.tokens_per_patch), 4.0)


def read_labels(transformer: PublishedPart, num_classes: int) -> dict[int, str]:
    """The names of the classes: those of the JSON, or of ImageNet where there are as many, or none.

    Raises:
        ConversionError: when the JSON has names that are not one for each class.
    """
    labels = (transformer.settings or {}).get("id2label")
    if labels is None:
        labels = imagenet_labels() if num_classes == 1000 else {}
    elif not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(num_classes))):
        raise ConversionError(
            f"{transformer.settings_label}: id2label must have a name for each of {num_classes} classes."
        )
    return {int(number): str(name) for number, name in labels.items()}


def read_text_config(folder: Path) -> PreTrainedConfig:
    """Config of the language model in `folder`.

    Raises:
        ConversionError: when transformers knows no causal language model with it.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (*_ConfigErrors, OSError) as error:
        raise ConversionError(f"the language model's config.json can't be used: {one_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConversionError(f"the language model's config.json is of {config.model_type}, no causal language model.")
    config.name_or_path = ""  # would be saved
    return config


def read_special_tokens(vocabulary: Mapping[str, int], vocab_size: int, tokens_per_patch: int) -> dict[str, int]:
    """Fields of [`UniWeTokMLLMConfig`] that say where the special tokens are, from the text tokenizer's vocabulary.

    Raises:
        ConversionError: when one is missing, size or query tokens are not in a row, or the model has no embedding for
            one.
    """
    names = {
        "image_token_id": "<|image_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    missing = [name for name in names.values() if name not in vocabulary]
    num_queries = tokens_per_patch - 1
    ids = {kind: _ids_in_row(vocabulary, kind) for kind in ("res", "query")}
    if not ids["res"]:
        missing.append("<|res_1|>")
    if len(ids["query"]) < num_queries:
        missing.append(f"<|query_{len(ids['query']) + 1}|> to <|query_{num_queries}|>")
    if missing:
        raise ConversionError(f"the text tokenizer lacks {', '.join(missing)}.")
    fields = {field: vocabulary[name] for field, name in names.items()}
    fields |= {"size_token_id": ids["res"][0], "num_size_tokens": len(ids["res"])}
    # With one token a patch there are no queries, and the id is never met.
    fields["query_token_id"] = ids["query"][0] if ids["query"] else ids["res"][-1]
    largest = max(ids["res"] + ids["query"] + [fields[field] for field in names])
    if largest >= vocab_size:
        raise ConversionError(
            f"the text tokenizer has special tokens up to id {largest}, the model only {vocab_size} ids."
        )
    return fields


def _ids_in_row(vocabulary: Mapping[str, int], kind: str) -> list[int]:
    """Ids of `<|kind_1|>`, `<|kind_2|>`, ..., as many as there are."""
    pattern = re.compile(rf"<\|{kind}_(\d+)\|>")
    found = {int(match[1]): index for token, index in vocabulary.items() if (match := pattern.fullmatch(token))}
    ids = [found[number] for number in sorted(found)]
    numbers_in_row = sorted(found) == list(range(1, len(found) + 1))
    if ids and not (numbers_in_row and ids == list(range(ids[0], ids[0] + len(ids)))):
        raise ConversionError(
            f"the text tokenizer's <|{kind}_n|> must run from 1 upwards with ids in a row, got {found}."
        )
    return ids


def read_mllm_config(
    published: PublishedTextToImage, vision_config: UniWeTokConfig, vocabulary: Mapping[str, int]
) -> UniWeTokMLLMConfig:
    """Config of a whole text-to-image model.

    Raises:
        ConversionError: when its parts don't fit each other.
    """
    text_config = read_text_config(published.language_folder)
    head_config, tokens_per_patch, num_diffusion_draws = read_head_config(published.head)
    patch_size = math.isqrt(max(0, tokens_per_patch))
    if tokens_per_patch < 1 or patch_size**2 != tokens_per_patch:
        raise ConversionError(f"{published.head.settings_label}: parallel_num {tokens_per_patch} is no square number.")
    projector = published.projector.settings or {}
    special_tokens = read_special_tokens(vocabulary, text_config.vocab_size, tokens_per_patch)
    try:
        return UniWeTokMLLMConfig(
            text_config=text_config,
            vision_config=vision_config,
            head_config=head_config,
            patch_size=patch_size,
            projector_hidden_act=projector.get("hidden_act", "gelu_pytorch_tanh"),
            num_diffusion_draws=num_diffusion_draws,
            tie_word_embeddings=bool(text_config.tie_word_embeddings),
            **special_tokens,
        )
    except _ConfigErrors as error:
        raise ConversionError(f"the parts of the text-to-image model don't fit: {one_line(error)}") from error


def abbreviate(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many there are in all when that is more."""
    names = list(names)
    shown = ", ".join(names[:limit]) or "no tensors"
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


__all__ = [
    "abbreviate",
    "infer_vision_fields",
    "published_guidance",
    "read_class_to_image_config",
    "read_head_config",
    "read_labels",
    "read_mllm_config",
    "read_special_tokens",
    "read_text_config",
    "read_vision_config",
]
