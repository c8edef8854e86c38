# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Where the log of a run goes: `log.jsonl`, and the trackers of `report_to`, where a resumed run goes on as the run
that it was."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from ..files import read_json, whole_file, writing
from .config import absolute_paths, flat_values


PROJECT = "uniwetok"
IDS = "trackers.json"
# Trackers that choose the id of a run themselves: where it is then, and what they take it as to go on.
OWN_IDS: dict[str, tuple[Callable, str]] = {
    "mlflow": (lambda run: run.info.run_id, "run_id"),
    "aim": (lambda run: run.hash, "run_hash"),
}


def start_trackers(accelerator: Accelerator, folder: Path, step: int, config) -> None:
    """
    Starts the trackers of the run in `folder`, named after it, with the settings of `config`. After a checkpoint of
    `step` they go on in the same run: its name and ids are in `trackers.json` of the folder, which may be moved.

    Raises:
        ValueError: when that file is damaged, or the package of a tracker is not installed.
    """
    found = {str(tracker) for tracker in accelerator.log_with}
    if lacking := [name for name in config.report_to if name not in {*found, "all"}]:
        raise ValueError(f"`report_to` has {lacking[0]}, which is not installed.")
    path, ids = folder / IDS, {}
    has_services = accelerator.is_main_process and any(
        not isinstance(one, GeneralTracker) for one in accelerator.log_with
    )
    if has_services:
        ids = {"id": uuid.uuid4().hex, "name": folder.resolve().name} | (read_json(path) if path.exists() else {})
    accelerator.init_trackers(PROJECT, init_kwargs=run_options(ids, step) if ids else {})
    known, values = dict(ids), flat_values(config)
    for tracker in accelerator.trackers:
        if tracker.name != "mlflow" or "mlflow" not in known:  # which takes the settings of a run once
            tracker.store_init_configuration(values)
        if accelerator.is_main_process and tracker.name in OWN_IDS:
            ids[tracker.name] = OWN_IDS[tracker.name][0](tracker.tracker)
    if has_services and (ids != known or not path.exists()):
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(ids) + "\n", encoding="utf-8")


def run_options(ids: dict[str, str], step: int) -> dict[str, dict]:
    """What each kind of tracker takes to name a run, and to go on with it after `step`. For wandb, variables of the
    environment count."""
    own_id, name = ids["id"], ids["name"]
    options = {
        "wandb": {
            "name": os.environ.get("WANDB_NAME", name),
            "id": os.environ.get("WANDB_RUN_ID", own_id),
            "resume": "allow",
        },
        "trackio": {"name": f"{name}-{own_id[:8]}", "resume": "allow"},  # whose runs are known by their names
        "comet_ml": {"experiment_key": own_id},
        "mlflow": {"run_name": name},
        "tensorboard": {"purge_step": step + 1} if step else {},  # hides what was logged after the checkpoint
        "clearml": {"task_name": name},
        "swanlab": {"experiment_name": name},
    }
    for tracker, (_, argument) in OWN_IDS.items():
        if tracker in ids:
            options[tracker] = {argument: ids[tracker]}
    return options


class JsonLinesTracker(GeneralTracker):
    """The log without a tracker service: metrics go to `log.jsonl`, one line per logged step, images to `samples/`. A
    resumed run first drops the lines after its checkpoint."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: Path, settings: dict | None = None):
        super().__init__()
        self.folder, self.settings = Path(folder), settings

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values: dict):
        # All settings, with sections: `--config` reads this file, from any folder.
        text = json.dumps(absolute_paths(self.settings or values), indent=1)
        with whole_file(self.folder / "config.json") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):  # the last line of a killed run may be cut
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with whole_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def log(self, values: dict, step: int | None = None, **kwargs):
        rounded = {name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in values.items()}
        with writing(self.folder / "log.jsonl"), open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **rounded}) + "\n")

    def log_images(self, values: dict, step: int | None = None, **kwargs):
        (self.folder / "samples").mkdir(exist_ok=True)
        for name, image in values.items():
            path = self.folder / "samples" / f"{name}-{step:06d}.png"
            with writing(path):
                image.save(path)
