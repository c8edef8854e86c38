# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What both trainings do around their steps: starting Accelerate, logging figures, stopping at a loss that is not
finite, averaging weights."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from .checkpoints import list_checkpoints


class JsonLinesTracker(GeneralTracker):
    """Writes figures to `log.jsonl`, a line a step, and pictures to `samples/`: what there is without a tracker
    service. A resumed run first drops the lines after its checkpoint."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: Path, settings: dict | None = None):
        super().__init__()
        self.folder, self.settings = Path(folder), settings

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values: dict):
        # All settings, with sections and the places of a user's own code: `--config` reads this file from any folder.
        (self.folder / "config.json").write_text(json.dumps(self.settings or values, indent=1))

    def rewind(self, step: int) -> None:
        """Forgets what was logged after `step`."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed run may be half a line
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        temporary = path.with_name(".log.jsonl.tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)

    def log(self, values: dict, step: int | None = None, **kwargs):
        rounded = {name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in values.items()}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": step, **rounded}) + "\n")

    def log_images(self, values: dict, step: int | None = None, **kwargs):
        (self.folder / "samples").mkdir(exist_ok=True)
        for name, image in values.items():
            image.save(self.folder / "samples" / f"{name}-{step:06d}.png")


def start_accelerator(config, folder: Path) -> tuple[Accelerator, JsonLinesTracker]:
    """An Accelerator as the config wants it, logging to `folder` and to the trackers in `report_to`."""
    tracker = JsonLinesTracker(folder, dataclasses.asdict(config))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=[tracker, *config.report_to],
        project_dir=folder,
        step_scheduler_with_optimizer=False,  # the schedule counts our steps, whatever the number of processes
        cpu=not torch.accelerator.is_available(),  # else `torchrun` on CPUs would start so many trainings of their own
    )
    pieces = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % pieces:
        raise ValueError(
            f"`batch_size`={config.batch_size} must be a multiple of processes x `gradient_accumulation_steps` = "
            f"{accelerator.num_processes} x {config.gradient_accumulation_steps}."
        )
    return accelerator, tracker


def log_images(accelerator: Accelerator, images: dict[str, Image.Image], step: int) -> None:
    """Gives pictures to the trackers that take some."""
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name == "tensorboard":
            import numpy as np

            tracker.log_images(
                {name: np.asarray(image)[None] for name, image in images.items()}, step=step, dataformats="NHWC"
            )
        elif tracker.name == "wandb":
            tracker.log_images({name: [image] for name, image in images.items()}, step=step)
        elif tracker.name == "jsonl":
            tracker.log_images(images, step=step)


class Figures:
    """Sums of figures since the last line of the log; kept on the device, so that adding does not wait for it."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.clock, self.items, self.steps = time.monotonic(), 0, 0

    def add(self, values: dict[str, torch.Tensor | float], items: int = 0) -> None:
        """Adds one value of each figure, and to the number of `items` worked on by all processes: a step has ended."""
        for name, value in values.items():
            value = value.detach().float() if torch.is_tensor(value) else torch.tensor(float(value))
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.items += items
        self.steps += items > 0

    def take(self, accelerator: Accelerator, item: str) -> dict[str, float]:
        """Means over steps and processes, `item`_per_second and steps_per_second; then starts anew."""
        names = sorted(self.sums)
        means = {name: self.sums[name].to(accelerator.device) / self.counts[name] for name in names}
        means = {name: value.item() for name, value in accelerator.reduce(means, "mean").items()} if names else {}
        seconds = max(time.monotonic() - self.clock, 1e-9)
        means |= {f"{item}_per_second": self.items / seconds, "steps_per_second": self.steps / seconds}
        self.__init__()
        return means

    def state_dict(self) -> dict:
        """What a checkpoint between two lines of the log has to keep."""
        return {"sums": {name: value.item() for name, value in self.sums.items()}, "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.sums = {name: torch.tensor(value) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


def stop_unless_finite(accelerator: Accelerator, figures: dict[str, torch.Tensor], step: int, folder: Path) -> None:
    """To be called before anything is learnt from a step, with its losses and then with the norm of its gradients.

    Raises:
        FloatingPointError: on all processes, when a figure of any of them is not finite; the last checkpoint is good.
    """
    values = [value.detach().to(accelerator.device, torch.float32).reshape(()) for value in figures.values()]
    is_bad = accelerator.reduce((~torch.isfinite(torch.stack(values))).float(), "sum") > 0
    if is_bad.any():
        names = ", ".join(name for name, bad in zip(figures, is_bad.tolist(), strict=True) if bad)
        found = list_checkpoints(folder)
        last = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        raise FloatingPointError(f"Not finite at step {step + 1}: {names}; {last}. Try a smaller learning rate.")


@contextlib.contextmanager
def interrupt_sets(stop: threading.Event, accelerator: Accelerator | PartialState) -> Iterator[None]:
    """Inside the block a first Ctrl-C sets `stop`, so that the step that runs can end and be kept; a second one ends
    at once. With several processes it does that from the first on: they could not agree on the step.

    Raises:
        KeyboardInterrupt: when it was too late to stop the block: what comes after it is not begun.
    """
    is_main = accelerator.num_processes == 1 and threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        yield
        return

    def note(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        tqdm.write("Stopping after this step, with a checkpoint. Again to stop at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.is_set():
        raise KeyboardInterrupt("the training had reached its end, and is finished")


def stopped_after(step: int) -> KeyboardInterrupt:
    """What a training raises that was stopped and has kept this step."""
    return KeyboardInterrupt(f"stopped after step {step}; the same command goes on from there")


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside the block new models start from `seed`; outside, torch's global generator is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def averaged_weights(ema: EMAModel, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside the block, `parameters` are their averages."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def trainable_parameters(model: torch.nn.Module, trainable: list[str]) -> list[torch.nn.Parameter]:
    """Freezes all but the parameters whose names begin with one of `trainable` (all of them train when it is empty)
    and returns those that train.

    Raises:
        ValueError: for a beginning that no parameter has.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in trainable:
        if not any(name.startswith(prefix) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"`trainable`: no parameter begins with {prefix!r}; the parts are {', '.join(parts)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not trainable or name.startswith(tuple(trainable)))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
