# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the processes of a training tell each other besides gradients: that one was asked to stop, or could not write,
and what is said when one is gone."""

import contextlib
import os
import pickle
import re
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.constants import default_pg_timeout

from ..files import writing


# How gloo, NCCL and torch.distributed report another process that has ended or doesn't answer.
LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|TCPStore|Store.*timeout")


def any_process(flag: bool, accelerator: Accelerator | PartialState) -> bool:
    """Whether `flag` is true on any process. All processes must call it; it waits for all of them."""
    if accelerator.num_processes == 1:
        return flag
    return reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0


def sendable(error: Exception) -> Exception:
    """An error that another process can be sent: itself, or its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def failed_together(
    accelerator: Accelerator, caught: type[Exception] = Exception, elsewhere: Exception | None = None
) -> Iterator[None]:
    """A block in which processes don't wait for each other, and of which one may do more than the others. All
    processes must run it, and leave it together; when one raises an error of the kind `caught`, the others raise
    `elsewhere`.

    Raises:
        ConnectionError: on the other processes, by default.
    """
    failure = None
    try:
        yield
    except caught as error:
        failure = error
    failed = any_process(failure is not None, accelerator)
    if failure is not None:
        raise failure
    if failed:
        raise elsewhere or ConnectionError("another process of the training could not start; its own message says why")


@contextlib.contextmanager
def written_together(accelerator: Accelerator, path: Path) -> Iterator[None]:
    """A block that writes `path`, or a part of it, and in which processes don't wait for each other. All processes
    must run it, and leave it together.

    Raises:
        OSError: on all processes, when one of them could not write.
    """
    elsewhere = OSError(f"{path} can't be written: another process failed, see its message")
    with failed_together(accelerator, OSError, elsewhere), writing(path):
        yield


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """
    Raises:
        ConnectionError: for the many errors that say that another process has ended or doesn't answer.
    """
    try:
        yield
    except (RuntimeError, CheckpointException) as error:
        if not (isinstance(error, torch.distributed.DistError) or LOST.search(str(error))):
            raise
        raise ConnectionError(
            f"process {os.environ.get('RANK', 0)}: another process of the training has ended or did not answer within "
            "`process_timeout_minutes`; its own message says why. The same command goes on from the last checkpoint."
        ) from error


def deepspeed_on_cpus() -> bool:
    """Whether this is one of several processes that DeepSpeed is to divide a model over, on a machine without GPUs."""
    is_launched = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    return is_launched and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def process_group_options(timeout_minutes: float | None) -> list[InitProcessGroupKwargs]:
    """How Accelerate starts the process group.

    The agents of `torchrun --max-restarts` keep one store over all restarts, in which processes look up each other's
    addresses. A restarted process that is early finds those of the processes before, and fails to connect (torch 2.13,
    with gloo, unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE is 1). So each start gets a part of the store of its own.
    """
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)} if timeout_minutes else {}
    if deepspeed_on_cpus():
        options["backend"] = "gloo"  # Accelerate would give DeepSpeed none
    if (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    ):
        with contextlib.suppress(RuntimeError):  # registered by an earlier stage
            torch.distributed.register_rendezvous_handler("restart", _meet_in_own_part)
        options["init_method"] = "restart://"
    return [InitProcessGroupKwargs(**options)] if options else []


def _meet_in_own_part(url: str, timeout: timedelta = default_pg_timeout, **options) -> Iterator[tuple]:
    """A rendezvous handler of torch: as `env://`, in a part of the agents' store that this start has alone."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(address, port, is_master=False, timeout=timeout)
    yield torch.distributed.PrefixStore(_agree_on_part(store, rank, world_size, timeout), store), rank, world_size
    raise RuntimeError("The processes can't meet again without a restart.")


def _agree_on_part(store: torch.distributed.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that the first process chooses, and that no start before had. (The number of restarts is none: each node
    counts its own.) The others ask for it under names that are new, too, so that nothing old is taken for an answer.

    Raises:
        RuntimeError: when the others don't come before the timeout.
    """
    if rank:
        question = uuid.uuid4().hex
        store.set(f"question-{rank}", question)
        part = store.get(question).decode()  # waits for it
        store.set(f"{part}-{rank}", "heard")
        return part
    part, waiting, end = uuid.uuid4().hex, set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while waiting := {other for other in waiting if not store.check([f"{part}-{other}"])}:
        if time.monotonic() > end:
            raise RuntimeError(f"Timed out waiting for processes {', '.join(map(str, sorted(waiting)))} to start.")
        for other in waiting:
            if store.check([f"question-{other}"]):  # of an earlier start, perhaps: its new one is answered, too
                store.set(store.get(f"question-{other}").decode(), part)
        time.sleep(0.05)
    return part
