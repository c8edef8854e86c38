# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a training that can be killed at any moment.

A checkpoint is a folder `checkpoints/step-000500`: what Accelerate saves (models, optimizers, schedulers, averages,
random states), `data-<process>.json` (the position of each process in its data) and `manifest.json` (the step, the
settings of the run, the version of the sample streams, and the size of every file). It is written under a temporary
name and renamed when it is complete. The last few checkpoints are kept. A checkpoint whose files differ in size from
its manifest is refused.

Only folders called `step-` and digits are checkpoints. Whatever else lies beside them is neither read nor removed.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import SCALER_NAME

from ..data.samples import STREAMS
from ..quiet import without_warning
from .resume import Changes, check_resume, keep_hyperparameters


FOLDER, MANIFEST = "checkpoints", "manifest.json"


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, data_state: dict, keep: int, settings: dict | None = None
) -> Path:
    """Writes the checkpoint of `step` and removes all but the last `keep`. All processes must call it. `settings` of
    the run, which [`check_resume`] compares with those of the run that goes on from here."""
    final = folder / FOLDER / _name(step)
    temporary = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with without_warning("accelerate.utils.other", "Removed shared tensor"):  # tied weights, which load as they are
        accelerator.save_state(str(temporary))
    (temporary / f"data-{accelerator.process_index}.json").write_text(json.dumps(data_state), encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sizes = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
        manifest = {"step": step, "streams": STREAMS, "settings": settings, "files": sizes}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in _files(temporary):
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in list_checkpoints(folder)[:-keep]:
            # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
    accelerator.wait_for_everyone()
    return final


def check_run(config, result: str, also_applied: Collection[str] = ()) -> Changes:
    """What of `config` has changed since the last checkpoint of its run, before anything is loaded; nothing when there
    is none. Warns about a checkpoint of an earlier version, which has no settings to compare with.

    Raises:
        ValueError: when the run is finished, with a `result`; when its last checkpoint is broken; when a field has
            changed that can't, or `max_train_steps` are fewer than there have been.
    """
    folder = Path(config.output_dir)
    check_unfinished(folder, result)
    if not (found := list_checkpoints(folder)):
        return {}
    manifest = check_checkpoint(found[-1])
    if manifest["step"] > config.max_train_steps:
        raise ValueError(
            f"`max_train_steps` is {config.max_train_steps}, but {found[-1]} has {manifest['step']} steps: set it to "
            "as many or more, or remove that folder to go on from the checkpoint before it."
        )
    if manifest.get("settings") is None:
        warnings.warn(
            f"{found[-1]} was written by a version that did not keep the settings: fields that can't change in a run, "
            "such as `seed` and `batch_size`, must be what they were.",
            stacklevel=2,
        )
        return {}
    return check_resume(manifest["settings"], config, found[-1], also_applied)


def load_checkpoint(accelerator: Accelerator, folder: Path, changes: Changes | None = None) -> tuple[int, dict | None]:
    """Loads the last checkpoint under `folder`; returns its step and the data state of this process, or 0 and None
    when there is no checkpoint. Optimizers, schedules and averages keep their hyperparameters; `changes` of the
    settings are told.

    Raises:
        ValueError: when it is broken, or of another version of the sample streams.
    """
    for rest in (folder / FOLDER).glob(".step-*"):  # of a run that was killed while it wrote or removed one
        if accelerator.is_main_process and re.fullmatch(r"\.step-[0-9]+\.(tmp|old)", rest.name):
            shutil.rmtree(rest, ignore_errors=True)
    found = list_checkpoints(folder)
    if not found:
        return 0, None
    last = found[-1]
    manifest = check_checkpoint(last)
    if manifest.get("streams") != STREAMS:
        raise ValueError(
            f"The checkpoint {last} is of another version of uniwetok-hf, with other random numbers for its samples: "
            "finish the run with that version (commit 84bac22), or start a new run from its weights in another "
            "`output_dir`."
        )
    accelerator.print(f"Resuming from step {manifest['step']} ({last})")
    for name, (before, now) in (changes or {}).items():
        accelerator.print(f"`{name}` is {now!r} from here on, and was {before!r}")
    scaler = accelerator.scaler
    if not (last / SCALER_NAME).exists():  # of a run in another precision: the scale is found again
        accelerator.scaler = None
    with keep_hyperparameters(accelerator):
        accelerator.load_state(str(last))
    accelerator.scaler = scaler
    # Accelerate counts micro-batches, and a step may have another number of them now. Checkpoints are between steps.
    accelerator.step = 0
    # With more processes than before, those without a state of their own take the first's; the data decides whether
    # it can continue from that.
    own = last / f"data-{accelerator.process_index}.json"
    state = json.loads((own if own.exists() else last / "data-0.json").read_text(encoding="utf-8"))
    return manifest["step"], state


def check_checkpoint(path: Path) -> dict:
    """The manifest of a checkpoint, after comparing its files with it.

    Raises:
        ValueError: naming the checkpoint and the first file that is missing or of another size.
    """
    hint = "Remove that folder to resume from the previous checkpoint."
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"The checkpoint {path} has no readable {MANIFEST}. {hint}") from None
    for name, size in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise ValueError(f"The checkpoint {path} is broken: {name} {state}. {hint}")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first: folders called `step-` and digits, as they are written. Copies with
    other names, archives and links are of no concern here."""
    steps = {
        path: int(found[1])
        for path in (folder / FOLDER).glob("step-*")
        if (found := re.fullmatch(r"step-([0-9]+)", path.name)) and path.is_dir() and not path.is_symlink()
    }
    return sorted((path for path, step in steps.items() if path.name == _name(step)), key=steps.get)


def make_output_folder(path: str | os.PathLike, result: str) -> Path:
    """Creates the folder of a run, if it does not exist.

    Raises:
        ValueError: when it contains the `result` of a finished training.
    """
    folder = Path(path)
    check_unfinished(folder, result)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_unfinished(folder: Path, result: str) -> None:
    """
    Raises:
        ValueError: when the folder of a run contains the `result` of a finished training.
    """
    if (folder / result).exists():
        raise ValueError(
            f"`output_dir` {folder} holds the {result} of a finished training: name another, or remove it."
        )


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _flush(file: Path) -> None:
    """Waits until the file is on disk: the rename must not come first."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
