# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Throughput and latency of `serving.py`, against clients and batch limits."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from serving_asks import draw_ask
from serving_clients import Outcome, clients
from serving_server import Server, running_server


SECONDS_TO_WARM_UP = 2.0  # at least; each client has had an answer then
MOST_SECONDS_TO_WARM_UP = 60.0


@dataclass(frozen=True)
class Row:
    """What was measured at one batch limit and number of clients.

    Args:
        rate: answers per second.
        median, slow: latency in seconds; `slow` is the 99th percentile.
        count: answers of which these are.
        failed: requests without an answer.
        batch: mean number of rows of a batch of the kind that takes longest: pictures, or texts of answers.
        server_cpu, client_cpu: processor seconds per second, of the server's and of this process.
    """

    max_batch_size: int
    clients: int
    rate: float
    median: float | None
    slow: float | None
    count: int
    failed: int
    batch: float | None
    server_cpu: float
    client_cpu: float


def measure_throughput(model: str | None, what: str, batch_sizes, numbers_of_clients, seconds) -> Iterator[Row]:
    """The rows, one server for each batch limit."""
    for max_batch_size in batch_sizes:
        words = [*([model] if model else []), "--max-batch-size", str(max_batch_size)]
        with running_server(*words) as server:
            for number in numbers_of_clients:
                values = asyncio.run(measure(server, what, number, seconds))
                server.wait_until_idle()
                yield Row(max_batch_size, number, **values)


async def measure(server: Server, what: str, number: int, seconds: float) -> dict:
    """Of `number` clients."""
    outcomes: list[Outcome] = []
    seeds = itertools.count()
    kinds = [random.Random(index) for index in range(number)]
    draws = [lambda numbers=numbers: draw_ask(what, numbers, next(seeds)) for numbers in kinds]
    async with clients(server.address, draws, outcomes.append):
        start = time.monotonic()
        await _warm_up(outcomes, number, start)
        before, own, start = await asyncio.to_thread(server.numbers), time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        end, own = time.monotonic(), time.process_time() - own
        after = await asyncio.to_thread(server.numbers)
    kind = "text" if what == "answer" else "picture"
    batches, rows, cpu = (
        after.get(name, 0) - before.get(name, 0)
        for name in (
            ("uniwetok_batch_size_count", kind),
            ("uniwetok_batch_size_sum", kind),
            ("process_cpu_seconds_total",),
        )
    )
    used = {"server_cpu": cpu / (end - start), "client_cpu": own / (end - start)}
    return summary(outcomes, start, end) | used | {"batch": rows / batches if batches else None}


async def _warm_up(outcomes: list[Outcome], number: int, start: float) -> None:
    """Waits until as many answers have come as there are clients, and some time more."""
    while (passed := time.monotonic() - start) < MOST_SECONDS_TO_WARM_UP:
        if passed >= SECONDS_TO_WARM_UP and len(outcomes) >= number:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # the rest of the batch whose first answers ended the wait


def summary(outcomes: list[Outcome], start: float, end: float) -> dict:
    """Rate and latency of the answers between two times. Answers of one batch come together, so the rate counts from
    the last answer before `start` to the last before `end`."""
    ends = np.array([one.end for one in outcomes if one.kind == "answered"])
    before, within = ends[ends <= start], ends[(ends > start) & (ends <= end)]
    first = before.max() if len(before) else start
    rate = len(within) / (within.max() - first) if len(within) else 0.0
    taken = [one.seconds for one in outcomes if one.kind == "answered" and start < one.end <= end]
    median, slow = np.percentile(taken, [50, 99]).tolist() if taken else (None, None)
    failed = sum(one.kind != "answered" for one in outcomes)
    return {"rate": float(rate), "median": median, "slow": slow, "count": len(taken), "failed": failed}


def print_throughput(rows: Iterator[Row], what: str) -> list[dict]:
    """Prints the table as it is measured; returns its rows, with the factor of each."""
    unit = "answers" if what == "answer" else "pictures"
    print(f"| batch limit | clients | {unit}/s | factor | median, s | 99 %, s | mean batch | answers | failed |")
    print("|" + 9 * " ---: |", flush=True)
    measured, alone = [], None
    for row in rows:
        if (row.max_batch_size, row.clients) == (1, 1):
            alone = row.rate
        factor = row.rate / alone if alone else None
        cells = f"{row.rate:.2f} | {_told(factor, '.1f')} | {_told(row.median, '.2f')} | {_told(row.slow, '.2f')}"
        cells += f" | {_told(row.batch, '.1f')}"
        print(f"| {row.max_batch_size} | {row.clients} | {cells} | {row.count} | {row.failed} |", flush=True)
        measured.append(asdict(row) | {"factor": factor})
    largest = max(measured, key=lambda row: row["client_cpu"])
    print(f"\nThe clients took up to {largest['client_cpu']:.2f} of a core ({largest['clients']} of them).")
    return measured


def _told(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
