# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`status.json` in the folder of a run, for schedulers and scripts that see the exit code of a launcher only."""

import contextlib
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from ..files import one_line, whole_file
from ..signals import Stopped


STATUS = "status.json"


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
