# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The queue, and the one thread that owns the model.

Requests wait in the order in which they came. Whenever the model is free, the oldest job says what is computed next,
and all jobs that want the same kind of work join it (`Row.key`), up to `max_batch_size`. A job that needs several
steps, as an edit that is described first, keeps its place in the order.

Adapters are loaded once; the thread activates the one that a batch needs.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..pipelines import UniWeTokPipeline
from ..pipelines.pipeline_base import check_count
from .batches import PictureRow, Row, TextRow, generate_pictures, generate_texts
from .jobs import Job, Jobs, defaults_of
from .requests import EngineFailedError, EngineStoppedError, Finished, Part, QueueFullError, Request, UnknownModelError


logger = logging.getLogger(__name__)

_UNKNOWN = object()  # which adapter is active, after switching has failed


@dataclass(frozen=True)
class EngineInfo:
    """What a server tells of a model: its name, those of its adapters, and the defaults of the pipeline."""

    model: str
    adapters: tuple[str, ...]
    defaults: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call: the model, then its adapters."""
        return self.model, *self.adapters

    def check_name(self, name: str) -> None:
        """
        Raises:
            UnknownModelError: when `name` is none of `names`.
        """
        if name not in self.names:
            raise UnknownModelError(f"`model` must be one of {', '.join(self.names)}, got {name!r:.100}.")


class ServingEngine(Protocol):
    """What the server needs; [`LocalEngine`] in this process, `RayEngine` on a cluster."""

    info: EngineInfo

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        ...

    @property
    def most_at_once(self) -> int:
        """Requests that it takes at one moment, while it has nothing else to do."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing was computed yet."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that have begun."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Part]:
        """The parts of the answer, the last of which is [`Finished`]. Whoever closes the iterator gives the request
        up.

        Raises:
            ValueError: for a request that the model can't answer.
            QueueFullError, EngineStoppedError, EngineFailedError: where it is not answered for other reasons.
        """
        ...

    def stop_admission(self) -> None:
        """Refuses new requests and those that wait; those that have begun go on."""
        ...

    def close(self) -> None:
        """Ends the engine; what still runs is given up."""
        ...


@dataclass(frozen=True)
class BatchReport:
    """A batch that was computed: its kind ("text" or "picture"), rows, and seconds."""

    kind: str
    size: int
    seconds: float


class _Ticket:
    """A request in the engine: where its answer goes, and its job once it has begun."""

    def __init__(self, number: int, request: Request, put: Callable[[Part | Exception], None]):
        self.number, self.request, self.put = number, request, put
        self.is_cancelled = threading.Event()
        self.job: Job | None = None
        self.row: Row | None = None

    def advance(self, result: Any = None) -> bool:
        """Goes on to the next row; False when there is none. What the job raises is its answer."""
        try:
            if self.job is None:
                raise RuntimeError("a job that was not started can't go on")
            self.row = self.job.send(result)
            return True
        except StopIteration:
            return False
        except ValueError as error:  # of the request, in words for whoever sent it
            self.put(error)
            return False
        except Exception as error:
            self.fail(error)
            return False

    def fail(self, error: Exception) -> None:
        """Ends the request by an error of this side, which is logged and not shown."""
        logger.error("A request failed.", exc_info=error)
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        why = "there is not enough memory for it" if is_memory else "something went wrong on the server"
        self.put(EngineFailedError(f"The request could not be finished: {why}."))


