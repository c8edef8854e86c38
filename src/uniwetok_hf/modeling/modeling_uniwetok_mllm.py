# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The unified language model: one causal LM that reads, draws and edits pictures (arXiv 2602.14178, section 3.4;
spec 3.3).

What is unusual:
- a picture is `<|res_h|><|res_w|><|query_1|>...` and then one position per token, p x p tokens at a time ("patch");
- attention is causal, but full inside a patch; the block [res_w, queries] predicts the first patch, a patch the next:
  the token at position i is predicted at position i - P;
- no image vocabulary: hidden states condition a diffusion head that draws the bits;
- the same 2-D sinusoids are added to a token's embedding and to the hidden state that predicts it.

Shapes: B rows of L positions, N pictures of n = h*w tokens, P = p*p tokens a patch, T image tokens in all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import ModelOutput, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .codes_uniwetok import binarize
from .configuration_uniwetok_mllm import UniWeTokMLLMConfig
from .modeling_uniwetok import UniWeTokModel
from .modeling_uniwetok_head import BinaryFlow, UniWeTokBinaryHead
from .noise_uniwetok import Generators, draw_uniform


Pictures = torch.Tensor | Sequence[torch.Tensor]


@dataclass
class UniWeTokCausalLMOutput(ModelOutput):
    """`loss` = text_loss_weight * `text_loss` + image_loss_weight * `image_loss`, all scalars, when labels are given;
    `logits` [B, L, vocabulary]; `past_key_values`; `hidden_states` and `attentions` on request. For figures, without
    gradients: `row_text_losses` and `row_image_losses` [B], sums over a row's tokens of what the two losses are means
    of, and `bit_accuracy` [draws], the share of bits whose sign the head predicted right."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    image_loss: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    row_text_losses: torch.FloatTensor | None = None
    row_image_losses: torch.FloatTensor | None = None
    bit_accuracy: torch.FloatTensor | None = None


@dataclass
class UniWeTokDrawOutput(ModelOutput):
    """`codes` [B, bits, h, w] of {-1, +1}, 0 where an interrupted run did not get; `conditions`, on request, what the
    head was told at each step, one [rows, P, hidden size] a patch, conditional rows first."""

    codes: torch.FloatTensor | None = None
    conditions: tuple[torch.FloatTensor, ...] | None = None


def codes_to_tokens(codes: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Codes [N, bits, h, w] to tokens [N, h*w, bits] in drawing order: patches row by row, and rows inside a patch."""
    batch, bits, height, width = codes.shape
    p = patch_size
    patches = codes.reshape(batch, bits, height // p, p, width // p, p)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * width, bits)


def tokens_to_codes(tokens: torch.Tensor, height: int, width: int, patch_size: int) -> torch.Tensor:
    """Inverse of [`codes_to_tokens`]."""
    batch, _, bits = tokens.shape
    p = patch_size
    patches = tokens.reshape(batch, height // p, width // p, p, p, bits)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, bits, height, width)


def sinusoidal_positions(height: int, width: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """2-D sinusoids [size, height, width] in float32: the first half of the channels tells the column, the second the
    row; of each, first sines, then cosines of position * 10000^(-k / (size / 4)) (spec 3.3)."""
    frequencies = 10000.0 ** (-torch.arange(size // 4, device=device, dtype=torch.float32) / (size // 4))

    def axis(length: int) -> torch.Tensor:
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).T  # [size / 2, length]

    columns = axis(width)[:, None, :].expand(-1, height, -1)
    rows = axis(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows])


def left_pad_rows(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks batches of (input_ids, attention_mask), each [B_i, L_i], to one batch as long as the longest."""
    length = max(ids.shape[1] for ids, _ in rows)
    padded_ids = [nn.functional.pad(ids, (length - ids.shape[1], 0), value=pad_token_id) for ids, _ in rows]
    padded_masks = [nn.functional.pad(mask, (length - mask.shape[1], 0), value=0) for _, mask in rows]
    return torch.cat(padded_ids), torch.cat(padded_masks)


def _sum_by_row(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Sums [num_rows] of values [M] that belong to `rows` [M], without gradients."""
    return values.new_zeros(num_rows).index_add(0, rows.to(values.device), values.detach())


class UniWeTokProjector(nn.Module):
    """Bits of a token to an embedding of the language model."""

    def __init__(self, config: UniWeTokMLLMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.vision_config.num_bits, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.fc2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class UniWeTokMLLMPreTrainedModel(PreTrainedModel):
    config: UniWeTokMLLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniWeTokLayer", "UniWeTokResidualBlock", "UniWeTokHeadLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class UniWeTokMLLMModel(UniWeTokMLLMPreTrainedModel):
    """Image tokenizer, projector and language model, without heads."""

    def __init__(self, config: UniWeTokMLLMConfig):
        super().__init__(config)
        self.vision_model = UniWeTokModel._from_config(config.vision_config)
        self.projector = UniWeTokProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_pictures(self, pixel_values: Pictures, image_sizes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Codes, one [bits, h, w] a picture, of `pixel_values` [N, 3, H, W] or a list of [3, H, W]. `image_sizes` [N,
        2] says which top left part of each is the picture, in pixels, when they were padded to one size."""
        if image_sizes is not None:
            sizes = zip(pixel_values, image_sizes.tolist(), strict=True)
            pixel_values = [picture[:, :height, :width] for picture, (height, width) in sizes]
        with torch.no_grad():  # the tokenizer is frozen while the language model learns (spec 3.3)
            return list(self.vision_model.encode(pixel_values).codes)

    def read_pictures(
        self, pixel_values: Pictures | None, image_sizes: torch.Tensor | None, codes: Pictures | None
    ) -> Pictures | None:
        """Codes of the pictures, whichever way they were given; None when there are none.

        Raises:
            ValueError: when they were given both ways.
        """
        if pixel_values is None:
            return codes
        if codes is not None:
            raise ValueError("Give either `pixel_values` or `codes`, not both.")
        return self.encode_pictures(pixel_values, image_sizes)

    def positions(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """2-D sinusoids [T, hidden size] of all tokens of the pictures, in drawing order."""
        size, device = self.config.text_config.hidden_size, codes[0].device
        tables = [sinusoidal_positions(*picture.shape[1:], size, device) for picture in codes]
        return self.tokens(tables)

    def tokens(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps [channels, h, w] to tokens [T, channels], picture by picture in drawing order.

        Raises:
            ValueError: when a picture is not made of whole patches.
        """
        p = self.config.patch_size
        for picture in pictures:
            if picture.shape[1] % p or picture.shape[2] % p:
                raise ValueError(f"`codes` of {tuple(picture.shape[1:])} tokens are not made of patches of {p} x {p}.")
        return torch.cat([codes_to_tokens(picture[None], self.config.patch_size)[0] for picture in pictures])

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Pictures, image_sizes: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Embeddings of pictures: `last_hidden_state` the tokens' bits [T, bits], `pooler_output` what the language
        model reads in their place, one [h*w, hidden size] a picture."""
        codes = self.encode_pictures(pixel_values, image_sizes)
        tokens = self.tokens(codes)
        features = self.embed_image_tokens(tokens, self.positions(codes))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=features.split([picture[0].numel() for picture in codes])
        )

    def embed_image_tokens(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Image tokens [..., bits] and their sinusoids to embeddings [..., hidden size]."""
        # Not the dtype of the projector's weights: they may be quantized, the word embeddings are not.
        embeddings = self.projector(tokens.to(self.language_model.dtype))
        return embeddings + positions.to(embeddings.dtype)

    def image_mask(self, input_ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """[B, L], true at the placeholders of image tokens.

        Raises:
            ValueError: when there are not `num_tokens` of them.
        """
        mask = input_ids == self.config.image_token_id
        torch_compilable_check(
            mask.sum() == num_tokens,
            lambda: f"`input_ids` holds {mask.sum()} image placeholders, the given pictures have {num_tokens} tokens.",
        )
        return mask

    def block_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which patch each position belongs to, [B, L]; -1 for text.

        The block that predicts a picture's first patch is its second size token and the queries. Any run of such
        positions and placeholders is a multiple of P long, so that counting them along the row tells the patches
        apart.
        """
        config = self.config
        is_size = (input_ids >= config.size_token_id) & (input_ids < config.size_token_id + config.num_size_tokens)
        after_start = torch.zeros_like(is_size)
        after_start[:, 2:] = (input_ids[:, :-2] == config.vision_start_token_id) & is_size[:, 1:-1] & is_size[:, 2:]
        num_queries = config.tokens_per_patch - 1
        is_query = (input_ids >= config.query_token_id) & (input_ids < config.query_token_id + num_queries)
        in_picture = after_start | is_query | (input_ids == config.image_token_id)
        return torch.where(in_picture, (in_picture.cumsum(1) - 1) // config.tokens_per_patch, -1)

    def block_causal_mask(
        self,
        inputs_embeds: torch.Tensor,
        block_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
    ):
        """The mask, in the form that the attention implementation wants, in which the L new positions see the past,
        and all of their own patch. `block_ids` is [B, L], `attention_mask` [B, past + L].

        Raises:
            ValueError: for flash attention, which knows only causal masks.
        """
        text_config = self.language_model.config
        if "flash" in (text_config._attn_implementation or "") and "flex" not in text_config._attn_implementation:
            raise ValueError(
                f"`patch_size`={self.config.patch_size} needs attention that is full inside a patch; "
                f"{text_config._attn_implementation} has only causal masks. Use sdpa, flex_attention or eager."
            )
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        return create_masks_for_generate(  # one mask, or one for each kind of layer where there are several
            config=text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            block_sequence_ids=nn.functional.pad(block_ids, (past, 0), value=-1),
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.LongTensor | None = None,
        codes: Pictures | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, L, hidden size] of text and pictures; arguments as in [`UniWeTokForCausalLM.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`, not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        codes = self.read_pictures(pixel_values, image_sizes, codes)
        if codes is not None and len(codes):
            if input_ids is None:
                raise ValueError("Pictures need `input_ids`: the placeholders say where they go.")
            features = self.embed_image_tokens(self.tokens(codes), self.positions(codes)).to(inputs_embeds)
            mask = self.image_mask(input_ids, len(features))
            inputs_embeds = inputs_embeds.masked_scatter(mask[..., None], features)

        has_patches = self.config.tokens_per_patch > 1 and inputs_embeds.shape[1] > 1
        is_plain = attention_mask is None or (torch.is_tensor(attention_mask) and attention_mask.ndim == 2)
        if has_patches and input_ids is not None and is_plain:
            attention_mask = self.block_causal_mask(
                inputs_embeds, self.block_ids(input_ids), attention_mask, past_key_values, position_ids
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class UniWeTokForCausalLM(UniWeTokMLLMPreTrainedModel, GenerationMixin):
    """The unified model: writes text with `generate`, draws pictures with `generate_codes`, learns both in
    `forward`."""

    output_modalities = ("image", "text")
    # transformers' Trainer counts text alone, so it can't say by what to divide the image loss of a part of a batch.
    accepts_loss_kwargs = False
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: UniWeTokMLLMConfig):
        super().__init__(config)
        self.model = UniWeTokMLLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.image_head = UniWeTokBinaryHead._from_config(config.head_config)
        self.post_init()

    @property
    def vision_model(self) -> UniWeTokModel:
        """The image tokenizer."""
        return self.model.vision_model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.LongTensor | None = None,
        codes: Pictures | None = None,
        image_is_target: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        generator: Generators = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        num_image_tokens_in_batch: int | torch.Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        **kwargs,
    ) -> UniWeTokCausalLMOutput:
        """
        Args:
            input_ids: [B, L]; `<|image_pad|>` stands for each token of a picture, as [`UniWeTokProcessor`] writes it.
            attention_mask: [B, L], 0 for padding.
            position_ids, past_key_values, inputs_embeds, use_cache: as in any causal model.
            pixel_values: pictures in the order of their placeholders, [N, 3, H, W] or a list of [3, H, W], in [-1, 1].
            image_sizes: [N, 2] (height, width) of the pictures within padded `pixel_values`.
            codes: instead of `pixel_values`, [N, bits, h, w] or a list of [bits, h, w] of {-1, +1}.
            image_is_target: [N]; the image loss covers these pictures, the others are context only.
            labels: [B, L], the text to be predicted, -100 elsewhere. Losses are computed only when they are given.
            logits_to_keep: positions whose logits are returned, as in any causal model; losses don't depend on it.
            generator: source of bit flips, times and noise of the image loss: one for the batch, or a list with one a
                row, which makes a row independent of its batch.
            num_items_in_batch, num_image_tokens_in_batch: text tokens to predict and image tokens to draw, by which
                the two losses are divided; by default those of this batch. Whoever cuts a batch in parts gives those
                of the whole, and adds up the parts' losses.
            timesteps: times of the diffusion loss, one a draw, instead of drawn ones: to measure, not to train.
            kwargs: `shift_labels` [B, L], the labels one position to the left, where each process gets a part of each
                row; what else the language model takes.

        Raises:
            ValueError: when placeholders and pictures don't match.
        """
        # No argument of its own: transformers' Trainer would count it among the labels that it waits for.
        shift_labels = kwargs.pop("shift_labels", None)
        codes = self.model.read_pictures(pixel_values, image_sizes, codes)
        has_targets = labels is not None and codes is not None and image_is_target is not None
        targets = image_is_target.tolist() if has_targets else []
        if has_targets and len(targets) != len(codes):
            raise ValueError(f"`image_is_target` must say it of each of {len(codes)} pictures, got {len(targets)}.")
        is_flipped = self.training and any(targets)
        inputs = self._flip_targets(input_ids, codes, targets, generator) if is_flipped else codes
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            codes=inputs,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        logits, text_logits = self._logits(hidden_states, shift_labels, logits_to_keep)
        losses = {}
        if labels is not None:
            losses = self._text_loss(text_logits, shift_labels, num_items_in_batch)
            losses["loss"] = self.config.text_loss_weight * losses["text_loss"]
            if any(targets):
                to_draw = self._patches_to_draw(hidden_states, input_ids, codes, targets)
                losses |= self._image_loss(*to_draw, len(labels), generator, timesteps, num_image_tokens_in_batch)
                losses["loss"] = losses["loss"] + self.config.image_loss_weight * losses["image_loss"]
            elif self.training:
                losses["loss"] = losses["loss"] + self._idle_pass()
        return UniWeTokCausalLMOutput(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **losses,
        )

    def _logits(
        self, hidden_states: torch.Tensor, shift_labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits to return, and those [text tokens, vocabulary] that predict the labels: few where there are pictures,
        so whoever wants losses alone keeps no logits. By one call: FSDP loses gradients of a tied layer called
        twice."""
        kept = slice_logits_to_keep(hidden_states, logits_to_keep)
        if shift_labels is None:
            return self.lm_head(kept), None
        is_text = shift_labels != -100
        if isinstance(logits_to_keep, int) and logits_to_keep == 0:
            logits = self.lm_head(kept)
            return logits, logits[is_text]
        predicting = hidden_states[is_text]
        logits = self.lm_head(torch.cat([kept.flatten(0, 1), predicting]))
        kept_logits, text_logits = logits.split([len(logits) - len(predicting), len(predicting)])
        return kept_logits.view(*kept.shape[:2], logits.shape[-1]), text_logits

    def _text_loss(
        self, logits: torch.Tensor, shift_labels: torch.Tensor, num_items: int | torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy of the next token; 0, not NaN, for a batch that has no text to predict."""
        is_text = shift_labels != -100
        losses = F.cross_entropy(logits.float(), shift_labels[is_text], reduction="none")
        num_items = is_text.sum().clamp_min(1) if num_items is None else num_items
        sums = _sum_by_row(losses, is_text.nonzero()[:, 0], len(shift_labels))
        return {"text_loss": losses.sum() / num_items, "row_text_losses": sums}

    def _patches_to_draw(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, codes: Sequence[torch.Tensor], targets: list[bool]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [M, P, bits] of the target pictures; their conditions [M, P, hidden size], the hidden states P
        positions before them; and the rows [M] they are in."""
        block = self.config.tokens_per_patch
        is_target = torch.cat([torch.full(c.shape[1:], t).flatten() for c, t in zip(codes, targets, strict=True)])
        places = self.model.image_mask(input_ids, len(is_target)).flatten().nonzero()[:, 0]  # [T] in B*L
        places = places[is_target.to(places.device)]
        pictures = [picture for picture, target in zip(codes, targets, strict=True) if target]
        condition = hidden_states.flatten(0, 1)[places - block]
        condition = condition + self.model.positions(pictures).to(condition.dtype)
        tokens = self.model.tokens(pictures).unflatten(0, (-1, block))
        return tokens, condition.unflatten(0, (-1, block)), places[::block] // input_ids.shape[1]

    def _image_loss(
        self,
        tokens: torch.Tensor,
        condition: torch.Tensor,
        rows: torch.Tensor,
        num_rows: int,
        generator: Generators,
        timesteps: Sequence[float] | None,
        num_tokens: int | torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Diffusion loss of the tokens to draw."""
        if isinstance(generator, (list, tuple)):
            generator = [generator[row] for row in rows.tolist()]
        losses, accuracy = self.image_head.compute_losses(
            tokens, condition, generator, self.config.num_diffusion_draws, timesteps
        )
        sums = losses.mean(0) * tokens.shape[1]  # of the tokens of each patch
        return {
            "image_loss": sums.sum() / (tokens[..., 0].numel() if num_tokens is None else num_tokens),
            "row_image_losses": _sum_by_row(sums, rows, num_rows),
            "bit_accuracy": accuracy.mean(1),
        }

    def _idle_pass(self) -> torch.Tensor:
        """0, by way of the projector and the head on one patch of zeros. A process whose share of a batch draws
        nothing must use all weights all the same: the other processes wait for its gradients (DDP) or its part of the
        weights (FSDP)."""
        patch = torch.zeros(1, self.config.tokens_per_patch, self.config.vision_config.num_bits, device=self.device)
        condition = self.model.embed_image_tokens(patch, patch.new_zeros(self.config.text_config.hidden_size))
        return 0 * self.image_head(patch, patch.new_zeros(1), condition).sum()

    def _flip_targets(
        self, input_ids: torch.Tensor, codes: Sequence[torch.Tensor], targets: list[bool], generator: Generators
    ) -> list[torch.Tensor]:
        """Codes whose targets have each bit flipped with a probability drawn for it between 0 and
        `bit_flip_probability` (spec 3.3)."""
        generators = [generator] * len(codes)
        if isinstance(generator, (list, tuple)):
            generators = [generator[row] for row in self._rows_of_pictures(input_ids, codes)]
        inputs = list(codes)
        for index, picture in enumerate(codes):
            if targets[index]:
                chance, draw = draw_uniform((2, *picture.shape), generators[index], picture.device)
                inputs[index] = torch.where(draw < self.config.bit_flip_probability * chance, -picture, picture)
        return inputs

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Pictures, image_sizes: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """[`UniWeTokMLLMModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_sizes, return_dict=True)

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask=None, **kwargs):
        """Leaves the padding mask as it is, also for static caches: `forward` makes the block-causal mask of it."""
        return attention_mask

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """For beams and several answers a row is repeated with all of its pictures; the library would repeat pictures
        one by one, which mixes up rows of several."""
        if expand_size > 1:
            model_kwargs.pop("image_is_target", None)
            pictures = [model_kwargs.pop(name, None) for name in ("pixel_values", "image_sizes", "codes")]
            codes = self.model.read_pictures(*pictures)
            if codes is not None:
                rows = self._rows_of_pictures(input_ids, codes)
                pictures = [
                    [c for c, of in zip(codes, rows, strict=True) if of == row] for row in range(len(input_ids))
                ]
                model_kwargs["codes"] = [c for row in pictures for _ in range(expand_size) for c in row]
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )

    def _rows_of_pictures(self, input_ids: torch.Tensor, codes: Sequence[torch.Tensor]) -> list[int]:
        """Which row each picture is in, told by the numbers of the rows' placeholders."""
        row_ends = (input_ids == self.config.image_token_id).sum(1).cumsum(0)
        picture_ends = torch.tensor([c[0].numel() for c in codes], device=input_ids.device).cumsum(0)
        return torch.searchsorted(row_ends, picture_ends).clamp_max(len(input_ids) - 1).tolist()

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, codes=None, **kwargs):
        """Pictures go in with the prompt only; afterwards they are in the cache."""
        if kwargs.pop("generator", None) is not None:
            raise ValueError(
                "`generator` can't seed text: transformers' `generate` draws from torch's global generator."
            )
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if codes is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs["codes"] = codes
        return inputs

    @torch.no_grad()
    def generate_codes(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.LongTensor | None = None,
        codes: Pictures | None = None,
        negative_input_ids: torch.LongTensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        scheduler: BinaryFlow | None = None,
        generator: Generators = None,
        callback: Callable[[int, torch.Tensor], bool | None] | None = None,
        output_conditions: bool = False,
        past_key_values: Cache | None = None,
        image_guidance_scale: float | None = None,
        image_input_ids: torch.LongTensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
    ) -> UniWeTokDrawOutput:
        """Draws one picture a row, patch by patch.

        Args:
            input_ids: [B, L] prompts, left-padded, each ending with the size tokens and queries of the picture to
                draw; all rows draw one size.
            attention_mask: [B, L], 0 for padding.
            pixel_values, image_sizes, codes: pictures in the prompts, as in `forward`.
            negative_input_ids, negative_attention_mask: the unconditional prompts [B, L'], or [1, L'] for all rows;
                they hold no pictures. Needed for a `guidance_scale` over 1.
            guidance_scale: weight w of classifier-free guidance; 1 or less is none.
            num_inference_steps: diffusion steps of a patch; the head runs once more than that.
            scheduler: sampler; by default a [`BinaryFlow`] with the head's shift. Its timesteps are set here.
            generator: one for the batch, or a list with one a row, which makes a row independent of its batch.
            callback: called after each patch with its index and the codes so far (0 where not drawn); a true result
                stops.
            output_conditions: whether to return what the head was told.
            past_key_values: a cache of the first positions of `input_ids`, to go on from; `codes` are then those of
                the pictures after them. The picture drawn is added to it whole, for whatever follows.
            image_guidance_scale: weight of the pictures alone, as in [`UniWeTokBinaryHead.sample`]; none when no
                guidance is asked for.
            image_input_ids, image_attention_mask: [B, L''], prompts with the same pictures and other words, which the
                words of `input_ids` are measured against. Needed for an `image_guidance_scale`.

        Raises:
            ValueError: when prompts don't end with a size, sizes differ or don't fit the patches, or guidance lacks
                the prompts or pictures that it is measured against.
        """
        height, width = self._drawing_size(input_ids)
        rows = len(input_ids)
        guided = guidance_scale > 1
        prompts = [(input_ids, attention_mask)]
        codes = self.model.read_pictures(pixel_values, image_sizes, codes)
        if guided and image_guidance_scale is not None:
            if image_input_ids is None or len(image_input_ids) != rows:
                raise ValueError("`image_guidance_scale` needs `image_input_ids`, a prompt with other words a row.")
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
        reader = _GuidedReader(self.model, prompts, past_key_values)

        scheduler = scheduler or BinaryFlow(self.config.head_config.timestep_shift)
        scheduler.set_timesteps(num_inference_steps)
        bits, block = self.config.vision_config.num_bits, self.config.tokens_per_patch
        canvas = torch.zeros(rows, bits, height, width, device=input_ids.device)
        positions = self.model.positions([canvas[0]])  # [h*w, hidden size]
        tokens = canvas.new_zeros(rows, height * width, bits)
        conditions = []
        hidden_states = reader.read_prompts(codes)
        for step in range(height * width // block):
            patch = slice(step * block, (step + 1) * block)
            condition = hidden_states + positions[patch].to(hidden_states.dtype)
            drawn = self.image_head.sample(condition, scheduler, guidance_scale, generator, image_guidance_scale)
            tokens[:, patch] = binarize(drawn)
            if output_conditions:
                conditions.append(condition)
            if callback is not None and callback(step, tokens_to_codes(tokens, height, width, self.config.patch_size)):
                break
            if patch.stop < height * width or past_key_values is not None:
                embeddings = self.model.embed_image_tokens(tokens[:, patch], positions[patch])
                hidden_states = reader.read_patch(embeddings)
        drawn_codes = tokens_to_codes(tokens, height, width, self.config.patch_size)
        return UniWeTokDrawOutput(codes=drawn_codes, conditions=tuple(conditions) if output_conditions else None)

    def _drawing_size(self, input_ids: torch.Tensor) -> tuple[int, int]:
        """Height and width in tokens of the picture that the prompts begin."""
        config = self.config
        block = config.tokens_per_patch
        sizes = input_ids[:, -block - 1 : input_ids.shape[1] - block + 1] - config.size_token_id + 1
        if sizes.shape[1] < 2 or sizes.min() < 1 or sizes.max() > config.num_size_tokens:
            raise ValueError(
                "`input_ids` must end with <|vision_start|>, two size tokens and the queries of the picture to draw; "
                "UniWeTokProcessor writes them when it is told `height` and `width`."
            )
        if (sizes != sizes[0]).any():
            raise ValueError(
                f"`input_ids` must draw one size in all rows, got (height, width) {sizes.tolist()} in tokens."
            )
        height, width = sizes[0].tolist()
        p = config.patch_size
        if height % p or width % p:
            raise ValueError(
                f"A picture of {height} x {width} tokens can't be drawn in patches of {p} x {p}: sides must be "
                f"multiples of {p * config.vision_config.stride} pixels."
            )
        return height, width


class _GuidedReader:
    """Reads for all rows that the head wants, conditional ones first, then those that guidance is measured against: in
    one batch, or, where the conditional rows go on from a cache, each part by itself, since the cache is only theirs.
    """

    def __init__(
        self, model: UniWeTokMLLMModel, prompts: list[tuple[torch.Tensor, torch.Tensor]], cache: Cache | None = None
    ):
        self.repeats = len(prompts)
        if cache is None:
            prompts = [left_pad_rows(prompts, model.config.text_config.pad_token_id or 0)]
        self.prompts = prompts
        self.readers = [_PatchReader(model, cache), *(_PatchReader(model) for _ in prompts[1:])]

    def read_prompts(self, codes: Pictures | None) -> torch.Tensor:
        pictures = [codes, *([None] * (len(self.readers) - 1))]
        pairs = zip(self.readers, self.prompts, pictures, strict=True)
        return torch.cat([reader.read_prompt(*prompt, codes) for reader, prompt, codes in pairs])

    def read_patch(self, embeddings: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([embeddings] * self.repeats).chunk(len(self.readers))
        return torch.cat([reader.read_patch(part) for reader, part in zip(self.readers, parts, strict=True)])


class _PatchReader:
    """Feeds a prompt and then patch after patch to the language model, with a key-value cache, and returns the hidden
    states of the last P positions, [rows, P, hidden size]. A `cache` that is given holds the prompt's first
    positions."""

    def __init__(self, model: UniWeTokMLLMModel, cache: Cache | None = None):
        self.model = model
        self.block = model.config.tokens_per_patch
        self.cache = DynamicCache(config=model.language_model.config) if cache is None else cache

    def read_prompt(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, codes: Pictures | None
    ) -> torch.Tensor:
        self.attention_mask = attention_mask
        input_ids = input_ids[:, self.cache.get_seq_length() :]
        outputs = self.model(
            input_ids=input_ids,
            codes=codes,
            attention_mask=attention_mask,
            position_ids=self._position_ids(input_ids.shape[1]),
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -self.block :]

    def read_patch(self, embeddings: torch.Tensor) -> torch.Tensor:
        self.attention_mask = attention_mask = nn.functional.pad(self.attention_mask, (0, self.block), value=1)
        position_ids = self._position_ids(self.block)
        if self.block > 1:
            one_block = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
            attention_mask = self.model.block_causal_mask(
                embeddings, one_block, attention_mask, self.cache, position_ids
            )
        outputs = self.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state

    def _position_ids(self, length: int) -> torch.Tensor:
        """Positions of the last `length` positions, counted from each row's first that is no padding."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)[:, -length:]


__all__ = [
    "UniWeTokCausalLMOutput",
    "UniWeTokDrawOutput",
    "UniWeTokForCausalLM",
    "UniWeTokMLLMModel",
    "UniWeTokMLLMPreTrainedModel",
    "UniWeTokProjector",
    "codes_to_tokens",
    "sinusoidal_positions",
    "tokens_to_codes",
]
