# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The unified language model: one causal LM that reads, generates and edits pictures (arXiv 2602.14178, section
3.4; docs/method.md 3).

What is unusual:
- a picture is `<|res_h|><|res_w|><|query_1|>...` and then one position per token, p x p tokens at a time ("patch");
- attention is causal, but full inside a patch; the block [res_w, queries] predicts the first patch, a patch the next:
  the token at position i is predicted at position i - P;
- no image vocabulary: hidden states condition a diffusion head that generates the bits;
- the same 2-D sinusoids are added to a token's embedding and to the hidden state that predicts it.

Shapes: B rows of L positions, N pictures of n = h*w tokens, P = p*p tokens per patch, T image tokens in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_masks_for_generate,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils import ModelOutput, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .adapters_uniwetok import UniWeTokAdapterMixin
from .codes_uniwetok import Pictures, codes_to_tokens
from .configuration_uniwetok_mllm import UniWeTokMLLMConfig
from .generation_uniwetok_mllm import UniWeTokGenerationMixin
from .linear_uniwetok import use_fast_linears
from .modeling_uniwetok import UniWeTokModel
from .modeling_uniwetok_head import UniWeTokBinaryHead
from .noise_uniwetok import Generators, copy_to_device, flip_bits


@dataclass
class UniWeTokCausalLMOutput(ModelOutput):
    """`loss` = text_loss_weight * `text_loss` + image_loss_weight * `image_loss`, all scalars, when labels are given;
    `logits` [B, L, vocabulary]; `past_key_values`; `hidden_states` and `attentions` on request. As metrics, without
    gradients: `row_text_losses` and `row_image_losses` [B], sums over the tokens of a row, or of a document of packed
    rows, of what the two losses are means of, and `bit_accuracy` [draws], the share of bits whose sign the head
    predicted right."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    row_text_losses: torch.Tensor | None = None
    row_image_losses: torch.Tensor | None = None
    bit_accuracy: torch.Tensor | None = None


def sinusoidal_positions(height: int, width: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """2-D sinusoids [size, height, width] in float32: the first half of the channels tells the column, the second the
    row; of each, first sines, then cosines of position * 10000^(-k / (size / 4)) (docs/method.md
    3.2)."""
    frequencies = 10000.0 ** (-torch.arange(size // 4, device=device, dtype=torch.float32) / (size // 4))

    def axis(length: int) -> torch.Tensor:
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).T  # [size / 2, length]

    columns = axis(width)[:, None, :].expand(-1, height, -1)
    rows = axis(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows])


def _documents(
    labels: torch.Tensor, position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Which document each position [B, L] belongs to, counted over the batch. A row is one, or several behind each
    other when positions start again and nothing is padding, as transformers has it for packed sequences."""
    num_rows, length = labels.shape
    documents = None
    if position_ids is not None and attention_mask is None:
        documents = find_packed_sequence_indices(position_ids.expand(num_rows, -1))
    if documents is None:
        return torch.arange(num_rows, device=labels.device)[:, None].expand(-1, length)
    counts = documents[:, -1:] + 1
    return documents + counts.cumsum(0) - counts


