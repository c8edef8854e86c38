# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Many rows in one call of the model. Rows of different requests differ in length, sources, seeds and limits, never in
what decides the work of a step; a row gives the tokens and the bits that it gives alone (docs/serving.md has what was
measured).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..modeling.generation_uniwetok_mllm import left_pad_rows


# A row is given up when this answers true.
Abandoned = Callable[[], bool]


@dataclass(kw_only=True)
class TextRow:
    """Text to generate, up to a token of `ends` or `max_new_tokens`.

    Args:
        adapter: name of the adapter; None is the model itself.
        input_ids: int64 [1, L].
        codes: float32 [bits, h, w] of {-1, +1} of each picture in them.
        ends, banned, banned_first: tokens that end the text, that never come, and that don't come first.
        temperature, top_p, generator: as in [`ChatRequest`]; the generator is drawn from when the temperature is
            above 0.
        on_token: called with all new tokens so far after each.
    """

    adapter: str | None
    input_ids: torch.Tensor
    codes: list[torch.Tensor]
    max_new_tokens: int
    ends: tuple[int, ...]
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None
    on_token: Callable[[list[int]], None] | None = None

    @property
    def key(self) -> tuple:
        """Rows of one key can be computed in one batch."""
        return "text", self.adapter


@dataclass(kw_only=True)
class PictureRow:
    """A picture to generate.

    Args:
        adapter: name of the adapter; None is the model itself.
        inputs: `input_ids` [1, L] and other prompts of the model's `generate_codes`, with their masks; `codes`, a list
            of the pictures in them.
        size: (height, width) in pixels.
        num_inference_steps, guidance_scale, image_guidance_scale: as in `generate_codes`.
        generator: source of its noise.
    """

    adapter: str | None
    inputs: dict[str, Any]
    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    image_guidance_scale: float | None = None
    generator: torch.Generator | None = None

    @property
    def key(self) -> tuple:
        """Rows of one key can be computed in one batch."""
        scales = self.guidance_scale, self.image_guidance_scale
        return "picture", self.adapter, self.size, self.num_inference_steps, *scales


Row = TextRow | PictureRow


@torch.no_grad()
def generate_pictures(pipe, rows: Sequence[PictureRow], abandoned: Sequence[Abandoned]) -> list[torch.Tensor]:
    """Codes [bits, h, w] of {-1, +1}, one per row; they are not whole once all rows are abandoned.

    Args:
        pipe ([`UniWeTokPipeline`]): the model.
        rows: of one key.
        abandoned: one function per row.
    """
    first = rows[0]
    pad = pipe.processor.tokenizer.pad_token_id or 0
    inputs: dict[str, Any] = {}
    for name in ("", "image_", "negative_"):
        if f"{name}input_ids" in first.inputs:
            prompts = [_prompt(row.inputs, name) for row in rows]
            inputs[f"{name}input_ids"], inputs[f"{name}attention_mask"] = left_pad_rows(prompts, pad)
    if codes := [codes for row in rows for codes in row.inputs.get("codes") or ()]:
        inputs["codes"] = codes

    def stop_if_abandoned(pipe, step: int, count: int, tensors: dict) -> None:
        pipe._interrupt = all(gone() for gone in abandoned)

    latents = pipe.generate_codes(
        pipe.prepare_latents(len(rows), *first.size),
        first.num_inference_steps,
        first.guidance_scale,
        [row.generator for row in rows],
        stop_if_abandoned,
        image_guidance_scale=first.image_guidance_scale,
        **inputs,
    )
    return list(latents)


def _prompt(inputs: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = inputs[f"{name}input_ids"]
    mask = inputs.get(f"{name}attention_mask")
    return ids, torch.ones_like(ids) if mask is None else mask


@torch.no_grad()
def generate_texts(pipe, rows: Sequence[TextRow], abandoned: Sequence[Abandoned]) -> list[list[int]]:
    """New tokens of each row, the one that ended it included.

    Args:
        pipe ([`UniWeTokPipeline`]): the model.
        rows: of one key.
        abandoned: one function per row.
    """
    pipe.maybe_load_model()
    device, pad = pipe._execution_device, pipe.processor.tokenizer.pad_token_id or 0
    prompts = [(row.input_ids, torch.ones_like(row.input_ids)) for row in rows]
    input_ids, attention_mask = (tensor.to(device) for tensor in left_pad_rows(prompts, pad))
    codes = [codes.to(device) for row in rows for codes in row.codes]
    progress = _Progress(rows, abandoned)
    pipe.mllm.generate(
        input_ids,
        attention_mask=attention_mask,
        codes=codes or None,
        do_sample=False,  # see `_Choice`
        max_new_tokens=max(row.max_new_tokens for row in rows),
        eos_token_id=None,  # each row has its own
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([_Choice(progress)]),
        stopping_criteria=StoppingCriteriaList([progress]),
    )
    return progress.tokens


class _Progress(StoppingCriteria):
    """Collects the tokens of each row, and ends it."""

    def __init__(self, rows: Sequence[TextRow], abandoned: Sequence[Abandoned]):
        self.rows, self.abandoned = rows, abandoned
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.done = [False] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        newest = input_ids[:, -1].tolist()
        for index, row in enumerate(self.rows):
            if self.done[index]:
                continue
            tokens = self.tokens[index]
            tokens.append(newest[index])
            is_full = len(tokens) == row.max_new_tokens
            self.done[index] = newest[index] in row.ends or is_full or self.abandoned[index]()
            if row.on_token is not None:
                row.on_token(tokens)
        return torch.tensor(self.done, device=input_ids.device)


class _Choice(LogitsProcessor):
    """Bans tokens, and draws where a row has a temperature: with Gumbel noise on the scaled logits the largest is a
    draw from their distribution. So each row has a generator of its own, which transformers' sampling has not. Nothing
    is drawn for a row that has ended: what is drawn for it next must not depend on how long the others are."""

    def __init__(self, progress: _Progress):
        self.progress = progress

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        progress, is_first = self.progress, not any(self.progress.tokens)
        if is_first:
            self.later = self._banned(scores, [row.banned for row in progress.rows])
            first = self._banned(scores, [(*row.banned, *row.banned_first) for row in progress.rows])
        scores = scores.float().masked_fill(first if is_first else self.later, -torch.inf)
        for row, logits, is_done in zip(progress.rows, scores, progress.done, strict=True):
            if row.temperature > 0 and not is_done:
                logits.copy_(_with_noise(logits, row.temperature, row.top_p, row.generator))
        return scores

    @staticmethod
    def _banned(scores: torch.Tensor, tokens: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Bool [B, vocabulary], on the device of the scores."""
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        for row, banned in zip(mask, tokens, strict=True):
            row[[*banned]] = True
        return mask.to(scores.device)


def _with_noise(
    logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Scaled `logits` [vocabulary] with Gumbel noise, -inf outside of the fewest tokens of probability `top_p`."""
    logits = (logits - logits.max()) / temperature  # at most 0: none overflows
    if top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        is_rest = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(is_rest.scatter(0, order, is_rest), -torch.inf)
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float32).clamp_min(1e-30).to(logits.device)
    return logits - (-uniform.log()).log()


__all__ = ["PictureRow", "Row", "TextRow", "generate_pictures", "generate_texts"]
