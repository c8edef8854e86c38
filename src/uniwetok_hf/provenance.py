# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Which frozen networks a checkpoint was trained with, so that none of them judges its pictures.

A network gives flattering scores to a model whose training loss used it. `training.json` in a model's folder therefore
names every network that a training loss used (distillation teacher, perceptual loss) with digests of its weights, and
those of the trainings that it started from:

    {"format": 1, "is_complete": true,
     "loss_models": [{"role": "teacher", "name": "siglip2-so400m", "weights": ["0f3a...", ...]}]}

A digest is made of the signs of a weight matrix, so a model is recognized in another dtype, under other parameter
names, in shards, or when only its vision half was loaded.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .files import read_json


RECORD = "training.json"
FORMAT = 1
SMALLEST = 256  # values of the smallest matrix that has a digest


@dataclass(frozen=True)
class LossModel:
    """A frozen network of a training: its `role` ("teacher", "perceptual", ...), `name` and `weights` (digests)."""

    role: str
    name: str
    weights: tuple[str, ...]


def weight_digests(model: torch.nn.Module) -> tuple[str, ...]:
    """One digest for each weight matrix of `model`, sorted; matrices whose values all have one sign have none."""
    digests = set()
    for parameter in model.parameters():
        if parameter.ndim < 2 or parameter.numel() < SMALLEST:
            continue
        signs = torch.signbit(parameter.detach()).flatten().cpu().numpy()
        if 0 < signs.sum() < len(signs):
            digests.add(hashlib.sha256(np.packbits(signs).tobytes()).hexdigest()[:16])
    return tuple(sorted(digests))


def short_name(source: str | os.PathLike) -> str:
    """The name of a model in results: the end of a folder's path, since the rest is private, or a Hub name."""
    if not os.path.exists(source):
        return str(source)
    path = Path(source).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("model", "pipeline") else path.name


def loss_model(role: str, model: torch.nn.Module, name: str | None = None) -> LossModel:
    """The record of a frozen network; by default its name is the one that it was loaded by."""
    config = getattr(model, "config", None)
    found = name or getattr(config, "_name_or_path", "") or type(model).__name__
    return LossModel(role, short_name(found), weight_digests(model))


def training_record(models: Iterable[LossModel] = (), started_from: Iterable[str | os.PathLike] = ()) -> dict:
    """
    The fields of `training.json` in the model's folder; a training may add others.

    Args:
        models: the frozen networks of this training; that there are none is recorded too.
        started_from: folders of the models that this training started from or contains; their records are included.
            A folder without a record makes this one incomplete, which is recorded as well.
    """
    known, is_complete = list(models), True
    for other in started_from:
        record = read_training_record(other)
        known += record.loss_models if record is not None else ()
        is_complete = is_complete and record is not None and record.is_complete
    unique = {(model.role, model.weights): model for model in known}
    return {"format": FORMAT, "is_complete": is_complete, "loss_models": [asdict(m) for m in unique.values()]}


@dataclass(frozen=True)
class TrainingRecord:
    """`loss_models`; `is_complete` is false when an earlier training left no record."""

    loss_models: tuple[LossModel, ...]
    is_complete: bool = True


def read_training_record(folder: str | os.PathLike) -> TrainingRecord | None:
    """The record of a model's or a pipeline's folder; None when it has none.

    Raises:
        ValueError: for a file that is not such a record.
    """
    path = next((p for p in (Path(folder) / RECORD, Path(folder) / "mllm" / RECORD) if p.is_file()), None)
    if path is None:
        return None
    try:
        values = read_json(path)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, this package reads {FORMAT}")
        return TrainingRecord(tuple(_loss_model(item) for item in values["loss_models"]), bool(values["is_complete"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no training record ({type(error).__name__}: {error}).") from error


def _loss_model(values: Mapping) -> LossModel:
    return LossModel(str(values["role"]), str(values["name"]), tuple(map(str, values["weights"])))


def find_seen(judge: torch.nn.Module, folder: str | os.PathLike) -> tuple[LossModel | None, str]:
    """
    Whether the model in `folder` was trained against `judge`.

    Returns:
        The recorded network that half or more of the judge's weight matrices (or of its own, if those are fewer) are
        equal to, or None; and what is known, in words for a result's protocol.

    Raises:
        ValueError: for a damaged record.
    """
    record = read_training_record(folder)
    if record is None:
        return None, f"not known, the model has no {RECORD}"
    own = set(weight_digests(judge))
    for seen in record.loss_models:
        smaller = min(len(own), len(seen.weights))
        if smaller and 2 * len(own & set(seen.weights)) >= smaller:
            return seen, f"yes, it is {seen.name} ({seen.role})"
    names = ", ".join(f"{seen.name} ({seen.role})" for seen in record.loss_models) or "no frozen network"
    return None, f"no, they used {names}" + ("" if record.is_complete else "; earlier trainings left no record")


def check_unseen(judge: torch.nn.Module, name: str, folder: str | os.PathLike) -> str:
    """
    Refuses a judge that the model in `folder` was trained against.

    Returns:
        What is known, in words for a result's protocol.

    Raises:
        ValueError: when it was, or for a damaged record.
    """
    seen, words = find_seen(judge, folder)
    if seen is not None:
        raise ValueError(
            f"`judge` {name} has the weights of {seen.name}, the {seen.role} that this model was trained with: its "
            "scores would be flattered. Give a model that no training loss used."
        )
    return words
