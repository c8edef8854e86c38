"""Published checkpoints to convert: the golden ones, and variations of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from uniwetok_hf.conversion.keys import native_names, published_name


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture
def copy_golden(tmp_path) -> Callable[[str], Path]:
    """`copy_golden(name)`: a copy of a published golden folder, without its expected results."""

    def copy(name: str) -> Path:
        return shutil.copytree(GOLDEN / name, tmp_path / name, ignore=shutil.ignore_patterns("golden.*"))

    return copy


@pytest.fixture
def community_golden(tmp_path) -> Path:
    """The golden text-to-image folder in the diffusers layout of the community."""
    source, folder = GOLDEN / "t2i_4x", tmp_path / "community"
    places = {
        "ae_config.json": "autoencoder/config.json",
        "ae.safetensors": "autoencoder/diffusion_pytorch_model.safetensors",
        "vision_head_config.json": "diffusion_head/config.json",
        "vision_head.safetensors": "diffusion_head/diffusion_pytorch_model.safetensors",
        "projector.safetensors": "projector/diffusion_pytorch_model.safetensors",
        "config.json": "text_encoder/config.json",
        "generation_config.json": "text_encoder/generation_config.json",
        "model.safetensors": "text_encoder/model.safetensors",
        "tokenizer.json": "tokenizer/tokenizer.json",
        "tokenizer_config.json": "tokenizer/tokenizer_config.json",
        "special_tokens_map.json": "tokenizer/special_tokens_map.json",
    }
    for name, place in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / place)
    edit_json(folder / "autoencoder" / "config.json", _class_name="BitDanceAutoencoder")
    edit_json(folder / "diffusion_head" / "config.json", _class_name="BitDanceDiffusionHead", grad_checkpointing=False)
    projector = {"_class_name": "BitDanceProjector", "in_dim": 32, "out_dim": 128, "hidden_act": "gelu_pytorch_tanh"}
    (folder / "projector" / "config.json").write_text(json.dumps(projector))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "BitDanceDiffusionPipeline"}))
    return folder


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


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files under a folder, with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
