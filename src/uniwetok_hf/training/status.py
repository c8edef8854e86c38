# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`status.json` in the folder of a run, for schedulers and scripts that see the exit code of a launcher only, and the
lock that keeps a second run out of the folder."""

import contextlib
import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from accelerate import Accelerator

from ..files import one_line, read_json, whole_file
from ..signals import Stopped
from .agreement import any_process, written_together


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


STATUS, LOCK = "status.json", "run.lock"


class RunStatus:
    """Writes `status.json` on the first process:

        {"status": "running", "step": 500, "max_train_steps": 2000, "host": "node1", "pid": 4711}

    `status` is running, preempted (stopped by a signal), finished, or failed, with the `error`. `step` is the step of
    the last checkpoint. After a SIGKILL it still says running, and no such process is there."""

    def __init__(self, accelerator: Accelerator, folder: Path, max_train_steps: int):
        self.path = folder / STATUS if accelerator.is_main_process else None
        self.max_train_steps, self.step = max_train_steps, 0

    def write(self, status: str, **more) -> None:
        if self.path is None:
            return
        place = {"host": socket.gethostname(), "pid": os.getpid()}
        values = {"status": status, "step": self.step, "max_train_steps": self.max_train_steps, **place, **more}
        with whole_file(self.path) as temporary:
            temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")

    def saved(self, step: int) -> None:
        """There is a checkpoint of `step`."""
        self.step = step
        self.write("running")

    @contextlib.contextmanager
    def of_block(self) -> Iterator[None]:
        """Writes how the block ends. What can't be written then, as on a full disk, hides no error of the block, and
        makes no failure of a run whose result is there."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                if isinstance(error, Stopped):
                    self.write("preempted")
                else:
                    self.write("failed", error=one_line(error) or type(error).__name__)
            raise
        self.step = self.max_train_steps
        try:
            self.write("finished")
        except OSError as error:
            warnings.warn(f"The training is finished, but {error}.", stacklevel=2)


@contextlib.contextmanager
def only_run(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Locks the folder of a run against other processes. The system takes the lock back when the process ends, by
    SIGKILL too; where it has none (Windows, some network file systems) nothing is locked. All processes must call it.

    Raises:
        ValueError: when another run has the lock.
    """
    is_taken = False
    with contextlib.ExitStack() as stack:
        with written_together(accelerator, folder / LOCK):
            if accelerator.is_main_process and fcntl is not None:
                is_taken = _is_taken(stack.enter_context(open(folder / LOCK, "ab")))
        if any_process(is_taken, accelerator):
            raise ValueError(f"`output_dir` {folder} is in use by another training{_who_trains(folder)}.")
        yield


def _is_taken(file: BinaryIO) -> bool:
    """Whether another process has the lock; if not, this one has it until it closes the file."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of those it forks
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


@contextlib.contextmanager
def failed_starts_noted(folder: Path) -> Iterator[None]:
    """A block in which a training is made ready. When it fails, the `status.json` of an earlier start says so: a
    script that goes by it would start a preempted training again and again. A folder without one, of a training that
    is finished, or in which another run is at work, stays as it is."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # also of a damaged file
            if os.environ.get("RANK", "0") == "0":
                _note_failed_start(folder, one_line(error) or type(error).__name__)
        raise


def _note_failed_start(folder: Path, error: str) -> None:
    values = read_json(folder / STATUS)
    with open(folder / LOCK, "ab") as file:
        if values["status"] != "finished" and (fcntl is None or not _is_taken(file)):
            values |= {"status": "failed", "error": error, "host": socket.gethostname(), "pid": os.getpid()}
            with whole_file(folder / STATUS) as temporary:
                temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _who_trains(folder: Path) -> str:
    try:
        values = read_json(folder / STATUS)
        return f", process {values['pid']} on {values['host']}"
    except (OSError, ValueError, KeyError):
        return ""
