# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What an engine is asked, what it answers, and how it refuses. Everything here can be sent to another process.

One request has one answer: `n` pictures of one prompt are n requests with seeds of their own.
"""

from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Request:
    """What all requests have.

    Args:
        model: name of the model, or of one of its adapters.
        seed: of all randomness of the answer, from 0 to 2^63 - 1.
        height, width: size in pixels of generated pictures. When not given, that of the source of an edit, of the last
            picture of a conversation, or the pipeline's `default_size`.
        num_inference_steps, guidance_scale: as in [`UniWeTokPipeline`]; its defaults when not given.
    """

    model: str
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Request):
    """Text-to-image; `negative_prompt` as in [`UniWeTokPipeline`]."""

    prompt: str
    negative_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class EditRequest(Request):
    """A picture to change as `prompt` says; the other arguments are those of [`UniWeTokEditPipeline`]."""

    image: Image.Image = field(repr=False)
    prompt: str
    image_guidance_scale: float | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Request):
    """The next turn of a conversation.

    Args:
        messages: the turns, `{"role", "content"}` with a list of `{"type": "text", "text"}` and `{"type": "image"}`.
        images: one for each `{"type": "image"}`, in order.
        max_new_tokens: longest text of the answer, in tokens.
        temperature: of the text; 0 takes the most likely token each time.
        top_p: tokens are drawn from the fewest that have this probability together.
        modalities: what the answer may hold: "text", "image", or both, and then the model decides.
    """

    messages: tuple[dict, ...]
    images: tuple[Image.Image, ...] = field(default=(), repr=False)
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    modalities: tuple[str, ...] = ("text", "image")


@dataclass(frozen=True)
class TextPart:
    """More text of an answer."""

    text: str


@dataclass(frozen=True)
class PicturePart:
    """A finished picture, and the description that the model wrote before it, if it did."""

    image: Image.Image
    description: str | None = None


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why ("stop" or "length"), and how many tokens were read and generated, those of pictures
    included."""

    reason: str
    num_prompt_tokens: int
    num_new_tokens: int


Part = TextPart | PicturePart | Finished


class UnknownModelError(ValueError):
    """A request names a model that is not served."""


class QueueFullError(RuntimeError):
    """Too many requests wait."""


class EngineStoppedError(RuntimeError):
    """The engine takes no more requests."""


class EngineFailedError(RuntimeError):
    """The machine that worked on a request is gone, or could not finish it."""


__all__ = [
    "ChatRequest",
    "EditRequest",
    "EngineFailedError",
    "EngineStoppedError",
    "Finished",
    "GenerationRequest",
    "Part",
    "PicturePart",
    "QueueFullError",
    "Request",
    "TextPart",
    "UnknownModelError",
]
