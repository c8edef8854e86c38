# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What may change between a checkpoint and the run that goes on from it.

Each field of a config says so itself (`on_resume` of [`setting`]). A change is applied from the next step on, or
refused by the name of the field. A checkpoint keeps the settings of its run in its manifest.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LambdaLR

from ..data.places import is_place
from .config import APPLY, KEEP_NULL, absolute_paths, expand_home, section_of


Changes = dict[str, tuple]  # by the name of the field: the value before and the value now


def saved_settings(config) -> dict:
    """The settings of a config for a checkpoint, as values of JSON: as written, and with absolute paths."""
    written = dataclasses.asdict(config)
    return json.loads(json.dumps({"written": written, "absolute": absolute_paths(written)}))


def check_resume(saved: dict, config, checkpoint: Path, also_applied: Collection[str] = ()) -> Changes:
    """Compares a config with the settings of the checkpoint from which its run goes on.

    A path is the same when it is written in the same way or names the same file, so a run can be moved.

    Args:
        saved: what [`saved_settings`] gave for the run that wrote the checkpoint.
        config: the settings of now.
        checkpoint: named in the error.
        also_applied: fields, of sections without their number (`data.weight`), that may change in this run although
            they may not in all.

    Returns:
        The changes that apply from now on.

    Raises:
        ValueError: naming every field that can't change.
    """
    now = saved_settings(config)
    applied, refused = ({}, {}), ({}, {})
    for index, form in enumerate(("written", "absolute")):
        before = expand_home(saved[form])  # earlier versions saved `~` as it was written
        _compare(type(config), before, now[form], "", also_applied, applied[index], refused[index])
    if names := [name for name in refused[0] if name in refused[1]]:
        changes = "; ".join(f"`{name}` is {refused[0][name][1]!r} and was {refused[0][name][0]!r}" for name in names)
        raise ValueError(
            f"{changes} in the run that wrote {checkpoint}, which can't go on with another value. Set it back, or "
            "name another `output_dir` for a run of its own."
        )
    return {name: change for name, change in applied[0].items() if name in applied[1]}


def vocabulary_digest(vocabulary) -> str:
    """SHA-256 of the tokens of a text tokenizer and their ids."""
    return hashlib.sha256(json.dumps(vocabulary.get_vocab(), sort_keys=True).encode()).hexdigest()


def check_data(saved: dict, now: dict, sources: Sequence) -> None:
    """Compares what lies behind the same settings with what did. What is not there or None, as in checkpoints of
    earlier versions, is not compared.

    Args:
        saved, now: `rows` of each source (with other ones the order of all rows would be another), `encoder`, the
            fingerprint of the image tokenizer of the codes, `vocabulary`, the digest of a text vocabulary that the run
            has trained, and `classes`, their names by number, or how many there are.
        sources: of the rows.

    Raises:
        ValueError: naming the field whose data have changed.
    """

    def changed(name: str) -> bool:
        return None not in (saved.get(name), now.get(name)) and saved[name] != now[name]

    sizes = zip(saved.get("rows") or [], now["rows"], strict=False)
    found = [
        f"`data[{index}].path` {sources[index].path} has {new} rows and had {old}"
        for index, (old, new) in enumerate(sizes)
        if None not in (old, new) and old != new
    ]
    if changed("encoder"):
        before, after = saved["encoder"][:12], now["encoder"][:12]
        found.append(
            f"`data[0].path` {sources[0].path} is encoded by the image tokenizer {after}, and was by {before}"
        )
    if changed("vocabulary"):
        found.append("`text_model`: the vocabulary that is made of the texts of `data` is another than it was")
    if changed("classes"):
        found.append(f"`labels`: {_changed_class(saved['classes'], now['classes'])}")
    if found:
        raise ValueError(
            f"{found[0]} when the checkpoint was written: the run can't go on with that. Put the old data back, or "
            "name another `output_dir`."
        )


