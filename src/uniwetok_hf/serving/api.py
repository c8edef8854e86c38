# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The addresses of OpenAI's API, and `/health` and `/metrics`. Needs FastAPI (extra `serve`)."""

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..version import __version__
from .door import Door
from .engine import ServingEngine
from .errors import ERRORS, RETRY_SECONDS, error_of
from .formats import ChatBody, GenerationBody, error_object
from .metrics import ServerMetrics
from .service import ServerSettings, Service, read_edit


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
    app.add_middleware(Door, settings=settings, metrics=metrics)
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
            body, content = await read_edit(form)
        return await service.while_connected(request, service.edit(body, content))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> dict | StreamingResponse:
        if not body.stream:
            return await service.while_connected(request, service.chat(body))
        prepared = await service.while_connected(request, service.prepare_chat(body))
        first = await service.while_connected(request, service.begin(prepared))
        return StreamingResponse(service.chat_events(body, prepared, first), media_type="text/event-stream")

    return app


def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, content = error_of(error)
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
