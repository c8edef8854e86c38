# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a training that can be killed at any moment.

A checkpoint is a folder `checkpoints/step-000500`: what Accelerate saves (models, optimizers, schedulers, averages,
random states), `data-<process>.json` (the position of each process in its data) and `manifest.json` (the step, the
version of the sample streams, and the size of every file). It is written under a temporary name and renamed when it is
complete. The last few checkpoints are kept. A checkpoint whose files differ in size from its manifest is refused.
"""

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from ..data.samples import STREAMS
from ..quiet import without_warning


FOLDER, MANIFEST = "checkpoints", "manifest.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, data_state: dict, keep: int) -> Path:
    """Writes the checkpoint of `step` and removes all but the last `keep`. All processes must call it."""
    final = folder / FOLDER / f"step-{step:06d}"
    temporary = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with without_warning("accelerate.utils.other", "Removed shared tensor"):  # tied weights, which load as they are
        accelerator.save_state(str(temporary))
    (temporary / f"data-{accelerator.process_index}.json").write_text(json.dumps(data_state))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sizes = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
        manifest = {"step": step, "streams": STREAMS, "files": sizes}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in _files(temporary):
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in list_checkpoints(folder)[:-keep]:
            # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, folder: Path) -> tuple[int, dict | None]:
    """Loads the last checkpoint under `folder`; returns its step and the data state of this process, or 0 and None
    when there is no checkpoint.

    Raises:
        ValueError: when it is broken, or of another version of the sample streams.
    """
    for rest in (folder / FOLDER).glob(".step-*"):
        if accelerator.is_main_process:
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
    accelerator.load_state(str(last))
    # Accelerate counts micro-batches, and a step may have another number of them now. Checkpoints are between steps.
    accelerator.step = 0
    # With more processes than before, those without a state of their own take the first's; the data decides whether
    # it can continue from that.
    own = last / f"data-{accelerator.process_index}.json"
    state = json.loads((own if own.exists() else last / "data-0.json").read_text())
    return manifest["step"], state


def check_checkpoint(path: Path) -> dict:
    """The manifest of a checkpoint, after comparing its files with it.

    Raises:
        ValueError: naming the checkpoint and the first file that is missing or of another size.
    """
    hint = "Remove that folder to resume from the previous checkpoint."
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise ValueError(f"The checkpoint {path} has no readable {MANIFEST}. {hint}") from None
    for name, size in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise ValueError(f"The checkpoint {path} is broken: {name} {state}. {hint}")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first."""
    return sorted((folder / FOLDER).glob("step-*"), key=lambda path: int(path.name.split("-")[1]))


def make_output_folder(path: str | os.PathLike, result: str) -> Path:
    """Creates the folder of a run, if it does not exist.

    Raises:
        ValueError: when it contains the `result` of a finished training.
    """
    folder = Path(path)
    if (folder / result).exists():
        raise ValueError(
            f"`output_dir` {folder} holds the {result} of a finished training: name another, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _flush(file: Path) -> None:
    """Waits until the file is on disk: the rename must not come first."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
