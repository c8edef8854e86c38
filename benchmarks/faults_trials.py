# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the parts of `faults.py` share: kinds of trials, and children of this process in which they run."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


CRASHED = 70  # the exit code of a child whose job raised
MOST_MEMORY = 6 * 2**30  # bytes of address space of a child: what asks for more is told so, and not the machine


class Wrong(Exception):
    """What a trial found."""


@dataclass
class Kind:
    """One row of the table: `numbers` of trials, and `try_one(number, folder)`, which raises [`Wrong`]. A number says
    all about its trial, so that it can be repeated alone."""

    part: str
    name: str
    numbers: Sequence[int]
    try_one: Callable[[int, Path], None]
    is_random: bool = True  # else the numbers are places, each to be tried once


@dataclass
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it, and what it printed."""

    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        return " | ".join(self.err.strip().splitlines()[-3:])[-600:]


def preload() -> None:
    """Imports once what the children need, which takes seconds. No thread may run before a fork."""
    import accelerate  # noqa: F401
    import datasets
    import diffusers  # noqa: F401
    import torch
    import torch.distributed.checkpoint  # noqa: F401
    from transformers import Qwen3ForCausalLM, Qwen3Model  # noqa: F401

    import uniwetok_hf.cli.main  # noqa: F401
    import uniwetok_hf.conversion.converter  # noqa: F401
    import uniwetok_hf.evaluation.reconstruction  # noqa: F401
    import uniwetok_hf.training.export  # noqa: F401
    import uniwetok_hf.training.train_mllm  # noqa: F401
    import uniwetok_hf.training.train_uniwetok  # noqa: F401

    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def in_child(
    job: Callable[[], object], folder: Path, seconds: float = 120, watch: Callable[[int, float], object] | None = None
) -> Ended:
    """Runs `job()` in a child of its own, forked from this process, in which the libraries are imported already. Its
    exit code is what the job returns, 0 for other things than numbers. `watch(pid, seconds so far)` is called again
    and again while it runs, and may send signals."""
    folder.mkdir(parents=True, exist_ok=True)
    pipes = [os.pipe(), os.pipe()]  # not files, which could not be written on a full disk
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        _run_and_exit(job, [end for _, end in pipes])
    texts = [bytearray(), bytearray()]
    for reader, writer in pipes:
        os.close(writer)
        os.set_blocking(reader, False)
    status, timed_out = None, False
    while status is None:
        done, found = os.waitpid(pid, os.WNOHANG)
        status = found if done else None
        for (reader, _), text in zip(pipes, texts, strict=True):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 2**16):
                    text += part
        if done:
            break
        passed = time.monotonic() - start
        if passed > seconds:
            timed_out = True
            os.kill(pid, signal.SIGKILL)
        if watch:
            watch(pid, passed)
        time.sleep(0.0005 if watch else 0.004)
    for reader, _ in pipes:
        os.close(reader)
    out, err = (text.decode(errors="backslashreplace") for text in texts)
    return Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - start, timed_out)


def _run_and_exit(job: Callable[[], object], outputs: list[int]) -> None:
    """The life of a child: never returns."""
    code = CRASHED
    try:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115, stays open
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        result = job()
        code = result if type(result) is int else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def command(*argv: object) -> Callable[[], int]:
    """A job: `uniwetok` with these arguments."""

    def job() -> int:
        from uniwetok_hf.cli.main import main

        try:
            return main([str(argument) for argument in argv])
        except SystemExit as error:  # of argparse
            return error.code

    return job


def in_shards(job: Callable[[], int]) -> Callable[[], int]:
    """A job: `job` in two processes that share its weights by FSDP 2. They get its signals, and end when it does."""

    def both() -> int:
        from launched import FSDP2, processes

        shared = FSDP2 | processes(2)
        children = []
        for rank in range(2):
            if not (pid := os.fork()):
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                os.environ |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                _run_and_exit(job, [1, 2])
            children.append(pid)
        signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in children])
        return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)

    return both


def limit_memory() -> None:
    """In a child: at most `MOST_MEMORY`."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))


def error_lines(ended: Ended) -> list[str]:
    """The lines of a command on stderr that are errors."""
    return [line for line in ended.err.splitlines() if line.startswith(("uniwetok: error: ", "uniwetok: unexpected "))]


def check_one_line(ended: Ended) -> str:
    """The one line of a command that failed, as it should be.

    Raises:
        Wrong: when there is a traceback, no line or several.
    """
    if ended.timed_out:
        raise Wrong(f"does not end within {ended.seconds:.0f} s")
    if ended.code < 0:
        raise Wrong(f"ended by {signal.Signals(-ended.code).name}")
    lines = error_lines(ended)
    if "Traceback" in ended.err or len(lines) != 1 or "may be a bug" in ended.err:
        raise Wrong(f"not one line (exit code {ended.code}): {ended.last_words}")
    return lines[0].removeprefix("uniwetok: error: ")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def half_written(folder: Path) -> list[str]:
    """What only a write that is not finished has: names that begin with a dot, or end with .tmp or .old. (`.metadata`
    lists the shards of a checkpoint.)"""
    paths = (path for path in folder.rglob("*") if path.name != ".metadata") if folder.is_dir() else []
    found = (path for path in paths if path.name.startswith(".") or path.name.endswith((".tmp", ".old")))
    return sorted(str(path.relative_to(folder)) for path in found)


def run_kind(kind: Kind, seed: int, share: float, place: Path, only: int | None = None) -> tuple[list, float]:
    """Tries a share of a kind: the wrong ones as (number, words), how many were tried, and the seconds."""
    numbers = list(kind.numbers)
    if only is not None:
        numbers = [only]
    else:
        count = min(len(numbers), max(1, round(share * len(numbers))))
        if kind.is_random:
            numbers = [10_000 * seed + number for number in numbers[:count]]
        else:
            numbers = sorted(random.Random(f"{seed} {kind.name}").sample(numbers, count))
    start, wrong = time.monotonic(), []
    for number in numbers:
        folder = place / f"{kind.part}-{kind.name}-{number}".replace(" ", "-").replace(",", "")
        try:
            kind.try_one(number, folder)
        except Wrong as error:
            wrong.append((number, str(error)))
        except Exception as error:  # of the script itself: never taken for right
            where = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append((number, f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"))
        shutil.rmtree(folder, ignore_errors=True)
    return [len(numbers), wrong], time.monotonic() - start
