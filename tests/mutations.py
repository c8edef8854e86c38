"""Files that went wrong, made by code of whole ones: small, and the same every time."""

import json
import random
import struct
import zlib
from collections.abc import Iterator

import torch
from safetensors.torch import load, save


# What stands in a JSON file where something else belongs.
WRONG_VALUES = {
    "null": None,
    "text": "x",
    "a list": [],
    "a list of null": [None],
    "a mapping": {"x": 1},
    "zero": 0,
    "negative": -1,
    "a fraction": 0.5,
    "huge": 10**30,
    "true": True,
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def damaged_bytes(content: bytes, flips: int = 6, seed: int = 0) -> dict[str, bytes]:
    """Any file that is cut off, or partly or wholly something else."""
    size, chance = len(content), random.Random(seed)
    found = {
        "empty": b"",
        "its first byte": content[:1],
        "its first 12 bytes": content[:12],
        "its first half": content[: size // 2],
        "without its last byte": content[:-1],
        "more behind it": content + b"\0" * 64,
        "zeros": bytes(size),
        "a page of a server": b"<html><body>404 Not Found</body></html>",
        "a Git LFS pointer": LFS_POINTER,
        "zeros in the middle": content[: size // 3] + bytes(size // 3) + content[size // 3 + size // 3 :],
    }
    for _ in range(flips):
        place, bit = chance.randrange(size), chance.randrange(8)
        found[f"bit {bit} of byte {place} flipped"] = flip_bit(content, 8 * place + bit)
    return found


def flip_bit(content: bytes, place: int) -> bytes:
    """`content` with bit `place` flipped, counted from the first byte's lowest."""
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def damaged_json(content: bytes) -> dict[str, bytes]:
    """A JSON object that is no JSON, no object, in another encoding, lacks a key, or has a wrong value."""
    values, text = json.loads(content), content.decode()
    found = {
        "empty": b"",
        "cut off": content[: len(content) // 2],
        "not JSON": b"{'a': 1}",
        "null": b"null",
        "a list": b"[]",
        "a number": b"1",
        "an empty object": b"{}",
        "UTF-16": text.encode("utf-16"),
        "with a byte order mark": text.encode("utf-8-sig"),
        "Latin-1": text.replace("{", '{"caf\xe9": 1, ', 1).encode("latin-1", "replace"),
        "nested too deeply": b"[" * 100_000,
        "a Git LFS pointer": LFS_POINTER,
    }
    for key in values:
        found[f"without {key}"] = json.dumps({name: value for name, value in values.items() if name != key}).encode()
        for name, value in WRONG_VALUES.items():
            found[f"{key} is {name}"] = json.dumps(values | {key: value}).encode()
    return found


def damaged_tensors(content: bytes) -> dict[str, bytes]:
    """A safetensors file whose tensors are not those that a model needs."""
    tensors = load(content)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    metadata = {"format": "pt"}
    return {
        "no tensors": save({}, metadata),
        "a tensor less": save(rest, metadata),
        "a tensor more": save(tensors | {"one.more.weight": torch.ones(3)}, metadata),
        "a tensor of another name": save(rest | {f"other.{name}": tensors[name]}, metadata),
        "another shape": save(rest | {name: torch.ones(*(side + 1 for side in tensors[name].shape))}, metadata),
        "fewer dimensions": save(rest | {name: tensors[name].flatten().clone()}, metadata),
        "integers": save(rest | {name: torch.ones(tensors[name].shape, dtype=torch.int64)}, metadata),
        "a length beyond the file": struct.pack("<Q", 2**40) + content[8:],
    }


def damaged_png(content: bytes) -> dict[str, bytes]:
    """A PNG whose chunks lie about their lengths, or are not those that they should be."""
    chunks = list(_chunks(content))
    header = bytearray(chunks[0][1])
    found = {}
    for index, (name, _) in enumerate(chunks):
        for title, length in (("0", 0), ("1 more", None), ("2 GB", 2**31 - 1), ("4 GB", 2**32 - 1)):
            found[f"{name.decode()} of length {title}"] = _joined(chunks, index, length)
        found[f"without {name.decode()}"] = _joined(chunks[:index] + chunks[index + 1 :])
    for title, width, height in (("no pixels", 0, 0), ("a side of 2 GB", 2**31 - 1, 1), ("more rows", 80, 400)):
        other = struct.pack(">II", width, height) + bytes(header[8:])
        found[f"IHDR with {title}"] = _joined([(b"IHDR", other), *chunks[1:]])
    for title, place, value in (("3 bits", 8, 3), ("colour type 5", 9, 5), ("another interlacing", 12, 1)):
        other = bytes(header[:place]) + bytes([value]) + bytes(header[place + 1 :])
        found[f"IHDR with {title}"] = _joined([(b"IHDR", other), *chunks[1:]])
    return found


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(content):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        yield name, content[place + 8 : place + 8 + length]
        place += 12 + length


def _joined(chunks: list[tuple[bytes, bytes]], lies: int | None = None, length: int | None = None) -> bytes:
    """A PNG of these chunks; number `lies` says `length`, by default one byte too much."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for index, (name, body) in enumerate(chunks):
        said = len(body) if index != lies else len(body) + 1 if length is None else length
        parts += [struct.pack(">I", said), name, body, struct.pack(">I", zlib.crc32(name + body))]
    return b"".join(parts)
