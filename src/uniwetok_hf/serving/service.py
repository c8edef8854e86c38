# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""From bodies of requests to bodies of answers."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from .engine import ServingEngine
from .errors import ERRORS, ClientLeftError, error_of
from .formats import (
    LARGEST_SEED,
    LONGEST_TEXT,
    ChatAnswer,
    ChatBody,
    EditBody,
    GenerationBody,
    image_item,
    png_base64,
    usage_of,
)
from .metrics import ServerMetrics
from .pictures import read_address, read_upload
from .requests import ChatRequest, EditRequest, Finished, GenerationRequest, Part, PicturePart, TextPart
from .requests import Request as EngineRequest


MOST_PICTURES = 16  # in one conversation
MOST_READERS = 2  # pictures that are opened at once: each may take a gigabyte for a moment
T = TypeVar("T")


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Args:
        api_keys: of which a request must bring one; none are asked for when empty.
        allowed_hosts: "host" or "host:port" of addresses of pictures that are fetched.
        timeout: seconds from the beginning of a request to the end of its answer, waiting included.
        max_body_bytes: size of the largest request.
        max_bytes_inside: of all requests that are inside at once; more are refused.
        max_requests: that are inside at once, those whose bodies are read included; more are refused.
        default_max_tokens: longest text of an answer, in tokens, where a request names none.
    """

    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    timeout: float = 120.0
    max_body_bytes: int = 20_000_000
    max_bytes_inside: int = 200_000_000
    max_requests: int = 200
    default_max_tokens: int = 64


class Service:
    """From bodies of requests to bodies of answers."""

    def __init__(self, engine: ServingEngine, settings: ServerSettings, metrics: ServerMetrics):
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self._readers = CapacityLimiter(MOST_READERS)

    def models(self) -> list[dict]:
        """The model and its adapters; `defaults` are the pipeline's settings."""
        info = self.engine.info
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "uniwetok",
                "parent": None if name == info.model else info.model,
                "defaults": dict(info.defaults),
            }
            for name in info.names
        ]

    def check_model(self, name: str | None) -> str:
        """`name`, or that of the model when None.

        Raises:
            UnknownModelError: when it is not served.
        """
        info = self.engine.info
        if name is None:
            return info.model
        info.check_name(name)
        return name

    async def while_connected(self, request: Request, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the client leaves or the time is over.

        Raises:
            TimeoutError: when the request's time is over.
            ClientLeftError: when the client left.
        """

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch())]
        left = request.state.deadline - asyncio.get_running_loop().time()
        try:
            done, _ = await asyncio.wait(tasks, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        if tasks[0] in done:
            return tasks[0].result()
        raise ClientLeftError if done else TimeoutError

    async def read_picture(self, content: bytes, argument: str) -> Image.Image:
        """[`read_upload`], of a few at a time."""
        return await to_thread.run_sync(read_upload, content, argument, limiter=self._readers)

    async def generate(self, body: GenerationBody) -> dict:
        """The answer of `/v1/images/generations`."""
        settings = body.settings() | {"prompt": body.prompt, "negative_prompt": body.negative_prompt}
        return await self._pictures(body, GenerationRequest, settings)

    async def edit(self, body: EditBody, image: Image.Image) -> dict:
        """The answer of `/v1/images/edits`."""
        settings = body.settings() | {
            "image": image,
            "prompt": body.prompt,
            "negative_prompt": body.negative_prompt,
            "image_guidance_scale": body.image_guidance_scale,
        }
        return await self._pictures(body, EditRequest, settings)

    async def _pictures(self, body: GenerationBody | EditBody, kind: type[EngineRequest], settings: dict) -> dict:
        """`n` pictures, with seeds that follow each other."""
        model, first = self.check_model(body.model), _seed(body.seed)
        most = max(1, self.engine.most_at_once)
        if (body.n or 1) > most:  # it would be refused whenever it is asked
            raise ValueError(f"`n` must be at most {most}, as many as may wait here, got {body.n}.")
        seeds = range(first, first + (body.n or 1))
        answers = await _all(self._collect(kind(model=model, seed=seed, **settings)) for seed in seeds)
        pictures: list[PicturePart] = [parts[0] for parts in answers]
        encoded = await to_thread.run_sync(lambda: [png_base64(picture.image) for picture in pictures])
        data = [
            {"b64_json": png, "revised_prompt": picture.description, "seed": seed}
            for png, picture, seed in zip(encoded, pictures, seeds, strict=True)
        ]
        return {
            "created": int(time.time()),
            "data": data,
            "output_format": "png",
            "size": f"{pictures[0].image.width}x{pictures[0].image.height}",
            "usage": _image_usage([parts[-1] for parts in answers]),
        }

    async def prepare_chat(self, body: ChatBody) -> ChatRequest:
        """The engine's request, with its pictures read."""
        model, messages, images = self.check_model(body.model), [], []
        texts = (item.text for message in body.messages for item in message.items() if item.type == "text")
        if sum(map(len, texts)) > LONGEST_TEXT:  # before others wait for their tokens
            raise ValueError(f"`messages` hold more than {LONGEST_TEXT} characters.")
        limits = self.settings.allowed_hosts, self.settings.max_body_bytes
        for number, message in enumerate(body.messages):
            content = []
            for item in message.items():
                if item.type == "text":
                    content.append({"type": "text", "text": item.text})
                    continue
                if len(images) == MOST_PICTURES:
                    raise ValueError(f"`messages` hold more than {MOST_PICTURES} pictures.")
                argument = f"messages[{number}]"
                file = await read_address(item.image_url.url, argument, *limits)
                images.append(await self.read_picture(file, argument))
                content.append({"type": "image"})
            if not content and message.role == "user":
                raise ValueError(f"`messages[{number}]` is empty.")
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": content})
        if messages[-1]["role"] == "assistant":
            raise ValueError("`messages` must end with what the user says.")
        return ChatRequest(
            model=model,
            seed=_seed(body.seed),
            messages=tuple(messages),
            images=tuple(images),
            max_new_tokens=body.max_completion_tokens or body.max_tokens or self.settings.default_max_tokens,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            modalities=tuple(body.modalities or ("text", "image")),
            **body.settings(),
        )

    async def chat(self, body: ChatBody) -> dict:
        """The answer of `/v1/chat/completions`."""
        request = await self.prepare_chat(body)
        parts = await self._collect(request)
        text = "".join(part.text for part in parts if isinstance(part, TextPart))
        images = [part.image for part in parts if isinstance(part, PicturePart)]
        encoded = await to_thread.run_sync(lambda: [png_base64(image) for image in images])
        return ChatAnswer(request.model, request.seed).whole(text, encoded, parts[-1])

    async def begin(self, request: ChatRequest) -> tuple[Part, AsyncIterator[Part]]:
        """The first part of an answer, before which a refusal has a status of its own, and those that follow."""
        parts = self.engine.stream(request)
        try:
            return await anext(parts), parts
        except BaseException:
            await parts.aclose()
            raise

    async def chat_events(
        self, body: ChatBody, request: ChatRequest, begun: tuple[Part, AsyncIterator[Part]], deadline: float
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, until the `deadline` on the loop's clock; an error is the last one."""
        answer, (part, parts) = ChatAnswer(request.model, request.seed), begun
        num_images = 0
        try:
            async with aclosing(parts):
                yield _event(answer.chunk({"role": "assistant", "content": ""}))
                while not isinstance(part, Finished):
                    if isinstance(part, TextPart):
                        yield _event(answer.chunk({"content": part.text}))
                    else:
                        item = image_item(await to_thread.run_sync(png_base64, part.image), num_images)
                        num_images += 1
                        yield _event(answer.chunk({"images": [item]}))
                    async with asyncio.timeout_at(deadline):
                        part = await anext(parts)
            self.metrics.observe_tokens(part.num_prompt_tokens, part.num_new_tokens)
            yield _event(answer.chunk({}, part.reason))
            if body.stream_options is not None and body.stream_options.include_usage:
                yield _event(answer.usage_chunk(part))
        except tuple(ERRORS) as error:
            yield _event(error_of(error)[1])
        yield "data: [DONE]\n\n"

    async def _collect(self, request: EngineRequest) -> list[Any]:
        """All parts of an answer."""
        async with aclosing(self.engine.stream(request)) as stream:
            parts = [part async for part in stream]
        self.metrics.observe_tokens(parts[-1].num_prompt_tokens, parts[-1].num_new_tokens)
        return parts


async def read_edit(form: FormData) -> tuple[EditBody, bytes]:
    """The fields of an edit, and the content of its picture.

    Raises:
        ValueError: when there is no picture, or there are several.
        RequestValidationError: for a field that is wrong.
    """
    files = [*form.getlist("image"), *form.getlist("image[]")]
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        found = "a text" if len(files) == 1 else len(files)
        raise ValueError(f"`image` must be one uploaded picture, got {found}.")
    names = [name for name in form if name not in ("image", "image[]")]
    try:
        body = EditBody.model_validate({name: form[name] for name in names})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    return body, await files[0].read()


def _seed(given: int | None) -> int:
    return secrets.randbelow(min(2**32, LARGEST_SEED)) if given is None else given


async def _all(awaitables) -> list:
    """The results of all; the first error ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in awaitables]
    except* Exception as errors:
        failure = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise failure


def _image_usage(answers: list[Finished]) -> dict:
    """OpenAI names the tokens of pictures differently from those of a chat."""
    usage = usage_of(*answers)
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


__all__ = ["ServerSettings", "Service", "read_edit"]