def _next_tokens(labels: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """The label [B, L] of the token after each position; none after the last of a document."""
    is_last = F.pad(documents[:, 1:] != documents[:, :-1], (0, 1), value=True)
    return F.pad(labels[:, 1:], (0, 1), value=-100).masked_fill(is_last, -100)


@dataclass
class UniWeTokPlaces:
    """Where the losses of a batch find what they compute with, as positions among all B*L.

    How many there are depends on values, so finding them waits for the device of the inputs. A training finds them on
    the CPU before ([`UniWeTokForCausalLM.find_places`]) and copies them [`to`] its GPU.

    documents: int64 [B, L], the document of each position, counted over the batch.
    num_documents: how many there are.
    text, text_labels: int64 [M], positions that predict text, and the tokens that come next.
    targets: of each picture, whether the image loss covers it.
    target_tokens: int64 [T'], the placeholders of all tokens of these pictures.
    picture_owners: of each picture, its document.
    patch_owners: of each patch of these pictures, its document.
    """

    documents: torch.Tensor
    num_documents: int
    text: torch.Tensor
    text_labels: torch.Tensor
    targets: list[bool]
    target_tokens: torch.Tensor
    picture_owners: list[int]
    patch_owners: list[int]

    def to(self, device: torch.device) -> "UniWeTokPlaces":
        """The same places with their tensors on `device`, copied without waiting."""
        tensors = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **{name: copy_to_device(value, device) for name, value in tensors.items()})

    def sum_by_document(self, values: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Sums of values [M] over the documents that `owners` [M] says they belong to, without gradients."""
        return values.new_zeros(self.num_documents).index_add(0, owners, values.detach())


class UniWeTokProjector(nn.Module):
    """Bits of a token to an embedding of the language model."""

    def __init__(self, config: UniWeTokMLLMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.vision_config.num_bits, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.fc2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class UniWeTokMLLMPreTrainedModel(UniWeTokAdapterMixin, PreTrainedModel):
    config: UniWeTokMLLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # ty: ignore[invalid-assignment]  (as in transformers)
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniWeTokLayer", "UniWeTokResidualBlock", "UniWeTokHeadLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def post_init(self):
        super().post_init()
        # transformers adds the patterns of the parts; those of the image tokenizer match all other weights.
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or [])

    def _apply(self, fn, recurse=True):
        """Under all that changes the dtype (`.to`, `.half()`, `from_pipe` of a pipeline). Rotary frequencies stay
        float32, as `from_pretrained` leaves them: in bfloat16 one of 0.8 is 1.5 radians off at position 1,000."""
        rotary = [
            (module, name, frequencies)
            for module in self.modules()
            for name, frequencies in module.named_buffers(recurse=False)
            if name.endswith("inv_freq") and frequencies.dtype == torch.float32
        ]
        super()._apply(fn, recurse)
        for module, name, frequencies in rotary:
            changed = getattr(module, name)
            if changed.dtype != torch.float32:
                setattr(module, name, frequencies.to(changed.device))
        return self


class UniWeTokMLLMModel(UniWeTokMLLMPreTrainedModel):
    """Image tokenizer, projector and language model, without heads.

    Raises:
        ValueError: for patches of several tokens and an attention implementation that has no masks, such as those of
            serving engines.
    """

    _keys_to_ignore_on_load_unexpected = [r"^image_head\."]

    def __init__(self, config: UniWeTokMLLMConfig):
        super().__init__(config)
        self.vision_model = UniWeTokModel._from_config(config.vision_config)
        self.projector = UniWeTokProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        # Engines give embeddings and no mask: `forward` could not tell pictures from text.
        if ALL_MASK_ATTENTION_FUNCTIONS.get(self.language_model.config._attn_implementation) is None:
            self._check_masks(None)
        self.post_init()

    def encode_pictures(self, pixel_values: Pictures, image_sizes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Codes, one [bits, h, w] a picture, of `pixel_values` [N, 3, H, W] or a list of [3, H, W]. `image_sizes` [N,
        2] says which top left part of each is the picture, in pixels, when they were padded to one size."""
        if image_sizes is not None:
            sizes = zip(pixel_values, image_sizes.tolist(), strict=True)
            pixel_values = [picture[:, :height, :width] for picture, (height, width) in sizes]
        with torch.no_grad():  # the tokenizer is frozen while the language model learns (docs/method.md 3.5)
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

    def positions(self, codes: Pictures) -> torch.Tensor:
        """2-D sinusoids [T, hidden size] of all tokens of the pictures, in generation order."""
        size, device = self.config.text_config.hidden_size, codes[0].device
        tables = [sinusoidal_positions(*picture.shape[1:], size, device) for picture in codes]
        return self.tokens(tables)

    def tokens(self, pictures: Pictures) -> torch.Tensor:
        """Maps [channels, h, w] to tokens [T, channels], picture by picture in generation order.

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

    def find_format_tokens(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """What `input_ids` would say about pictures, read back from `inputs_embeds` [B, L, hidden size]: the ids
        [B, L] of the tokens that the format of a picture is made of, -1 elsewhere.

        An embedding is such a token's when it equals it. The size tokens say how long a picture is, so that one whose
        features are already in place of its placeholders is found, too. Where all embeddings are altered
        (interpolated, noise added), nothing tells them from soft prompts, and they are read as text: with `patch_size`
        > 1 give an `attention_mask` of four dimensions with them.

        Raises:
            ValueError: with `patch_size` > 1, when two of these tokens have one embedding, or queries stand without
                `<|vision_start|>` and two size tokens before them.
        """
        config = self.config
        if config.tokens_per_patch == 1:  # nothing but placeholders matters
            placeholder = self.get_input_embeddings()(
                inputs_embeds.new_tensor([config.image_token_id], dtype=torch.long)
            )
            found = (inputs_embeds == placeholder.to(inputs_embeds)).all(-1)
            return torch.where(found, config.image_token_id, -1)

        sizes = range(config.size_token_id, config.size_token_id + config.num_size_tokens)
        queries = range(config.query_token_id, config.query_token_id + config.tokens_per_patch - 1)
        known = [config.image_token_id, config.vision_start_token_id, *sizes, *queries]
        known = torch.tensor(known, device=inputs_embeds.device)
        table = self.get_input_embeddings()(known).detach().to(inputs_embeds)  # [K, hidden size]
        exact = "donot_use_mm_for_euclid_dist"
        equal = torch.cdist(table.float(), table.float(), compute_mode=exact) == 0
        torch_compilable_check(
            equal.sum() == len(known),
            "`inputs_embeds` can't tell where pictures are: two tokens of the format have the same embedding. Give "
            "`input_ids`.",
        )
        distances = torch.cdist(inputs_embeds.detach().float(), table.float(), compute_mode=exact)
        nearest = distances.argmin(-1)
        found = torch.where((table[nearest] == inputs_embeds).all(-1), known[nearest], -1)

        side = found - config.size_token_id + 1  # of a size token, in tokens
        is_size = (side >= 1) & (side <= config.num_size_tokens)
        starts = (found[:, :-2] == config.vision_start_token_id) & is_size[:, 1:-1] & is_size[:, 2:]
        lengths = 3 + len(queries) + side[:, 1:-1] * side[:, 2:]  # of all that stands for a picture
        positions = torch.arange(found.shape[1], device=found.device)
        ends = torch.zeros_like(found)
        ends[:, :-2] = torch.where(starts, positions[:-2] + lengths, 0)
        in_picture = positions < ends.cummax(1).values
        is_query = (found >= queries.start) & (found < queries.stop)
        torch_compilable_check(
            (in_picture | ~is_query).all(),
            "`inputs_embeds` holds <|query_n|> without <|vision_start|> and two size tokens before it: it can't tell "
            "where pictures are.",
        )
        return torch.where(in_picture & (found == -1), config.image_token_id, found)

    def image_mask(self, input_ids: torch.Tensor, num_tokens: int | None) -> torch.Tensor:
        """[B, L], true at the placeholders of image tokens.

        Raises:
            ValueError: when there are not `num_tokens` of them, if given.
        """
        mask = input_ids == self.config.image_token_id
        if num_tokens is not None:
            torch_compilable_check(
                mask.sum() == num_tokens,
                lambda: (
                    f"`input_ids` holds {mask.sum()} image placeholders, the given pictures have {num_tokens} tokens."
                ),
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
        **packed,
    ):
        """The mask, in the form that the attention implementation wants, in which the L new positions see the past,
        and all of their own patch. `block_ids` and `attention_mask` are [B, past + L], or longer by what a cache of
        fixed length has not reached yet; ids are -1 where there is no patch or only a past one. `packed` tells
        transformers which documents a row is made of.

        Raises:
            ValueError: for flash attention, which knows only causal masks.
        """
        mask = create_masks_for_generate(  # one mask, or one for each kind of layer where there are several
            config=self.language_model.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=block_ids,
            **packed,
        )
        self._check_masks(mask)
        return mask

    def _check_masks(self, mask) -> None:
        """
        Raises:
            ValueError: when patches are made of several tokens, and `mask`, or each of a dict of masks, is a causal
                one.
        """
        masks = mask.values() if isinstance(mask, dict) else [mask]
        is_causal = all(each is None or (torch.is_tensor(each) and each.ndim == 2) for each in masks)
        if self.config.tokens_per_patch > 1 and is_causal:
            raise ValueError(
                f"`patch_size`={self.config.patch_size} needs attention that is full inside a patch; "
                f"{self.language_model.config._attn_implementation} has only causal masks. Use sdpa, flex_attention "
                "or eager."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.Tensor | None = None,
        codes: Pictures | None = None,
        image_is_target: torch.Tensor | None = None,
        use_cache: bool | None = None,
        places: UniWeTokPlaces | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, L, hidden size] of text and pictures; arguments as in [`UniWeTokForCausalLM.forward`].

        Raises:
            ValueError: when `image_is_target` names pictures to generate: a loss that is made of these hidden states
                alone, as TRL's trainers make it, would pass them over.
        """
        if image_is_target is not None:
            torch_compilable_check(
                ~image_is_target.any(),
                "`image_is_target` names pictures to be generated, whose loss is in the `loss` of UniWeTokForCausalLM "
                "only. A trainer with a loss of its own, as TRL's are, would learn text alone: use the model's loss "
                "(docs/trl.md), or leave these pictures out. For hidden states alone, leave out `image_is_target`.",
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`, not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        codes = self.read_pictures(pixel_values, image_sizes, codes)
        pictures = codes if codes is not None else []
        is_plain = attention_mask is None or (torch.is_tensor(attention_mask) and attention_mask.ndim == 2)
        has_blocks = self.config.tokens_per_patch > 1 and inputs_embeds.shape[1] > 1 and is_plain
        if input_ids is None and (len(pictures) or has_blocks):
            input_ids = self.find_format_tokens(inputs_embeds)
        if input_ids is not None and len(pictures):
            features = self.embed_image_tokens(self.tokens(pictures), self.positions(pictures)).to(inputs_embeds)
            # `places` were counted when they were found.
            mask = self.image_mask(input_ids, None if places is not None else len(features))
            inputs_embeds = inputs_embeds.masked_scatter(mask[..., None], features)
        elif self.training and input_ids is not None and past_key_values is None and places is None:
            self.image_mask(input_ids, 0)  # placeholders whose pictures got lost would be learnt as words

        if input_ids is not None and has_blocks:
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            block_ids = F.pad(self.block_ids(input_ids), (past, 0), value=-1)
            packed = {"position_ids": position_ids}
            if places is not None and attention_mask is None and past_key_values is None:
                # transformers would look for documents again, and wait.
                is_packed = places.num_documents > len(input_ids)
                packed = {"and_mask_function": packed_sequence_mask_function(places.documents)} if is_packed else {}
            attention_mask = self.block_causal_mask(
                inputs_embeds, block_ids, attention_mask, past_key_values, **packed
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class UniWeTokForCausalLM(UniWeTokMLLMPreTrainedModel, UniWeTokGenerationMixin, GenerationMixin):
    """The unified model: `generate` writes text up to a picture, `generate_codes` generates pictures, `forward` trains
    both."""

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
        use_fast_linears(self)
        self.end_texts_at_pictures()
        self.post_init()

    @property
    def vision_model(self) -> UniWeTokModel:
        """The image tokenizer."""
        return self.model.vision_model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: Pictures | None = None,
        image_sizes: torch.Tensor | None = None,
        codes: Pictures | None = None,
        image_is_target: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        generator: Generators = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        num_image_tokens_in_batch: int | torch.Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        places: UniWeTokPlaces | None = None,
        **kwargs,
    ) -> UniWeTokCausalLMOutput:
        """
        Args:
            input_ids: [B, L]; `<|image_pad|>` stands for each token of a picture, as [`UniWeTokProcessor`] writes it.
            attention_mask: [B, L], 0 for padding. A mask of four dimensions, or a dict of those by kind of layer, is
                used as it is: with `patch_size` > 1 it has to be full inside a patch, as the one that
                [`UniWeTokMLLMModel.block_causal_mask`] makes.
            position_ids: [B, L]. Where they start again within a row, and there is no `attention_mask`, the row is
                packed: its documents don't see each other. (Without labels, with `use_cache=False` only.)
            past_key_values, use_cache: as in any causal model.
            inputs_embeds: [B, L, hidden size], instead of `input_ids`: word embeddings with placeholders, where
                `pixel_values` or `codes` go, or with the features of pictures already in their place. Where pictures
                are is read back from the embeddings, see [`UniWeTokMLLMModel.find_format_tokens`].
            pixel_values: pictures in the order of their placeholders, [N, 3, H, W] or a list of [3, H, W], in [-1, 1].
            image_sizes: [N, 2] (height, width) of the pictures within padded `pixel_values`.
            codes: instead of `pixel_values`, [N, bits, h, w] or a list of [bits, h, w] of {-1, +1}.
            image_is_target: [N]; the image loss covers these pictures, the others are context only.
            labels: [B, L], the text to be predicted, -100 elsewhere. Losses are computed only when they are given.
            logits_to_keep: positions whose logits are returned, as in any causal model; losses don't depend on it.
            generator: source of bit flips, times and noise of the image loss: one for the batch, or a list with one
                per row, or document of packed rows, which makes it independent of its batch.
            num_items_in_batch, num_image_tokens_in_batch: text tokens to predict and image tokens to generate, by
                which the two losses are divided; by default those of this batch. For micro-batches, give those of the
                whole batch and add up the losses.
            timesteps: times of the diffusion loss, one per draw, instead of random ones: for evaluation.
            places: what [`find_places`] gave for these inputs and labels, so that a GPU is not waited for.
            kwargs: `shift_labels` [B, L], the labels one position to the left, where each process gets a part of each
                row; what else the language model takes.

        Raises:
            ValueError: when placeholders and pictures don't match, or `inputs_embeds` can't tell where pictures are.
        """
        # No argument of its own: transformers' Trainer would count it among the labels that it waits for.
        shift_labels = kwargs.pop("shift_labels", None)
        codes = self.model.read_pictures(pixel_values, image_sizes, codes)
        if labels is not None and places is None:
            ids = input_ids
            if ids is None and codes is not None and inputs_embeds is not None:
                ids = self.model.find_format_tokens(inputs_embeds)
            arguments = ids, labels, position_ids, attention_mask, codes, image_is_target, shift_labels
            places = self.find_places(*arguments)
        inputs = codes
        if self.training and places is not None and any(places.targets):
            inputs = self._flip_targets(codes, places, generator)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            codes=inputs,
            use_cache=use_cache if labels is None else bool(use_cache),
            places=places,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits, text_logits = self._logits(hidden_states, places, logits_to_keep)
        losses = {}
        if places is not None and text_logits is not None:
            losses = self._text_loss(text_logits, places, num_items_in_batch)
            losses["loss"] = self.config.text_loss_weight * losses["text_loss"]
            if any(places.targets):
                tokens, condition = self._target_patches(hidden_states, codes, places)
                losses |= self._image_loss(tokens, condition, places, generator, timesteps, num_image_tokens_in_batch)
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

    def find_places(
        self,
        input_ids: torch.Tensor | None,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        codes: Pictures | None = None,
        image_is_target: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
    ) -> UniWeTokPlaces:
        """What the losses of a batch compute with, as [`UniWeTokPlaces`]; arguments as in [`forward`], on any device.

        Raises:
            ValueError: when placeholders and pictures don't match, or `image_is_target` has not one value per picture.
        """
        documents = _documents(labels, position_ids, attention_mask)
        if shift_labels is None:
            shift_labels = _next_tokens(labels, documents)
        text = (shift_labels != -100).flatten().nonzero()[:, 0]
        if codes is not None and image_is_target is not None and len(image_is_target) != len(codes):
            raise ValueError(
                f"`image_is_target` must have one value per picture, {len(codes)}, got {len(image_is_target)}."
            )
        codes = codes if codes is not None and input_ids is not None else []
        targets = [False] * len(codes) if image_is_target is None or not len(codes) else image_is_target.tolist()
        sizes = [picture[0].numel() for picture in codes]
        image = (
            text[:0] if input_ids is None else self.model.image_mask(input_ids, sum(sizes)).flatten().nonzero()[:, 0]
        )
        is_target = torch.tensor(targets, dtype=torch.bool).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
        target_tokens = image[is_target.to(image.device)] if len(codes) else image[:0]
        owners = documents.flatten()
        ends = torch.tensor(sizes, dtype=torch.long, device=image.device).cumsum(0) - 1
        return UniWeTokPlaces(
            documents=documents,
            num_documents=int(documents[-1, -1]) + 1,
            text=text,
            text_labels=shift_labels.flatten()[text],
            targets=targets,
            target_tokens=target_tokens,
            picture_owners=owners[image[ends]].tolist(),
            patch_owners=owners[target_tokens[:: self.config.tokens_per_patch]].tolist(),
        )

    def _logits(
        self, hidden_states: torch.Tensor, places: UniWeTokPlaces | None, logits_to_keep: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits to return, and those [text tokens, vocabulary] that predict the labels: few where there are pictures.
        By one call: FSDP loses gradients of a tied layer called
        twice."""
        kept = slice_logits_to_keep(hidden_states, logits_to_keep)
        if places is None:
            return self.lm_head(kept), None
        if isinstance(logits_to_keep, int) and logits_to_keep == 0:
            logits = self.lm_head(kept)
            return logits, logits.flatten(0, 1)[places.text]
        predicting = hidden_states.flatten(0, 1)[places.text]
        logits = self.lm_head(torch.cat([kept.flatten(0, 1), predicting]))
        kept_logits, text_logits = logits.split([len(logits) - len(predicting), len(predicting)])
        # No view: FSDP warns of those that a model returns.
        return kept_logits.view(*kept.shape[:2], logits.shape[-1]).clone(), text_logits

    def _text_loss(
        self, logits: torch.Tensor, places: UniWeTokPlaces, num_items: int | torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy of the next token; 0, not NaN, for a batch that has no text to predict."""
        losses = F.cross_entropy(logits.float(), places.text_labels, reduction="none")
        num_items = max(len(losses), 1) if num_items is None else num_items
        sums = places.sum_by_document(losses, places.documents.flatten()[places.text])
        return {"text_loss": losses.sum() / num_items, "row_text_losses": sums}

    def _target_patches(
        self, hidden_states: torch.Tensor, codes: Pictures, places: UniWeTokPlaces
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [M, P, bits] of the target pictures, and their conditions [M, P, hidden size], the hidden states P
        positions before them."""
        block = self.config.tokens_per_patch
        pictures = [picture for picture, target in zip(codes, places.targets, strict=True) if target]
        condition = hidden_states.flatten(0, 1)[places.target_tokens - block]
        condition = condition + self.model.positions(pictures).to(condition.dtype)
        tokens = self.model.tokens(pictures).unflatten(0, (-1, block))
        return tokens, condition.unflatten(0, (-1, block))

    def _image_loss(
        self,
        tokens: torch.Tensor,
        condition: torch.Tensor,
        places: UniWeTokPlaces,
        generator: Generators,
        timesteps: Sequence[float] | None,
        num_tokens: int | torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Diffusion loss of the tokens to generate."""
        if isinstance(generator, (list, tuple)):
            generator = [generator[owner] for owner in places.patch_owners]
        losses, accuracy = self.image_head.compute_losses(
            tokens, condition, generator, self.config.num_diffusion_draws, timesteps
        )
        sums = losses.mean(0) * tokens.shape[1]  # of the tokens of each patch
        owners = places.documents.flatten()[places.target_tokens[:: tokens.shape[1]]]
        return {
            "image_loss": sums.sum() / (tokens[..., 0].numel() if num_tokens is None else num_tokens),
            "row_image_losses": places.sum_by_document(sums, owners),
            "bit_accuracy": accuracy.mean(1),
        }

    def _idle_pass(self) -> torch.Tensor:
        """0, by way of the projector and the head on one patch of zeros. A process whose share of a batch has no
        target picture must use all weights too: the other processes wait for its gradients (DDP) or its part of the
        weights (FSDP)."""
        patch = torch.zeros(
            1,
            self.config.tokens_per_patch,
            self.config.vision_config.num_bits,
            device=self.device,
            dtype=torch.float32,
        )
        condition = self.model.embed_image_tokens(patch, patch.new_zeros(self.config.text_config.hidden_size))
        return 0 * self.image_head(patch, patch.new_zeros(1), condition).sum()

    def _flip_targets(self, codes: Pictures, places: UniWeTokPlaces, generator: Generators) -> list[torch.Tensor]:
        """Codes whose targets have each bit flipped with its own random probability between 0 and
        `bit_flip_probability` (docs/method.md 3.5)."""
        generators = [generator] * len(codes)
        if isinstance(generator, (list, tuple)):
            generators = [generator[owner] for owner in places.picture_owners]
        inputs = list(codes)
        for index, picture in enumerate(codes):
            if places.targets[index]:
                inputs[index] = flip_bits(picture[None], self.config.bit_flip_probability, generators[index])[0]
        return inputs

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Pictures, image_sizes: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """[`UniWeTokMLLMModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_sizes, return_dict=True)


# `transformers serve` finds classes by this table of names alone, which `AutoModelForMultimodalLM.register` leaves as
# it is. This stands here and not in the package's `__init__`, because it must hold for the model as remote code too.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[UniWeTokMLLMConfig.model_type] = "UniWeTokForCausalLM"

__all__ = [
    "UniWeTokCausalLMOutput",
    "UniWeTokForCausalLM",
    "UniWeTokMLLMModel",
    "UniWeTokMLLMPreTrainedModel",
    "UniWeTokPlaces",
    "UniWeTokProjector",
    "sinusoidal_positions",
]
