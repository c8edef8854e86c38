# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A folder of generated pictures knows what made it: a run goes on with the same settings and weights only."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..files import read_json, whole_file, writing


SETTINGS_FILE = "settings.json"
LATER = {"sources"}  # settings that earlier versions did not save


def weights_digest(*models) -> str:
    """SHA-256 of the weights of models, by name."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def told(settings: Mapping, names: Iterable[str]) -> dict:
    """Those of the settings that are set, as lines of a report's protocol."""
    return {name.replace("_", " "): settings[name] for name in names if settings.get(name) is not None}


def save_json(path: Path, values: Mapping) -> None:
    """Saves an object, whole or not at all; half of a surrogate pair as an escape.

    Raises:
        OSError: when the file can't be written.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False)
    with whole_file(path, is_shared=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_begun(folder: Path, settings: Mapping, outputs: Iterable[str] = ()) -> bool:
    """Whether a run has begun in the folder.

    Args:
        outputs: files and folders in it that the run makes, which would be taken for its own when they are there.

    Raises:
        ValueError: when it has, with other settings; when it has not, but there are outputs.
    """
    path = folder / SETTINGS_FILE
    # Before the settings: another process of the run saves these first.
    found = [name for name in outputs if _holds_something(folder / name)]
    if not path.is_file():
        if found:
            raise ValueError(
                f"{folder} holds {found[0]}, but no {SETTINGS_FILE} that it was made with: name another folder, or "
                "empty this one."
            )
        return False
    before = read_json(path)
    for name, value in settings.items():
        if before.get(name) != value and not (name in LATER and name not in before):
            raise ValueError(
                f"`{name}`: {folder} was begun with {before.get(name)!r}, and can't go on with {value!r}; name "
                "another folder, or remove this one."
            )
    return True


def _holds_something(path: Path) -> bool:
    """Whether `path` is a file, or a folder that is not empty."""
    try:
        return any(path.iterdir()) if path.is_dir() else path.exists()
    except FileNotFoundError:  # another process has just removed its parts
        return False


def begin_run(folder: Path, settings: Mapping, notes: Mapping | None = None, outputs: Iterable[str] = ()) -> None:
    """Makes the folder and saves `settings` and `notes` in it, or compares the settings with those that it was begun
    with.

    Raises:
        ValueError: as [`check_begun`].
        OSError: when the folder can't be written.
    """
    path = folder / SETTINGS_FILE
    if check_begun(folder, settings, outputs):
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_json(path, {**settings, **(notes or {})})
