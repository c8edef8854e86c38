# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pre-Post Distillation: tokens that mean something, before the sign and after it (arXiv 2602.14178, section 3.2;
docs/method.md 2.5).

    L = (1 - cos(u_G, f_T)) + eta (1 - cos(u_Q, f_T))

f_T is the frozen teacher's vector of the picture; u_G and u_Q are pooled from the continuous latents and from the
tokens by two pools of their own. The paper has two kinds of them, attention and, in its ablations on ImageNet, linear;
what they are made of was not published, and ours are the plainest. In the first a learned query attends to the tokens,
and the 2-D sinusoids of the unified model tell it where each token lies, on any grid. The second is a linear layer of
their mean.

The pools are not needed to reconstruct, but they are the way from tokens to the teacher's space (zero-shot
classification by texts), hence `save_pretrained`.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from ..files import whole_file
from ..modeling.modeling_uniwetok_mllm import sinusoidal_positions


class DistillationLoss(NamedTuple):
    """`loss` = `pre` + post_weight * `post`; scalars in float32, each part in [0, 2]."""

    loss: torch.Tensor
    pre: torch.Tensor
    post: torch.Tensor


class AttentionPool(nn.Module):
    """One vector [B, embedding_size] of tokens [B, bits, h, w], any h and w: a learned query attends to them.

    Args:
        num_bits: channels of the tokens.
        embedding_size: channels of the teacher's vector.
        hidden_size: width of the attention, a multiple of 4 and of `num_attention_heads`.
        num_attention_heads: its heads.

    Raises:
        ValueError: when the sizes don't divide each other.
    """

    def __init__(self, num_bits: int, embedding_size: int, hidden_size: int = 256, num_attention_heads: int = 4):
        super().__init__()
        if hidden_size % 4 or hidden_size % num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 (2-D sinusoids) and of `num_attention_heads`="
                f"{num_attention_heads}, got {hidden_size}."
            )
        self.hidden_size = hidden_size
        self.input_proj = nn.Linear(num_bits, hidden_size)
        self.query = nn.Parameter(torch.randn(1, 1, hidden_size) * hidden_size**-0.5)
        self.attention = nn.MultiheadAttention(hidden_size, num_attention_heads, batch_first=True)
        self.output_norm = nn.LayerNorm(hidden_size)
        self.output_proj = nn.Linear(hidden_size, embedding_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = sinusoidal_positions(*tokens.shape[2:], self.hidden_size, tokens.device)
        hidden_states = self.input_proj(tokens.flatten(2).mT) + positions.flatten(1).mT  # [B, h*w, hidden_size]
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, hidden_states, hidden_states, need_weights=False)  # [B, 1, hidden_size]
        return self.output_proj(self.output_norm(pooled[:, 0]))


class LinearPool(nn.Module):
    """One vector [B, embedding_size] of tokens [B, bits, h, w], any h and w: a linear layer of their mean.

    Args:
        num_bits: channels of the tokens.
        embedding_size: channels of the teacher's vector.
    """

    def __init__(self, num_bits: int, embedding_size: int):
        super().__init__()
        self.output_proj = nn.Linear(num_bits, embedding_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output_proj(tokens.mean((2, 3)))


class PrePostDistillation(nn.Module):
    """The loss and its two pools.

    Args:
        num_bits: channels of latents and codes.
        embedding_size: channels of the teacher's vector.
        hidden_size, num_attention_heads: of each attention pool.
        post_weight: eta, the weight of the tokens after the sign.
        head: "attention" ([`AttentionPool`]) or "linear" ([`LinearPool`]), which has no use for the sizes.

    Raises:
        ValueError: for another `head`, or when the sizes don't divide each other.
    """

    def __init__(
        self,
        num_bits: int,
        embedding_size: int,
        hidden_size: int = 256,
        num_attention_heads: int = 4,
        post_weight: float = 1.0,
        head: str = "attention",
    ):
        super().__init__()
        if head not in ("attention", "linear"):
            raise ValueError(f"`head` must be 'attention' or 'linear', got {head!r}.")
        self.config = {
            "num_bits": num_bits,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "post_weight": post_weight,
            "head": head,
        }
        self.post_weight = post_weight
        if head == "linear":
            self.pre_pool, self.post_pool = (LinearPool(num_bits, embedding_size) for _ in range(2))
        else:
            sizes = num_bits, embedding_size, hidden_size, num_attention_heads
            self.pre_pool, self.post_pool = (AttentionPool(*sizes) for _ in range(2))

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Vectors [B, embedding_size], in the teacher's space, of latents [B, bits, h, w]."""
        return self.pre_pool(latents).float()

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors [B, embedding_size], in the teacher's space, of codes [B, bits, h, w]."""
        return self.post_pool(codes).float()

    def forward(self, latents: torch.Tensor, codes: torch.Tensor, teacher_embedding: torch.Tensor) -> DistillationLoss:
        """Loss of latents [B, bits, h, w] in (-1, 1), and of the codes made of them, which carry gradients by the
        straight-through estimator, against the teacher's [B, embedding_size]. The pools run under autocast if there is
        any, the cosines in float32; the teacher gets no gradient."""
        pre, post = (
            (1 - F.cosine_similarity(embedding, teacher_embedding.detach().float(), dim=-1)).mean()
            for embedding in (self.embed_latents(latents), self.embed_codes(codes))
        )
        return DistillationLoss(pre + self.post_weight * post, pre, post)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        for name, write in (
            ("model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"})),
            ("config.json", lambda path: path.write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")),
        ):
            with whole_file(folder / name) as temporary:
                write(temporary)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "PrePostDistillation":
        """Reads a folder of [`save_pretrained`], in eval mode.

        Raises:
            ValueError: when it is none, or its weights are not those of its config.
        """
        folder = Path(folder)
        try:
            loss = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8"))).float()
            loss.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"`folder` {folder} holds no pools of Pre-Post Distillation ({error}).") from error
        return loss.eval()
