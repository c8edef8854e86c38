# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Room for copies: `copying_heads` of a config of `uniwetok train mllm`.

An edit keeps most of a picture, so the model must be able to draw what it is shown bit by bit. A token has 128 bits,
an attention head of a small model 64 values. When one head alone has learnt to look at the place of the source that is
drawn next, half of what a token says is lost there, and no training brings a second one: what a first head passes on
is already most of what other heads could add, and the projector stopped showing the rest.

Hence a start for the second: heads that do nothing yet look where the first one looks, and take up the bits, which the
projector now adds to its embeddings, each in a direction of its own. Their outputs start at zero. Images come out a
little worse at first; a training of `copies` teaches the rest of the model to use what it is given.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM, UniWeTokProjector
from .configuration import setting


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
    """Changes `mllm` in place.

    Raises:
        ValueError: when there are no such heads, or the layers are not built as those of the Llama family.
    """
    layers = getattr(mllm.model.language_model, "layers", [])
    if not 0 <= settings.layer < len(layers):
        raise ValueError(f"`copying_heads.layer` must be from 0 to {len(layers) - 1}, got {settings.layer}.")
    layer = layers[settings.layer]
    attention = getattr(layer, "self_attn", None)
    projections = [getattr(attention, f"{name}_proj", None) for name in "qkvo"]
    if None in projections or not hasattr(layer, "input_layernorm"):
        raise ValueError("`copying_heads` needs layers as those of Llama or Qwen3: q_proj, k_proj, v_proj, o_proj.")
    query, key, value, output = (projection.weight for projection in projections)
    head_dim = attention.head_dim
    num_heads = len(query) // head_dim
    if len(key) != len(query) or any(projection.bias is not None for projection in projections):
        raise ValueError("`copying_heads` needs a key head for each query head, and no biases.")
    if bad := [head for head in (settings.like, *settings.heads) if not 0 <= head < num_heads]:
        raise ValueError(f"`copying_heads`: heads are from 0 to {num_heads - 1}, got {bad[0]}.")
    if not settings.heads or len({settings.like, *settings.heads}) != 1 + len(settings.heads):
        raise ValueError(f"`copying_heads.heads` must be others than `like`, each once, got {settings.heads}.")

    generator = torch.Generator().manual_seed(seed)
    num_bits, hidden_size = mllm.config.vision_config.num_bits, query.shape[1]
    if num_bits > hidden_size:
        raise ValueError(f"`copying_heads`: {num_bits} bits have no directions of their own among {hidden_size}.")
    directions = orthogonal(num_bits, hidden_size, generator)
    show_bits(mllm.model.projector, directions, generator)

    def head(index: int) -> slice:
        return slice(index * head_dim, (index + 1) * head_dim)

    with torch.no_grad():
        length = value[head(settings.like)].norm(dim=1).mean()
        # The norm before attention scales channels; values are to be those of the directions all the same.
        rows = list((directions / layer.input_layernorm.weight.float().cpu()).split(head_dim))
        for index in settings.heads:
            query[head(index)] = query[head(settings.like)]
            key[head(index)] = key[head(settings.like)]
            # Once all bits are taken up, the others may take up anything.
            taken = rows.pop(0) if rows and len(rows[0]) == head_dim else orthogonal(head_dim, hidden_size, generator)
            value[head(index)] = (length * taken).to(value)
            output[:, head(index)] = 0


def show_bits(projector: UniWeTokProjector, directions: torch.Tensor, generator: torch.Generator) -> None:
    """Changes a projector so that it adds the token's bits along `directions` [bits, hidden size] to what it gave: as
    far as its first layer tells them apart, which is made to tell all combinations of bits apart."""
    with torch.no_grad():
        left, gains, right = torch.linalg.svd(projector.fc1.weight.float(), full_matrices=False)
        projector.fc1.weight.copy_(left @ torch.diag(gains.clamp_min(SMALLEST_GAIN)) @ right)
        # Bits as a linear function of the hidden units, fitted on random tokens.
        tokens = torch.randn(FITTED_TOKENS, directions.shape[0], generator=generator).sign()
        hidden = projector.act(projector.fc1(tokens.to(projector.fc1.weight))).double().cpu()
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        gram = hidden.T @ hidden + RIDGE * torch.eye(hidden.shape[1], dtype=hidden.dtype)
        readout = torch.linalg.solve(gram, hidden.T @ tokens.double())  # [units + 1, bits]
        added = BIT_LENGTH * readout @ directions.double()  # [units + 1, hidden size]
        projector.fc2.weight += added[:-1].T.to(projector.fc2.weight)
        projector.fc2.bias += added[-1].to(projector.fc2.bias)


def orthogonal(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random directions [count, size] of length 1, at right angles to each other."""
    return nn.init.orthogonal_(torch.empty(count, size), generator=generator)
