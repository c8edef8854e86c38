# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The clients of `serving.py`: each asks again as soon as it has its answer. All are in the script's own process and
one thread; what they take of the processor, the server lacks."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx2
from serving_asks import Answer, Ask, read_answer


SECONDS_TO_AN_ANSWER = 180  # longer than the server's own limit
SECONDS_TO_A_RETRY = 1.0  # after a refusal
OUTCOMES = ("answered", "refused", "error", "lost", "left")


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Args:
        ask: what was asked.
        start, end: in seconds of `time.monotonic`.
        kind: one of `OUTCOMES`: "refused" is the status 429, "error" another with OpenAI's error object, "lost"
            anything that is no whole answer, "left" that the client went away.
        answer: where it was answered.
        words: what went wrong.
    """

    ask: Ask
    start: float
    end: float
    kind: str
    answer: Answer | None = None
    words: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


async def attempt(http: httpx2.AsyncClient, ask: Ask, patience: float) -> Outcome:
    """Asks once, and leaves after `patience` seconds."""
    start = time.monotonic()

    def ended(kind: str, answer: Answer | None = None, words: str = "") -> Outcome:
        return Outcome(ask, start, time.monotonic(), kind, answer, words)

    try:
        async with asyncio.timeout(patience):
            response = await http.post(**ask.arguments())
    except TimeoutError:
        return ended("left")
    except httpx2.HTTPError as error:
        return ended("lost", words=f"{type(error).__name__}: {error}")
    try:
        if response.status_code == 200 and (error := _error_in_stream(ask, response.content)) is None:
            return ended("answered", read_answer(ask, response.content))
        error = error if response.status_code == 200 else response.json()["error"]
        words = f"{response.status_code} {error['type']}, {error['code']}: {error['message']}"
        return ended("refused" if response.status_code == 429 else "error", words=words)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return ended("lost", words=f"{response.status_code}, {type(error).__name__}: {error}")


def _error_in_stream(ask: Ask, content: bytes) -> dict | None:
    """The error object that ends a stream of which something was sent already."""
    for event in content.split(b"\n\n") if ask.stream else ():
        if event.startswith(b'data: {"error":'):
            return json.loads(event.removeprefix(b"data: "))["error"]
    return None


async def ask_on(
    http: httpx2.AsyncClient,
    draw: Callable[[], Ask],
    note: Callable[[Outcome], None],
    stop: asyncio.Event,
    leaves: random.Random | None = None,
) -> None:
    """One client, until `stop`.

    Args:
        draw: gives the next request.
        note: is told what became of each.
        leaves: where given, the client leaves in the middle of every third request, on average, at a time drawn from
            it: up to that of its last answer.
    """
    usual = 1.0
    while not stop.is_set():
        ask = draw()
        is_leaving = leaves is not None and leaves.random() < 1 / 3
        patience = leaves.uniform(0, usual) if is_leaving else SECONDS_TO_AN_ANSWER + 60
        outcome = await attempt(http, ask, patience)
        while outcome.kind == "refused":
            note(outcome)
            await asyncio.sleep(SECONDS_TO_A_RETRY)
            outcome = await attempt(http, ask, patience)
        note(outcome)
        if outcome.kind == "answered":
            usual = outcome.seconds
        elif outcome.kind in ("error", "lost"):
            await asyncio.sleep(SECONDS_TO_A_RETRY)  # a server that is gone would be asked without a pause


@contextlib.asynccontextmanager
async def clients(address: str, draws: list[Callable[[], Ask]], note, leaving: dict | None = None) -> AsyncIterator:
    """Clients that ask a server until the end of the block; gives a function that ends each after its request.

    Args:
        address: of the server.
        draws: one per client.
        note: as in [`ask_on`].
        leaving: generators of those that leave, by their numbers.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=len(draws))
    options = {"timeout": SECONDS_TO_AN_ANSWER, "limits": limits, "trust_env": False}
    stop = asyncio.Event()
    async with httpx2.AsyncClient(base_url=address, **options) as http:
        tasks = [
            asyncio.create_task(ask_on(http, draw, note, stop, (leaving or {}).get(number)))
            for number, draw in enumerate(draws)
        ]

        async def finish() -> None:
            stop.set()
            await asyncio.gather(*tasks)

        try:
            yield finish
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
