# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Generation of pictures by the unified model: the loop over patches (docs/method.md 3.2, 3.4).

The prompts are read once, with a key-value cache. Then, patch by patch, the hidden states of the last P positions
condition the binary head, and the tokens that it samples are read in turn.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.utils import ModelOutput

from .codes_uniwetok import Pictures, binarize, codes_to_tokens, tokens_to_codes
from .configuration_uniwetok_mllm import UniWeTokMLLMConfig
from .flow_uniwetok import BinaryFlow, check_shapes, guidance_by_patch
from .noise_uniwetok import Generators


# Attention that takes any mask, which a static cache needs; flash attention does not.
STATIC_ATTENTION = ("sdpa", "eager", "flex_attention")


@dataclass
class UniWeTokGenerateCodesOutput(ModelOutput):
    """`codes` [B, bits, h, w] of {-1, +1}, 0 where an interrupted run did not get; `conditions`, on request, the
    head's conditions at each step, one [rows, P, hidden size] per patch, conditional rows first."""

    codes: torch.Tensor | None = None
    conditions: tuple[torch.Tensor, ...] | None = None


class UniWeTokGenerationMixin:
    """Gives `UniWeTokForCausalLM` the method `generate_codes`, and what transformers' `generate` has to know of
    pictures. It goes before `GenerationMixin` among the base classes."""

    config: UniWeTokMLLMConfig
    model: Any  # the UniWeTokMLLMModel, whose file imports this one
    image_head: Any
    generation_config: Any
    find_places: Callable

    def generate(self, *args, generation_mode: str = "text", **kwargs):
        """
        transformers' `generate`, which ends a text where the model begins a picture unless the call names other tokens
        that end it; or the picture itself.

        Args:
            generation_mode: `"text"`, or `"image"`: the codes [B, bits, h, w] of one picture per row by
                [`generate_codes`], whose arguments it takes; `guidance_scale` is by default the generation config's.
                The prompts then end with the beginning of a picture, which `UniWeTokProcessor.apply_chat_template`
                writes for a `height` and `width`.
            args, kwargs: as in transformers.

        Raises:
            ValueError: for another `generation_mode`, or an argument that [`generate_codes`] doesn't have.
        """
        if generation_mode == "text":
            kwargs.pop("negative_input_ids", None)  # of pictures, beside the prompt
            return super().generate(*args, **kwargs)  # ty: ignore[missing-attribute]
        if generation_mode != "image":
            raise ValueError(f"`generation_mode` must be 'text' or 'image', got {generation_mode!r:.100}.")
        if args:
            kwargs["input_ids"] = args[0]
        chosen = kwargs.pop("generation_config", None) or self.generation_config
        if chosen.guidance_scale is not None:
            kwargs.setdefault("guidance_scale", chosen.guidance_scale)
        # Losses read the first; transformers' pipelines always give the second, and a picture's size says it here.
        for name in ("image_is_target", "max_new_tokens"):
            kwargs.pop(name, None)
        known = inspect.signature(self.generate_codes).parameters
        if strange := sorted(kwargs.keys() - known.keys()):
            raise ValueError(
                f"`generation_mode`='image' has no use for {', '.join(strange)}; it takes {', '.join(known)}."
            )
        return self.generate_codes(**kwargs).codes

    @torch.no_grad()
    def decode_image_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W], nominally in [-1, 1], of codes [B, bits, h, w]. transformers' any-to-any pipeline
        calls it with what `generate` returned. The decoder's noise is that of torch's global generator;
        `vision_model.decode` takes one."""
        return self.model.vision_model.decode(codes).sample

    def end_texts_at_pictures(self) -> None:
        """Adds `<|vision_start|>` to the tokens that end a text: what follows it are no words. Where the generation
        config names none, texts have no end."""
        ends, begin = self.generation_config.eos_token_id, self.config.vision_start_token_id
        ends = [ends] if isinstance(ends, int) else ends
        if isinstance(ends, list) and begin not in ends:
            self.generation_config.eos_token_id = [*ends, begin]

    def adjust_generation_fn(self, *args, **kwargs):
        """Where a model is loaded: folders saved before, and other people's, name the end of a turn alone."""
        super().adjust_generation_fn(*args, **kwargs)  # ty: ignore[missing-attribute]
        self.end_texts_at_pictures()

    @torch.no_grad()
    def generate_codes(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.Tensor | None = None,
        codes: Pictures | None = None,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        guidance_scale: float | Callable[[int], float] = 1.0,
        num_inference_steps: int = 50,
        scheduler: BinaryFlow | None = None,
        generator: Generators = None,
        callback: Callable[[int, torch.Tensor], bool | None] | None = None,
        output_conditions: bool = False,
        past_key_values: Cache | None = None,
        image_guidance_scale: float | None = None,
        image_input_ids: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> UniWeTokGenerateCodesOutput:
        """Generates one picture per row, patch by patch.

        Args:
            input_ids: [B, L] prompts, left-padded, each ending with the size tokens and queries of the picture to
                generate; all rows have one size.
            attention_mask: [B, L], 0 for padding.
            pixel_values, image_sizes, codes: pictures in the prompts, as in `forward`.
            negative_input_ids, negative_attention_mask: the unconditional prompts [B, L'], or [1, L'] for all rows;
                they hold no pictures. Needed for a `guidance_scale` over 1.
            guidance_scale: weight w of classifier-free guidance; 1 or less is none. Or a function that is asked for it
                before each patch, with its index.
            num_inference_steps: diffusion steps of a patch; the head runs once more than that.
            scheduler: sampler; by default a [`BinaryFlow`] with the head's shift. A copy of it is used, so that
                several generations may share one.
            generator: one for the batch, or a list with one per row, which makes a row independent of its batch.
            callback: called after each patch with its index and the codes so far (0 where not generated yet); a true
                result stops.
            output_conditions: whether to return the head's conditions.
            past_key_values: a growing cache of the first positions of `input_ids`, to go on from; `codes` are then
                those of the pictures after them. The generated picture is added to it whole, for what follows.
            image_guidance_scale: weight of the pictures alone, as in [`UniWeTokBinaryHead.sample`]; none when no
                guidance is asked for.
            image_input_ids, image_attention_mask: [B, L''], prompts with the same pictures and other words, which the
                words of `input_ids` are measured against. Needed for an `image_guidance_scale`.
            latents: float32 [B, bits, h, w] of zeros, which the codes are written into; new ones when not given. What
                `callback` writes into them counts: the codes of the patch just generated are what the model reads
                next.
            noise: [B, bits, h, w], what the sampler of each patch starts from at its place; drawn from `generator`
                when not given. The noise of the sampler's steps is drawn in any case.

        Raises:
            ValueError: when prompts don't end with a size, sizes differ or don't fit the patches, guidance lacks the
                prompts or pictures that it is measured against or begins after the first patch, or `latents` or
                `noise` have another shape.
        """
        height, width = self._picture_size(input_ids)
        rows = len(input_ids)
        guided, scale_at = guidance_by_patch(guidance_scale)
        prompts = [(input_ids, attention_mask)]
        codes = self.model.read_pictures(pixel_values, image_sizes, codes)
        if guided and image_guidance_scale is not None:
            if image_input_ids is None or len(image_input_ids) != rows:
                raise ValueError(
                    "`image_guidance_scale` needs `image_input_ids`, one prompt with other words per row."
                )
            if codes is None or past_key_values is not None:
                raise ValueError("`image_guidance_scale` needs pictures in prompts that go on from no cache.")
            prompts.append((image_input_ids, image_attention_mask))
            codes = [*codes, *codes]
        if guided:
            if negative_input_ids is None:
                raise ValueError("`guidance_scale` over 1 needs `negative_input_ids`, the prompts without their text.")
            prompts.append((negative_input_ids, negative_attention_mask))
        masked = [(ids, torch.ones_like(ids) if mask is None else mask) for ids, mask in prompts]
        prompts = [(ids.expand(rows, -1), mask.expand(rows, -1)) for ids, mask in masked]
        is_static = past_key_values is None and self._uses_static_cache(input_ids.device)
        reader = _GuidedReader(self.model, prompts, height * width, past_key_values, is_static)

        # Timesteps are state of the scheduler: with one that is shared, another thread would change ours.
        scheduler = copy.deepcopy(scheduler) if scheduler else BinaryFlow(self.config.head_config.timestep_shift)
        scheduler.set_timesteps(num_inference_steps)
        bits, p, block = self.config.vision_config.num_bits, self.config.patch_size, self.config.tokens_per_patch
        shape = (rows, bits, height, width)
        check_shapes(shape, latents=latents, noise=noise)
        if latents is None:
            latents = torch.zeros(shape, device=input_ids.device, dtype=torch.float32)
        start = None if noise is None else codes_to_tokens(noise, p)  # [B, h*w, bits]
        positions = self.model.positions([latents[0]])  # [h*w, hidden size], in the order of the patches
        conditions = []
        hidden_states = reader.read_prompts(codes)
        num_patches = height * width // block
        for step in range(num_patches):
            patch = slice(step * block, (step + 1) * block)
            condition = hidden_states + positions[patch].to(hidden_states.dtype)
            scale = scale_at(step)
            sample = self.image_head.sample(
                condition if scale > 1 else condition[:rows],
                scheduler,
                scale,
                generator,
                image_guidance_scale,
                noise=None if start is None else start[:, patch],
            )
            tokens = binarize(sample).to(latents.dtype)  # [B, P, bits]
            row, column = divmod(step * p, width)  # of its first token: row counts patches
            place = latents[:, :, p * row : p * (row + 1), column : column + p]
            place.copy_(tokens_to_codes(tokens, p, p, p))
            if output_conditions:
                conditions.append(condition)
            if callback is not None and callback(step, latents.clone()):
                break
            tokens = codes_to_tokens(place, p)  # a callback may have changed them
            if step + 1 < num_patches or past_key_values is not None:
                embeddings = self.model.embed_image_tokens(tokens, positions[patch])
                hidden_states = reader.read_patch(embeddings)
        return UniWeTokGenerateCodesOutput(latents, tuple(conditions) if output_conditions else None)

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask=None, **kwargs):
        """Leaves the padding mask of a prompt that may hold patches as it is, also for static caches: `forward` makes
        the block-causal mask of it."""
        if config.patch_size > 1 and inputs_embeds.shape[1] > 1:
            return attention_mask
        return create_masks_for_generate(config, inputs_embeds, attention_mask, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """For beams and several answers a row is repeated with all of its pictures; the library would repeat pictures
        one by one, which mixes up rows of several."""
        if expand_size > 1 and input_ids is not None:
            model_kwargs.pop("image_is_target", None)
            pictures = [model_kwargs.pop(name, None) for name in ("pixel_values", "image_sizes", "codes")]
            codes = self.model.read_pictures(*pictures)
            if codes is not None:
                ids = input_ids
                if model_kwargs.get("inputs_embeds") is not None:
                    ids = self.model.find_format_tokens(model_kwargs["inputs_embeds"])
                rows = self.find_places(ids, torch.full_like(ids, -100), codes=codes).picture_owners
                pictures = [[c for c, of in zip(codes, rows, strict=True) if of == row] for row in range(len(ids))]
                model_kwargs["codes"] = [c for row in pictures for _ in range(expand_size) for c in row]
        return super()._expand_inputs_for_generation(  # ty: ignore[missing-attribute]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, is_first_iteration=False, codes=None, **kwargs
    ):
        """Pictures go in with the prompt only; afterwards they are in the cache. transformers looks for the argument
        `inputs_embeds`."""
        if kwargs.pop("generator", None) is not None:
            raise ValueError(
                "`generator` can't seed text: transformers' `generate` draws from torch's global generator."
            )
        inputs = super().prepare_inputs_for_generation(  # ty: ignore[missing-attribute]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if codes is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs["codes"] = codes
        return inputs

    def _uses_static_cache(self, device: torch.device) -> bool:
        """Whether the cache has its full length from the start. On a GPU it has, unless the model's generation config
        says otherwise: nothing is copied as it fills, and all patches have one shape. On a CPU a short cache that
        grows is quicker."""
        if self.model.language_model.config._attn_implementation not in STATIC_ATTENTION:
            return False
        chosen = self.generation_config.cache_implementation
        return device.type != "cpu" if chosen is None else chosen == "static"

    def _picture_size(self, input_ids: torch.Tensor) -> tuple[int, int]:
        """Height and width in tokens of the picture that the prompts begin."""
        config = self.config
        block = config.tokens_per_patch
        sizes = input_ids[:, -block - 1 : input_ids.shape[1] - block + 1] - config.size_token_id + 1
        if sizes.shape[1] < 2 or sizes.min() < 1 or sizes.max() > config.num_size_tokens:
            raise ValueError(
                "`input_ids` must end with <|vision_start|>, two size tokens and the queries of the picture to "
                "generate; UniWeTokProcessor writes them for a `height` and `width`."
            )
        if (sizes != sizes[0]).any():
            raise ValueError(
                f"`input_ids` must have one size in all rows, got (height, width) {sizes.tolist()} in tokens."
            )
        height, width = sizes[0].tolist()
        p = config.patch_size
        if height % p or width % p:
            raise ValueError(
                f"A picture of {height} x {width} tokens can't be generated in patches of {p} x {p}: sides must be "
                f"multiples of {p * config.vision_config.stride} pixels."
            )
        return height, width


class _GuidedReader:
    """Reads for all rows that the head wants, conditional ones first, then those that guidance is measured against: in
    one batch, or, where the conditional rows go on from a cache, each part by itself, since the cache is only theirs.

    `prompts` are 1 (no guidance), 2 (unconditional) or 3 (picture alone, unconditional) of `input_ids` and
    `attention_mask` [B, L_i]. R = 1, 2 or 3 times B rows go to the head. `num_tokens` is that of the picture.
    """

    def __init__(
        self,
        model,
        prompts: list[tuple[torch.Tensor, torch.Tensor]],
        num_tokens: int,
        cache: Cache | None,
        is_static: bool,
    ):
        self.repeats = len(prompts)
        if cache is None:
            prompts = [left_pad_rows(prompts, model.config.text_config.pad_token_id or 0)]  # one of [R, longest L_i]
        self.prompts = prompts
        caches = [cache] + [None] * (len(prompts) - 1)
        self.caches = [_PatchReader(model, num_tokens, one, is_static) for one in caches]  # one for each prompt

    def read_prompts(self, codes: Pictures | None) -> torch.Tensor:
        """The hidden states [R, P, hidden size] that condition the first patch; the first prompt has the pictures."""
        pictures = [codes, *([None] * (len(self.caches) - 1))]
        parts = zip(self.caches, self.prompts, pictures, strict=True)
        return torch.cat([cache.read_prompt(*prompt, shown) for cache, prompt, shown in parts])

    def read_patch(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The hidden states [R, P, hidden size] that follow a patch of `embeddings` [B, P, hidden size]."""
        parts = torch.cat([embeddings] * self.repeats).chunk(len(self.caches))
        return torch.cat([cache.read_patch(part) for cache, part in zip(self.caches, parts, strict=True)])


class _PatchReader:
    """Feeds a prompt and then patch after patch to the language model, with a key-value cache, and returns the hidden
    states of the last P positions, [rows, P, hidden size].

    A `cache` that is given holds the prompt's first positions, and grows. A static one has its full length from the
    start, and what a patch sees of it is told by masks that are made without reading a value back from the device.
    """

    def __init__(self, model, num_tokens: int, cache: Cache | None, is_static: bool):
        self.model = model
        self.block = model.config.tokens_per_patch
        self.num_tokens = num_tokens
        self.cache = cache
        self.is_static = is_static

    def read_prompt(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, codes: Pictures | None
    ) -> torch.Tensor:
        self.length = input_ids.shape[1]  # of what was read so far
        self.attention_mask = F.pad(attention_mask, (0, self.num_tokens), value=1)  # [rows, L + h*w]
        # Counted from each row's first position that is no padding.
        self.position_ids = (self.attention_mask.cumsum(1) - 1).clamp_min(0)
        config = self.model.language_model.config
        if self.is_static:
            self.cache = StaticCache(config=config, max_cache_len=self.attention_mask.shape[1])
        elif self.cache is None:
            self.cache = DynamicCache(config=config)
        past = self.cache.get_seq_length()
        outputs = self.model(
            input_ids=input_ids[:, past:],
            codes=codes,
            attention_mask=attention_mask,
            position_ids=self.position_ids[:, past : self.length],
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -self.block :]

    def read_patch(self, embeddings: torch.Tensor) -> torch.Tensor:
        patch = slice(self.length, self.length + self.block)
        self.length += self.block
        position_ids = self.position_ids[:, patch]
        attention_mask = self.attention_mask if self.is_static else self.attention_mask[:, : self.length]
        if self.is_static or self.block > 1:
            one_block = torch.full_like(attention_mask, -1)
            one_block[:, patch] = 0
            attention_mask = self.model.block_causal_mask(
                embeddings, one_block, attention_mask, self.cache, position_ids=position_ids
            )
        outputs = self.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state


def left_pad_rows(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks batches of (input_ids, attention_mask), each [B_i, L_i], to one batch as long as the longest."""
    length = max(ids.shape[1] for ids, _ in rows)
    padded_ids = [F.pad(ids, (length - ids.shape[1], 0), value=pad_token_id) for ids, _ in rows]
    padded_masks = [F.pad(mask, (length - mask.shape[1], 0), value=0) for _, mask in rows]
    return torch.cat(padded_ids), torch.cat(padded_masks)


__all__ = ["UniWeTokGenerateCodesOutput", "UniWeTokGenerationMixin"]
