# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The way through one stage of a training, the same for both trainers: it is resumed, logged, stopped and finished
here, and what a step computes is theirs."""

import threading
from collections.abc import Collection
from pathlib import Path

from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel

from ..signals import Stopped
from .agreement import any_process, lost_processes_named
from .checkpoints import check_run, find_own_disks, list_checkpoints, load_checkpoint, readable, save_checkpoint
from .config import flat_values
from .resume import saved_settings
from .run import CheckpointClock, StepGuard, start_accelerator, stopped_after
from .status import RunStatus


class StageTrainer:
    """One stage of training. The methods without a body are those of a trainer."""

    ema: EMAModel | None

    def __init__(self, config, result: str, stop: threading.Event | None = None, also_applied: Collection[str] = ()):
        """When `stop` is set on any process, the run ends after the current step, with a checkpoint. `result` is the
        folder that marks the stage as finished; `also_applied` is explained in [`check_resume`]."""
        self.config, self.folder, self.stop = config, Path(config.output_dir), stop or threading.Event()
        self.accelerator, self.tracker = start_accelerator(config, self.folder)
        self.changes = check_run(config, result, also_applied)
        self.guard = StepGuard(self.accelerator, self.folder, config.max_skipped_steps)
        self.status = RunStatus(self.accelerator, self.folder, config.max_train_steps)

    def write_architecture(self) -> None:
        """Writes what an export needs besides a checkpoint."""
        raise NotImplementedError

    def train_steps(self, start: int) -> None:
        """Takes the steps after `start`, and calls [`end_step`] after each."""
        raise NotImplementedError

    def save(self) -> Path:
        """Writes the result of the stage, and returns its folder."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """The state of this process, besides what Accelerate saves."""
        raise NotImplementedError

    def load_state_dict(self, state: dict) -> None:
        raise NotImplementedError

    def train(self) -> Path:
        """Runs the stage to its end, from its last checkpoint if there is one, and returns the folder of its result.

        Raises:
            FloatingPointError: after too many steps that are not finite; the checkpoints are kept.
            Stopped: after the step in which `stop` was set on a process; its checkpoint is kept.
            ConnectionError: when another process has ended or does not answer.
            OSError: when the log, a checkpoint or the result can't be written; the checkpoints before are kept.
            ValueError: when the last checkpoint is broken or of another version, or a row does not fit its task.
        """
        with self.status.of_block(), lost_processes_named():
            start, total = self.resume(), self.config.max_train_steps
            self.bar = tqdm(total=total, initial=start, desc=self.folder.name, mininterval=10)
            with self.bar:  # closed before an error is told, so that it has a line of its own
                self.train_steps(start)
                for tracker in self.accelerator.trackers:  # `end_training` would also leave the other processes
                    tracker.finish()
                result = self.save()
        if any_process(self.stop.is_set(), self.accelerator):  # too late for this stage, but there may be another
            raise Stopped("the training had reached its end, and is finished")
        return result

    def resume(self) -> int:
        """Loads the last checkpoint, starts the trackers, and returns the number of steps that were taken."""
        config, accelerator = self.config, self.accelerator
        find_own_disks(accelerator, self.folder)
        self.write_architecture()
        start, state = load_checkpoint(accelerator, self.folder, self.changes)
        self.status.saved(start)
        if any_process(self.stop.is_set(), accelerator):
            raise stopped_after(start)
        if state is not None:
            with readable(list_checkpoints(self.folder)[-1]):
                self.load_state_dict(state)
        if self.ema:  # a checkpoint's weights are read to the CPU
            self.ema.to(accelerator.device)
        if accelerator.is_main_process:
            self.tracker.rewind(start)
        accelerator.init_trackers("uniwetok", flat_values(config))
        self.clock = CheckpointClock(accelerator, config)
        return start

    def end_step(self, done: int, metrics: dict[str, float]) -> None:
        """After step `done`: logs `metrics`, if there are any, saves a checkpoint that is due, and stops if asked to.

        Raises:
            Stopped: when `stop` is set on a process, and it is not the last step.
        """
        config, accelerator = self.config, self.accelerator
        if metrics:
            accelerator.log(metrics, step=done)
        is_last = done == config.max_train_steps
        is_stopped = any_process(self.stop.is_set(), accelerator)
        if self.clock.is_due(done, self.guard.was_skipped) or is_last or is_stopped:
            keep, settings = config.checkpoints_total_limit, saved_settings(config)
            save_checkpoint(accelerator, self.folder, done, self.state_dict(), keep, settings)
            self.status.saved(done)
        if is_stopped and not is_last:
            raise stopped_after(done)