class LocalEngine:
    """The model of a pipeline in this process.

    Args:
        pipe: the pipeline; nothing else may use its model meanwhile.
        name: name of the model in requests.
        adapters: names and folders (or Hub ids) of LoRA adapters.
        max_batch_size: rows of a batch; of pictures of a size that did not fit the memory, half of what was tried.
        max_waiting: requests that may wait; more are refused.
        batch_wait: seconds in which others may join a batch before it begins.
        on_batch: called with each batch that was computed, by the engine's thread.

    Raises:
        ValueError: for an adapter that can't be loaded, a name that is taken, or a limit below 1.
    """

    def __init__(
        self,
        pipe: UniWeTokPipeline,
        name: str,
        adapters: Mapping[str, str] | None = None,
        max_batch_size: int = 16,
        max_waiting: int = 100,
        batch_wait: float = 0.01,
        on_batch: Callable[[BatchReport], None] | None = None,
    ):
        check_count("max_batch_size", max_batch_size)
        check_count("max_waiting", max_waiting)
        self.pipe, self.jobs = pipe, Jobs(pipe)
        self.max_batch_size, self.max_waiting, self.batch_wait = max_batch_size, max_waiting, batch_wait
        self.on_batch = on_batch
        adapters = dict(adapters or {})
        for adapter, folder in adapters.items():
            if adapter == name:
                raise ValueError(f"`adapters`: {adapter!r} is the name of the model.")
            pipe.load_lora_weights(folder, adapter_name=adapter)
        self._active: Any = None
        if adapters:
            self._active = [*adapters][-1]
            self._activate(name, name)
        self.info = EngineInfo(name, tuple(adapters), defaults_of(pipe))
        self._numbers = itertools.count()
        self._waiting: list[_Ticket] = []  # not begun
        self._begun: list[_Ticket] = []
        self._changed = threading.Condition()
        self._limits: dict[tuple[int, int], int] = {}  # rows of a batch of pictures of a size, where it is less
        self._admits, self._is_closed = True, False
        self._thread = threading.Thread(target=self._run, name="uniwetok-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """See [`ServingEngine`]."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """See [`ServingEngine`]."""
        return len(self._begun)

    @property
    def most_at_once(self) -> int:
        """See [`ServingEngine`]."""
        return self.max_waiting

    @property
    def is_ready(self) -> bool:
        """See [`ServingEngine`]."""
        return self._admits and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs; without it no request is answered."""
        return self._thread.is_alive()

    async def stream(self, request: Request) -> AsyncIterator[Part]:
        """See [`ServingEngine`]."""
        loop, parts = asyncio.get_running_loop(), asyncio.Queue()

        def put(part: Part | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(parts.put_nowait, part)

        with self._changed:
            self._check_admission(request)  # before the work of checking
        await asyncio.to_thread(self.jobs.check, request)
        ticket = self._admit(request, put)
        try:
            while True:
                part = await parts.get()
                if isinstance(part, Exception):
                    raise part
                yield part
                if isinstance(part, Finished):
                    return
        finally:
            self._cancel(ticket)

    def stop_admission(self) -> None:
        """See [`ServingEngine`]."""
        with self._changed:
            self._admits = False
            refused, self._waiting = self._waiting, []
        for ticket in refused:
            ticket.put(EngineStoppedError("The server stops; the request had not begun."))

    def close(self) -> None:
        """See [`ServingEngine`]."""
        self.stop_admission()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _check_admission(self, request: Request) -> None:
        self.info.check_name(request.model)
        if not self._admits:
            raise EngineStoppedError("The server stops, and takes no more requests.")
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(f"{len(self._waiting)} requests wait already; try again later.")

    def _admit(self, request: Request, put: Callable[[Part | Exception], None]) -> _Ticket:
        with self._changed:
            self._check_admission(request)
            ticket = _Ticket(next(self._numbers), request, put)
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def _cancel(self, ticket: _Ticket) -> None:
        """A finished ticket is in neither list any more."""
        with self._changed:
            ticket.is_cancelled.set()
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def _run(self) -> None:
        """The engine's thread. Whatever happens in it, each request gets an answer."""
        try:
            with torch.no_grad():
                while self._wait_for_work():
                    try:
                        self._work()
                    except Exception as error:
                        failed, self._begun = self._begun, []
                        for ticket in failed:
                            ticket.fail(error)
        finally:
            self.stop_admission()
            for ticket in self._begun:
                ticket.put(EngineStoppedError("The server stopped before the request was finished."))
            self._begun = []

    def _work(self) -> None:
        self._begin_waiting()
        if batch := self._next_batch():
            self._compute(batch)

    def _wait_for_work(self) -> bool:
        """Waits until there is work, and a little longer for more of it; False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._begun or self._is_closed)
            deadline = time.monotonic() + self.batch_wait
            while not self._is_closed and len(self._waiting) + len(self._begun) < self.max_batch_size:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return not self._is_closed

    def _begin_waiting(self) -> None:
        """Begins as many requests as two batches hold: that of the oldest, and one of another kind."""
        with self._changed:
            free = max(0, 2 * self.max_batch_size - len(self._begun))
            fresh, self._waiting = self._waiting[:free], self._waiting[free:]
            self._begun += fresh
        for ticket in fresh:
            if self._is_closed or ticket.is_cancelled.is_set():
                continue
            self._activate(ticket.request.model, self.info.model)
            ticket.job = self.jobs.start(ticket.request, ticket.put)
            if not ticket.advance():
                self._begun.remove(ticket)

    def _next_batch(self) -> list[_Ticket]:
        """The oldest request and those that can be computed with it."""
        wanted = [ticket for ticket in self._begun if not ticket.is_cancelled.is_set()]
        self._begun = sorted(wanted, key=lambda ticket: ticket.number)
        if self._is_closed or not self._begun:
            return []
        row = self._begun[0].row
        limit = self._limits.get(row.size, self.max_batch_size) if isinstance(row, PictureRow) else self.max_batch_size
        return [ticket for ticket in self._begun if ticket.row.key == row.key][:limit]

    def _compute(self, batch: list[_Ticket]) -> None:
        """Computes a batch, and goes on with its jobs."""
        start = time.monotonic()
        self._activate(batch[0].request.model, self.info.model)
        results = self._results(batch)
        if self._is_closed:  # they may not be whole
            return
        kind = "text" if isinstance(batch[0].row, TextRow) else "picture"
        for ticket, result in zip(batch, results, strict=True):
            is_over = ticket.is_cancelled.is_set()
            if isinstance(result, Exception):
                ticket.fail(result)
                is_over = True
            if is_over or not ticket.advance(result):
                self._begun.remove(ticket)
        if self.on_batch is not None:
            try:
                self.on_batch(BatchReport(kind, len(batch), time.monotonic() - start))
            except Exception as error:
                logger.error("`on_batch` failed.", exc_info=error)

    def _results(self, batch: Sequence[_Ticket]) -> list:
        """One result per ticket, or the exception that it raises. A batch that fails is computed in halves, so that
        one request doesn't take others with it, and one that needs too much memory is still computed."""
        rows = [ticket.row for ticket in batch]
        generate = generate_texts if isinstance(rows[0], TextRow) else generate_pictures
        generators = [row.generator for row in rows if row.generator is not None]
        states = [generator.get_state() for generator in generators]
        try:
            return generate(self.pipe, rows, [self._abandoned(ticket) for ticket in batch])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            logger.warning("A batch of %d failed (%s); computing it in halves.", len(batch), error)
            if isinstance(error, torch.OutOfMemoryError) and isinstance(rows[0], PictureRow):
                self._limits[rows[0].size] = len(batch) // 2  # texts of other lengths may fit
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        half = len(batch) // 2
        return self._results(batch[:half]) + self._results(batch[half:])

    def _abandoned(self, ticket: _Ticket) -> Callable[[], bool]:
        return lambda: self._is_closed or ticket.is_cancelled.is_set()

    def _activate(self, adapter: str, model: str) -> None:
        """Makes `adapter` the active one, none where it is the name of the `model`."""
        wanted = None if adapter == model else adapter
        if wanted == self._active:
            return
        before, self._active = self._active, _UNKNOWN  # should one of these fail
        if wanted is None:
            self.pipe.disable_lora()
        else:
            if before in (None, _UNKNOWN):
                self.pipe.enable_lora()
            self.pipe.set_adapters(wanted)
        self._active = wanted


__all__ = ["BatchReport", "EngineInfo", "LocalEngine", "ServingEngine"]
