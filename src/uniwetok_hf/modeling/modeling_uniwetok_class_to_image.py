# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Class-to-image: one transformer that generates the tokens of a picture of a class, the paper's ImageNet model
(docs/method.md 4).

What is unusual:
- a class is not one position but `num_class_tokens`, all of them learned;
- a step generates a patch of p x p tokens; attention is causal, but full inside a patch. The last class token and
  P - 1 queries predict the first patch, a patch the next: the token at position i is predicted at position i - P;
- a learned vector of the place of the token that is predicted is added to the hidden state that predicts it;
- the guidance grows from one patch to the next;
- attention block, rotary positions and binary head are those of the image tokenizer and of the unified model.

Shapes: B pictures of N = h * w tokens, P = p * p tokens per patch, K class tokens, D the hidden size.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .adapters_uniwetok import UniWeTokAdapterMixin
from .codes_uniwetok import binarize, codes_to_tokens, tokens_to_codes
from .configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from .flow_uniwetok import BinaryFlow, check_shapes, guidance_by_patch
from .linear_uniwetok import use_fast_linears
from .modeling_uniwetok import UniWeTokLayer, UniWeTokRMSNorm, rotary_tables
from .modeling_uniwetok_head import UniWeTokBinaryHead
from .noise_uniwetok import Generators, draw_uniform, flip_bits


GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclass
class UniWeTokClassToImageOutput(ModelOutput):
    """`loss`, a scalar, and `conditions` [B, N, D], what the head is told of each token, in the order of generation.
    As metrics, without gradients: `row_losses` [B], and `bit_accuracy` [draws], the share of bits whose sign the head
    predicted right."""

    loss: torch.Tensor | None = None
    conditions: torch.Tensor | None = None
    row_losses: torch.Tensor | None = None
    bit_accuracy: torch.Tensor | None = None


@dataclass
class UniWeTokClassToImageCodes(ModelOutput):
    """`codes`, what was generated, float32 [B, bits, h, w] of {-1, +1}, and 0 where an interrupted run did not get.
    `conditions`, on request: for each step, what the head was told [rows, P, D], labelled rows first."""

    codes: torch.Tensor | None = None
    conditions: tuple[torch.Tensor, ...] | None = None


def guidance_at(step: int, num_steps: int, guidance_scale: float, guidance_schedule: str) -> float:
    """Guidance scale of patch `step` of `num_steps`: "linear" rises from 1, no guidance, towards `guidance_scale`,
    which the step after the last would have; "constant" is `guidance_scale`."""
    if guidance_schedule == "constant":
        return guidance_scale
    return 1 + (guidance_scale - 1) * step / num_steps


class UniWeTokClassToImageProjector(nn.Module):
    """Bits of a token to an embedding: a SwiGLU with biases."""

    def __init__(self, config: UniWeTokClassToImageConfig):
        super().__init__()
        width = config.hidden_size * 3 // 2
        self.gate_proj = nn.Linear(config.num_bits, width)
        self.up_proj = nn.Linear(config.num_bits, width)
        self.down_proj = nn.Linear(width, config.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))


class UniWeTokClassToImageQueries(nn.Module):
    """P - 1 learned vectors, which with the last class token predict the first patch."""

    def __init__(self, config: UniWeTokClassToImageConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, config.tokens_per_patch - 1, config.hidden_size))

    def forward(self, batch_size: int) -> torch.Tensor:
        return self.weight.expand(batch_size, -1, -1)


