"""Any value of any field of the trainers is accepted, or refused by a ValueError that names the field."""

import copy
import dataclasses
import functools
import json
import math
import types
import typing

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from uniwetok_hf.cli.main import main
from uniwetok_hf.training.config import ConfigError, config_values, read_config, section_of
from uniwetok_hf.training.resume import check_resume, saved_settings
from uniwetok_hf.training.run import make_optimizer
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainingConfig
from uniwetok_hf.training.train_mllm import MLLMTrainingConfig
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainingConfig


PLAIN = {
    UniWeTokTrainingConfig: {
        "output_dir": "run",
        "data": [{"path": "pictures"}],
        "buckets": [{"height": 32, "width": 32}],
        "max_train_steps": 4,
        "batch_size": 4,
        "validation_data": {"path": "held-out"},
        "entropy": {},
        "perceptual": {"model": "backbone"},
        "adversarial": {},
        "distillation": {"teacher": "teacher"},
        "prior": {},
    },
    MLLMTrainingConfig: {
        "output_dir": "run",
        "data": [{"path": "codes", "task": "captions"}],
        "validation_data": [{"path": "held-out", "task": "captions"}],
        "max_train_steps": 4,
        "batch_size": 4,
        "init_from": "before",
        "lora": {},
    },
    ClassToImageTrainingConfig: {
        "output_dir": "run",
        "data": [{"path": "codes"}],
        "validation_data": [{"path": "held-out"}],
        "max_train_steps": 4,
        "batch_size": 4,
        "vision_model": "vision",
    },
}


def all_fields(config_class: type, path: tuple = ()) -> list[tuple]:
    """Of a config and its sections: where a field is in a file, and its type."""
    hints, found = typing.get_type_hints(config_class), []
    for field in dataclasses.fields(config_class):
        here, section = (*path, field.name), section_of(hints[field.name])
        found.append((here, hints[field.name]))
        if section:
            in_list = typing.get_origin(hints[field.name]) is list
            found += all_fields(section, (*here, 0) if in_list else here)
    return found


FIELDS = [(config_class, *field) for config_class in PLAIN for field in all_fields(config_class)]
NAMES = st.text(max_size=8) | st.sampled_from(["", "x", "\0", "half \ud83d", "*", "a/b.py:C", "1e5", "no"])
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 0.5, -0.5, math.nan, math.inf, -math.inf, 1e308])
    | st.floats()
    | st.dates()
    | st.binary(max_size=3)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers() | st.none(), inner, max_size=3),
    max_leaves=6,
)
OF_KIND = {
    int: st.integers() | st.integers(-2, 9),
    float: st.floats() | st.floats(-1, 2),
    str: NAMES,
    bool: st.booleans(),
    dict: st.dictionaries(NAMES, ANYTHING, max_size=3),
}


def fitting(hint) -> st.SearchStrategy:
    """Values of the type of a field, in range or not."""
    kind = typing.get_origin(hint) or hint
    if kind in (typing.Union, types.UnionType):
        return st.one_of(map(fitting, typing.get_args(hint)))
    if kind is list:
        return st.lists(fitting(typing.get_args(hint)[0]), max_size=3)
    return OF_KIND.get(kind, ANYTHING)


def placed(values: dict, path: tuple, value) -> dict:
    """A copy of the fields of a file with another value at `path`."""
    values = target = copy.deepcopy(values)
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    return values


def written(values: dict) -> str:
    return yaml.dump(values, Dumper=yaml.SafeDumper, allow_unicode=False)


def check_field(config_class: type, path: tuple, value, folder) -> None:
    """Accepted values are plain, and come back from the `config.json` of a run; on resume they are applied or refused
    by name."""
    file = folder / "config.yaml"
    file.write_text(written(placed(PLAIN[config_class], path, value)))
    try:
        config = read_config(config_class, file)
    except ConfigError as error:
        names = {str(name) for name in path if isinstance(name, str)}
        assert any(name in str(error).replace("\\", "") for name in names), error
        assert str(file) in str(error)
        return
    config_values(config)
    saved = json.dumps(saved_settings(config), allow_nan=False)
    assert check_resume(json.loads(saved), config, folder) == {}
    try:
        check_resume(_plain_settings(config_class, folder), config, folder)
    except ValueError as error:
        assert f"`{path[0]}" in str(error), error


@functools.cache
def _plain_settings(config_class: type, folder) -> dict:
    return saved_settings(read_config(config_class, _plain_file(config_class, folder)))


def _plain_file(config_class: type, folder):
    file = folder / f"{config_class.__name__}.yaml"
    file.write_text(written(PLAIN[config_class]))
    return file


@settings(max_examples=150)
@given(st.sampled_from(FIELDS), ANYTHING)
def test_any_value(tmp_path_factory, field, value):
    config_class, path, _ = field
    check_field(config_class, path, value, tmp_path_factory.getbasetemp())


@settings(max_examples=150)
@given(st.sampled_from(FIELDS), st.data())
def test_any_value_of_the_right_type(tmp_path_factory, field, data):
    config_class, path, hint = field
    check_field(config_class, path, data.draw(fitting(hint)), tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=5000)
@given(st.sampled_from(FIELDS), st.data())
def test_many_values(tmp_path_factory, field, data):
    config_class, path, hint = field
    check_field(config_class, path, data.draw(fitting(hint) | ANYTHING), tmp_path_factory.getbasetemp())


NO_FILES = {
    "itself": "a: &a [*a]",
    "too deep": "a: " + "[" * 600 + "]" * 600,
    "no date": "seed: 2020-13-45",
    "no number": "seed: !!int x",
    "no truth": "flip: !!bool x",
    "an object": "data: !!python/object:os.system {}",
    "a time": "data: !!timestamp x",
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(9),
    "several": "a: 1\n---\nb: 2\n",
    "a tab": "a:\t- 1\n\t- 2",
}


@pytest.mark.parametrize("text", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_what_is_no_file_of_settings(tmp_path, text, suffix, capsys):
    file = tmp_path / f"config.{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["train", "tokenizer", "--config", str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("uniwetok: error: ") and str(file) in line


@pytest.mark.parametrize("value", ["2020-13-45", "!!int x", "[", "&a [*a]", "x.json"])
def test_what_is_no_value(tmp_path, value, capsys):
    file = _plain_file(MLLMTrainingConfig, tmp_path)
    assert main(["train", "mllm", "--config", str(file), "--set", f"seed={value}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed" in line


SCHEDULES = {
    "unknown": {"lr_scheduler": "nothing"},
    "of a metric": {"lr_scheduler": "reduce_lr_on_plateau"},
    "an unknown argument": {"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"x": 1}},
    "an argument twice": {"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"num_warmup_steps": 1}},
    "text as an argument": {"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
    "an end above the start": {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
    "not finite": {"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"num_cycles": math.inf}},
}


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_are_refused_before_the_first_step(tmp_path, fields):
    import torch

    plain = read_config(UniWeTokTrainingConfig, _plain_file(UniWeTokTrainingConfig, tmp_path))
    config = dataclasses.replace(plain, **fields)
    with pytest.raises(ValueError, match="^`lr_scheduler`, `lr_warmup_steps`, `lr_scheduler_kwargs`: "):
        make_optimizer(config, [torch.nn.Parameter(torch.ones(1))], 1e-3, 100)
