"""Published checkpoints to convert: the golden ones, and variations of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conversion.published import GOLDEN, edit_json


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
