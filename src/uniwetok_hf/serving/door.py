# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What every request passes: limits, API keys, and the count of answers. Plain ASGI, so that streams pass through as
they come."""

import asyncio
import hmac
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .errors import CLIENT_LEFT, RETRY_SECONDS
from .formats import error_object
from .metrics import ServerMetrics
from .service import ServerSettings


SECONDS_TO_READ = 10  # after the time of a request is over, for a client that still reads its answer


class Door:
    """An ASGI app around another, which finds the end of a request's time, on the loop's clock, as
    `request.state.deadline`.

    Args:
        app: the app inside.
        settings: limits, and the keys of which a request under `/v1` must bring one (`Authorization: Bearer KEY`).
        metrics: where answers are counted.
    """

    def __init__(self, app, settings: ServerSettings, metrics: ServerMetrics):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.num_inside = self.bytes_inside = 0  # of requests that send something
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        refusal = self._refusal(scope, Headers(scope=scope))
        passage = _Passage(self, receive, send)
        scope.setdefault("state", {})["deadline"] = passage.deadline
        sends = refusal is None and scope["method"] == "POST"
        self.num_inside += sends
        try:
            await (refusal or self.app)(scope, passage.receive, passage.send)
        except Exception:
            if passage.is_slow:  # nobody reads
                return
            passage.status = 500  # the answer is written outside of this door
            raise
        finally:
            self.num_inside -= sends
            self.bytes_inside -= passage.num_bytes
            route = getattr(scope.get("route"), "path", "other")  # not the path: anyone can make those up
            self.metrics.observe_request(route, passage.status, time.monotonic() - start)

    def _refusal(self, scope, headers: Headers) -> JSONResponse | None:
        """What a request is answered that may not pass."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.startswith("/v1") and not self._has_key(headers):
            message = "A key is missing or wrong: send `Authorization: Bearer KEY`."
            content = error_object(message, "authentication_error", "invalid_api_key")
            return JSONResponse(content, 401, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.settings.max_body_bytes:
            return JSONResponse(error_object(self.too_large, "invalid_request_error", "request_too_large"), 413)
        if scope["method"] == "POST" and self.num_inside >= self.settings.max_requests:
            content = error_object(self.too_many, "rate_limit_error", "queue_full")
            return JSONResponse(content, 429, headers={"Retry-After": str(RETRY_SECONDS)})
        return None

    @property
    def too_large(self) -> str:
        return f"This request is too large: at most {self.settings.max_body_bytes} bytes are read."

    @property
    def too_many(self) -> str:
        return f"{self.num_inside} requests are worked on already; try again later."

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not self._keys:
            return True
        # All are compared, in constant time. Headers were decoded as latin-1, whatever they are.
        found = [hmac.compare_digest(given.strip(" \t").encode("latin-1"), key) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)


class _Passage:
    """One request and its answer, as they pass the door."""

    def __init__(self, door: Door, receive, send):
        self.door, self._receive, self._send = door, receive, send
        self.deadline = asyncio.get_running_loop().time() + door.settings.timeout
        self.status, self.num_bytes, self.is_read, self.is_slow = CLIENT_LEFT, 0, False, False

    async def receive(self):
        if self.is_read:  # what comes is that the client left
            return await self._receive()
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The request did not arrive in time.") from None
        length = len(message.get("body", b""))
        self.num_bytes += length
        self.door.bytes_inside += length
        self.is_read = not message.get("more_body", False)
        if self.num_bytes > self.door.settings.max_body_bytes:  # it announced less, or nothing
            raise HTTPException(413, self.door.too_large)
        if self.door.bytes_inside > self.door.settings.max_bytes_inside:
            raise HTTPException(429, self.door.too_many, {"Retry-After": str(RETRY_SECONDS)})
        return message

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            async with asyncio.timeout_at(self.deadline + SECONDS_TO_READ):
                await self._send(message)
        except TimeoutError:
            self.is_slow = True
            raise OSError("The client does not read its answer.") from None


__all__ = ["Door"]
