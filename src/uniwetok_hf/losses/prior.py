# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Generative-Aware Prior: tokens that can be predicted (arXiv 2602.14178, section 3.2, equation 7;
docs/method.md 2.6).

A small autoregressive model reads [learned query, tokens 1 ... n-1] and gives a condition for each of the n tokens.
A diffusion head takes it, a noisy token and its time t, and predicts the token. The loss is the squared error,

    L = |U_Q - head((1 - t) e + t U_Q, t, causal([query, U_Q without the last]))|^2,    t ~ U[0, 1], e ~ N(0, 1)

- No stop-gradient is written in the equation: through the straight-through tokens the encoder learns from them as what
  is read, as what is noised and as what is to be predicted.
- The parts are those of the unified language model: a causal transformer, the binary head, and the same 2-D sinusoids
  on a token and on what predicts it. So any grid will do, one of a single token too.
- It starts from random weights, learns with the tokenizer and is thrown away afterwards.
"""

import torch
from torch import nn
from transformers import AutoModel, Qwen3Config

from ..modeling.codes_uniwetok import codes_to_tokens
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig
from ..modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from ..modeling.modeling_uniwetok_head import UniWeTokBinaryHead
from ..modeling.modeling_uniwetok_mllm import sinusoidal_positions
from ..modeling.noise_uniwetok import Generators, draw_noise, draw_uniform


class GenerativePrior(nn.Module):
    """The prior and its loss. With the defaults 8,566,912 parameters learn at 128 bits, the size of the paper's
    BitDance-T (8.6 M), whose width and depth were not published.

    Args:
        num_bits: bits of a token.
        hidden_size: width of transformer and head, a multiple of 4 and of `num_attention_heads`.
        num_hidden_layers: blocks of the transformer; its feed-forward is three times as wide as `hidden_size`.
        num_attention_heads: heads of the transformer.
        num_head_layers: blocks of the diffusion head, which share one modulation.

    Raises:
        ValueError: when the sizes don't divide each other.
    """

    def __init__(
        self,
        num_bits: int,
        hidden_size: int = 256,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 4,
        num_head_layers: int = 2,
    ):
        super().__init__()
        if hidden_size % 4 or hidden_size % (2 * num_attention_heads):
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 (2-D sinusoids) and of twice `num_attention_heads`="
                f"{num_attention_heads} (rotary positions), got {hidden_size}."
            )
        self.hidden_size = hidden_size
        self.projector = nn.Sequential(
            nn.Linear(num_bits, hidden_size), nn.GELU(approximate="tanh"), nn.Linear(hidden_size, hidden_size)
        )
        # The one word of its vocabulary is the learned query.
        transformer_config = Qwen3Config(
            vocab_size=1,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_attention_heads,
            head_dim=hidden_size // num_attention_heads,
            use_cache=False,
        )
        self.transformer = AutoModel.from_config(transformer_config)
        head_config = UniWeTokHeadConfig(
            num_bits=num_bits,
            condition_size=hidden_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_head_layers,
            num_modulation_layers=1,
            head_dim=hidden_size,
            timestep_schedule="uniform",
        )
        self.head = UniWeTokBinaryHead(head_config)
        self.head.freeze_queries_and_keys()  # each token is its own patch

    def conditions(self, codes: torch.Tensor) -> torch.Tensor:
        """What the transformer expects of each token, [B, h*w, hidden_size], in row-major order, of codes [B, bits, h,
        w]; that of a token depends on those before it only."""
        tokens = codes_to_tokens(codes, patch_size=1)  # [B, h*w, bits]
        positions = sinusoidal_positions(*codes.shape[2:], self.hidden_size, codes.device).flatten(1).mT
        embeddings = self.projector(tokens) + positions
        query = self.transformer.get_input_embeddings().weight.expand(len(tokens), 1, -1)
        # The last embedding is made and left out, so that the projector has a gradient at a single token too.
        inputs_embeds = torch.cat([query, embeddings[:, :-1]], dim=1)
        return self.transformer(inputs_embeds=inputs_embeds).last_hidden_state + positions

    def forward(self, codes: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Loss of straight-through codes [B, bits, h, w] of {-1, +1}: scalar in float32, mean over all bits.

        Args:
            codes: as `UniWeTokModel` gives them in training.
            generator: source of times (one per token) and noise; a list with one per picture makes a picture
                independent of its batch.
        """
        tokens = codes_to_tokens(codes.float(), patch_size=1)  # [B, h*w, bits]
        timesteps = draw_uniform(tokens.shape[:2], generator, codes.device)
        noise = draw_noise(tokens.shape, generator, codes.device)
        noisy_tokens = torch.lerp(noise, tokens, timesteps[:, :, None])
        prediction = self.head(  # each token is a patch of its own: [B*h*w, 1, bits]
            noisy_tokens.flatten(0, 1)[:, None], timesteps.flatten(), self.conditions(codes).flatten(0, 1)[:, None]
        )
        return (prediction.view_as(tokens) - tokens).square().mean()


class ClassToImagePrior(GenerativePrior):
    """The prior with the architecture of the class-to-image model (docs/method.md 4), whose one class is the learned
    query. The paper's "BitDance-T" is, by its name, such a network; its width and depth were not published: with the
    defaults 8,516,480 parameters learn at 128 bits and 8 x 8 tokens. It knows one size of pictures, `grid_size` x
    `grid_size` tokens.

    Raises:
        ValueError: when the sizes don't divide each other.
    """

    def __init__(
        self,
        num_bits: int,
        grid_size: int,
        hidden_size: int = 256,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 4,
        num_head_layers: int = 3,
    ):
        nn.Module.__init__(self)
        head_config = UniWeTokHeadConfig(
            num_bits=num_bits,
            condition_size=hidden_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_head_layers,
            num_modulation_layers=1,
            has_attention=False,
            squash_output=False,
            timestep_schedule="uniform",
        )
        config = UniWeTokClassToImageConfig(
            num_bits=num_bits,
            grid_size=grid_size,
            num_classes=1,
            num_class_tokens=1,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            head_config=head_config,
        )
        self.model = UniWeTokClassToImageModel(config)

    @property
    def head(self) -> UniWeTokBinaryHead:
        return self.model.image_head

    def conditions(self, codes: torch.Tensor) -> torch.Tensor:
        self.model.check_codes(codes)
        return self.model.read(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device))
