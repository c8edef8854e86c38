"""Encoded datasets and settings with which the language model's training runs for real in seconds."""

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tiny_training import VISION, train_file, write

from uniwetok_hf import UniWeTokConfig, UniWeTokModel
from uniwetok_hf.data.encoded_parts import EncodingSettings
from uniwetok_hf.data.encoding import encode_dataset
from uniwetok_hf.training import train_mllm
from uniwetok_hf.training.run import seeded_weights


# Pictures of 32 pixels are 4 x 4 tokens of 16 bits.
LANGUAGE = {
    "max_train_steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 1,
    "ema_decay": 0.9,
    "logging_steps": 1,
    "validation_steps": 2,
    "checkpointing_steps": 2,
    "validation_samples": 3,
    "vocab_size": 300,
    "num_size_tokens": 8,
    "resolution": 32,
    "input_size": {"height": 32, "width": 32},
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "text_model": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
        "tie_word_embeddings": True,
    },
    "head": {"hidden_size": 32, "num_hidden_layers": 2, "num_modulation_layers": 1, "head_dim": 16},
    "mllm": {"patch_size": 2, "text_loss_weight": 0.2},
}


def build_vision(seed: int = 0) -> UniWeTokModel:
    """A new image tokenizer: stride 8, 16 bits."""
    with seeded_weights(seed):
        return UniWeTokModel(UniWeTokConfig(**VISION["model"])).eval()


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Pictures of noise, (height, width) in pixels."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def encode(rows: Dataset | dict, folder: Path, vision: UniWeTokModel, **settings) -> str:
    """Encodes rows (columns, when a dict) into `folder`."""
    rows = rows if isinstance(rows, Dataset) else Dataset.from_dict(rows)
    settings = {"sizes": ((32, 32),), **settings}
    encode_dataset(rows, folder, vision, EncodingSettings(**settings))
    return str(folder)


def contents(folder):
    """Names and bytes of all files but `encoding.json`, which holds a speed."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "encoding.json"}


def failing(model, after):
    """`model`, which raises when it encodes its batch number `after`."""
    calls = iter(range(after))

    def count(module, inputs):
        if next(calls, None) is None:
            raise RuntimeError("killed")

    model.encoder.register_forward_pre_hook(count)
    return model


def shapes(count: int, seed: int = 0) -> list[tuple[str, Image.Image]]:
    """Squares of 32 pixels in one of three colours on white, each with its caption."""
    colours = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220)}
    generator, made = np.random.default_rng(seed), []
    for index in range(count):
        name = list(colours)[index % 3]
        left, top, side = (int(number) for number in generator.integers((0, 0, 10), (12, 12, 20)))
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste(colours[name], (left, top, left + side, top + side))
        made.append((f"a {name} square of {side} pixels", picture))
    return made


def encode_tasks(folder: Path, vision: UniWeTokModel) -> dict:
    """`data` and `validation_data` of a training on the library's four tasks, encoded into `folder`."""

    def sources(split: str, count: int, seed: int) -> dict[str, dict]:
        texts, images = zip(*shapes(count, seed), strict=True)
        targets = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in images]
        talks = [
            [
                {"role": "user", "content": [{"type": "text", "text": text}]},
                {"role": "assistant", "content": [{"type": "image", "text": None}]},
                {"role": "user", "content": [{"type": "text", "text": "mirror it"}]},
                {"role": "assistant", "content": [{"type": "image", "text": None}]},
            ]
            for text in texts
        ]
        answers = [text.split()[1] for text in texts]
        columns = {
            "captions": {"image": images, "text": texts},
            "questions": {
                "image": images,
                "question": ["which colour?"] * count,
                "answer": answers,
            },
            "edits": {"source": images, "instruction": ["mirror it"] * count, "target": targets},
            "conversations": {"messages": talks, "images": [list(pair) for pair in zip(images, targets, strict=True)]},
        }
        return {
            task: {"path": encode({k: list(v) for k, v in rows.items()}, folder / split / task, vision), "task": task}
            for task, rows in columns.items()
        }

    train, test = sources("train", 24, 0), sources("test", 6, 1)
    train["edits"]["weight"] = 2.0
    return {"data": list(train.values()), "validation_data": [test["captions"], test["questions"]]}


def language_training(folder: Path) -> dict:
    """Fields of a training of a new language model on the library's tasks; image tokenizer and codes are in
    `folder`."""
    vision = build_vision()
    vision.save_pretrained(folder / "vision")
    return {**LANGUAGE, **encode_tasks(folder, vision), "vision_model": str(folder / "vision")}


CLASSES = {
    "max_train_steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 1,
    "ema_decay": 0.9,
    "logging_steps": 1,
    "validation_steps": 2,
    "checkpointing_steps": 2,
    "validation_samples": 5,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "model": {"patch_size": 2, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "head": {"num_hidden_layers": 2, "num_modulation_layers": 1},
}


def class_training(folder: Path) -> dict:
    """Fields of a training of a class-to-image model on squares of three colours; image tokenizer and codes are in
    `folder`."""
    vision = build_vision()
    vision.save_pretrained(folder / "vision")
    names = ["red", "green", "blue"]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})

    def source(split: str, count: int, seed: int) -> list[dict]:
        texts, images = zip(*shapes(count, seed), strict=True)
        rows = {"image": list(images), "label": [names.index(text.split()[1]) for text in texts]}
        dataset = Dataset.from_dict(rows, features=features)
        return [{"path": encode(dataset, folder / split, vision, num_variants=3, mirrored=True)}]

    data = {"data": source("train", 24, 0), "validation_data": source("test", 6, 1)}
    return {**CLASSES, **data, "vision_model": str(folder / "vision")}


def run(fields, folder, **more):
    """Runs a training in `folder`; returns its output folder."""
    return train_file(train_mllm, write(folder, fields, output_dir=str(folder / "run"), **more)).parent


def later(fields, **more) -> dict:
    """Fields of a stage after the first."""
    first = ("vision_model", "text_model", "head", "mllm", "num_size_tokens", "vocab_size")
    return {name: value for name, value in fields.items() if name not in first} | more


def stop_before(step: int, monkeypatch, fields, folder, **more) -> None:
    """A run that ends, as if by Ctrl-C, before this step."""
    train_step = train_mllm.MLLMTrainer.train_step

    def until(trainer, micro_batches, current):
        if current == step:
            raise KeyboardInterrupt
        train_step(trainer, micro_batches, current)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_mllm.MLLMTrainer, "train_step", until)
        run(fields, folder, **more)
    assert not (folder / "run" / "pipeline").exists()
