"""Tiny settings with which both trainings run for real in a second, and the networks that judge them."""

import json
from pathlib import Path
from types import ModuleType

import torch
import yaml
from safetensors.torch import load_file
from tiny_models import build_tiny_text_tokenizer
from transformers import ResNetBackbone, ResNetConfig, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from uniwetok_hf.training.checkpoints import CheckpointWriter
from uniwetok_hf.training.config import read_config


VISION = {
    "buckets": [{"height": 32, "width": 32}, {"height": 16, "width": 32}],
    "max_train_steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 1,
    "lr_scheduler": "cosine",
    "crop_probability": 0.5,
    "logging_steps": 1,
    "validation_steps": 3,
    "checkpointing_steps": 2,
    "validation_pictures": 3,
    "model": {
        "base_channels": 8,
        "channel_multipliers": [1, 1, 1, 2],
        "num_res_blocks": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_norm_groups": 4,
        "num_bits": 16,
    },
}


def all_losses(folder: Path) -> dict:
    """Every loss of the tokenizer, with tiny networks made in `folder`."""
    return {
        "commitment_weight": 0.1,
        "perceptual": {"model": build_backbone(folder / "backbone"), "weight": 0.5},
        "adversarial": {"base_channels": 4, "num_layers": 1, "start_step": 1},
        "distillation": {"teacher": build_siglip(folder / "siglip"), "hidden_size": 16, "num_attention_heads": 2},
        "prior": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    }


def build_backbone(folder: Path) -> str:
    """A ResNet of two stages with random weights."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    config.out_features = ["stage1", "stage2"]
    ResNetBackbone(config).save_pretrained(folder)
    return str(folder)


def build_siglip(folder: Path, size: int = 32) -> str:
    """A dual encoder with random weights, a text tokenizer and an image processor."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_tokenizer = build_tiny_text_tokenizer()
    config = SiglipConfig(
        text_config={
            **small,
            "vocab_size": len(text_tokenizer),
            "max_position_embeddings": 32,
            "projection_size": 16,
            "bos_token_id": None,
            "eos_token_id": text_tokenizer.eos_token_id,
            "pad_token_id": text_tokenizer.pad_token_id,
        },
        vision_config={**small, "image_size": size, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    text_tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


def write(folder: Path, fields: dict, **more) -> Path:
    """A config file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**fields, **more}))
    return path


def train_file(trainer: ModuleType, path: Path, **overrides) -> Path:
    """Trains with the settings of a file; `trainer` is one of the modules train_uniwetok, ..."""
    (config_class,) = (value for name, value in vars(trainer).items() if name.endswith("TrainingConfig"))
    return trainer.train(read_config(config_class, path, **overrides))


def assert_names_no_folder_of(place: Path, result: Path) -> None:
    """What a training leaves may be published, and says nothing of the machine."""
    lines = [line for path in result.rglob("*.json") for line in path.read_text().splitlines()]
    assert len(lines) > 20 and [line for line in lines if str(place) in line] == []


def log_lines(run: Path) -> list[dict]:
    """Lines of a run's log, without the metrics that depend on the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines]


def assert_same_weights(one: Path, other: Path) -> None:
    """Compares two safetensors files bit for bit."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def save_checkpoint(accelerator, folder: Path, step: int, data_state: dict, keep: int) -> Path:
    return CheckpointWriter(accelerator, folder, keep).save(step, data_state)
