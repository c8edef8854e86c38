# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The processes that share an evaluation (`accelerate launch`).

Batches are the same on any number of processes, and each is the work of one: what a picture scores does not depend on
how many share. Results are numbered, and put together in the order of their numbers. What is gathered are small things
of the host (numbers, texts, features, 8-bit pictures), by gloo, wherever the models are.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from ..signals import Stopped


T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(hours=12)  # of a process that waits for the others


class Processes:
    """Process `index` of `count`; alone by default.

    What waits for the others raises a `ValueError` when one of them has ended.
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count

    @classmethod
    def join(cls) -> "Processes":
        """Those that `accelerate launch` has started, which every one of them has to join.

        Raises:
            ValueError: when the environment names processes but not where they meet.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(
                f"`WORLD_SIZE` is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} are not in the environment: "
                "start the command with `accelerate launch`."
            )
        from accelerate import PartialState

        state = PartialState(cpu=True, timeout=PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this one prints and writes files."""
        return self.index == 0

    def own(self, batches: Iterable[T]) -> Iterator[tuple[int, T]]:
        """This process' batches, with their numbers."""
        return ((number, batch) for number, batch in enumerate(batches) if number % self.count == self.index)

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        with _lost_named():
            return gather_object([value])

    def wait(self) -> None:
        """Until all processes have come this far."""
        self.gather(None)

    def merge(self, found: Mapping[int, T]) -> list[T]:
        """What all processes have found, in the order of the numbers."""
        merged = dict(chain.from_iterable(own.items() for own in self.gather(found)))
        return [merged[number] for number in sorted(merged)]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over the processes, of the shape of `array`."""
        if self.count == 1:
            return array
        total = torch.from_numpy(array.copy())
        with _lost_named():
            torch.distributed.all_reduce(total)
        return total.numpy()

    def map(
        self,
        function: Callable[[list[T]], Sequence[R]],
        items: Sequence[T],
        batch_size: int,
        description: str | None = None,
    ) -> list[R]:
        """`function` of each batch of `items`, which gives a result for each of them; the results of all items.

        Args:
            description: of a progress bar; none is shown without.
        """
        found = {}
        with self.bar(len(items), description) as bar:
            for number, start in self.own(range(0, len(items), batch_size)):
                found[number] = function(list(items[start : start + batch_size]))
                bar.update(batch_size)
        return list(chain.from_iterable(self.merge(found)))

    def bar(self, total: int, description: str | None) -> tqdm:
        """A progress bar of this process' part of `total` items, shown by the first one; None shows no bar."""
        is_shown = description is not None and self.is_main
        return tqdm(total=-(-total // self.count) or None, desc=description, disable=None if is_shown else True)


@contextlib.contextmanager
def _lost_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"another process has ended, and said why ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def stopped_alike(stop: threading.Event | None) -> Iterator[None]:
    """A block that waits for the other processes.

    Raises:
        Stopped: when another one was stopped, and so was this one.
        ValueError: when another one has failed.
    """
    try:
        yield
    except ValueError:
        if stop is not None and stop.is_set():
            raise Stopped("stopped; the same command continues from there") from None
        raise


ALONE = Processes()
