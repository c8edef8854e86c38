# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Settings of a training: a dataclass whose fields have a help text, read from a YAML file.

    @dataclass
    class Config:
        batch_size: int = setting(help="pictures per step")
        seed: int = setting(0, "seed of all random choices")

A field may be a dataclass itself (a section of the file), a list of them, or None where a part can be left out.

- `base: other.yaml` starts from another file, beside this one, or from a shipped config. Sections and other mappings
  are merged, everything else is replaced, lists too; `field: null` leaves out a section or a mapping of the base.
- A place, `FILE.py:NAME`, is looked up beside the file that it is written in.
- `config.json` of a run is such a file, too, with all settings and the absolute paths of places.
"""

import contextlib
import copy
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..data.places import find_place, is_place
from ..files import one_line


CONFIGS = Path(__file__).parent / "configs"
# What happens to a change of a field when a run goes on from a checkpoint. APPLY: it is applied. KEEP: it is refused;
# of a section, whether there is one, or how many there are, while its own fields say it for themselves. KEEP_NULL:
# null can't become a value, nor a value null, but another value is applied.
APPLY, KEEP, KEEP_NULL = "apply", "keep", "keep_null"
# Fields of the configs and their sections that name files and folders.
PATH_FIELDS = {"output_dir", "path", "init_from", "vision_model", "language_model", "teacher", "model"}


class ConfigError(ValueError):
    """A wrong config file; the message names the file and the field."""


def setting(default=dataclasses.MISSING, help: str = "", on_resume: str | tuple[str, ...] | None = None):
    """A dataclass field with a help text; without a default it is required.

    `on_resume` says what happens to a change between a checkpoint and the run that goes on from it (`resume.py`):
    APPLY, KEEP, KEEP_NULL, or those keys of a mapping that are applied.
    """
    metadata = {"help": help, "on_resume": on_resume}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
    """Reads the YAML file `path`, and the files that it is based on, into `config_class`. `overrides` win over the
    files; `section.field` changes one field of a section.

    Raises:
        ConfigError: for an unknown, missing or ill-typed field, a file that is missing or based on itself, or a place
            without a file; the message names the file and the field.
    """
    values, origins = _read_file(Path(path), [])
    for name, value in overrides.items():
        _put(values, name.split("."), expand_home(_find_places(value, name, Path(path)), name), path)
        origins[name] = Path(path)
    return _build(config_class, values, _Origins(Path(path), origins), "")


def config_values(config) -> dict:
    """The settings as plain values, for logs, trackers and records that may be published: of absolute paths and places
    the last name, not where they lie."""

    def shorten(value):
        if isinstance(value, dict):
            return {name: shorten(item) for name, item in value.items()}
        if isinstance(value, list):
            return [shorten(item) for item in value]
        is_path = isinstance(value, str) and (is_place(value) or Path(value).is_absolute())
        return Path(value).name if is_path else value

    return shorten(dataclasses.asdict(config))


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


def absolute_paths(settings: dict) -> dict:
    """Settings in which the output folder, and every file or folder that a field names and that exists, is absolute.
    Names on the Hub, of embedded models and of shipped sources stay as they are, and addresses (`hf://`, `s3://`)."""
    option = "an option"

    def absolute(name: str, value):
        if isinstance(value, dict):  # in `options` of a user's task any field may be a path, or a question
            names = dict.fromkeys(value, option) if name == "options" else {key: key for key in value}
            return {key: absolute(names[key], item) if name != "columns" else item for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(name, item) for item in value]
        if name not in (*PATH_FIELDS, option) or not isinstance(value, str) or is_place(value) or "://" in value:
            return value
        is_pattern = name != option and any(character in value for character in "*?[")
        is_path = is_pattern or name == "output_dir" or os.path.exists(value)
        return os.path.abspath(value) if is_path else value

    return absolute("", settings)


def expand_home(value, name: str = ""):
    """Settings, or the value of the field `name`, in which `~` at the beginning of `PATH_FIELDS` is the home."""
    if isinstance(value, dict):
        return {key: expand_home(item, str(key)) if key != "columns" else item for key, item in value.items()}
    if isinstance(value, list):
        return [expand_home(item, name) for item in value]
    is_path = isinstance(value, str) and name.rpartition(".")[2] in PATH_FIELDS
    return os.path.expanduser(value) if is_path else value


def check_at_least(config, least: int, *names: str, section: str | None = None) -> None:
    """
    Raises:
        ValueError: when a field of the config, or of a section of it, is below `least`; null is not.
    """
    for name in names:
        if (value := getattr(config, name)) is not None and value < least:
            place = f"{section}.{name}" if section else name
            raise ValueError(f"`{place}` must be {least} or more, got {value}.")


def check_fields(name: str, values: Mapping, config_class: type) -> None:
    """Checks names that go into the config of a model, which takes any.

    Raises:
        ValueError: when `values` of the field `name` has one that `config_class`, a dataclass, does not.
    """
    known = [field.name for field in dataclasses.fields(config_class)]
    for unknown in sorted(set(values) - set(known)):
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"`{name}.{unknown}` is no field of {config_class.__name__}{hint}.")


def check_share(config, *names: str) -> None:
    """
    Raises:
        ValueError: when a field of the config is not from 0 to 1.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(config, name)}.")


