# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Whether the model can read a text, before the first picture is generated: what a pipeline or `generate_text` says of
it when its turn comes, maybe hours later."""

from collections.abc import Iterable

from PIL import Image

from ..modeling.image_processing_uniwetok import plan_sizes
from ..pipelines.pipeline_base import check_texts
from ..pipelines.writing import question_texts
from .rows import batched


PROMPTS_AT_ONCE = 64


def check_prompts(pipe, prompts: Iterable[str], height: int, width: int) -> None:
    """
    Raises:
        ValueError: when a prompt is empty, longer than the model of a [`UniWeTokPipeline`] can read before a picture
            of that size, or holds special tokens.
    """
    for part in batched(dict.fromkeys(prompts), PROMPTS_AT_ONCE):
        for prompt in part:
            check_texts("prompt", prompt)
        pipe.encode_prompt(part, height, width)


def check_edit(pipe, source: Image.Image, prompt: str) -> None:
    """
    Raises:
        ValueError: the same of an instruction behind a source, for a [`UniWeTokEditPipeline`], or when the source is
            of a size that the model can't read.
    """
    check_texts("prompt", prompt)
    size = encoded_size(pipe.processor, source)
    inputs, _ = pipe.processor.generation_inputs([prompt], *size, picture_sizes=[size])
    pipe.check_length("prompt", inputs["input_ids"], *size)


def check_question(mllm, processor, picture: Image.Image, question: str, max_new_tokens: int) -> None:
    """
    Raises:
        ValueError: the same of a question about a picture, whose answer has at most `max_new_tokens`.
    """
    check_texts("question", question)
    inputs = processor(text=question_texts(processor, [question]), picture_sizes=[encoded_size(processor, picture)])
    mllm.config.check_positions(inputs["input_ids"].shape[1], max_new_tokens, "question")


def encoded_size(processor, picture: Image.Image) -> tuple[int, int]:
    """(height, width) in pixels at which the model reads a picture, padding included."""
    images = processor.image_processor
    return plan_sizes(picture.height, picture.width, images.stride, images.fit, images.size)[1]
