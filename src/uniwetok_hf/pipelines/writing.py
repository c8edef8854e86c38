# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text about pictures by the language model: transformers' `generate`, between pictures and plain text."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .image_intake import EncodedImage, as_encoded_images


@torch.no_grad()
def generate_text(
    mllm: Any,
    processor: Any,
    texts: Sequence[str],
    images: Sequence[Image.Image | EncodedImage],
    max_new_tokens: int,
    argument: str = "prompt",
    ends: Sequence[int] | None = None,
    device: torch.device | None = None,
    **options,
) -> list[str]:
    """Greedy `generate`: the most likely continuation of each of `texts`, as one line each.

    Args:
        mllm ([`UniWeTokForCausalLM`]), processor ([`UniWeTokProcessor`]): the language model and its processor.
        texts: conversations as the chat template writes them, up to the header of the assistant's turn.
        images: the pictures in them, in order.
        max_new_tokens: longest continuation in text tokens.
        argument: the argument that errors name when a text is too long.
        ends: tokens that end the continuation; by default the end of the turn and the beginning of a picture.
        device: where the model computes; by default where its weights are.
        options: further ones of `generate`.

    Raises:
        ValueError: when a text and its continuation are longer than the model's positions reach, or a picture is of a
            size that the model can't read.
    """
    device = mllm.device if device is None else device
    images = as_encoded_images(mllm, processor, images, device)
    inputs = processor(text=list(texts), picture_sizes=[image.pixel_size for image in images])
    length = inputs["input_ids"].shape[1]
    mllm.config.check_positions(length, max_new_tokens, argument)
    inputs.pop("image_is_target")  # of use to losses only
    output = mllm.generate(
        **inputs.to(device),
        codes=[image.codes.to(device) for image in images],
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=[processor.turn_end_token_id, processor.vision_start_token_id] if ends is None else list(ends),
        pad_token_id=processor.tokenizer.pad_token_id,
        **options,
    )
    written = processor.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return [" ".join(text.split()) for text in written]


def answer_question(
    mllm: Any,
    processor: Any,
    images: Sequence[Image.Image | EncodedImage],
    question: str,
    max_new_tokens: int = 40,
) -> list[str]:
    """The most likely answer to `question` about each of `images`, as one line each.

    Args:
        mllm ([`UniWeTokForCausalLM`]), processor ([`UniWeTokProcessor`]): the language model and its processor.
        images: the pictures, each of which is asked about alone.
        question: text without special tokens.
        max_new_tokens: longest answer in text tokens.

    Raises:
        ValueError: when the question is empty, holds special tokens or is no text, it and its answer are longer than
            the model's positions reach, or a picture is of a size that the model can't read.
    """
    texts = question_texts(processor, [question]) * len(images)
    return generate_text(mllm, processor, texts, images, max_new_tokens, argument="question")


def question_texts(processor: Any, questions: Sequence[str]) -> list[str]:
    """Conversations in which the user shows a picture and asks each of `questions` about it, up to the header of the
    assistant's turn.

    Raises:
        ValueError: when a question is empty, holds special tokens or is no text.
    """
    processor.check_words(list(questions), "question")
    if not all(question.strip() for question in questions):
        raise ValueError("`question` must not be empty.")
    contents = [[{"type": "image"}, {"type": "text", "text": question}] for question in questions]
    conversations = [[{"role": "user", "content": content}] for content in contents]
    return list(processor.apply_chat_template(conversations, add_generation_prompt=True))


__all__ = ["answer_question", "generate_text", "question_texts"]
