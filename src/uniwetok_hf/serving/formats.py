# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""OpenAI's request and answer formats, with this model's settings as further fields. Needs pydantic (extra `serve`).

A field that OpenAI has and that would change the answer is refused where this model can't follow it (`tools`,
`logprobs`, ...); one that would not is read and ignored (`user`, `metadata`, ...). Any other field is an error, so
that a misspelt one is noticed.
"""

import base64
import re
import time
import uuid
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ..data.images import png_bytes
from .requests import Finished


MOST_IMAGES = 10  # `n`
MOST_STEPS = 100
MOST_NEW_TOKENS = 1024
MOST_MESSAGES = 1000
MOST_ITEMS = 100  # of a message
LONGEST_TEXT = 100_000  # characters; models read less, which is known when a text is tokenized
LARGEST_SEED = 2**63 - 1 - MOST_IMAGES


def _refuse(value: Any) -> None:
    if value not in (None, False, [], {}):
        raise ValueError("this model can't follow it")


Ignored = Annotated[Any, BeforeValidator(lambda value: None), Field(default=None, exclude=True)]
Refused = Annotated[Any, AfterValidator(_refuse)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class _Settings(BaseModel):
    """Fields of all requests for pictures.

    `size` is "WIDTHxHEIGHT" in pixels or "auto"; `seed` is drawn when not given, and told in the answer.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    size: Size | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Scale | None = None
    user: Ignored = None

    def settings(self) -> dict:
        """Keyword arguments of a [`Request`] but `model` and `seed`."""
        width, height = (None, None) if self.size in (None, "auto") else map(int, str(self.size).split("x"))
        return {
            "height": height,
            "width": width,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }


class _ImagesBody(_Settings):
    prompt: Text
    negative_prompt: Text | None = None
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: Annotated[bool | None, AfterValidator(_refuse)] = None
    partial_images: Annotated[int | None, Field(le=0)] = None
    quality: Ignored = None
    background: Ignored = None
    moderation: Ignored = None
    output_compression: Ignored = None
    safety_identifier: Ignored = None


class GenerationBody(_ImagesBody):
    """Body of `/v1/images/generations`."""

    style: Ignored = None


class EditBody(_ImagesBody):
    """Fields of `/v1/images/edits` beside the picture."""

    image_guidance_scale: Scale | None = None
    mask: Refused = None
    input_fidelity: Ignored = None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _TextItem(_Part):
    type: Literal["text"]
    text: Text


class _ImageAddress(_Part):
    url: str
    detail: Ignored = None


class _ImageItem(_Part):
    type: Literal["image_url"]
    image_url: _ImageAddress
    index: Ignored = None  # of an answer


_Item = Annotated[_TextItem | _ImageItem, Field(discriminator="type")]


class Message(_Part):
    """A turn. `images` of an assistant are those of an answer of this server; they come before its text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[_Item], Field(max_length=MOST_ITEMS)] | None = None
    images: Annotated[list[_ImageItem], Field(max_length=MOST_ITEMS)] | None = None
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Ignored = None
    function_call: Refused = None
    tool_calls: Refused = None

    def items(self) -> list[_TextItem | _ImageItem]:
        """Pictures and texts in their order, without empty texts."""
        content = self.content or []
        texts = [_TextItem(type="text", text=content)] if isinstance(content, str) else content
        return [*(self.images or []), *(one for one in texts if one.type == "image_url" or one.text.strip())]


class _StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class _PlainText(BaseModel):
    type: Literal["text"]


class ChatBody(_Settings):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: _PlainText | None = None
    audio: Refused = None
    function_call: Refused = None
    functions: Refused = None
    logit_bias: Refused = None
    logprobs: Refused = None
    prediction: Refused = None
    stop: Refused = None
    tools: Refused = None
    top_logprobs: Refused = None
    web_search_options: Refused = None
    metadata: Ignored = None
    moderation: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    tool_choice: Ignored = None
    verbosity: Ignored = None


def png_base64(image: Image.Image) -> str:
    """A picture as a PNG in base64."""
    return base64.b64encode(png_bytes(image)).decode()


def image_item(encoded: str, index: int) -> dict:
    """A generated picture in a message, from its PNG in base64."""
    return {"type": "image_url", "index": index, "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def usage_of(*answers: Finished) -> dict:
    """OpenAI's `usage` of one or several answers."""
    read, new = sum(one.num_prompt_tokens for one in answers), sum(one.num_new_tokens for one in answers)
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


class ChatAnswer:
    """The envelope of one answer, whole or in chunks."""

    def __init__(self, model: str, seed: int):
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model, "seed": seed}

    def whole(self, text: str, images: list[str], finished: Finished) -> dict:
        """A `chat.completion`; `images` are PNGs in base64."""
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if images:
            message["images"] = [image_item(encoded, index) for index, encoded in enumerate(images)]
        choice = {"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}
        return self.head | {"object": "chat.completion", "choices": [choice], "usage": usage_of(finished)}

    def chunk(self, delta: dict, finish_reason: str | None = None) -> dict:
        """A `chat.completion.chunk`."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self.head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, finished: Finished) -> dict:
        """The chunk after the last one, for clients that ask for it."""
        return self.head | {"object": "chat.completion.chunk", "choices": [], "usage": usage_of(finished)}


def error_object(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def named_argument(message: str) -> str | None:
    """The argument that a message of this package names first, in backticks."""
    found = re.match(r"`([\w.\[\]]+)`", message)
    return found[1] if found else None


__all__ = [
    "ChatAnswer",
    "ChatBody",
    "EditBody",
    "GenerationBody",
    "Message",
    "error_object",
    "image_item",
    "named_argument",
    "png_base64",
    "usage_of",
]
