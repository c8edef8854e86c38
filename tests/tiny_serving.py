"""The tiny model behind a serving engine, requests of all kinds, and what the pipelines answer to them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tiny_mllm import seeded, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.serving.engine import BatchReport, LocalEngine
from uniwetok_hf.serving.requests import (
    ChatRequest,
    EditRequest,
    Finished,
    GenerationRequest,
    Part,
    PicturePart,
    Request,
    TextPart,
)


MODEL = "tiny"
# How the model answers turns that end with these letters; other turns get text that nobody chose.
MANY_BYTES = "\u00fc \u20ac\U0001f600\n \u65e5\u672c \u3000"
ANSWERS = {
    "P": "<|vision_start|>",
    "B": "Hi <|vision_start|>",
    "M": MANY_BYTES + "<|im_end|>",
    "D": "a red one<|vision_start|>",
}
AFTER_PICTURE = "ok<|im_end|>"


def tokens_of(pipe: UniWeTokPipeline, text: str) -> list[int]:
    return pipe.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def build_serving_pipeline(patch_size: int = 1, **defaults) -> UniWeTokPipeline:
    """A pipeline that draws pictures of one patch by two in one step, and whose answers follow `ANSWERS`."""
    defaults = {"default_size": 32 * patch_size, "default_num_inference_steps": 1} | defaults
    pipe = build_tiny_pipeline(patch_size, **defaults)
    with_random_weights(pipe.mllm)
    pipe.mllm.generation_config.sequence_bias = answers(pipe)
    return pipe


def answers(pipe: UniWeTokPipeline) -> list:
    """`sequence_bias` of `generate` for `ANSWERS`. Tokens of which pictures are made are never written as text."""
    processor, config = pipe.processor, pipe.mllm.config
    queries = range(config.query_token_id, config.query_token_id + config.tokens_per_patch - 1)
    sizes = range(config.size_token_id, config.size_token_id + config.num_size_tokens)
    bias = [[[token], -5000.0] for token in (config.image_token_id, *queries, *sizes)]
    bias += [[[processor.vision_start_token_id], -1000.0]]
    header = "<|im_end|>\n<|im_start|>assistant\n"
    scripts = [(letter + header, text) for letter, text in ANSWERS.items()] + [("<|vision_end|>", AFTER_PICTURE)]
    for begin, text in scripts:
        ids, written = tokens_of(pipe, begin), tokens_of(pipe, text)
        bias += [[[*ids, *written[: end + 1]], 4000.0] for end in range(len(written))]
    return bias


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chat(*turns, seed: int = 0, model: str = MODEL, **settings) -> ChatRequest:
    """A conversation of turns that are said by the user and the assistant by turns; each is a text, a picture or a
    list of them."""
    messages, images = [], []
    for index, turn in enumerate(turns):
        items = turn if isinstance(turn, list) else [turn]
        images += [item for item in items if isinstance(item, Image.Image)]
        content = [{"type": "text", "text": i} if isinstance(i, str) else {"type": "image"} for i in items]
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return ChatRequest(model=model, seed=seed, messages=tuple(messages), images=tuple(images), **settings)


def generation(prompt: str, seed: int = 0, model: str = MODEL, **settings) -> GenerationRequest:
    return GenerationRequest(model=model, seed=seed, prompt=prompt, **settings)


def edit(image: Image.Image, prompt: str, seed: int = 0, model: str = MODEL, **settings) -> EditRequest:
    return EditRequest(model=model, seed=seed, image=image, prompt=prompt, **settings)


@dataclass
class Answer:
    """Text on one line, pixels and descriptions of the pictures, and, of an engine, why it ended."""

    text: str = ""
    pictures: list[bytes] = field(default_factory=list)
    descriptions: list[str | None] = field(default_factory=list)
    reason: str | None = field(default=None, compare=False)


def answer_of(parts: Sequence[Part]) -> Answer:
    """One answer of all its parts."""
    assert [isinstance(part, Finished) for part in parts] == [False] * (len(parts) - 1) + [True]
    pictures = [part for part in parts if isinstance(part, PicturePart)]
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    return Answer(
        " ".join(text.split()),
        [pixels(part.image) for part in pictures],
        [part.description for part in pictures],
        parts[-1].reason,
    )


def pixels(image: Image.Image) -> bytes:
    return str(image.size).encode() + image.tobytes()


def answer_alone(pipe: UniWeTokPipeline, request: Request) -> Answer:
    """What the pipelines and conversations of this package answer."""
    settings = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale}
    settings |= {"height": request.height, "width": request.width, "generator": seeded(request.seed)}
    if isinstance(request, GenerationRequest):
        [image] = pipe(request.prompt, negative_prompt=request.negative_prompt, **settings).images
        return Answer("", [pixels(image)], [None])
    if isinstance(request, EditRequest):
        defaults = {name: value for name, value in pipe.config.items() if name.startswith("default_")}
        edit_pipe = UniWeTokEditPipeline(**pipe.components, **defaults)
        edit_pipe.set_progress_bar_config(disable=True)
        settings |= {"image_guidance_scale": request.image_guidance_scale, "negative_prompt": request.negative_prompt}
        output = edit_pipe(request.image, request.prompt, **settings)
        return Answer("", [pixels(output.images[0])], output.descriptions or [None])
    talk, images = UniWeTokConversation(pipe), [*request.images]
    talk.messages = [*request.messages[:-1]]
    num_before = sum(item["type"] == "image" for turn in talk.messages for item in turn["content"])
    talk.codes = [pipe.encode_image(image)[0].codes for image in images[:num_before]]
    words = "".join(item.get("text", "") for item in request.messages[-1]["content"])
    reply = talk.say(words, images[num_before:], max_new_tokens=request.max_new_tokens, **settings)
    return Answer(reply.text, [pixels(image) for image in reply.images], [None] * len(reply.images))


@contextmanager
def serving(pipe: UniWeTokPipeline, **options) -> Iterator[LocalEngine]:
    engine = LocalEngine(pipe, MODEL, **options)
    try:
        yield engine
    finally:
        engine.close()


async def answer(engine: LocalEngine, request: Request) -> Answer:
    async with asyncio.timeout(120):  # one that is lost
        return answer_of([part async for part in engine.stream(request)])


async def answer_all(engine: LocalEngine, requests: Sequence[Request]) -> list:
    """The answers to requests that are asked at once, or the exceptions that they raise."""
    return await asyncio.gather(*[answer(engine, request) for request in requests], return_exceptions=True)


def ask_together(pipe: UniWeTokPipeline, requests: Sequence[Request], **options) -> tuple[list, list[BatchReport]]:
    """The answers of an engine that begins once all requests are there, and the batches that it made of them."""
    reports: list[BatchReport] = []

    def report(batch: BatchReport) -> None:
        reports.append(batch)
        engine.batch_wait = 0

    with serving(pipe, max_batch_size=len(requests), batch_wait=60, on_batch=report, **options) as engine:
        return asyncio.run(answer_all(engine, requests)), reports


async def until(condition, seconds: float = 30.0) -> None:
    """Waits until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def is_empty(engine: LocalEngine) -> bool:
    return engine.num_waiting == engine.num_running == 0
