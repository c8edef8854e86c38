# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a training that can be killed at any moment.

A checkpoint is a folder `checkpoints/step-000500`: what Accelerate saves (models, optimizers, schedulers, averages,
random states), `data-<process>.json` (the position of each process in its data) and `manifest.json` (the step, the
settings of the run, the version of the sample streams, and the size of every file). It is written under a temporary
name and renamed when it is complete. The last few checkpoints are kept. A checkpoint whose files differ in size from
its manifest is refused.

Only folders called `step-` and digits are checkpoints, and links of such a name to a folder with a manifest: they may
be moved to another disk. Of a link only the link is removed. Whatever else lies beside them is neither read nor
removed.

Where each node has a disk of its own, each keeps a checkpoint with a manifest of its own, with the weights and the
files of its own processes; a run goes on from the last step that all nodes have.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, broadcast_object_list, gather_object

from ..data.samples import STREAMS
from ..files import one_line, read_json, writing
from ..quiet import without_warning
from .agreement import LOST, any_process, written_together
from .resume import Changes, check_resume, keep_hyperparameters
from .sharding import ShardedState, layout_of, shares_weights


FOLDER, MANIFEST = "checkpoints", "manifest.json"
HINT = "Remove that folder to resume from the previous checkpoint."


class CheckpointWriter:
    """Writes the checkpoints of a run, and removes all but the last `keep`.

    The `shards` of a sharded training are copied when it says so, and written in the background, while the training
    goes on. At most one checkpoint is on its way, under its temporary name."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        keep: int,
        shards: ShardedState | None = None,
        written: Callable[[int], None] = lambda step: None,
    ):
        """`written` is called with the step of a checkpoint that is complete, on the processes that know it."""
        self.accelerator, self.folder, self.keep, self.shards = accelerator, folder, keep, shards
        self.written, self.leads = written, leads_folder(accelerator)
        self.step: int | None = None  # of the checkpoint that is on its way
        self.is_complete = False  # as far as this process knows
        self.manifest: dict = {}
        self.background: Future | None = None
        self.failure: OSError | None = None

    @property
    def final(self) -> Path:
        return self.folder / FOLDER / _name(self.step or 0)

    @property
    def temporary(self) -> Path:
        return self.final.with_name(f".{self.final.name}.tmp")

    def save(self, step: int, data_state: dict, settings: dict | None = None) -> Path:
        """Writes the checkpoint of `step`, or begins to, and returns its folder. All processes must call it.
        `settings` of the run, which [`check_resume`] compares with those of the run that goes on from here.

        Raises:
            OSError: on all processes, when one can't write (a full disk, a folder that is gone); nothing of the
                checkpoint is left, and those before stay.
        """
        self.finish()
        self.step, self.is_complete, accelerator = step, False, self.accelerator
        self.manifest = {"step": step, "streams": STREAMS, "layout": layout_of(accelerator), "settings": settings}
        try:
            with written_together(accelerator, self.final):
                if self.leads:
                    if not self.folder.is_dir():  # a mount that is gone must not be written beside
                        raise OSError(f"the folder {self.folder} does not exist any more")
                    shutil.rmtree(self.temporary, ignore_errors=True)
                    self.temporary.mkdir(parents=True)
            with written_together(accelerator, self.final):
                data = self.temporary / f"data-{accelerator.process_index}.json"
                data.write_text(json.dumps(data_state), encoding="utf-8")
                if self.shards is not None:
                    self.shards.save_small(self.temporary)
                else:
                    # Of tied weights, which load as they are.
                    with without_warning("accelerate.utils.other", "Removed shared tensor"):
                        accelerator.save_state(str(self.temporary))
        except OSError:
            self._give_up()
            raise
        final = self.final
        if self.shards is not None:
            self.background = self.shards.save_shards(self.temporary)
        else:
            self.finish()
        return final

    def poll(self) -> None:
        """Completes a checkpoint whose shards are written by all processes. It waits for the disk, and for no process;
        a failure is told by [`has_failed`]."""
        background = self.background
        if background is None or not self.leads or self.is_complete or self.failure is not None:
            return
        if not background.done() or background.exception():
            return
        try:
            with writing(self.final):
                self._describe()
                self._rename()
        except OSError as error:
            self.failure = error

    def rescue(self, seconds: float = 60) -> None:
        """After an error, of whatever process: completes the checkpoint that is on its way, if all have written their
        shards within so many seconds."""
        if self.background is not None and self.leads:
            wait([self.background], seconds)
            self.poll()

    @property
    def has_failed(self) -> bool:
        """Whether this process could not write in the background. Then all must call [`finish`]."""
        background = self.background
        return self.failure is not None or (
            background is not None and background.done() and bool(background.exception())
        )

    def finish(self) -> None:
        """Waits for the checkpoint that is on its way. All processes must call it.

        Raises:
            OSError: on all processes, when one can't write it.
        """
        if self.step is None:
            return
        try:
            with written_together(self.accelerator, self.final):
                if self.failure is not None:
                    raise self.failure
                if self.background is not None:
                    self.background.result()
                if self.leads and not self.is_complete:
                    self._describe()
            with written_together(self.accelerator, self.final):  # no node renames what another could not write
                if self.leads and not self.is_complete:
                    self._rename()
        except OSError:
            self._give_up()
            raise
        self.step = self.background = None
        self.accelerator.wait_for_everyone()

    def _describe(self) -> None:
        """Writes the manifest, and waits until all files are on disk: the rename must not come first."""
        sizes = {str(file.relative_to(self.temporary)): file.stat().st_size for file in _files(self.temporary)}
        manifest = json.dumps(self.manifest | {"files": sizes}, indent=1)
        (self.temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        for file in _files(self.temporary):
            _flush(file)

    def _rename(self) -> None:
        _remove(self.final)
        self.temporary.rename(self.final)
        self.is_complete = True
        for old in list_checkpoints(self.folder)[: -self.keep]:
            # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
            _remove(old.rename(old.with_name(f".{old.name}.old")))
        self.written(self.step)

    def _give_up(self) -> None:
        if self.leads:
            shutil.rmtree(self.temporary, ignore_errors=True)
        self.step = self.background = self.failure = None


def check_run(accelerator: Accelerator, config, result: str, also_applied: Collection[str] = ()) -> Changes:
    """What of `config` has changed since the last checkpoint of its run, before anything is loaded; nothing when there
    is none. All processes must call it. Warns about a checkpoint of an earlier version, which has no settings to
    compare with.

    Raises:
        ValueError: when the run is finished, with a `result`; when its last checkpoint is broken; when a field has
            changed that can't, or `max_train_steps` are fewer than there have been.
    """
    folder = Path(config.output_dir)
    check_unfinished(folder, result)
    if (last := last_checkpoint(accelerator, folder)) is None:
        return {}
    manifest = check_checkpoint(last)
    if manifest["step"] > config.max_train_steps:
        raise ValueError(
            f"`max_train_steps` is {config.max_train_steps}, but {last} has {manifest['step']} steps: set it to "
            "as many or more, or remove that folder to go on from the checkpoint before it."
        )
    if manifest.get("settings") is None:
        warnings.warn(
            f"{last} was written by a version that did not keep the settings: fields that can't change in a run, "
            "such as `seed` and `batch_size`, must be what they were.",
            stacklevel=2,
        )
        return {}
    return check_resume(manifest["settings"], config, last, also_applied)


def leads_folder(accelerator: Accelerator) -> bool:
    """Whether this process makes and renames the folders of a run: the first one, or where each node has a disk of its
    own, the first one of each node."""
    each_node = accelerator.project_configuration.save_on_each_node
    return accelerator.is_local_main_process if each_node else accelerator.is_main_process


def find_own_disks(accelerator: Accelerator, folder: Path) -> None:
    """Finds out whether all processes see the same `folder`. Where they don't, each node keeps checkpoints of its own
    from now on: the files of its processes, and the weights. All processes must call it.

    Raises:
        ValueError: under FSDP and DeepSpeed, where a checkpoint needs the shards of all nodes.
    """
    if accelerator.num_processes == 1:
        return
    token = broadcast_object_list([uuid.uuid4().hex])[0]
    mark = folder / f".{token}"
    with written_together(accelerator, mark):
        if accelerator.is_main_process:
            mark.touch()
    is_own = any_process(not mark.exists(), accelerator)
    accelerator.wait_for_everyone()
    mark.unlink(missing_ok=True)
    if is_own and shares_weights(accelerator):
        raise ValueError(
            f"`output_dir` {folder} is another folder on other nodes. Under FSDP and DeepSpeed it must be on a disk "
            "that all nodes share, since each of them writes a part of the weights."
        )
    accelerator.project_configuration.save_on_each_node = is_own


def load_checkpoint(
    accelerator: Accelerator, folder: Path, changes: Changes | None = None, shards: ShardedState | None = None
) -> tuple[int, dict | None]:
    """Loads the last checkpoint under `folder`; returns its step and the data state of this process, or 0 and None
    when there is no checkpoint. Optimizers, schedules and averages keep their hyperparameters; `changes` of the
    settings are told.

    Raises:
        ValueError: when it is broken, of another version of the sample streams, or in another layout.
    """
    for rest in (folder / FOLDER).glob(".step-*"):  # of a run that was killed while it wrote or removed one
        if leads_folder(accelerator) and re.fullmatch(r"\.step-[0-9]+\.(tmp|old)", rest.name):
            _remove(rest, ignore_errors=True)
    last = last_checkpoint(accelerator, folder)
    if last is None:
        return 0, None
    manifest = check_checkpoint(last)
    if manifest.get("streams") != STREAMS:
        raise ValueError(
            f"The checkpoint {last} is of another version of uniwetok-hf, with other random numbers for its samples: "
            "finish the run with that version (commit 84bac22), or start a new run from its weights in another "
            "`output_dir`."
        )
    before, now = manifest.get("layout"), layout_of(accelerator)  # earlier versions did not note it
    if before not in (None, now):
        raise ValueError(
            f"The checkpoint {last} has {before}, and this start would read {now}: start the run as before, with the "
            "same kind of Accelerate's configuration (under DeepSpeed also with as many processes)."
        )
    accelerator.print(f"Resuming from step {manifest['step']} ({last})")
    for name, (before, now) in (changes or {}).items():
        accelerator.print(f"`{name}` is {now!r} from here on, and was {before!r}")
    scaler = accelerator.scaler
    if not (last / SCALER_NAME).exists():  # of a run in another precision: the scale is found again
        accelerator.scaler = None
    with readable(last), keep_hyperparameters(accelerator):
        if shards is not None:
            shards.load(last)
        else:
            accelerator.load_state(str(last))
    accelerator.scaler = scaler
    # Accelerate counts micro-batches, and a step may have another number of them now. Checkpoints are between steps.
    accelerator.step = 0
    with readable(last):
        return manifest["step"], read_data_state(accelerator, last)


def read_data_state(accelerator: Accelerator, checkpoint: Path) -> dict:
    """The data state of this process. With more processes than before, those without a state of their own take the
    first's; the data decides whether it can continue from that."""
    own = checkpoint / f"data-{accelerator.process_index}.json"
    path = own if own.exists() else min(checkpoint.glob("data-*.json"))
    state = read_json(path)
    if path != own:  # what the first left out is counted there
        state["skipped"] = None
    return state


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Names the checkpoint in what the libraries raise of a file whose size is right and whose content is not."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        is_told = isinstance(error, ValueError) and str(error).startswith(("The checkpoint", "`"))
        if is_told or LOST.search(str(error)):
            raise
        why = f"{type(error).__name__}: {one_line(error)[:500]}"
        raise ValueError(f"The checkpoint {checkpoint} is broken: {why}. {HINT}") from error


def last_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The last checkpoint that every process finds. A run killed while nodes with disks of their own wrote a
    checkpoint may have left it on some of them only.

    Raises:
        ValueError: when there are checkpoints, but none that all have.
    """
    names = [path.name for path in list_checkpoints(folder)]
    if accelerator.num_processes == 1:
        return folder / FOLDER / names[-1] if names else None
    found = gather_object([names])  # of each process
    common = [name for name in names if all(name in other for other in found)]
    if not common and any(found):
        listed = "; ".join(f"process {index}: {', '.join(other) or 'none'}" for index, other in enumerate(found))
        raise ValueError(
            f"`output_dir` {folder}: the processes don't see the same checkpoints ({listed}). Copy the folder of one "
            "of them to all nodes, or use a disk that they share."
        )
    return folder / FOLDER / common[-1] if common else None


def check_checkpoint(path: Path) -> dict:
    """The manifest of a checkpoint, after comparing its files with it.

    Raises:
        ValueError: naming the checkpoint and the first file that is missing or of another size.
    """
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        manifest = {}
    settings = manifest.get("settings")
    forms = [settings.get(form) for form in ("written", "absolute")] if isinstance(settings, dict) else []
    is_known = settings is None or (forms and all(isinstance(form, dict) for form in forms))
    if type(manifest.get("step")) is not int or not isinstance(manifest.get("files"), dict) or not is_known:
        raise ValueError(f"The checkpoint {path} has no readable {MANIFEST}. {HINT}")
    for name, size in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} of {size} bytes"
            raise ValueError(f"The checkpoint {path} is broken: {name} {state}. {HINT}")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first: folders called `step-` and digits, as they are written, and links to
    them. Copies with other names, archives and links to something else are of no concern here."""
    steps = {
        path: int(found[1])
        for path in (folder / FOLDER).glob("step-*")
        if (found := re.fullmatch(r"step-([0-9]+)", path.name))
        and (path / MANIFEST if path.is_symlink() else path).exists()
        and path.is_dir()
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


def _remove(path: Path, ignore_errors: bool = False) -> None:
    """Removes a folder, if there is one; of a link to a folder, the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _flush(file: Path) -> None:
    """Waits until the file is on disk: the rename must not come first."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
