# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Binary codes as data: the sign quantizer, packing in bytes, and the file format of saved codes.

A token is a vector of {-1, +1}. Nothing here knows a codebook: 2^128 codes need no table, the sign *is* the index.
Bit j of byte k is channel 8k + j (least significant bit first), the order of the groups in the entropy loss
(docs/method.md 1.2).
"""

import json
import os
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


# Pixels or codes of pictures: a batch, or a list of pictures of any sizes.
Pictures = torch.Tensor | Sequence[torch.Tensor]

CODES_FORMAT = "uniwetok-codes"
CODES_VERSION = 1
SIZES = ("original_sizes", "content_sizes")  # in the metadata
LARGEST_SIDE = 2**31 - 1  # of a picture in pixels, in Pillow


class CodesFileError(ValueError):
    """A file that is no file of codes, or codes that do not fit the model. The message says which."""


def binarize(latents: torch.Tensor) -> torch.Tensor:
    """+1 where `latents` > 0 and -1 elsewhere (exact zero is -1); same shape and dtype, no gradient."""
    return torch.where(latents > 0, 1, -1).to(latents.dtype)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Packs codes [B, bits, h, w] of {-1, +1} to uint8 [B, h, w, bits / 8]: 16 bytes per token for 128 bits.

    Raises:
        ValueError: when `codes` is not 4-dimensional or its bits are no multiple of 8.
    """
    if codes.ndim != 4 or codes.shape[1] % 8:
        raise ValueError(f"`codes` must be [B, bits, h, w] with bits a multiple of 8, got {tuple(codes.shape)}.")
    bits = (codes > 0).movedim(1, -1).unflatten(-1, (-1, 8))  # [B, h, w, bytes, 8]
    weights = 2 ** torch.arange(8, device=codes.device)
    return (bits * weights).sum(-1).to(torch.uint8)


