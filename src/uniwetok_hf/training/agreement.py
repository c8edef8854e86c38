# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the processes of a training tell each other besides gradients: that one was asked to stop, or could not write,
and what is said when one is gone."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import reduce

from ..files import writing


# How gloo, NCCL and torch.distributed report another process that has ended or doesn't answer.
LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|TCPStore|Store.*timeout")


def any_process(flag: bool, accelerator: Accelerator | PartialState) -> bool:
    """Whether `flag` is true on any process. All processes must call it; it waits for all of them."""
    if accelerator.num_processes == 1:
        return flag
    return reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0


@contextlib.contextmanager
def written_together(accelerator: Accelerator, path: Path) -> Iterator[None]:
    """A block that writes `path`, or a part of it, and in which processes don't wait for each other. All processes
    must run it, and leave it together.

    Raises:
        OSError: on all processes, when one of them could not write.
    """
    failure = None
    try:
        with writing(path):
            yield
    except OSError as error:
        failure = error
    failed = any_process(failure is not None, accelerator)
    if failure is not None:
        raise failure
    if failed:
        raise OSError(f"{path} can't be written: another process failed, see its message")


@contextlib.contextmanager
def lost_processes_named(accelerator: Accelerator) -> Iterator[None]:
    """
    Raises:
        ConnectionError: for the many errors that say that another process has ended or doesn't answer.
    """
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, torch.distributed.DistError) or LOST.search(str(error))
        if accelerator.num_processes == 1 or not is_lost:
            raise
        raise ConnectionError(
            f"process {accelerator.process_index}: another process of the training has ended or did not answer within "
            "`process_timeout_minutes`; its own message says why. The same command goes on from the last checkpoint."
        ) from error
