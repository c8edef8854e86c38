# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Who makes the parts of an encoded dataset: this process, or new ones on this machine, which share one copy of the
weights and are handed their rows by the main process."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..signals import leave_signals
from .encoded_parts import PartEncoder


@contextlib.contextmanager
def workers(
    encoder: PartEncoder, device: str, num_processes: int, rank: int, report
) -> Iterator[tuple[Callable, Callable]]:
    """Gives a function that makes a part or has it made, by this process or by `num_processes` new ones, and one that
    returns when all are made. `report` is called with the number of encodings made since the last time."""
    if num_processes == 1:
        encoder.model.to(_device(device, rank))
        encoder.on_pictures = report
        yield encoder.write_part, lambda: None
        return
    others = set(multiprocessing.active_children())
    pool = _Pool(encoder, device, num_processes, rank * num_processes, report)
    try:
        yield pool.submit, lambda: pool.wait(0)
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.executor.shutdown(cancel_futures=True)


class _Pool:
    """New processes that make parts. `first` is the place of the first of them among those of all machines."""

    def __init__(self, encoder: PartEncoder, device: str, num_processes: int, first: int, report):
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // num_processes)
        self.num_processes, self.report = num_processes, report
        self.running: set[concurrent.futures.Future] = set()
        self.counter, self.reported = context.Value("q", 0), 0
        # The weights are handed over as shared memory: torch teaches multiprocessing to.
        settings = (encoder, device, threads, context.Value("q", first), self.counter)
        self.executor = concurrent.futures.ProcessPoolExecutor(num_processes, context, _start_worker, settings)

    def submit(self, table, first_row: int, path: Path) -> None:
        """Hands out a part, and waits while all processes have one and another is ready."""
        import pyarrow

        stream = pyarrow.BufferOutputStream()  # a pickled table would carry all rows of the chunks it is cut from
        with pyarrow.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        with _deaths_named():
            self.running.add(self.executor.submit(_write_part, stream.getvalue(), first_row, path))
        self.wait(self.num_processes)

    def wait(self, most: int) -> None:
        """Until no more than `most` parts are under way."""
        while len(self.running) > most:
            done, self.running = concurrent.futures.wait(self.running, 0.5, concurrent.futures.FIRST_COMPLETED)
            count = self.counter.value
            self.report(count - self.reported)
            self.reported = count
            with _deaths_named():
                for future in done:
                    future.result()


@contextlib.contextmanager
def _deaths_named() -> Iterator[None]:
    try:
        yield
    except concurrent.futures.process.BrokenProcessPool:
        raise OSError(
            "a process that encodes could not start, or was killed (out of memory?); the same command goes on, "
            "perhaps with fewer processes"
        ) from None


_worker: PartEncoder | None = None  # of this process, when a pool started it


def _start_worker(encoder: PartEncoder, device: str, threads: int, started, counter) -> None:
    global _worker
    leave_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        place, started.value = started.value, started.value + 1
    encoder.model.to(_device(device, place))

    def count(pictures: int) -> None:
        with counter.get_lock():
            counter.value += pictures

    encoder.on_pictures = count
    _worker = encoder


def _end_with_parent() -> None:
    """A killed parent can't stop its workers, and they would go on beside the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_part(rows, first_row: int, path: Path) -> None:
    import pyarrow

    _worker.write_part(pyarrow.ipc.open_stream(rows).read_all(), first_row, path)


def _device(name: str, place: int) -> torch.device:
    """The device of the process `place`: of several GPUs, each process takes the next."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", place % torch.cuda.device_count())
    return device
