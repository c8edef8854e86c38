# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The addresses of OpenAI's API, and `/health` and `/metrics`. Needs FastAPI (extra `serve`)."""

import re
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..version import __version__
from .door import Door
from .engine import ServingEngine
from .errors import ERRORS, RETRY_SECONDS, ClientLeftError, error_of
from .formats import LONGEST_TEXT, ChatBody, GenerationBody, error_object
from .metrics import ServerMetrics
from .service import ServerSettings, Service, read_edit


LONGEST_FIELD = 4 * LONGEST_TEXT  # bytes of a form's field that is no file


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
        openapi_url=None,  # its pages would load scripts from elsewhere
        exception_handlers={
            RequestValidationError: _answer_invalid,
            HTTPException: _answer_http,
            **dict.fromkeys(ERRORS, _answer_error),
            ClientDisconnect: _answer_left,
            Exception: _answer_unexpected,
        },
    )
    app.add_middleware(Door, settings=settings, metrics=metrics)
    service = Service(engine, settings, metrics)

    @app.get("/health")
    async def health() -> JSONResponse:
        status = "ok" if engine.is_ready else "not ready"
        content = {"status": status, "waiting": engine.num_waiting, "running": engine.num_running}
        return JSONResponse(content, 200 if engine.is_ready else 503)

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
        check_charset(request.headers.get("content-type", ""))
        async with request.form(max_files=4, max_fields=40, max_part_size=LONGEST_FIELD) as form:
            body, content = await read_edit(form)
        image = await service.while_connected(request, service.read_picture(content, "image"))
        del content, form  # only the picture waits
        return await service.while_connected(request, service.edit(body, image))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> dict | StreamingResponse:
        if not body.stream:
            return await service.while_connected(request, service.chat(body))
        prepared = await service.while_connected(request, service.prepare_chat(body))
        first = await service.while_connected(request, service.begin(prepared))
        events = service.chat_events(body, prepared, first, request.state.deadline)
        return StreamingResponse(events, media_type="text/event-stream")

    return app


def check_charset(content_type: str) -> None:
    """
    Raises:
        ValueError: when a form is in another charset than UTF-8. It would be decoded by any that Python knows, and
            some of them take minutes.
    """
    _, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        raise ValueError(f"`charset` of a form must be utf-8, got {charset!r:.100}.")


def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, content = error_of(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(content, status, headers=headers)


def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw; uvicorn logs it."""
    return JSONResponse(error_object("Something went wrong on the server.", "server_error", "failed"), 500)


def _answer_left(request: Request, error: ClientDisconnect) -> JSONResponse:
    """In the middle of an upload."""
    return _answer_error(request, ClientLeftError())


def _answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """The field that is wrong, and what it must be: of several choices the one that came farthest."""
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    field = _field_of(worst["loc"])
    message = f"`{field}`: {worst['msg'].removeprefix('Value error, ')}."
    if worst["type"] == "extra_forbidden":  # whatever the user called it
        *place, name = worst["loc"]
        if len(place) > 1 and isinstance(place[-2], int):  # the kind of an item
            place.pop()
        name = str(name).encode("ascii", "backslashreplace").decode()
        field = ".".join(filter(None, [_field_of(tuple(place)).removeprefix("body"), name]))
        message = f"`{field}` is no field of this request."
    if worst["type"] == "json_invalid":
        field, message = "body", f"The body is no JSON: {worst['ctx']['error']} at position {worst['loc'][-1]}."
    return JSONResponse(error_object(message, "invalid_request_error", worst["type"], field), 400)


def _field_of(place: tuple) -> str:
    """The place of an error as a user would write it: without the kinds that pydantic tried a value as, which it names
    like "constrained-str" and "list[...]", and an item's kind before the field of that name."""
    parts = [str(part) for part in place if part != "body" and not re.search(r"[\[-]", str(part))]
    field = ".".join(part for part, before in zip(parts, ["", *parts], strict=False) if part != before)
    return field.encode("ascii", "backslashreplace").decode() or "body"  # a name may be half a surrogate pair


def _answer_http(request: Request, error: HTTPException) -> JSONResponse:
    """What FastAPI refuses: unknown addresses, methods that they don't have, bodies that it can't read."""
    code = {408: "timeout", 413: "request_too_large", 429: "queue_full"}.get(error.status_code)
    kind = "rate_limit_error" if error.status_code == 429 else "invalid_request_error"
    content = error_object(str(error.detail), kind, code)
    return JSONResponse(content, error.status_code, error.headers)


__all__ = ["ServerSettings", "create_app"]
