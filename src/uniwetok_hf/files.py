# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Folders that are there as a whole or not at all, and names that can only be those of files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


OUR_FOLDERS = (("runs",), ("data",))


def save_whole(save: Callable[[Path], object], final: Path) -> Path:
    """Calls `save(folder)` with a temporary folder beside `final` and renames it when all of it is there; an older
    `final` goes away after that."""
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
    """Whether this can't be the name of a repository on the Hub, which has one "/" at the most. Of what lies in `runs`
    or `data`, as everything that the shipped configs name, nobody asks the Hub."""
    path = Path(name)
    return (
        path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2 or path.parts[:1] in OUR_FOLDERS
    )