def unpack_codes(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Inverse of [`pack_codes`]: uint8 [B, h, w, bits / 8] to codes [B, bits, h, w] of {-1, +1} in `dtype`.

    Raises:
        ValueError: when `packed` is not uint8 or not 4-dimensional.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 4:
        raise ValueError(f"`packed` must be uint8 [B, h, w, bytes], got {packed.dtype} {tuple(packed.shape)}.")
    bits = packed[..., None].bitwise_right_shift(torch.arange(8, device=packed.device).to(torch.uint8)) & 1
    return (bits.flatten(-2).movedim(-1, 1).to(dtype) * 2 - 1).contiguous()  # [B, bits, h, w]


def codes_to_tokens(codes: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Codes [N, bits, h, w] to tokens [N, h*w, bits] in the order of generation: patches row by row, and
    rows inside a patch."""
    batch, bits, height, width = codes.shape
    p = patch_size
    patches = codes.reshape(batch, bits, height // p, p, width // p, p)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * width, bits)


def tokens_to_codes(tokens: torch.Tensor, height: int, width: int, patch_size: int) -> torch.Tensor:
    """Inverse of [`codes_to_tokens`]."""
    batch, _, bits = tokens.shape
    p = patch_size
    patches = tokens.reshape(batch, height // p, width // p, p, p, bits)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, bits, height, width)


@dataclass
class SavedCodes:
    """Codes read from a file: `codes`, one [bits, h, w] of {-1, +1} per picture; `original_sizes` and
    `content_sizes`, (height, width) pairs in pixels as the image processor gave them; `metadata` of the file."""

    codes: list[torch.Tensor]
    original_sizes: list[tuple[int, int]] | None
    content_sizes: list[tuple[int, int]] | None
    metadata: dict

    def check_fits(self, config) -> None:
        """Raises [`CodesFileError`] unless a model of `config` can decode these codes."""
        for field in ("num_bits", "stride", "architecture"):
            if self.metadata.get(field) != getattr(config, field):
                raise CodesFileError(
                    f"These codes were made with {field}={self.metadata.get(field)}, the model has "
                    f"{field}={getattr(config, field)}; decode them with the checkpoint that encoded them"
                    f" ({self.metadata.get('model') or 'its name was not saved'})."
                )


def save_codes(
    path: str | os.PathLike,
    codes: torch.Tensor | Sequence[torch.Tensor],
    config,
    original_sizes: Sequence[tuple[int, int]] | None = None,
    content_sizes: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Saves codes as a `.safetensors` file with the sizes and what a model needs to decode them.

    Args:
        path: the file; it is written under a temporary name and then renamed. Of a symbolic link, the file that it
            points to is replaced.
        codes: [B, bits, h, w], or a list of [bits, h, w] of any sizes, of {-1, +1}.
        config: the [`UniWeTokConfig`] of the model that made them.
        original_sizes, content_sizes: (height, width) pairs in pixels from the image processor, one per picture.

    Raises:
        ValueError: when the codes' bits are not the config's, or there is not one size per picture.
        OSError: when `path` can't be written.
    """
    for name, sizes in (("original_sizes", original_sizes), ("content_sizes", content_sizes)):
        if sizes is not None and len(sizes) != len(codes):
            raise ValueError(f"`{name}` must hold one size per picture: {len(codes)} pictures, {len(sizes)} sizes.")
    tensors = {}
    for index, picture in enumerate(codes):
        if picture.shape[0] != config.num_bits:
            raise ValueError(f"`codes[{index}]` has {picture.shape[0]} bits, `config.num_bits` is {config.num_bits}.")
        tensors[f"codes.{index:06d}"] = pack_codes(picture[None])[0].cpu().contiguous()
    metadata = {
        "format": CODES_FORMAT,
        "version": CODES_VERSION,
        "num_pictures": len(tensors),
        "num_bits": config.num_bits,
        "stride": config.stride,
        "architecture": config.architecture,
        "model": _model_name(config._name_or_path),
        "original_sizes": None if original_sizes is None else [[int(n) for n in size] for size in original_sizes],
        "content_sizes": None if content_sizes is None else [[int(n) for n in size] for size in content_sizes],
    }
    metadata["checksum"] = _checksum(metadata, tensors)
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise OSError(f"`path` must be a file in a folder that exists, got {path}.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        save_file(tensors, temporary, metadata={"uniwetok": json.dumps(metadata)})
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise OSError(f"`path` {path} can't be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _model_name(name_or_path: str) -> str | None:
    """The name to find a model by: a Hub id as it is, of a local folder only its own name."""
    return (Path(name_or_path).name if os.path.exists(name_or_path) else name_or_path) or None


def _checksum(metadata: dict, packed: dict[str, torch.Tensor]) -> int:
    """CRC-32 of all that a file of codes says, but for the checksum itself: a code that was changed is a code, too."""
    said = {name: value for name, value in metadata.items() if name != "checksum"}
    shapes = {name: list(picture.shape) for name, picture in sorted(packed.items())}
    checksum = zlib.crc32(json.dumps([said, shapes], sort_keys=True).encode())
    for _, picture in sorted(packed.items()):
        checksum = zlib.crc32(picture.numpy().tobytes(), checksum)
    return checksum


def load_codes(path: str | os.PathLike) -> SavedCodes:
    """Reads a file of [`save_codes`].

    Raises:
        CodesFileError: when the file is no such file, is cut off or changed, or is of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("uniwetok", "null"))
            if not isinstance(metadata, dict) or metadata.get("format") != CODES_FORMAT:
                raise CodesFileError(f"{path} is a safetensors file but holds no UniWeTok codes.")
            if isinstance(metadata["version"], int) and metadata["version"] > CODES_VERSION:
                raise CodesFileError(
                    f"{path} is of format version {metadata['version']}, this package reads up to {CODES_VERSION}: "
                    "update uniwetok-hf."
                )
            packed = {name: file.get_tensor(name) for name in sorted(file.keys())}
        codes = [unpack_codes(picture[None])[0] for picture in packed.values()]
        if metadata.get("checksum", ...) not in (..., _checksum(metadata, packed)):  # earlier files have none
            raise CodesFileError(f"{path} was damaged or changed after it was saved: its checksum does not fit.")
        _check_metadata(metadata, codes)
    except CodesFileError:
        raise
    except KeyError as error:
        raise CodesFileError(f"{path} lacks {error} in its metadata.") from error
    except OSError as error:
        raise CodesFileError(f"{path} can't be read ({error}).") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CodesFileError(f"{path} is no file of codes, or it is cut off ({error}).") from error
    original_sizes, content_sizes = (
        None if metadata[name] is None else [tuple(size) for size in metadata[name]] for name in SIZES
    )
    return SavedCodes(codes, original_sizes, content_sizes, metadata)


def _check_metadata(metadata: dict, codes: list[torch.Tensor]) -> None:
    """
    Raises:
        ValueError: when the metadata does not belong to the codes, or is not of its types.
        KeyError: when something is missing.
    """
    told = {"version": CODES_VERSION, "num_pictures": len(codes)} | {"num_bits": picture.shape[0] for picture in codes}
    for name, value in told.items():
        if metadata[name] != value:
            raise ValueError(f"`{name}` is {metadata[name]!r:.100} and must be {value}")
    for name in SIZES:
        sizes = metadata[name]
        if sizes is not None and (not isinstance(sizes, list) or len(sizes) != len(codes)):
            raise ValueError(f"`{name}` is {sizes!r:.100} and must be one size per picture")
        for size in sizes or ():
            is_pair = isinstance(size, list) and len(size) == 2
            if not is_pair or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in size):
                raise ValueError(f"`{name}` holds {size!r:.100}, which is no height and width")
    if not isinstance(metadata.get("model"), str | None):
        raise ValueError(f"`model` is {metadata['model']!r:.100} and must be a name")
    if type(metadata["stride"]) is not int:
        raise ValueError(f"`stride` is {metadata['stride']!r:.100} and must be a whole number")


__all__ = [
    "CodesFileError",
    "Pictures",
    "SavedCodes",
    "binarize",
    "codes_to_tokens",
    "load_codes",
    "pack_codes",
    "save_codes",
    "tokens_to_codes",
    "unpack_codes",
]
