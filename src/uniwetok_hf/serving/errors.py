# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Errors as clients read them: a status, and OpenAI's error object."""

from .formats import error_object, named_argument
from .requests import EngineFailedError, EngineStoppedError, QueueFullError, UnknownModelError


CLIENT_LEFT = 499  # nginx's number for an answer that nobody waits for
RETRY_SECONDS = 1  # after which a refused request may come again


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


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


def error_of(error: Exception) -> tuple[int, dict]:
    """Status and error object of one of `ERRORS`."""
    status, kind, code = next(ERRORS[type_] for type_ in ERRORS if isinstance(error, type_))
    message = str(error) or "The answer took longer than this server allows."
    return status, error_object(message, kind, code, named_argument(message) if status in (400, 404) else None)


__all__ = ["CLIENT_LEFT", "ERRORS", "RETRY_SECONDS", "ClientLeftError", "error_of"]
