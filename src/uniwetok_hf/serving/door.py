# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What every request passes: its size, API keys, and the count of answers. Plain ASGI, so that streams pass through as
they come."""

import hmac
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .formats import error_object
from .metrics import ServerMetrics


CLIENT_LEFT = 499  # nginx's number for an answer that nobody waits for


class Door:
    """An ASGI app around another.

    Args:
        app: the app inside.
        api_keys: keys of which a request under `/v1` must bring one (`Authorization: Bearer KEY`); none are asked for
            when empty.
        max_body_bytes: size of the largest request.
        metrics: where answers are counted.
    """

    def __init__(self, app, api_keys: Collection[str], max_body_bytes: int, metrics: ServerMetrics):
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics
        self.api_keys = [key.encode() for key in api_keys]
        self._too_large = f"This request is too large: at most {max_body_bytes} bytes are read."

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
            if num_bytes > self.max_body_bytes:  # it announced less, or nothing
                raise HTTPException(413, self._too_large)
            return message

        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            await (refusal or self.app)(scope, counted_receive, counted_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path: anyone can make those up
            self.metrics.observe_request(route, status, time.monotonic() - start)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """What a request is answered that may not pass."""
        if path.startswith("/v1") and not self._has_key(headers):
            message = "A key is missing or wrong: send `Authorization: Bearer KEY`."
            content = error_object(message, "authentication_error", "invalid_api_key")
            return JSONResponse(content, 401, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            content = error_object(self._too_large, "invalid_request_error", "request_too_large")
            return JSONResponse(content, 413, headers={"Connection": "close"})
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not self.api_keys:
            return True
        # All are compared, in constant time.
        found = [hmac.compare_digest(given.strip().encode(), key) for key in self.api_keys]
        return scheme.lower() == "bearer" and any(found)


__all__ = ["Door"]