def _changed_class(before: list[str] | int, now: list[str] | int) -> str:
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        index = next(index for index, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        return f"class {index} of the data is {now[index]!r} and was {before[index]!r}"
    counts = [len(classes) if isinstance(classes, list) else classes for classes in (now, before)]
    return f"the data have {counts[0]} classes and had {counts[1]}"


def _compare(config_class, saved: dict, now: dict, prefix: str, also_applied, applied: Changes, refused: Changes):
    """Adds the fields whose values differ to `applied` or `refused`."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name, rule, section = prefix + field.name, field.metadata.get("on_resume"), section_of(hints[field.name])
        before, value = saved.get(field.name, _default(field)), now[field.name]
        if _same(before, value):
            continue
        if rule == APPLY or name in also_applied:
            applied[name] = before, value
        elif isinstance(rule, tuple) and isinstance(before, dict) and isinstance(value, dict):
            for key in sorted(before.keys() | value.keys()):
                if not _same(before.get(key), value.get(key)):
                    change = before.get(key), value.get(key)
                    (applied if key in rule else refused)[f"{name}.{key}"] = change
        elif rule == KEEP_NULL and before is not None and value is not None:
            applied[name] = before, value
        elif section and isinstance(before, dict) and isinstance(value, dict):
            _compare(section, before, value, f"{name}.", also_applied, applied, refused)
        elif section and isinstance(before, list) and isinstance(value, list) and len(before) == len(value):
            for index, (one, other) in enumerate(zip(before, value, strict=True)):
                changes: tuple[Changes, Changes] = {}, {}
                _compare(section, one, other, f"{name}.", also_applied, *changes)
                for found, target in zip(changes, (applied, refused), strict=True):
                    target |= {f"{name}[{index}]{inner[len(name) :]}": change for inner, change in found.items()}
        else:
            refused[name] = before, value


def _default(field: dataclasses.Field):
    """What a run of a version without this field did."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return None if field.default is dataclasses.MISSING else field.default


def _same(before, value) -> bool:
    if isinstance(before, str) and isinstance(value, str):
        if is_place(before) and is_place(value):
            return Path(before).name == Path(value).name
        if os.path.exists(before) and os.path.exists(value):
            return os.path.samefile(before, value)
    return json.dumps(before, sort_keys=True) == json.dumps(value, sort_keys=True)  # NaN equals itself


@contextlib.contextmanager
def keep_hyperparameters(accelerator: Accelerator) -> Iterator[None]:
    """What the block loads into optimizers, schedules and averages is their progress. Learning rates, betas and decays
    stay what the config says."""
    optimizers = [
        (optimizer, [{name: value for name, value in group.items() if name != "params"} for group in groups])
        for optimizer in accelerator._optimizers
        for groups in [optimizer.param_groups]
    ]
    schedules = [getattr(scheduler, "scheduler", scheduler) for scheduler in accelerator._schedulers]
    rates = [list(schedule.base_lrs) for schedule in schedules]
    averages = [
        (each, each.decay, each.min_decay) for each in accelerator._custom_objects if isinstance(each, EMAModel)
    ]
    yield
    for optimizer, groups in optimizers:
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
            _place_steps(optimizer, group)
    for schedule, base_lrs in zip(schedules, rates, strict=True):
        schedule.base_lrs = base_lrs
        if isinstance(schedule, LambdaLR):  # all of transformers.get_scheduler that follow the steps alone
            schedule._last_lr = [
                base * factor(schedule.last_epoch) for base, factor in zip(base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
                group["lr"] = rate
    for average, decay, min_decay in averages:
        average.decay, average.min_decay = decay, min_decay


def _place_steps(optimizer, group: dict) -> None:
    """A fused optimizer counts steps beside its parameters; one that was not, and wrote the checkpoint, on the CPU."""
    for parameter in group["params"] if group.get("fused") else ():
        if torch.is_tensor(step := optimizer.state.get(parameter, {}).get("step")):
            optimizer.state[parameter]["step"] = step.to(parameter.device, torch.float32)
