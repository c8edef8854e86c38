# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Folders that are there as a whole or not at all, what is said when a disk is full, and names that can only be those
of files."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


LOCAL_FOLDERS = ("data/", "runs/")  # where commands, configs and docs put data sets and trainings


def save_whole(save: Callable[[Path], object], final: Path) -> Path:
    """Calls `save(folder)` with a temporary folder beside `final`, which is renamed to `final` when `save` returns. An
    older `final` is deleted after that.

    Raises:
        OSError: naming `final`, which is as before, when it can't be written.
    """
    temporary, old = (final.with_name(f".{final.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with writing(final):
        try:
            save(temporary)
            if final.exists():
                final.rename(old)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                old.rename(final)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return final


class WriteError(OSError):
    """A file or folder that can't be written, and why, in one line."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """A block that writes `path`. Each library has errors of its own for a full disk or a folder that is gone.

    Raises:
        WriteError: naming `path` and the reason, for any of these errors.
    """
    try:
        yield
    except (WriteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # that of torch.distributed.checkpoint is no `Exception`
        if (reason := write_failure(error)) is None:
            raise
        raise WriteError(f"{path} can't be written: {reason}") from error


def write_failure(error: BaseException) -> str | None:
    """Why something could not be written, when `error` is what one of the libraries that write here says of a full
    disk, a folder that is gone and so on; None for errors of another kind."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else text
    kind = type(error).__name__
    if kind in ("SafetensorError", "CheckpointException") and (
        found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", text)
    ):
        return os.strerror(int(found[1] or found[2]))
    if isinstance(error, RuntimeError) or kind == "CheckpointException":  # of torch.save, which does not say why
        if found := re.search(r"Parent directory (.*) does not exist", text):
            return f"the folder {found[1]} does not exist"
        if re.search(r"inline_container|PytorchStreamWriter|iostream error", text):
            return "not all of it could be written; is the disk full?"
    return None


def is_local_name(name: str | os.PathLike) -> bool:
    """Whether `name` can't be a repository on the Hub, which has at most one "/". Names in `LOCAL_FOLDERS` count as
    local too, so that a missing `data/pictures` is never taken from an account called "data"."""
    path = Path(name)
    is_outside_hub = path.is_absolute() or len(path.parts) > 2 or str(name).startswith((".", "~"))
    return is_outside_hub or f"{path.as_posix()}/".startswith(LOCAL_FOLDERS)
