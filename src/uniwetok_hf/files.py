# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Folders that are there as a whole or not at all, and names that can only be those of files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


LOCAL_FOLDERS = ("data/", "runs/")  # where commands, configs and docs put data sets and trainings


def save_whole(save: Callable[[Path], object], final: Path) -> Path:
    """Calls `save(folder)` with a temporary folder beside `final`, which is renamed to `final` when `save` returns. An
    older `final` is deleted after that."""
    temporary, old = (final.with_name(f".{final.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save(temporary)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def is_local_name(name: str | os.PathLike) -> bool:
    """Whether `name` can't be a repository on the Hub, which has at most one "/". Names in `LOCAL_FOLDERS` count as
    local too, so that a missing `data/pictures` is never taken from an account called "data"."""
    path = Path(name)
    is_outside_hub = path.is_absolute() or len(path.parts) > 2 or str(name).startswith((".", "~"))
    return is_outside_hub or f"{path.as_posix()}/".startswith(LOCAL_FOLDERS)
