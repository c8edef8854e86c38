# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Settings of a training: a dataclass whose fields explain themselves, read from a YAML file.

    @dataclass
    class Config:
        batch_size: int = setting(help="pictures a step")
        seed: int = setting(0, "seed of all random choices")

A field may be a dataclass itself (a section of the file), a list of them, or None where a part can be left out.
"""

import copy
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"


def setting(default=dataclasses.MISSING, help: str = ""):
    """A dataclass field with an explanation; without a default it has to be given."""
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def find_config(name: str | os.PathLike) -> Path:
    """The file `name`, or the shipped config of that name.

    Raises:
        ValueError: when there is neither.
    """
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ValueError(f"`config` {name}: no such file; those that ship are {', '.join(shipped_configs())}.")


def read_config(config_class: type, path: str | os.PathLike, **overrides):
    """Reads the YAML file `path` into `config_class`. `overrides` win over the file; `section.field` changes one field
    of a section.

    Raises:
        ValueError: for an unknown, missing or ill-typed field; the message names the file and the field.
    """
    import yaml

    with open(path) as file:
        try:
            values = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got {type(values).__name__}.")
    for name, value in overrides.items():
        _put(values, name.split("."), value, path)
    return _build(config_class, values, f"{path}: ", "")


def config_values(config) -> dict:
    """The settings as plain values, with which a file could be written: for logs, trackers and checkpoints."""
    return dataclasses.asdict(config)


def flat_values(config) -> dict[str, int | float | str | bool]:
    """The settings as trackers take them: `section.field`, and what is no number as text."""
    flat = {}

    def add(prefix: str, values: Mapping) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                add(f"{prefix}{name}.", value)
            else:
                flat[prefix + name] = value if isinstance(value, (int, float, str)) else str(value)

    add("", config_values(config))
    return flat


def explain(config_class: type, indent: str = "  ") -> list[str]:
    """One line a field: name, type, default, explanation; sections follow their field, indented."""
    lines, hints = [], typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        has_default = field.default is not dataclasses.MISSING
        is_required = not has_default and field.default_factory is dataclasses.MISSING
        section = _section_of(hints[field.name])
        default = "required" if is_required else f"default {field.default}" if has_default else ""
        kind = "section" if section else _type_name(hints[field.name])
        notes = ", ".join(note for note in (kind, default) if note)
        lines.append(f"{indent}{field.name} ({notes}): {field.metadata.get('help', '')}")
        if section:
            lines += explain(section, indent + "    ")
    return lines


def _put(values: dict, names: list[str], value, path) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if values is None or not isinstance(values, dict):
            raise ValueError(f"{path}: `{'.'.join(names)}` can't be set: `{name}` is no section there.")
    values[names[-1]] = value


def _build(config_class: type, values: Mapping, where: str, prefix: str):
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(map(str, values)) - set(fields)):
        names = ", ".join(prefix + name for name in unknown)
        close = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = f" (did you mean {prefix}{close[0]}?)" if close else ""
        raise ValueError(f"{where}unknown field {names}{hint}; the fields are {', '.join(fields)}.")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(f"{where}missing field {', '.join(prefix + name for name in missing)}.")
    hints = typing.get_type_hints(config_class)
    try:
        return config_class(**{n: _value(hints[n], value, where, prefix + n) for n, value in values.items()})
    except ValueError as error:  # what the dataclass itself finds wrong
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}{error}") from None


def _value(hint, value, where: str, name: str):
    """`value` as the type `hint` wants it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        section, origin, arguments = _section_of(option), typing.get_origin(option), typing.get_args(option)
        if section and origin is not list and isinstance(value, Mapping):
            return _build(section, value, where, f"{name}.")
        if origin is list and isinstance(value, list):
            return [_value(arguments[0], item, where, f"{name}[{index}]") for index, item in enumerate(value)]
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:  # YAML 1.1 reads `1e-3` (no dot) as text; people write it all the same
                return float(value)
            except ValueError:
                continue
        if origin is typing.Literal and value in arguments:
            return value
        if isinstance(option, type) and type(value) is option:
            return value
        if option is str and value is False:  # YAML 1.1 reads `mixed_precision: no` so
            return "no"
        if origin is dict and isinstance(value, dict):
            return value
    raise ValueError(f"{where}`{name}` must be {_type_name(hint)}, got {value!r}.")


def _section_of(hint) -> type | None:
    """The dataclass that a field, a list of it or an optional one is made of."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((section for part in typing.get_args(hint) if (section := _section_of(part))), None)


def _type_name(hint) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return "a section"
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is list:
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", dict: "a mapping"}
    return names.get(typing.get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))
