# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Room for copies: `copying_heads` of a config of `uniwetok train mllm`.

An edit keeps most of a picture, so the model must be able to draw what it is shown bit by bit. A token has 128 bits,
an attention head of a small model 64 values. When one head alone has learnt to look at the place of the source that is
drawn next, half of what a token says is lost there, and our longer trainings brought no second one: what a first head
passes on is most of what others could add, and the projector hardly shows the rest.

Hence a start for the second: heads that do nothing yet look where the first one looks, and take up the bits, which the
projector now adds to its embeddings, each in a direction of its own. Their outputs start at zero. That alone makes
copies worse, 10 % of the bits wrong where it was 7 %; a training of `copies` then teaches the model to use them.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM, UniWeTokProjector
from .config import setting


# Directions that the projector's first layer tells apart get this gain at least; each bit then has this length.
# A bit should stand out of what other layers write, whose deviation is about 1 in most directions.
SMALLEST_GAIN, BIT_LENGTH = 1.5, 2.0
FITTED_TOKENS, RIDGE = 20_000, 1e-2


@dataclass
class CopyingHeads:
    """Which heads of a layer of the language model get to copy."""

    layer: int = setting(help="layer, from 0 on")
    like: int = setting(help="the head there that looks at the source, at the place that is drawn next")
    heads: list[int] = setting(help="heads there that do nothing yet; num_bits / head_dim of them carry a token")


def add_copying_heads(mllm: UniWeTokForCausalLM, settings: CopyingHeads, seed: int) -> None:
    """Changes `mllm`, in float32 and on the CPU, in place.

    Raises:
        ValueError: when there are no such heads, or the layers are not built as those of Llama and Qwen3.
    """
    generator = torch.Generator().manual_seed(seed)
    num_bits, hidden_size = mllm.config.vision_config.num_bits, mllm.config.text_config.hidden_size
    if num_bits > hidden_size:
        raise ValueError(f"`copying_heads`: {num_bits} bits have no directions of their own among {hidden_size}.")
    layer, gains = _find_layer(mllm.model.language_model, settings.layer, hidden_size)
    attention = layer.self_attn
    query, key, value, output = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    head_dim = attention.head_dim
    num_heads, num_keys = len(query) // head_dim, len(key) // head_dim
    if num_heads != num_keys:
        raise ValueError(f"`copying_heads` needs as many key heads as query heads, got {num_keys} and {num_heads}.")
    if bad := [head for head in (settings.like, *settings.heads) if not 0 <= head < num_heads]:
        raise ValueError(f"`copying_heads`: heads are from 0 to {num_heads - 1}, got {bad[0]}.")
    if not settings.heads or len({settings.like, *settings.heads}) != 1 + len(settings.heads):
        raise ValueError(f"`copying_heads.heads` must be others than `like`, each once, got {settings.heads}.")

    directions = orthogonal(num_bits, hidden_size, generator)
    show_bits(mllm.model.projector, directions, generator)

    def head(index: int) -> slice:
        return slice(index * head_dim, (index + 1) * head_dim)

    with torch.no_grad():
        # Values are read behind the norm, which scales channels by `gains`.
        length = (value[head(settings.like)] * gains).norm(dim=1).mean()
        parts = list(directions.split(head_dim))
        for index in settings.heads:
            query[head(index)] = query[head(settings.like)]
            key[head(index)] = key[head(settings.like)]
            taken_up = orthogonal(head_dim, hidden_size, generator)  # anything, once all bits are taken up
            if parts:
                part = parts.pop(0)
                taken_up[: len(part)] = part
            value[head(index)] = length * taken_up / gains
            output[:, head(index)] = 0


def _find_layer(language_model: nn.Module, index: int, hidden_size: int) -> tuple[nn.Module, torch.Tensor]:
    """A layer, and the gains [hidden size] of the norm before its attention."""
    like_llama = "`copying_heads` needs layers as those of Llama and Qwen3: "
    layers = getattr(language_model, "layers", None)
    if layers is None:
        raise ValueError(f"{like_llama}{type(language_model).__name__} has no `layers`.")
    if not 0 <= index < len(layers):
        raise ValueError(f"`copying_heads.layer` must be from 0 to {len(layers) - 1}, got {index}.")
    attention = getattr(layers[index], "self_attn", None)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        if not isinstance(projection := getattr(attention, name, None), nn.Linear) or projection.bias is not None:
            raise ValueError(f"{like_llama}`self_attn.{name}` must be linear and without bias.")
    norm = getattr(layers[index], "input_layernorm", None)
    with torch.no_grad():
        gains = None if norm is None else norm(torch.ones(1, hidden_size))[0]
    # Of a norm that takes off the mean, too, nothing would be left.
    if gains is None or not gains.all():
        raise ValueError(f"{like_llama}`input_layernorm` must be an RMS norm without gains of 0.")
    return layers[index], gains


def show_bits(projector: UniWeTokProjector, directions: torch.Tensor, generator: torch.Generator) -> None:
    """Raises the small gains of a projector's first layer, so that it tells all bits apart, and adds to its second
    layer a linear readout of the bits along `directions` [bits, hidden size]."""
    with torch.no_grad():
        left, gains, right = torch.linalg.svd(projector.fc1.weight, full_matrices=False)
        projector.fc1.weight.copy_(left @ torch.diag(gains.clamp_min(SMALLEST_GAIN)) @ right)
        # Bits as a linear function of the hidden units, fitted on random tokens.
        tokens = torch.randn(FITTED_TOKENS, len(directions), generator=generator).sign()
        hidden = projector.act(projector.fc1(tokens)).double()
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)  # [tokens, units + 1]
        gram = hidden.T @ hidden + RIDGE * torch.eye(hidden.shape[1], dtype=hidden.dtype)
        readout = torch.linalg.solve(gram, hidden.T @ tokens.double())  # [units + 1, bits]
        added = (BIT_LENGTH * readout @ directions.double()).float()  # [units + 1, hidden size]
        projector.fc2.weight += added[:-1].T
        projector.fc2.bias += added[-1]


def orthogonal(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random directions [count, size] of length 1, at right angles to each other."""
    return nn.init.orthogonal_(torch.empty(count, size), generator=generator)
