"""Tools for making published checkpoints."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from uniwetok_hf.conversion.keys import native_names, published_name


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def edit_json(file: Path, *deleted: str, **changed) -> None:
    """Changes and deletes entries of a JSON file; those of `ddconfig` where there is one that has them."""
    contents = json.loads(file.read_text())
    for name in deleted:
        del (contents["ddconfig"] if name in contents.get("ddconfig", {}) else contents)[name]
    for name, value in changed.items():
        (contents["ddconfig"] if name in contents.get("ddconfig", {}) else contents)[name] = value
    file.write_text(json.dumps(contents))


def edit_tensors(file: Path, *deleted: str, **changed: torch.Tensor) -> None:
    """Changes and deletes tensors of a safetensors file."""
    tensors = {name: tensor for name, tensor in load_file(file).items() if name not in deleted} | changed
    save_file(tensors, file, metadata={"format": "pt"})


def shard(file: Path, count: int) -> None:
    """Replaces a safetensors file by shards with an index."""
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for number in range(count):
        name = f"{file.stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[number::count])
        save_file(part, file.with_name(name))
        weight_map |= dict.fromkeys(part, name)
    file.with_name(file.name + ".index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def to_published(state_dict: dict[str, torch.Tensor], rules) -> dict[str, torch.Tensor]:
    """Fuses and renames our tensors to the published ones."""
    published = {}
    for native in state_dict:
        name = published_name(native, rules)
        published[name] = torch.cat([state_dict[part] for part in native_names(name, rules)])
    return published


def to_native(name: str, tensor: torch.Tensor, rules) -> list[tuple[str, torch.Tensor]]:
    """Our (name, tensor) pairs of one published tensor; none for a name that no rule knows."""
    targets = native_names(name, rules)
    return list(zip(targets, tensor.chunk(len(targets)), strict=True)) if targets else []


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files under a folder, with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
