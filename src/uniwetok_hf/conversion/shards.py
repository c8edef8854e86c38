# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Writes model weights as safetensors shards, one chunk of a tensor at a time.

`safetensors.torch.save_file` wants a whole shard in memory; here only a chunk of one tensor is. `from_pretrained`
reads the files: `model.safetensors`, or `model-00001-of-0000N.safetensors` and an index.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .tensors import DTYPES


_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; `chunks` gives its values in order, as chunks of `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Callable[[], Iterator[torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 1000, "500MB" or "5GB" (decimal units).

    Raises:
        ValueError: when it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B|)", str(size).strip().upper())
    num_bytes = int(float(match[1]) * _SIZE_UNITS[match[2]]) if match else 0
    if num_bytes < 1:
        raise ValueError(f'`max_shard_size` must be a number of bytes or like "5GB" or "500MB", got {size!r}.')
    return num_bytes


def write_shards(folder: Path, tensors: Sequence[OutputTensor], max_shard_size: int) -> None:
    """Writes `tensors` into `folder`, in shards of at most `max_shard_size` bytes of tensors, or one tensor."""
    shards: list[list[OutputTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.num_bytes for t in shards[-1]) + tensor.num_bytes > max_shard_size:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        return _write_file(folder / "model.safetensors", shards[0])
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / file_name, shard)
        weight_map |= {tensor.name: file_name for tensor in shard}
    index = {
        "metadata": {"total_size": sum(t.num_bytes for t in tensors)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(file: Path, tensors: Sequence[OutputTensor]) -> None:
    """One safetensors file: 8 bytes with the header's length, the header in JSON, the values."""
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that all values are aligned
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for chunk in tensor.chunks():
                stream.write(chunk.contiguous().reshape(-1).view(torch.uint8).numpy())
        if stream.tell() != 8 + len(encoded) + offset:
            raise RuntimeError(f"{file.name} got {stream.tell() - 8 - len(encoded)} bytes of tensors, not {offset}.")


__all__ = ["OutputTensor", "parse_size", "write_shards"]