class UniWeTokClassToImageModel(UniWeTokAdapterMixin, PreTrainedModel):
    """Classes to codes. An image tokenizer, any that has the config's number of bits, makes pictures of them.

    Example:

    ```python
    >>> model = UniWeTokClassToImageModel.from_pretrained(path, subfolder="transformer")
    >>> labels = torch.tensor([207, 360])
    >>> codes = model.generate_codes(labels, guidance_scale=3.2, generator=torch.Generator().manual_seed(0)).codes
    >>> loss = model(codes, labels).loss
    ```
    """

    config: UniWeTokClassToImageConfig
    base_model_prefix = "transformer"
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniWeTokLayer", "UniWeTokHeadLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "class_embedding"

    def __init__(self, config: UniWeTokClassToImageConfig):
        super().__init__(config)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.num_class_tokens * config.hidden_size)
        self.queries = UniWeTokClassToImageQueries(config) if config.tokens_per_patch > 1 else None
        self.projector = UniWeTokClassToImageProjector(config)
        self.embedding_norm = UniWeTokRMSNorm(config.hidden_size, config.norm_eps)
        layers = [UniWeTokLayer(config, index) for index in range(config.num_hidden_layers)]  # ty: ignore[invalid-argument-type]  (its fields)
        self.layers = nn.ModuleList(layers)
        self.norm = UniWeTokRMSNorm(config.hidden_size, config.norm_eps)
        self.position_embedding = nn.Embedding(config.num_tokens, config.hidden_size)
        self.image_head = UniWeTokBinaryHead._from_config(config.head_config)
        use_fast_linears(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Starting weights: linear layers, embeddings and queries normal, `initializer_range`; biases 0, gains 1. The
        head has its own."""
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Embedding, UniWeTokClassToImageQueries)):
            init.normal_(module.weight, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor,
        generator: Generators = None,
        timesteps: list[float] | None = None,
        **kwargs,
    ) -> UniWeTokClassToImageOutput:
        """The loss of codes, and the conditions that it is of. In training, some labels are left out and some bits of
        the input are flipped.

        Args:
            codes: [B, bits, h, w] of {-1, +1}.
            class_labels: int64 [B], from 0 to `num_classes`, which is no class.
            generator: source of what is left out and flipped, times and noise: one for the batch, or a list with one
                per row, which makes a row independent of its batch.
            timesteps: times of the diffusion loss, one per draw, instead of random ones: for evaluation.
            kwargs: options of the attention function.

        Raises:
            ValueError: for codes that are not of the model's bits and size.
        """
        self.check_codes(codes)
        inputs = codes
        if self.training:
            inputs, class_labels = self._perturb(codes, class_labels, generator)
        conditions = self.read(inputs, class_labels, **kwargs)
        losses, accuracy = self._patch_losses(codes, conditions, generator, timesteps)
        return UniWeTokClassToImageOutput(
            loss=losses.mean(),
            conditions=conditions,
            row_losses=losses.detach().mean((0, 2)),
            bit_accuracy=accuracy.mean(1),
        )

    def check_codes(self, codes: torch.Tensor) -> None:
        """
        Raises:
            ValueError: unless `codes` are [B, bits, h, w] of this model.
        """
        config = self.config
        wanted = (config.num_bits, config.grid_size, config.grid_size)
        if codes.ndim != 4 or tuple(codes.shape[1:]) != wanted:
            raise ValueError(f"`codes` must be [B, {', '.join(map(str, wanted))}], got {list(codes.shape)}.")

    def _perturb(
        self, codes: torch.Tensor, class_labels: torch.Tensor, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes with flipped bits, and labels of which some are left out."""
        config = self.config
        is_left_out = draw_uniform((len(codes),), generator, codes.device) < config.class_dropout
        flipped = flip_bits(codes, config.bit_flip_probability, generator)
        return flipped, class_labels.masked_fill(is_left_out, config.num_classes)

    def _patch_losses(
        self,
        codes: torch.Tensor,
        conditions: torch.Tensor,
        generator: Generators,
        timesteps: list[float] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [draws, B, patches] of the head, and shares of right bits [draws, B * patches]."""
        block = self.config.tokens_per_patch
        patches = codes_to_tokens(codes, self.config.patch_size).unflatten(1, (-1, block))  # [B, N / P, P, bits]
        if isinstance(generator, (list, tuple)):
            generator = [one for one in generator for _ in range(patches.shape[1])]
        losses, accuracy = self.image_head.compute_losses(
            patches.flatten(0, 1),
            conditions.reshape(-1, block, conditions.shape[-1]),
            generator,
            self.config.num_diffusion_draws,
            timesteps,
        )
        return losses.unflatten(1, (len(codes), -1)), accuracy

    def read(self, codes: torch.Tensor, class_labels: torch.Tensor, **kwargs) -> torch.Tensor:
        """Conditions [B, N, D] of all tokens of `codes` [B, bits, h, w], in the order of generation; that of a token
        depends on the class and the patches before its own."""
        tokens = codes_to_tokens(codes, self.config.patch_size)[:, : -self.config.tokens_per_patch]
        embeddings = torch.cat([self.embed_classes(class_labels), self.embed_image_tokens(tokens)], dim=1)
        hidden_states = self._transform(embeddings, self._rotary_tables(codes.device), **kwargs)
        return hidden_states[:, -self.config.num_tokens :] + self._token_positions(codes.device)

    def embed_classes(self, class_labels: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, K + P - 1, D] of classes [B], and of the queries."""
        classes = self.class_embedding(class_labels).unflatten(-1, (self.config.num_class_tokens, -1))
        return classes if self.queries is None else torch.cat([classes, self.queries(len(classes))], dim=1)

    def embed_image_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., D] of tokens [..., bits]."""
        return self.projector(tokens.to(self.dtype))

    def _token_positions(self, device: torch.device) -> torch.Tensor:
        """What is added to the hidden state that predicts each token, [N, D]."""
        return self.position_embedding(torch.arange(self.config.num_tokens, device=device))

    def _rotary_tables(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [K + P - 1 + N, head_dim / 2] of all positions, in the order of generation. What comes
        before the picture is not rotated."""
        config = self.config
        centres = torch.arange(config.grid_size, device=device, dtype=torch.float32) + 0.5
        prefix, head_dim = config.num_prefix_positions, config.hidden_size // config.num_attention_heads
        tables = rotary_tables(centres, centres, prefix, head_dim, config.rope_theta)

        def in_patches(table: torch.Tensor) -> torch.Tensor:
            rows = table[prefix:].T.unflatten(1, (config.grid_size, -1))[None]  # [1, head_dim / 2, h, w]
            return torch.cat([table[:prefix], codes_to_tokens(rows, config.patch_size)[0]])

        return in_patches(tables[0]), in_patches(tables[1])

    def _transform(
        self,
        embeddings: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Hidden states [B, L, D] of `embeddings`: of a whole sequence, of its beginning up to the queries, or of the
        one patch that follows what `past_key_values` holds, all of which it sees."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = embeddings.shape[1]
        mask = None if past else self._block_causal_mask(embeddings)
        tables = tables[0][past : past + length], tables[1][past : past + length]
        hidden_states = self.embedding_norm(embeddings)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                tables,
                attention_mask=mask,
                past_key_values=past_key_values,
                is_causal=past == 0 and mask is None,
                **kwargs,
            )
        return self.norm(hidden_states)

    def _block_causal_mask(self, embeddings: torch.Tensor):
        """The mask of a sequence from its start, in the form that the attention implementation wants; None stands for
        a causal one.

        Raises:
            ValueError: for flash attention, which knows only causal masks, where patches have several tokens.
        """
        block, num_text = self.config.tokens_per_patch, self.config.num_class_tokens - 1
        if block == 1:
            return create_causal_mask(self.config, embeddings, None, None)
        positions = torch.arange(embeddings.shape[1], device=embeddings.device) - num_text
        block_ids = torch.where(positions < 0, -1, positions // block).expand(len(embeddings), -1)
        mask = create_causal_mask(self.config, embeddings, None, None, block_sequence_ids=block_ids)
        if mask is None:
            raise ValueError(
                f"`patch_size`={self.config.patch_size} needs attention that is full inside a patch; "
                f"{self.config._attn_implementation} has only causal masks. Use sdpa, flex_attention or eager."
            )
        return mask

    @torch.no_grad()
    def generate_codes(
        self,
        class_labels: torch.Tensor,
        guidance_scale: float | Callable[[int], float] = 1.0,
        guidance_schedule: str = "linear",
        num_inference_steps: int = 100,
        scheduler: BinaryFlow | None = None,
        generator: Generators = None,
        callback: Callable[[int, torch.Tensor], bool | None] | None = None,
        output_conditions: bool = False,
        latents: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> UniWeTokClassToImageCodes:
        """Generates the codes of pictures, patch by patch.

        Args:
            class_labels: int64 [B], from 0 to `num_classes`, which is no class.
            guidance_scale: weight of classifier-free guidance; 1 or less is none, and halves the work. Or a function
                that is asked for it before each patch, with its index.
            guidance_schedule: how the guidance goes from the first patch to the last, see [`guidance_at`].
            num_inference_steps: diffusion steps of a patch.
            scheduler: a [`BinaryFlow`] or `BinaryFlowScheduler`; its timesteps are set in a copy.
            generator: source of the noise; a list with one per picture makes each independent of its batch.
            callback: called after each patch with its index and the codes so far; a true answer ends the run.
            output_conditions: whether to return what the head was told.
            latents, noise: as in [`UniWeTokForCausalLM.generate_codes`].

        Raises:
            ValueError: for a label that is no class, an unknown `guidance_schedule`, guidance that begins after the
                first patch, and `latents` or `noise` of another shape.
        """
        config, device = self.config, class_labels.device
        if class_labels.ndim != 1 or not len(class_labels):
            raise ValueError(f"`class_labels` must be [B], one class per picture, got {list(class_labels.shape)}.")
        if class_labels.min() < 0 or class_labels.max() > config.num_classes:
            raise ValueError(
                f"`class_labels` must be from 0 to {config.num_classes - 1}, or {config.num_classes} for no class, "
                f"got {class_labels.tolist()}."
            )
        if guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"`guidance_schedule` must be one of {list(GUIDANCE_SCHEDULES)}, got {guidance_schedule!r}."
            )
        # Timesteps are state of the scheduler: with one that is shared, another thread would change ours.
        scheduler = copy.deepcopy(scheduler) if scheduler else BinaryFlow(config.head_config.timestep_shift)
        scheduler.set_timesteps(num_inference_steps)
        count, p, block, side = len(class_labels), config.patch_size, config.tokens_per_patch, config.grid_size
        guided, scale_at = guidance_by_patch(guidance_scale)
        if guided:
            class_labels = torch.cat([class_labels, torch.full_like(class_labels, config.num_classes)])
        tables, positions = self._rotary_tables(device), self._token_positions(device)
        shape = (count, config.num_bits, side, side)
        check_shapes(shape, latents=latents, noise=noise)
        codes = torch.zeros(shape, device=device, dtype=torch.float32) if latents is None else latents
        start = None if noise is None else codes_to_tokens(noise, p)  # [B, N, bits]
        cache, embeddings = DynamicCache(config=config), self.embed_classes(class_labels)
        conditions, num_steps = [], config.num_tokens // block
        for step in range(num_steps):
            hidden_states = self._transform(embeddings, tables, cache)[:, -block:]  # [rows, P, D]
            patch = slice(step * block, (step + 1) * block)
            condition = hidden_states + positions[patch]
            scale = guidance_at(step, num_steps, scale_at(step), guidance_schedule)
            at_start = None if start is None else start[:, patch]
            tokens = self._sample_patch(
                condition, count, scale, scheduler, generator, at_start
            )  # [B or rows, P, bits]
            row, column = divmod(step * p, side)  # of its first token: row counts patches
            place = codes[:, :, p * row : p * (row + 1), column : column + p]
            place.copy_(tokens_to_codes(tokens[:count], p, p, p))
            if output_conditions:
                conditions.append(condition)
            if callback is not None and callback(step, codes.clone()):
                break
            tokens = torch.cat([codes_to_tokens(place, p), tokens[count:]])  # a callback may have changed them
            embeddings = self.embed_image_tokens(tokens.repeat(len(condition) // len(tokens), 1, 1))
        return UniWeTokClassToImageCodes(codes, tuple(conditions) if output_conditions else None)

    def _sample_patch(
        self,
        condition: torch.Tensor,
        count: int,
        scale: float,
        scheduler: BinaryFlow,
        generator: Generators,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """Tokens of a patch, [B, P, bits], or, where the rows without a class get their own, [2B, P, bits]."""
        if scale <= 1 and len(condition) > count:
            if self.config.is_first_patch_apart:
                generator = [*generator, *generator] if isinstance(generator, (list, tuple)) else generator
                noise = None if noise is None else noise.repeat(2, 1, 1)
            else:
                condition = condition[:count]
        return binarize(self.image_head.sample(condition, scheduler, scale, generator, noise=noise))


__all__ = [
    "UniWeTokClassToImageCodes",
    "UniWeTokClassToImageModel",
    "UniWeTokClassToImageOutput",
    "guidance_at",
]
