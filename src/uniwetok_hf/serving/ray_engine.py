# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Several models on a cluster behind one engine (extra `ray`): a deployment of Ray Serve, each replica of which is a
process with a [`LocalEngine`].

Ray hands a request to the less busy one of two replicas drawn by chance, and holds requests back while all have two
batches of them. It restarts replicas that die. What a lost replica had is asked of another: an answer follows from its
seed, so what was passed on of it already is compared and left out. Where it differs (machines of different kinds may
round differently), the request fails, since half an answer of each would be neither.

All machines need this package with the extra `ray`, in one version, and must find the model where `load` looks for it.
"""

import asyncio
import contextlib
import logging
import math
import os
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.ray_connection import connected
from ..pipelines import UniWeTokPipeline
from .engine import BatchReport, EngineInfo, LocalEngine
from .requests import EngineFailedError, EngineStoppedError, Finished, Part, QueueFullError, Request


MOST_TRIES = 3  # replicas that are asked, one after the other: a request that ends every replica must not end them all
MOST_REPORTS = 1000  # of batches that wait in a replica to be told
SECONDS_TO_FINISH = 120  # for the requests of a replica that Ray takes away, as when a new version is deployed
SECONDS_BETWEEN_CHECKS = 2  # whether a replica lives


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What the replicas are made of.

    Args:
        load: makes the pipeline, in each replica; it is pickled, so a function of a module that all machines have, or
            a `functools.partial` of one.
        name: name of the model in requests.
        adapters, max_batch_size, batch_wait: as in [`LocalEngine`].
        num_replicas: processes with a model each.
        max_waiting: requests that may wait for a replica; more are refused.
        num_cpus, num_gpus: of each replica. It computes with `num_cpus` threads; `load` has to choose the GPU.
    """

    load: Callable[[], UniWeTokPipeline]
    name: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    num_replicas: int = 2
    max_batch_size: int = 16
    max_waiting: int = 100
    batch_wait: float = 0.01
    num_cpus: float = 1
    num_gpus: float = 0

    def __post_init__(self):
        for name in ("num_replicas", "max_batch_size", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

    @property
    def max_ongoing(self) -> int:
        """Requests that a replica has at a time: one batch that is computed, and the next."""
        return 2 * self.max_batch_size

    @property
    def max_open(self) -> int:
        """Requests that replicas have or that wait."""
        return self.num_replicas * self.max_ongoing + self.max_waiting


@dataclass(frozen=True)
class Message:
    """What a replica sends: first, without a `part`, that it has taken the request; then the parts of the answer, or
    the error that ends it. `reports` are of the batches that it computed since its last message to anyone."""

    part: Part | Exception | None
    reports: tuple[BatchReport, ...]


class Replica:
    """One of the models."""

    def __init__(self, settings: ReplicaSettings):
        torch.set_num_threads(max(1, int(settings.num_cpus)))
        self._reports: deque[BatchReport] = deque(maxlen=MOST_REPORTS)
        self.engine = LocalEngine(
            settings.load(),
            settings.name,
            settings.adapters,
            max_batch_size=settings.max_batch_size,
            max_waiting=settings.max_ongoing,
            batch_wait=settings.batch_wait,
            on_batch=self._reports.append,
        )

    def info(self) -> EngineInfo:
        return self.engine.info

    def counts(self) -> tuple[int, int]:
        """How many requests wait in it, and how many have begun."""
        return self.engine.num_waiting, self.engine.num_running

    def check_health(self) -> None:
        """Ray restarts a replica where this raises."""
        if not self.engine.is_alive:
            raise RuntimeError("the thread of the engine has ended")

    async def stream(self, request: Request) -> AsyncIterator[Message]:
        """Errors that are answers are sent as such: Ray would wrap them, and log each with a traceback."""
        yield self._message(None)
        try:
            async with contextlib.aclosing(self.engine.stream(request)) as parts:
                async for part in parts:
                    yield self._message(part)
        except (ValueError, QueueFullError, EngineStoppedError, EngineFailedError) as error:
            kind = ValueError if isinstance(error, ValueError) else type(error)
            yield self._message(kind(str(error)))

    def _message(self, part: Part | Exception | None) -> Message:
        return Message(part, tuple(self._reports.popleft() for _ in range(len(self._reports))))

    def __del__(self):  # Ray calls it before it ends a replica
        if hasattr(self, "engine"):
            self.engine.close()


def replicas(settings: ReplicaSettings):
    """The application of Ray Serve that is the replicas, without addresses of its own."""
    from ray import serve

    deployment = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=settings.num_replicas,
        max_ongoing_requests=settings.max_ongoing,
        max_constructor_retry_count=settings.num_replicas,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=SECONDS_TO_FINISH,
        health_check_period_s=SECONDS_BETWEEN_CHECKS,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(settings)


class _ReplicaLostError(Exception):
    """The replica that worked on a request is gone."""


@dataclass(eq=False)
class _Call:
    """A request at a replica, or on its way to one."""

    messages: Any  # an iterator of Ray
    loop: asyncio.AbstractEventLoop
    given_up: asyncio.Future  # has the reason
    is_taken: bool = False

    def give_up(self, reason: str) -> None:
        """From any thread."""

        def set_reason() -> None:
            if not self.given_up.done():
                self.given_up.set_result(reason)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(set_reason)

    def cancel(self) -> None:
        with contextlib.suppress(Exception):  # of a call that failed, which there is nothing to cancel of
            self.messages.cancel()

    async def next(self) -> Message | None:
        """The next message, None after the last. Raises whatever Ray raises, `_ReplicaLostError` also where the
        replica ended the call, and [`EngineStoppedError`] when it was given up."""

        async def arrive() -> Message | None:
            return await anext(self.messages, None)

        arriving = asyncio.create_task(arrive())
        arriving.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at, or asyncio logs it
        try:
            await asyncio.wait((arriving, self.given_up), return_when=asyncio.FIRST_COMPLETED)
            if self.given_up.done():
                raise EngineStoppedError(self.given_up.result())
            if arriving.cancelled():
                raise _ReplicaLostError("it cancelled the request")
            return arriving.result()
        finally:
            arriving.cancel()


class RayEngine:
    """The engine in front of replicas; see [`RayEngine.start`] and [`ServingEngine`].

    A request has begun when a replica has taken it.

    Args:
        handle: handle of a deployment of [`Replica`].
        info: what its replicas tell of their model.
        max_open: requests that it has at a time; more are refused. (Ray Serve can count those that wait, but refuses
            many of a burst although replicas are free.)
        on_batch: called with the batches that replicas computed. They come with the next answer of the replica, so
            the last ones of a time of rest come late.
        on_close: called at the end of `close`.
    """

    def __init__(
        self,
        handle,
        info: EngineInfo,
        max_open: int,
        on_batch: Callable[[BatchReport], None] | None = None,
        on_close: Callable[[], object] = lambda: None,
    ):
        self.info, self.max_open, self.on_batch, self.on_close = info, max_open, on_batch, on_close
        self._stream = handle.options(method_name="stream", stream=True)
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()
        self._admits, self._is_closed = True, False

    @classmethod
    def start(cls, settings: ReplicaSettings, on_batch: Callable[[BatchReport], None] | None = None) -> "RayEngine":
        """Starts replicas on the cluster of `RAY_ADDRESS`, or on a Ray that is started on this machine, and waits
        until all of them have their model. (Not from a coroutine.)

        Raises:
            ValueError: for what the cluster can't give.
            OSError: when Ray can't be reached or started, or a replica can't load its model.
        """
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            why = "Ray Client can't stream answers; start the server in the cluster, with RAY_ADDRESS=auto"
            raise ValueError(f"RAY_ADDRESS={address}: {why}.")
        import ray
        from ray import serve

        is_joined = ray.is_initialized() or bool(address)
        with contextlib.ExitStack() as stack:
            stack.enter_context(connected(math.ceil(settings.num_replicas * settings.num_cpus)))
            _check_gpus(ray.cluster_resources().get("GPU", 0), settings, is_joined)
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(proxy_location="Disabled")  # the server has its own address; where Serve runs, nothing happens
            name = f"uniwetok-{uuid.uuid4().hex[:8]}"
            if is_joined:  # else all ends with Ray
                stack.callback(_remove, serve, name)
            try:
                handle = serve.run(replicas(settings), name=name, route_prefix=None)
            except RuntimeError as error:
                messages = [one.message for one in serve.status().applications[name].deployments.values()]
                why = _last_line("".join(messages).strip() or error)
                raise OSError(f"The replicas can't be started: {why}") from error
            return cls(handle, handle.info.remote().result(), settings.max_open, on_batch, stack.pop_all().close)

    @property
    def most_at_once(self) -> int:
        """See [`ServingEngine`]."""
        return self.max_open

    @property
    def is_ready(self) -> bool:
        """See [`ServingEngine`]."""
        return self._admits

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a replica."""
        return sum(not call.is_taken for call in tuple(self._calls))

    @property
    def num_running(self) -> int:
        """Requests that replicas have."""
        return sum(call.is_taken for call in tuple(self._calls))

    async def stream(self, request: Request) -> AsyncIterator[Part]:
        """See [`ServingEngine`]."""
        passed_on: list[Part] = []
        for number in range(MOST_TRIES):
            try:
                async with contextlib.aclosing(self._ask(request, is_new=number == 0)) as parts:
                    index = 0
                    async for part in parts:
                        if index == len(passed_on):
                            passed_on.append(part)
                            yield part
                        elif part != passed_on[index]:
                            raise EngineFailedError(
                                "The machine that worked on the request is gone, and another gives another answer."
                            )
                        index += 1
                return
            except _ReplicaLostError as error:
                logger.warning("Lost a replica at work (try %d of %d): %.160s", number + 1, MOST_TRIES, error)
        raise EngineFailedError(f"The machine that worked on the request was lost, {MOST_TRIES} times.")

    def stop_admission(self) -> None:
        """See [`ServingEngine`]."""
        with self._lock:
            self._admits = False
            waiting = [call for call in self._calls if not call.is_taken]
        for call in waiting:
            call.give_up("The server stops; the request had not begun.")

    def close(self) -> None:
        """See [`ServingEngine`]. Ends the replicas, and Ray where it was started for them."""
        self.stop_admission()
        with self._lock:
            self._is_closed = True
            calls, self._calls = self._calls, set()
        for call in calls:
            call.give_up("The server stopped before the request was finished.")
            call.cancel()
        self.on_close()
        self.on_close = lambda: None

    async def _ask(self, request: Request, is_new: bool) -> AsyncIterator[Part]:
        """The parts of the answer of one replica."""
        call, is_over = self._call(request, is_new), False
        try:
            while not is_over and (message := await _with_own_errors(call.next())) is not None:
                call.is_taken = True
                for report in message.reports if self.on_batch is not None else ():
                    self.on_batch(report)
                is_over = isinstance(message.part, Finished | Exception)
                if isinstance(message.part, Exception):
                    raise message.part
                if message.part is not None:
                    yield message.part
        finally:
            with self._lock:
                self._calls.discard(call)
            if not is_over:
                call.cancel()

    def _call(self, request: Request, is_new: bool) -> _Call:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed or (is_new and not self._admits):
                raise EngineStoppedError("The server stops, and takes no more requests.")
            if is_new and len(self._calls) >= self.max_open:
                raise QueueFullError(f"{len(self._calls)} requests are open already; try again later.")
            call = _Call(self._stream.remote(request), loop, loop.create_future())
            self._calls.add(call)
        return call


async def _with_own_errors(message):
    """Awaits a message of a replica; the errors of Ray become those of an engine."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

    try:
        return await message
    except RequestCancelledError:
        raise EngineStoppedError("The server stopped before the request was finished.") from None
    except BackPressureError:
        raise QueueFullError("Too many requests wait already; try again later.") from None  # where Ray was told to
    except (RayServeException, RayTaskError) as error:
        logger.error("A request failed.", exc_info=error)
        raise EngineFailedError("The request could not be finished: something went wrong on the server.") from error
    except RayError as error:
        raise _ReplicaLostError(_last_line(error)) from error


def _last_line(error: Exception | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _check_gpus(num_gpus: float, settings: ReplicaSettings, is_joined: bool) -> None:
    wanted = settings.num_replicas * settings.num_gpus
    if wanted > num_gpus and not is_joined:
        raise ValueError(f"`num_gpus`: the replicas need {wanted:g} GPUs, this machine has {num_gpus:g}.")
    if wanted > num_gpus:  # a cluster may grow
        logger.warning("The replicas need %g GPUs and wait for them; the cluster has %g.", wanted, num_gpus)


def _remove(serve, name: str) -> None:
    """Removes an application from a cluster, and Ray Serve where nothing else uses it."""
    with contextlib.suppress(TimeoutError):  # Ray goes on with it
        serve.delete(name)
    status = serve.status()
    if not status.applications and not status.proxies:
        serve.shutdown()


__all__ = ["Message", "RayEngine", "Replica", "ReplicaSettings", "replicas"]
