# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Words of the unified model about pictures: transformers' `generate`, between pictures and plain text."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin


@torch.no_grad()
def write_about(
    mllm: PreTrainedModel,
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: Sequence[Image.Image],
    max_new_tokens: int,
    argument: str = "prompt",
    ends: Sequence[int] | None = None,
    device: torch.device | None = None,
    **options,
) -> list[str]:
    """The most likely words behind each of `texts`, in one line each.

    Args:
        texts: conversations as the chat template writes them, up to the header of the assistant's turn.
        images: the pictures in them, in order.
        max_new_tokens: longest answer in text tokens.
        argument: whose value is blamed for texts that are too long.
        ends: tokens that end the answer; by default the end of the turn.
        device: where inputs go, should the weights lie elsewhere until they are used.
        options: further ones of `generate`.

    Raises:
        ValueError: when a text and its answer are longer than the model's positions reach.
    """
    inputs = processor(text=list(texts), images=list(images))
    length = inputs["input_ids"].shape[1]
    mllm.config.check_positions(length, max_new_tokens, argument)
    inputs.pop("image_is_target")
    inputs["pixel_values"] = inputs["pixel_values"].to(mllm.dtype)
    output = mllm.generate(
        **inputs.to(mllm.device if device is None else device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=processor.turn_end_token_id if ends is None else list(ends),
        pad_token_id=processor.tokenizer.pad_token_id,
        **options,
    )
    written = processor.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return [" ".join(words.split()) for words in written]


def answer_question(
    mllm: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    question: str,
    max_new_tokens: int = 40,
) -> list[str]:
    """The most likely answer to `question` about each of `images`, in one line each.

    Raises:
        ValueError: when the question and its answer are longer than the model's positions reach.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return write_about(mllm, processor, [text] * len(images), images, max_new_tokens, argument="question")


__all__ = ["answer_question", "write_about"]