def check_training(config) -> None:
    """Checks the fields that all trainers have.

    Raises:
        ValueError: naming the field that is out of its range.
    """
    steps = ("max_train_steps", "gradient_accumulation_steps", "logging_steps", "validation_steps")
    check_at_least(config, 1, "batch_size", *steps, "checkpointing_steps", "checkpoints_total_limit")
    check_at_least(config, 0, "seed", "max_skipped_steps", "learning_rate", "lr_warmup_steps", "weight_decay")
    check_at_least(config, 0, "max_grad_norm", "checkpointing_minutes")
    check_share(config, "max_skipped_share")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be 0 or more and below 1, got {getattr(config, name)}.")
    if (minutes := config.process_timeout_minutes) is not None and not 0 < minutes <= 1e6:
        raise ValueError(f"`process_timeout_minutes` must be above 0 and at most 1,000,000, got {minutes}.")
    if not config.data:
        raise ValueError("`data` must name at least one source.")


@contextlib.contextmanager
def field_named(name: str) -> Iterator[None]:
    """Names a field of the config in what a library says of its value.

    Raises:
        ValueError: naming the field.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # damaged files and configs make the libraries raise nearly anything
        text = one_line(error)
        text = text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
        raise ValueError(f"`{name}`: {text}") from error


def explain(config_class: type, indent: str = "  ") -> list[str]:
    """One line per field: name, type, default, help text; sections follow their field, indented."""
    lines, hints = [], typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        has_default = field.default is not dataclasses.MISSING
        is_required = not has_default and field.default_factory is dataclasses.MISSING
        section = section_of(hints[field.name])
        default = "required" if is_required else f"default {field.default}" if has_default else ""
        kind = "section" if section else _type_name(hints[field.name])
        notes = ", ".join(note for note in (kind, default) if note)
        lines.append(f"{indent}{field.name} ({notes}): {field.metadata.get('help', '')}")
        if section:
            lines += explain(section, indent + "    ")
    return lines


def parse_yaml(content: bytes | str, name: object, is_json: bool = False):
    """The value of a YAML or JSON text; both say by themselves how their bytes are encoded.

    Raises:
        ConfigError: when it is none, or contains itself; the message begins with `name`.
    """
    import yaml

    try:
        value = json.loads(content) if is_json else yaml.safe_load(content)
        json.dumps(value, default=str, skipkeys=True)  # `&a [*a]` is YAML
        return value
    except Exception as error:  # of `!!bool x` PyYAML raises a KeyError, of 2000-13-01 a ValueError
        raise ConfigError(f"{name} is no YAML: {type(error).__name__}: {error}") from None


def _read_file(path: Path, chain: list[Path]) -> tuple[dict, dict[str, Path]]:
    """Fields of a file merged into those of its bases, and the file that each, as `section.field`, comes from. `chain`
    are the files that led here."""
    if path.resolve() in (before.resolve() for before in chain):
        circle = " -> ".join(map(str, [*chain, path]))
        raise ConfigError(f"{chain[-1]}: `base` leads back to {path}: {circle}.")
    values = parse_yaml(path.read_bytes(), path, path.suffix == ".json") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `field: value` lines, got {type(values).__name__}.")
    values = expand_home(_find_places(values, "", path))
    origins = dict.fromkeys(_names(values), path)
    if (base := values.pop("base", None)) is None:
        return values, origins
    base_path = path.parent / str(base)
    if not base_path.is_file():
        base_path = CONFIGS / f"{base}.yaml"
    if not base_path.is_file():
        raise ConfigError(
            f"{path}: `base` {base}: there is no such file in {path.parent.resolve()}, and no shipped config of that "
            f"name; those are {', '.join(shipped_configs())}."
        )
    base_values, base_origins = _read_file(base_path, [*chain, path])
    return _merge(base_values, values), base_origins | origins


def _merge(base: dict, values: dict) -> dict:
    """`values` over `base`: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if both else value
    return merged


