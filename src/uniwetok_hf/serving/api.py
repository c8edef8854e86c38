# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The addresses of OpenAI's API, and `/health` and `/metrics`. Needs FastAPI (extra `serve`)."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..version import __version__
from .door import CLIENT_LEFT, Door
from .engine import ServingEngine
from .formats import (
    LARGEST_SEED,
    ChatAnswer,
    ChatBody,
    EditBody,
    GenerationBody,
    error_object,
    image_item,
    named_argument,
    png_base64,
    usage_of,
)
from .metrics import ServerMetrics
from .pictures import read_address, read_upload
from .requests import (
    ChatRequest,
    EditRequest,
    EngineFailedError,
    EngineStoppedError,
    Finished,
    GenerationRequest,
    Part,
    PicturePart,
    QueueFullError,
    TextPart,
)
from .requests import Request as EngineRequest


MOST_PICTURES = 16  # in one conversation
RETRY_SECONDS = 1
T = TypeVar("T")


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Args:
        api_keys: of which a request must bring one; none are asked for when empty.
        allowed_hosts: "host" or "host:port" of addresses of pictures that are fetched.
        timeout: seconds from a request to its answer, waiting included.
        max_body_bytes: size of the largest request.
        default_max_tokens: longest text of an answer, in tokens, where a request names none.
    """

    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    timeout: float = 120.0
    max_body_bytes: int = 20_000_000
    default_max_tokens: int = 64


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class UnknownModelError(ValueError):
    """A request names a model that is not served."""


def create_app(
    engine: ServingEngine, settings: ServerSettings = ServerSettings(), metrics: ServerMetrics | None = None
) -> FastAPI:
    """The server as an ASGI app, which closes the engine when it ends.

    Args:
        engine: what answers.
        settings: limits.
        metrics: where answers are counted; `metrics.observe_batch` is what an engine calls `on_batch`.
    """
    metrics = metrics or ServerMetrics()
    metrics.watch(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(
        title="UniWeTok",
        version=__version__,
        lifespan=lifespan,
        exception_handlers={
            RequestValidationError: _answer_invalid,
            HTTPException: _answer_http,
            **dict.fromkeys(ERRORS, _answer_error),
            Exception: _answer_unexpected,
        },
    )
    app.add_middleware(Door, api_keys=settings.api_keys, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    service = Service(engine, settings, metrics)

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": engine.num_waiting, "running": engine.num_running}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict:
        service.check_model(model)
        return next(one for one in service.models() if one["id"] == model)

    @app.post("/v1/images/generations")
    async def generations(body: GenerationBody, request: Request) -> dict:
        return await service.while_connected(request, service.generate(body))

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> dict:
        async with request.form(max_files=4, max_fields=40, max_part_size=settings.max_body_bytes) as form:
            body, content = await _read_edit(form)
        return await service.while_connected(request, service.edit(body, content))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> dict | StreamingResponse:
        if not body.stream:
            return await service.while_connected(request, service.chat(body))
        prepared = await service.while_connected(request, service.prepare_chat(body))
        first = await service.while_connected(request, service.begin(prepared))
        return StreamingResponse(service.chat_events(body, prepared, first), media_type="text/event-stream")

    return app


class Service:
    """From bodies of requests to bodies of answers."""

    def __init__(self, engine: ServingEngine, settings: ServerSettings, metrics: ServerMetrics):
        self.engine, self.settings, self.metrics = engine, settings, metrics

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
            for name in (info.model, *info.adapters)
        ]

    def check_model(self, name: str | None) -> str:
        """`name`, or that of the model when None.

        Raises:
            UnknownModelError: when it is not served.
        """
        info = self.engine.info
        if name is not None and name not in (info.model, *info.adapters):
            known = ", ".join((info.model, *info.adapters))
            raise UnknownModelError(f"`model` must be one of {known}, got {name!r:.100}.")
        return name or info.model

    async def while_connected(self, request: Request, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the client leaves or the time is over.

        Raises:
            TimeoutError: after `settings.timeout`.
            ClientLeftError: when the client left.
        """

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch())]
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        if tasks[0] in done:
            return tasks[0].result()
        raise ClientLeftError if done else TimeoutError

    async def generate(self, body: GenerationBody) -> dict:
        """The answer of `/v1/images/generations`."""
        settings = body.settings() | {"prompt": body.prompt, "negative_prompt": body.negative_prompt}
        return await self._pictures(body, GenerationRequest, settings)

    async def edit(self, body: EditBody, content: bytes) -> dict:
        """The answer of `/v1/images/edits`."""
        settings = body.settings() | {
            "image": await run_in_threadpool(read_upload, content, "image"),
            "prompt": body.prompt,
            "negative_prompt": body.negative_prompt,
            "image_guidance_scale": body.image_guidance_scale,
        }
        return await self._pictures(body, EditRequest, settings)

    async def _pictures(self, body: GenerationBody | EditBody, kind: type[EngineRequest], settings: dict) -> dict:
        """`n` pictures, with seeds that follow each other."""
        model, first = self.check_model(body.model), _seed(body.seed)
        seeds = range(first, first + body.n)
        answers = await _all(self._collect(kind(model=model, seed=seed, **settings)) for seed in seeds)
        pictures: list[PicturePart] = [parts[0] for parts in answers]
        encoded = await run_in_threadpool(lambda: [png_base64(picture.image) for picture in pictures])
        data = [
            {"b64_json": png, "revised_prompt": picture.description, "seed": seed}
            for png, picture, seed in zip(encoded, pictures, seeds, strict=True)
        ]
        return {
            "created": ChatAnswer(model, first).head["created"],
            "data": data,
            "output_format": "png",
            "size": f"{pictures[0].image.width}x{pictures[0].image.height}",
            "usage": _image_usage([parts[-1] for parts in answers]),
        }

    async def prepare_chat(self, body: ChatBody) -> ChatRequest:
        """The engine's request, with its pictures read."""
        model, messages, images = self.check_model(body.model), [], []
        for number, message in enumerate(body.messages):
            content = []
            for item in message.items():
                if item.type == "text":
                    content.append({"type": "text", "text": item.text})
                    continue
                if len(images) == MOST_PICTURES:
                    raise ValueError(f"`messages` hold more than {MOST_PICTURES} pictures.")
                argument = f"messages[{number}]"
                limits = self.settings.allowed_hosts, self.settings.max_body_bytes
                file = await read_address(item.image_url.url, argument, *limits)
                images.append(await run_in_threadpool(read_upload, file, argument))
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
        encoded = await run_in_threadpool(lambda: [png_base64(image) for image in images])
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
        self, body: ChatBody, request: ChatRequest, begun: tuple[Part, AsyncIterator[Part]]
    ) -> AsyncIterator[str]:
        """The answer as server-sent events; an error is the last one."""
        answer, (part, parts) = ChatAnswer(request.model, request.seed), begun
        num_images = 0
        try:
            async with asyncio.timeout(self.settings.timeout), aclosing(parts):
                yield _event(answer.chunk({"role": "assistant", "content": ""}))
                while not isinstance(part, Finished):
                    if isinstance(part, TextPart):
                        yield _event(answer.chunk({"content": part.text}))
                    else:
                        item = image_item(await run_in_threadpool(png_base64, part.image), num_images)
                        num_images += 1
                        yield _event(answer.chunk({"images": [item]}))
                    part = await anext(parts)
            self.metrics.observe_tokens(part.num_prompt_tokens, part.num_new_tokens)
            yield _event(answer.chunk({}, part.reason))
            if body.stream_options is not None and body.stream_options.include_usage:
                yield _event(answer.usage_chunk(part))
        except tuple(ERRORS) as error:
            yield _event(_error_of(error)[1])
        yield "data: [DONE]\n\n"

    async def _collect(self, request: EngineRequest) -> list[Any]:
        """All parts of an answer."""
        async with aclosing(self.engine.stream(request)) as stream:
            parts = [part async for part in stream]
        self.metrics.observe_tokens(parts[-1].num_prompt_tokens, parts[-1].num_new_tokens)
        return parts


