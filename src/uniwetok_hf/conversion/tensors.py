# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Tensors of published files, read one by one, of safetensors files and pickles of training runs
(docs/method.md 1.3)."""

import argparse
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from .. import files


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What weights of ours are stored in. Models can't be built in floats of 8 bits and less, which have no arithmetic.
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")

EMA_PREFIX = "model_ema."
EMA_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
# What a training checkpoint holds beside the tokenizer. The names of its distillation and prior heads aren't
# published.
TRAINING_PREFIXES = ("loss.",)

# A mapped page counts as memory of the process until the file is closed, so files are opened anew every so often.
REOPEN_AFTER_BYTES = 1 << 26


class ConversionError(ValueError):
    """A checkpoint can't be converted; the message says what is wrong with it and where."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(Protocol):
    """Named tensors in files. `label` is what messages call them."""

    label: str
    tensors: dict[str, TensorInfo]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor; a tensor without dimensions is given whole."""
        ...


class SafetensorsSource:
    """The tensors of one or several safetensors files.

    Raises:
        ConversionError: for a file that is missing, truncated or of another kind, or a name that two files hold.
    """

    def __init__(self, files: Sequence[Path], label: str):
        self.label = label
        self.tensors: dict[str, TensorInfo] = {}
        self._file_of: dict[str, Path] = {}
        self._reader, self._open_file, self._bytes_read = None, None, 0
        for file in files:
            self._add(file)

    def _add(self, file: Path) -> None:
        if not file.is_file():
            raise ConversionError(f"{self.label} names {file.name}, which is not there.")
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118  (the reader is no dict)
                    if name in self.tensors:
                        raise ConversionError(f"{file.name} and {self._file_of[name].name} both hold {name}.")
                    view = reader.get_slice(name)
                    if view.get_dtype() not in DTYPES:
                        raise ConversionError(f"{file.name}: {name} is of the unknown dtype {view.get_dtype()}.")
                    self.tensors[name] = TensorInfo(tuple(view.get_shape()), DTYPES[view.get_dtype()])
                    self._file_of[name] = file
        except SafetensorError as error:
            raise ConversionError(f"{file.name} is truncated or no safetensors file ({error}).") from error

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if self._file_of[name] != self._open_file or self._bytes_read > REOPEN_AFTER_BYTES:
            self._open_file, self._bytes_read = self._file_of[name], 0
            self._reader = safe_open(self._open_file, framework="pt")
        has_rows = len(self.tensors[name].shape) > 0
        tensor = self._reader.get_slice(name)[start:stop] if has_rows else self._reader.get_tensor(name)
        self._bytes_read += tensor.nbytes
        return tensor


# Under which names a training checkpoint holds the weights: the averaged ones, where there are two.
STATE_DICTS = ("state_dict", "ema", "model")


class PickleSource:
    """The tensors of a file written by `torch.save`: a state dict, or one under one of `STATE_DICTS`. Only tensors,
    plain containers and the settings of a command line (`argparse.Namespace`) are unpickled, nothing that could run.

    Raises:
        ConversionError: for a damaged file, one with other objects in it, or one without a state dict.
    """

    def __init__(self, file: Path, label: str):
        self.label = label
        try:
            # Only files in the newer, zip format can be mapped; legacy ones are read into memory.
            with torch.serialization.safe_globals([argparse.Namespace]):
                contents = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).strip().splitlines()[:1]
            raise ConversionError(
                f"{label} is damaged, or holds objects that are no tensors, which are not unpickled since that could "
                f"run code ({type(error).__name__}: {' '.join(reason)})."
            ) from error
        found = [contents.get(name) for name in STATE_DICTS] + [contents] if isinstance(contents, dict) else []
        state_dict = next(
            (one for one in found if isinstance(one, dict) and any(map(torch.is_tensor, one.values()))), None
        )
        if state_dict is None:
            found = list(contents) if isinstance(contents, dict) else type(contents).__name__
            raise ConversionError(
                f"{label} holds no state dict, neither at the top nor under {', '.join(STATE_DICTS)}: {found}."
            )
        self._state_dict = {name: value for name, value in state_dict.items() if torch.is_tensor(value)}
        self.tensors = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in self._state_dict.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor = self._state_dict[name]
        return tensor[start:stop] if tensor.ndim > 0 else tensor


class TensorsWithin:
    """Those tensors of `source` whose names start with `prefix`, without it, and with none that starts with
    `without`."""

    def __init__(self, source: TensorSource, prefix: str = "", without: str | None = None):
        self.label, self._source, self._prefix = source.label, source, prefix
        self.tensors = {
            name.removeprefix(prefix): info
            for name, info in source.tensors.items()
            if name.startswith(prefix) and not (without and name.startswith(without))
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._source.read(self._prefix + name, start, stop)


def open_tensors(file: Path, label: str) -> TensorSource:
    """The tensors of `file`: safetensors, the index of sharded safetensors, or a pickle.

    Raises:
        ConversionError: when the file is damaged or a shard is missing.
    """
    if file.suffix in PICKLE_SUFFIXES:
        return PickleSource(file, label)
    if file.suffix == ".json":
        weight_map = read_json(file).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise ConversionError(f"{label} has no weight_map to files beside it, as an index of shards would.")
        return SafetensorsSource([file.parent / name for name in sorted(set(names))], label)
    return SafetensorsSource([file], label)


def read_json(file: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ConversionError: when it holds none.
    """
    try:
        return files.read_json(file)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def published_tensors(stored: Iterable[str], ignored: Sequence[str] = ()) -> dict[str, str]:
    """Published names of the tensors of a training checkpoint, with the stored name of each one's value.

    A tensor whose moving average is there, under `model_ema.` and its own name without dots, gets that value. Averages
    of nothing keep their names, so that they are found to be unknown. Names that start with [`TRAINING_PREFIXES`] or
    `ignored` are left out.
    """
    stored = list(stored)
    averages = {name for name in stored if name.startswith(EMA_PREFIX)}
    names = {}
    for name in stored:
        if name not in averages:
            average = EMA_PREFIX + name.replace(".", "")
            names[name] = average if average in averages else name
    names |= {name: name for name in averages - set(names.values()) - EMA_COUNTERS}
    left_out = (*TRAINING_PREFIXES, *ignored)
    return {name: value for name, value in names.items() if not name.startswith(left_out)}


def row_chunks(info: TensorInfo, start: int, stop: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Splits rows `start` to `stop` of a tensor into ranges of at most `max_bytes`, or one row."""
    rows_bytes = info.dtype.itemsize * torch.Size(info.shape[1:]).numel()
    step = max(1, max_bytes // max(1, rows_bytes))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


__all__ = [
    "ConversionError",
    "PickleSource",
    "SafetensorsSource",
    "TensorInfo",
    "TensorSource",
    "TensorsWithin",
    "open_tensors",
    "published_tensors",
    "read_json",
    "row_chunks",
]
