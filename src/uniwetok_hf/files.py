# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Folders that are there as a whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path


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