def _names(values: dict, prefix: str = "") -> list[str]:
    """`section`, `section.field`, ... of all mappings in `values`."""
    names = []
    for name, value in values.items():
        names.append(f"{prefix}{name}")
        if isinstance(value, dict):
            names += _names(value, f"{prefix}{name}.")
    return names


def _find_places(value, name: str, path: Path):
    """`value` with the absolute path in each place that is written in it."""
    if isinstance(value, dict):
        return {key: _find_places(item, f"{name}.{key}" if name else str(key), path) for key, item in value.items()}
    if isinstance(value, list):
        return [_find_places(item, f"{name}[{index}]", path) for index, item in enumerate(value)]
    if not (isinstance(value, str) and is_place(value)):
        return value
    try:
        return find_place(value, beside=path.parent)
    except ValueError as error:
        raise ConfigError(f"{path}: `{name}`: {error}") from None


@dataclasses.dataclass
class _Origins:
    """Which file a field comes from, for error messages."""

    path: Path  # the file that was asked for
    files: dict[str, Path]

    def where(self, name: str) -> str:
        name = name.split("[")[0]
        while name and name not in self.files:
            name = name.rpartition(".")[0]
        return f"{self.files.get(name, self.path)}: "


def _put(values: dict, names: list[str], value, path) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if values is None or not isinstance(values, dict):
            raise ConfigError(f"{path}: `{'.'.join(names)}` can't be set: `{name}` is no section there.")
    values[names[-1]] = value


def _build(config_class: type, values: Mapping, origins: _Origins, prefix: str):
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(map(str, values)) - set(fields)):
        names = ", ".join(prefix + name for name in unknown)
        close = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = f" (did you mean {prefix}{close[0]}?)" if close else ""
        where = origins.where(prefix + unknown[0])
        raise ConfigError(f"{where}unknown field {names}{hint}; the fields are {', '.join(fields)}.")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    where = origins.where(prefix)
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{where}missing field {', '.join(prefix + name for name in missing)}.")
    hints = typing.get_type_hints(config_class)
    checked = {name: _value(hints[name], value, origins, prefix + name) for name, value in values.items()}
    try:
        return config_class(**checked)
    except ValueError as error:  # from the dataclass itself
        raise ConfigError(f"{where}{error}") from None


def _value(hint, value, origins: _Origins, name: str):
    """`value` as the type `hint` wants it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        section, origin, arguments = section_of(option), typing.get_origin(option), typing.get_args(option)
        if value is None and dict in (option, origin):  # a mapping of the base is left out
            return {}
        if section and origin is not list and isinstance(value, Mapping):
            return _build(section, value, origins, f"{name}.")
        if origin is list and isinstance(value, list):
            return [_value(arguments[0], item, origins, f"{name}[{index}]") for index, item in enumerate(value)]
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)  # YAML 1.1 reads `1e-3`, without a dot, as text
                if math.isfinite(number):
                    return number
            continue
        if origin is typing.Literal and value in arguments:
            return value
        if isinstance(option, type) and type(value) is option and _is_plain(value):
            return value
        if option is str and value is False:  # YAML 1.1 reads `mixed_precision: no` so
            return "no"
        if origin is dict and isinstance(value, dict) and _is_plain(value):
            return value
    raise ConfigError(f"{origins.where(name)}`{name}` must be {_type_name(hint)}, got {value!r}.")


def _is_plain(value) -> bool:
    """Whether a value can be written as JSON, be the name of a file, and be a number of C: no dates, no numbers as
    names, no zero characters, no half surrogate pairs, no 70 bits."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(name) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "\0" not in value and value.encode(errors="ignore").decode() == value
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) < 2**63)


def section_of(hint) -> type | None:
    """The dataclass of a field, of a list of it, or of an optional one."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((section for part in typing.get_args(hint) if (section := section_of(part))), None)


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
