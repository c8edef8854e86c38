# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What every request passes: limits, API keys, and the count of answers. Plain ASGI, so that streams pass through as
they come."""

import hmac
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .errors import CLIENT_LEFT, RETRY_SECONDS
from .formats import error_object
from .metrics import ServerMetrics
from .service import ServerSettings


class Door:
    """An ASGI app around another.

    Args:
        app: the app inside.
        settings: limits, and the keys of which a request under `/v1` must bring one (`Authorization: Bearer KEY`).
        metrics: where answers are counted.
    """

    def __init__(self, app, settings: ServerSettings, metrics: ServerMetrics):
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]
        self._too_large = f"This request is too large: at most {settings.max_body_bytes} bytes are read."
        self._num_inside = 0  # of those that send something

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, num_bytes = time.monotonic(), CLIENT_LEFT, 0

        async def counted_send(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def counted_receive():
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.settings.max_body_bytes:  # it announced less, or nothing
                raise HTTPException(413, self._too_large)
            return message

        sends = scope["method"] == "POST"
        refusal = self._refusal(scope["path"], Headers(scope=scope), sends)
        self._num_inside += sends
        try:
            await (refusal or self.app)(scope, counted_receive, counted_send)
        finally:
            self._num_inside -= sends
            route = getattr(scope.get("route"), "path", "other")  # not the path: anyone can make those up
            self.metrics.observe_request(route, status, time.monotonic() - start)

    def _refusal(self, path: str, headers: Headers, sends: bool) -> JSONResponse | None:
        """What a request is answered that may not pass."""
        if path.startswith("/v1") and not self._has_key(headers):
            message = "A key is missing or wrong: send `Authorization: Bearer KEY`."
            content = error_object(message, "authentication_error", "invalid_api_key")
            return JSONResponse(content, 401, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.settings.max_body_bytes:
            content = error_object(self._too_large, "invalid_request_error", "request_too_large")
            return JSONResponse(content, 413)
        if sends and self._num_inside >= self.settings.max_requests:
            message = f"{self._num_inside} requests are worked on already; try again later."
            headers = {"Retry-After": str(RETRY_SECONDS)}
            return JSONResponse(error_object(message, "rate_limit_error", "queue_full"), 429, headers=headers)
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not self._keys:
            return True
        # All are compared, in constant time.
        found = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)


__all__ = ["Door"]
