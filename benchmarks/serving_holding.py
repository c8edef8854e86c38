# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Many clients of `serving.py` for a long time, and one of Ray's replicas killed under load: every answer is compared
with what the pipelines answer to the same request."""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from serving_asks import SHARES, Answer, Ask, References, draw_mix
from serving_clients import Outcome, clients
from serving_server import Server
from tqdm import tqdm


COLUMNS = ("right", "wrong", "lost", "error", "refused", "left")
SECONDS_BETWEEN_SAMPLES = 5.0
SECONDS_OF_A_RATE = 10.0
LOST_A_REPLICA = "Lost a replica at work"  # what the server prints for each request that it asks another for
MOST_WORDS = 5  # different messages that are shown


@dataclass
class Tally:
    """What became of the requests. An answer is right when it is the one in `expected`."""

    expected: dict[Ask, Answer]
    counts: Counter = field(default_factory=Counter)  # by (kind of request, column)
    ends: list[float] = field(default_factory=list)  # of right and wrong answers
    words: Counter = field(default_factory=Counter)

    def note(self, outcome: Outcome) -> None:
        column, words = outcome.kind, outcome.words
        if outcome.kind == "answered":
            is_right = outcome.answer == self.expected[outcome.ask]
            column = "right" if is_right else "wrong"
            self.ends.append(outcome.end)
            if not is_right:
                words = f"wrong: {outcome.ask}, {outcome.answer}, expected {self.expected[outcome.ask]}"
        self.counts[outcome.ask.kind, column] += 1
        if words and column != "refused":
            self.words[words] += 1

    def total(self, column: str) -> int:
        return sum(self.counts[kind, column] for kind in SHARES)

    def rows(self) -> list[dict]:
        """One for each kind of request, and all of them."""
        rows = [{"kind": kind} | {column: self.counts[kind, column] for column in COLUMNS} for kind in SHARES]
        return [*rows, {"kind": "all"} | {column: self.total(column) for column in COLUMNS}]


def expect(model: str | None, distinct: int, seed: int, threads: int | None) -> dict[Ask, Answer]:
    """Requests of all kinds, and what the pipelines answer to each alone."""
    references = References(model, threads)
    asks = tqdm(draw_mix(distinct, seed), desc="answers of the pipelines", leave=False)
    return {ask: references.answer(ask) for ask in asks}


async def load(
    server: Server, tally: Tally, number: int, seconds: float, seed: int, leaving: bool, each: Callable[[float], None]
) -> None:
    """`number` clients for `seconds`; each finishes its last request. `each` is called every second with the time."""
    asks = {kind: [ask for ask in tally.expected if ask.kind == kind] for kind in SHARES}
    numbers = [random.Random(f"{seed} {index}") for index in range(number)]

    def draw(own: random.Random) -> Ask:
        [kind] = own.choices([*SHARES], [*SHARES.values()])
        return own.choice(asks[kind])

    draws = [lambda own=own: draw(own) for own in numbers]
    who_leaves = {index: numbers[index] for index in range(0, number, 10)} if leaving else {}
    start = time.monotonic()
    with tqdm(total=round(seconds), unit="s", leave=False, bar_format="{l_bar}{bar}| {n}/{total} s{postfix}") as bar:
        async with clients(server.address, draws, tally.note, who_leaves) as finish:
            while (passed := time.monotonic() - start) < seconds:
                await asyncio.to_thread(each, passed)
                bar.update(min(bar.total, round(passed)) - bar.n)
                bar.set_postfix({column: tally.total(column) for column in COLUMNS}, refresh=False)
                await asyncio.sleep(1)
            await finish()


@dataclass
class Memory:
    """Resident memory of the server in MiB, sampled every few seconds."""

    server: Server
    samples: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB

    def sample(self, passed: float) -> None:
        if not self.samples or passed >= self.samples[-1][0] + SECONDS_BETWEEN_SAMPLES:
            resident = psutil.Process(self.server.process.pid).memory_info().rss
            self.samples.append((passed, resident / 2**20))

    def summary(self) -> dict:
        """Means of the first and last minute, and the largest."""
        end = self.samples[-1][0]
        first = [size for passed, size in self.samples if passed <= 60]
        last = [size for passed, size in self.samples if passed >= end - 60]
        largest = max(size for _, size in self.samples)
        return {"first_minute": statistics.mean(first), "last_minute": statistics.mean(last), "largest": largest}


def hold(server: Server, expected: dict[Ask, Answer], number: int, seconds: float, seed: int) -> dict:
    """Clients of which a tenth leaves now and then, in the middle of a request."""
    tally, memory = Tally(expected), Memory(server)
    start = time.monotonic()
    asyncio.run(load(server, tally, number, seconds, seed, leaving=True, each=memory.sample))
    taken, left = time.monotonic() - start, server.wait_until_idle(10)
    return {
        "rows": tally.rows(),
        "seconds": taken,
        "in_server_at_the_end": left,
        "memory": memory.summary(),
        "memory_samples": memory.samples,
        "words": tally.words.most_common(MOST_WORDS),
    }


@dataclass
class Killer:
    """Ends one replica by SIGKILL after some seconds, and watches for one in its place."""

    server: Server
    after: float
    numbers: random.Random
    killed_at: float | None = None  # in seconds of `time.monotonic`
    whole_at: float | None = None
    left: set[int] = field(default_factory=set)  # process ids

    def watch(self, passed: float) -> None:
        if passed >= self.after and self.killed_at is None:
            replicas = self.server.replicas()
            victim = self.numbers.choice(replicas)
            self.left = {replica.pid for replica in replicas} - {victim.pid}
            victim.kill()
            self.killed_at = time.monotonic()
        elif (
            self.killed_at is not None
            and self.whole_at is None
            and {replica.pid for replica in self.server.replicas()} - self.left
        ):
            self.whole_at = time.monotonic()


def kill(server: Server, expected: dict[Ask, Answer], number: int, seconds: float, after: float, seed: int) -> dict:
    """Clients under which a replica is killed."""
    tally, killer = Tally(expected), Killer(server, after, random.Random(seed))
    start = time.monotonic()
    asyncio.run(load(server, tally, number, seconds, seed, leaving=False, each=killer.watch))
    if killer.killed_at is None:
        raise RuntimeError(f"nothing was killed: --kill-after {after:g} is not before the end")
    end = start + seconds
    return {
        "rows": tally.rows(),
        "killed_after": killer.killed_at - start,
        "new_process_after": None if killer.whole_at is None else killer.whole_at - killer.killed_at,
        **recovery([one for one in tally.ends if one <= end], start, killer.killed_at, end),
        "asked_again": server.printed().count(LOST_A_REPLICA),
        "in_server_at_the_end": server.wait_until_idle(10),
        "words": tally.words.most_common(MOST_WORDS),
    }


def recovery(ends: list[float], start: float, killed: float, end: float) -> dict:
    """Answers per second before and after a kill.

    Returns:
        `rate_before`; `rate_after`, of the seconds after it; `rate_at_the_end`, of as many; `longest_pause` between
        two answers after it; `back_after`, seconds from the kill to a time from which on as many seconds have nine
        tenths of the rate before, None where there is none.
    """

    def rate(since: float, until: float) -> float:
        return sum(since < one <= until for one in ends) / max(until - since, 1e-9)

    first = min(ends, default=start)  # the model's first batch is slow
    before, width = rate(first, killed), min(SECONDS_OF_A_RATE, end - killed)
    steps = [killed + step / 2 for step in range(round(2 * (end - width - killed)) + 1)]
    back = next((step - killed for step in steps if rate(step, step + width) >= 0.9 * before), None)
    moments = [killed, *sorted(one for one in ends if one > killed), end]
    pause = max(later - earlier for earlier, later in zip(moments, moments[1:], strict=False))
    return {
        "rate_before": before,
        "rate_after": rate(killed, killed + width),
        "rate_at_the_end": rate(end - width, end),
        "longest_pause": pause,
        "back_after": back,
    }


def print_counts(result: dict) -> bool:
    """Prints what became of the requests; whether nothing was wrong or lost."""
    print(f"| | {' | '.join(COLUMNS)} |")
    print("| --- |" + " ---: |" * len(COLUMNS))
    for row in result["rows"]:
        print(f"| {row['kind']} | {' | '.join(str(row[column]) for column in COLUMNS)} |")
    print(f"\nRequests in the server at the end: {result['in_server_at_the_end']:.0f}.")
    for words, count in result["words"]:
        print(f"- {count} times: {words}")
    total = result["rows"][-1]
    return total["right"] > 0 and not (total["wrong"] or total["lost"] or result["in_server_at_the_end"])
