# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A client of `uniwetok serve` for the web page: requests that can be given up, and errors as sentences for visitors.

By httpx2, which comes with huggingface_hub. The `openai` client would be one more dependency, and would have no types
for what is this server's own: steps, seeds, pictures in a stream.
"""

import base64
import contextlib
import logging
import queue
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
from anyio.from_thread import start_blocking_portal
from PIL import Image

from ..data.images import png_bytes, read_image
from ..files import one_line


CONNECT_SECONDS = 10
ANSWER_SECONDS = 600  # servers have limits of their own, which are shorter
PULSE_SECONDS = 0.5  # between two looks at whether somebody still waits
KEY_REFUSED = "The server of the model does not accept this page's key."
UNREACHABLE = "The server of the model can't be reached. Try again later."
BROKEN_OFF = "The server of the model went away before the answer was finished. Try again."
UNREADABLE = "The server of the model gave an answer that this page can't read."
TOOK_TOO_LONG = "The server of the model took too long and gave up. Fewer steps take less."
SENTENCES = {  # by status
    401: KEY_REFUSED,
    403: KEY_REFUSED,
    408: TOOK_TOO_LONG,
    413: "This is more than the server of the model reads at once. Start over, or use smaller pictures.",
    429: "Too many requests wait for the model. Try again in a moment.",
    502: UNREACHABLE,
    503: "The server of the model is stopping, or not ready. Try again later.",
    504: TOOK_TOO_LONG,
}
STATUS_OF_CODE = {"timeout": 504, "stopping": 503, "queue_full": 429}  # of an error in a stream that has begun
FOR_VISITORS = (400, 404, 500)  # the server's own words say more

Put = Callable[[dict], None]
logger = logging.getLogger(__name__)


class ServerClient:
    """
    Args:
        url: `http://HOST:PORT`, with or without the `/v1` of the API.
        api_key: one of the server's keys, where it wants one.

    Raises:
        ValueError: when `url` is none.
    """

    def __init__(self, url: str, api_key: str | None = None):
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"`url` must be http://HOST:PORT, got {url!r:.200}: {error}.") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"`url` must be http://HOST:PORT, got {url!r:.200}.")
        self.api_key = api_key
        self._options = {
            "base_url": url.rstrip("/").removesuffix("/v1") + "/v1/",
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            "verify": httpx2.create_ssl_context(),  # one for all requests
        }

    def models(self) -> dict[str, dict]:
        """Names of the server's models, and the defaults of each; the first is the model, others are its adapters.

        Raises:
            ValueError: when there is no such server, or it does not accept the key.
        """
        try:
            with httpx2.Client(**self._options | {"timeout": CONNECT_SECONDS}) as client:
                response = client.get("models")
        except httpx2.HTTPError as error:
            raise ValueError(f"no answer ({one_line(error) or type(error).__name__})") from None
        if response.status_code == 401:
            raise ValueError(f"the server wants {'another' if self.api_key else 'an'} API key")
        try:
            models = {str(one["id"]): one["defaults"] for one in response.json()["data"]}
            for defaults in models.values():
                int(defaults["default_num_inference_steps"]), float(defaults["default_guidance_scale"])
        except (ValueError, LookupError, TypeError, AttributeError):
            models = {}
        if not models:
            raise ValueError(f"this is no server of `uniwetok serve` (status {response.status_code})")
        return models

    def post(self, path: str, **content: Any) -> Iterator[list[dict]]:
        """The answer of a request, in a list; before it an empty list whenever `PULSE_SECONDS` have passed. Whoever
        closes the iterator closes the request, and the server drops it.

        Args:
            path: below `/v1/`.
            content: `json`, or `data` and `files`, as httpx takes them.

        Raises:
            ValueError: a sentence for the visitor, when there is no answer.
        """

        async def send(put: Put) -> None:
            async with httpx2.AsyncClient(**self._options) as client:
                response = await client.post(path, **content)
                if response.status_code != 200:
                    raise self._refusal(response)
                put(_read_json(response.json))

        return self._parts(send)

    def chat(self, **body: Any) -> Iterator[list[dict]]:
        """The `delta`s of an answer of `/v1/chat/completions`, in lists as they come; the rest is as in [`post`]."""

        async def send(put: Put) -> None:
            async with (
                httpx2.AsyncClient(**self._options) as client,
                client.stream("POST", "chat/completions", json=body | {"stream": True}) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                # A picture is one event of any size.
                async for event in httpx2.EventSource(response, max_event_size=None):
                    if event.data == "[DONE]":
                        return
                    chunk = _read_json(event.json)
                    if isinstance(chunk.get("error"), dict):
                        raise self._error(STATUS_OF_CODE.get(chunk["error"].get("code"), 500), chunk)
                    if not isinstance(chunk.get("choices"), list):
                        raise ValueError(UNREADABLE)
                    for choice in chunk["choices"]:
                        put(choice["delta"])
            raise ValueError(BROKEN_OFF)

        return self._parts(send)

    def _parts(self, send: Callable[[Put], Awaitable[None]]) -> Iterator[list[dict]]:
        """What `send(put)` puts, in lists as it comes, and an empty list whenever `PULSE_SECONDS` have passed. It runs
        in a thread with an event loop, where it is cancelled when this iterator is closed: a request that waits for
        its answer can't be closed otherwise."""
        parts: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        with self._errors_as_sentences(), start_blocking_portal() as portal:
            sending = portal.start_task_soon(send, parts.put)
            sending.add_done_callback(lambda _: parts.put(None))
            is_over = False
            while not is_over:
                came = _take(parts)
                is_over = None in came
                if came != [None]:
                    yield [part for part in came if part is not None]
            sending.result()

    @contextlib.contextmanager
    def _errors_as_sentences(self) -> Iterator[None]:
        """What goes wrong on the way, as `ValueError`s; the log tells what it was."""
        try:
            yield
        except httpx2.HTTPError as error:
            logger.warning("%s: %s: %s", self._options["base_url"], type(error).__name__, one_line(error))
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise ValueError(UNREACHABLE) from None
            raise ValueError(TOOK_TOO_LONG if isinstance(error, httpx2.TimeoutException) else BROKEN_OFF) from None

    def _refusal(self, response: httpx2.Response) -> ValueError:
        """The error of an answer that is none."""
        try:
            content = response.json()
        except ValueError:
            content = {}
        return self._error(response.status_code, content)

    def _error(self, status: int, content: dict) -> ValueError:
        """A sentence for the visitor. What is not the visitor's to mend is logged."""
        try:
            message = str(content["error"]["message"])
        except (LookupError, TypeError):  # of something between this page and the server
            message = ""
        if status != 400:
            logger.warning("%s: status %d. %s", self._options["base_url"], status, message)
        if status in FOR_VISITORS and message:
            return ValueError(message)
        return ValueError(SENTENCES.get(status, f"The server of the model answers with the status {status}."))


def _take(parts: queue.SimpleQueue) -> list:
    """What has come meanwhile, at least one part unless `PULSE_SECONDS` pass without."""
    try:
        came = [parts.get(timeout=PULSE_SECONDS)]
    except queue.Empty:
        return []
    while not parts.empty():
        came.append(parts.get())
    return came


def _read_json(read: Callable[[], Any]) -> dict:
    """
    Raises:
        ValueError: a sentence for the visitor, when it is no object.
    """
    try:
        content = read()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(UNREADABLE)
    return content


def image_item(image: Image.Image) -> dict:
    """A picture in a message."""
    encoded = base64.b64encode(png_bytes(image)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def read_png(encoded: str) -> Image.Image:
    """The picture of base64, with or without `data:image/png;base64,` before it.

    Raises:
        ValueError: a sentence for the visitor, when there is none.
    """
    try:
        return read_image(base64.b64decode(encoded.rpartition(",")[2]))
    except ValueError:
        raise ValueError(UNREADABLE) from None


__all__ = ["ServerClient", "image_item", "read_png"]
