# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What both trainings share: reading a YAML config, the weight average, checkpoints that appear whole or not at
all."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import Dataset, default_collate


def read_config(config_class: type, path: str | os.PathLike, **overrides):
    """Reads a YAML file into the dataclass `config_class`; `overrides` that are not None win over the file.

    Raises:
        ValueError: for an unknown, missing or ill-typed field; the message names it and the ones there are.
    """
    import yaml

    with open(path) as file:
        values = yaml.safe_load(file) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got {type(values).__name__}.")
    values.update({name: value for name, value in overrides.items() if value is not None})
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{path}: unknown field {', '.join(unknown)}; the fields are {', '.join(fields)}.")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(f"{path}: missing field {', '.join(missing)}.")
    hints = typing.get_type_hints(config_class)
    for name, value in values.items():
        if hints[name] is float and isinstance(value, (int, str)):
            values[name] = _to_float(path, name, value)
        elif hints[name] in (int, str, bool) and type(value) is not hints[name]:
            raise ValueError(f"{path}: `{name}` must be {hints[name].__name__}, got {value!r}.")
    return config_class(**values)


def _to_float(path, name: str, value: int | str) -> float:
    """YAML 1.1 reads `1e-3` (no dot) as text; people write it all the same."""
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{path}: `{name}` must be a number, got {value!r}.") from None


def endless_batches(dataset: Dataset, batch_size: int, seed: int, skip: int = 0) -> Iterator:
    """Collated batches of `dataset` for ever, each epoch in an order of its own; the first `skip` are left out.

    Batch n is a function of `seed` and n alone (`dataset.generator`, which crops and flips, is reseeded for each), so
    a resumed run reads on exactly where it stopped.
    """
    per_epoch = len(dataset) // batch_size
    if per_epoch == 0:
        raise ValueError(f"`batch_size` is {batch_size}, but the split has only {len(dataset)} samples.")
    for step in itertools.count(skip):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == skip:
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(hash((seed, epoch)))).tolist()
        dataset.generator.manual_seed(hash((seed, epoch, position)))
        yield default_collate([dataset[i] for i in order[position * batch_size : (position + 1) * batch_size]])


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside the block new models start from `seed`; outside, torch's global generator is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def averaged_weights(ema: EMAModel, model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, `model` has its averaged weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Writes `folder`/checkpoint (models, optimizers, schedulers, random states and `step`) under another name, then
    renames it: a run killed at any time leaves the last whole checkpoint."""
    temporary, final, previous = folder / "checkpoint.tmp", folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(temporary, ignore_errors=True)
    accelerator.save_state(str(temporary))
    (temporary / "progress.json").write_text(json.dumps({"step": step}))
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
    temporary.rename(final)
    shutil.rmtree(previous, ignore_errors=True)


def make_output_folder(path: str | os.PathLike, result: str) -> Path:
    """The folder of a run, made if it is not there.

    Raises:
        ValueError: when a training was finished there, so that its `result` is not replaced unasked.
    """
    folder = Path(path)
    if (folder / result).exists():
        raise ValueError(
            f"`output_dir` {folder} holds the {result} of a finished training: name another, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_checkpoint(accelerator: Accelerator, folder: Path) -> int:
    """Loads the last checkpoint of `folder` and returns its step, or 0 when there is none."""
    for name in ("checkpoint", "checkpoint.old"):  # the second only when a run was killed between two renames
        if (folder / name / "progress.json").exists():
            accelerator.load_state(str(folder / name))
            return json.loads((folder / name / "progress.json").read_text())["step"]
    return 0


def save_final(model, ema: EMAModel, folder: Path) -> Path:
    """Saves the averaged weights as `folder`/model under a temporary name first."""
    temporary, final = folder / "model.tmp", folder / "model"
    with averaged_weights(ema, model):
        model.save_pretrained(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    return final