async def _read_edit(form) -> tuple[EditBody, bytes]:
    """The fields of an edit, and the content of its picture."""
    files = [*form.getlist("image"), *form.getlist("image[]")]
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise ValueError(f"`image` must be one uploaded picture, got {len(files)}.")
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


# Status, type and code of each error; a subclass goes before its base.
ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    UnknownModelError: (404, "invalid_request_error", "model_not_found"),
    ValueError: (400, "invalid_request_error", "invalid_value"),
    QueueFullError: (429, "rate_limit_error", "queue_full"),
    EngineStoppedError: (503, "server_error", "stopping"),
    EngineFailedError: (500, "server_error", "failed"),
    TimeoutError: (504, "server_error", "timeout"),
    ClientLeftError: (CLIENT_LEFT, "server_error", "client_left"),
}


def _error_of(error: Exception) -> tuple[int, dict]:
    """Status and error object of one of `ERRORS`."""
    status, kind, code = next(ERRORS[type_] for type_ in ERRORS if isinstance(error, type_))
    message = str(error) or "The answer took longer than this server allows."
    return status, error_object(message, kind, code, named_argument(message) if status in (400, 404) else None)


def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, content = _error_of(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(content, status, headers=headers)


def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw; uvicorn logs it."""
    return JSONResponse(error_object("Something went wrong on the server.", "server_error", "failed"), 500)


def _answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """The first field that is wrong, and what it must be."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    message = f"`{field}`: {first['msg'].removeprefix('Value error, ')}."
    if first["type"] == "extra_forbidden":
        message = f"`{field}` is no field of this request."
    return JSONResponse(error_object(message, "invalid_request_error", first["type"], field), 400)


def _answer_http(request: Request, error: HTTPException) -> JSONResponse:
    """What FastAPI refuses: unknown addresses, methods that they don't have, bodies that it can't read."""
    code = "request_too_large" if error.status_code == 413 else None
    content = error_object(str(error.detail), "invalid_request_error", code)
    return JSONResponse(content, error.status_code, error.headers)


__all__ = ["ServerSettings", "create_app"]
