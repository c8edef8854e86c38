# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trainings of `faults.py` that are killed and stopped, and go on to the same weights."""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults_materials import Materials
from faults_trials import Ended, Kind, Wrong, command, half_written, in_child, in_shards


RUNS = 20  # of each kind
RESULT = {
    "tokenizer": "model/model.safetensors",
    "mllm": "pipeline/mllm/model.safetensors",
    # On two processes, with packed rows, and checkpoints that are written in the background.
    "mllm in shards": "pipeline/mllm/model.safetensors",
}
PACKED = {"batch_size": None, "length_group_steps": 1, "packed_tokens": 300}


@dataclass
class Reference:
    """A run that nothing interrupts: its weights, its log, and the seconds that it takes."""

    weights: bytes
    log: list[dict]
    seconds: float


def log_of(run: Path) -> list[dict]:
    """Lines of the log without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines]


class Kills:
    """The kinds of this part. Reference runs are made when they are first needed."""

    def __init__(self, materials: Materials):
        self.materials = materials
        self.references: dict[str, Reference] = {}

    def kinds(self) -> list[Kind]:
        return [
            Kind("kills", f"{name}, {trainer}", range(RUNS), self.trial(trainer, interrupt))
            for trainer in RESULT
            for name, interrupt in (("SIGKILL", self.killed), ("SIGTERM", self.stopped))
        ]

    def reference(self, trainer: str) -> Reference:
        if trainer not in self.references:
            folder = self.materials.folder / f"reference-{trainer}".replace(" ", "-")
            ended = self.train(trainer, folder)
            if ended.code:
                raise RuntimeError(f"the uninterrupted run: {ended.last_words}")
            run = folder / "run"
            weights = (run / RESULT[trainer]).read_bytes()
            self.references[trainer] = Reference(weights, log_of(run), ended.seconds)
        return self.references[trainer]

    def train(self, trainer: str, folder: Path, watch: Callable[[int, float], object] | None = None) -> Ended:
        what, _, shards = trainer.partition(" ")
        config = self.materials.training(what, folder, **(PACKED if shards else {}))
        job = command("train", what, "--config", config)
        return in_child(in_shards(job) if shards else job, folder, watch=watch)

    def trial(self, trainer: str, interrupt) -> Callable[[int, Path], None]:
        def try_one(number: int, folder: Path) -> None:
            reference, run = self.reference(trainer), folder / "run"
            interrupt(trainer, random.Random(f"{trainer} {number}"), folder)
            if not (run / RESULT[trainer]).parent.exists():
                ended = self.train(trainer, folder)
                if ended.code:
                    raise Wrong(f"the same command again ends with {ended.code}: {ended.last_words}")
            if (run / RESULT[trainer]).read_bytes() != reference.weights:
                raise Wrong("other weights than those of the uninterrupted run")
            if log_of(run) != reference.log:
                raise Wrong("another log than that of the uninterrupted run")
            if rests := half_written(run):
                raise Wrong(f"half-written: {', '.join(rests)}")

        return try_one

    def killed(self, trainer: str, numbers: random.Random, folder: Path) -> None:
        """Kills at any moment, or within some milliseconds of the beginning of a checkpoint; in one of four trials a
        second time, in the run that goes on."""
        for _ in range(1 + (numbers.random() < 0.25)):
            at = numbers.uniform(0, 0.95 * self.reference(trainer).seconds)
            if numbers.random() < 0.5:
                watch = kill_in_checkpoint(folder / "run", numbers.randrange(1, 5), numbers.uniform(0, 0.06))
            else:
                watch = kill_at(at)
            if (folder / "run" / RESULT[trainer]).parent.exists():
                return
            ended = self.train(trainer, folder, watch)
            if ended.code not in (0, -signal.SIGKILL):
                raise Wrong(f"ends with {ended.code}: {ended.last_words}")

    def stopped(self, trainer: str, numbers: random.Random, folder: Path) -> None:
        """A signal in a random step; one that comes when the run is at its end is too late, which is right too."""
        run, sent = folder / "run", []
        step = numbers.randrange(self.materials.steps - 1)

        def watch(pid: int, seconds: float) -> None:
            if not sent and (current := step_of(run)) is not None and current >= step:
                os.kill(pid, signal.SIGTERM)
                sent.append(step)

        ended = self.train(trainer, folder, watch)
        status = json.loads((run / "status.json").read_text())
        if ended.code == 0 and status["status"] == "finished":
            return
        if (ended.code, status["status"]) != (75, "preempted"):
            raise Wrong(f"SIGTERM gives exit code {ended.code} and {status['status']}: {ended.last_words}")
        if rests := half_written(run):
            raise Wrong(f"half-written after SIGTERM: {', '.join(rests)}")


def step_of(run: Path) -> int | None:
    """The last step of the log, 0 when the run has begun, and None before."""
    try:
        lines = (run / "log.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (OSError, ValueError):
        return 0 if (run / "status.json").exists() else None


def kill_at(moment: float) -> Callable[[int, float], None]:
    def watch(pid: int, seconds: float) -> None:
        if seconds >= moment:
            os.kill(pid, signal.SIGKILL)

    return watch


def kill_in_checkpoint(run: Path, which: int, delay: float) -> Callable[[int, float], None]:
    """Kills `delay` seconds after the `which`-th checkpoint is begun."""
    seen: dict[str, float] = {}

    def watch(pid: int, seconds: float) -> None:
        try:
            names = [entry.name for entry in os.scandir(run / "checkpoints") if entry.name.endswith(".tmp")]
        except OSError:
            return
        for name in names:
            seen.setdefault(name, seconds)
        if len(seen) >= which and seconds >= max(seen.values()) + delay:
            os.kill(pid, signal.SIGKILL)

    return watch
