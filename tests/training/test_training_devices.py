# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Training on the device of `tests/one_device.py`, which fails where devices are mixed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_device import CPU, DEVICE, assert_same, on, one_device
from tiny_encoded import class_training, language_training
from tiny_mllm import build, random_codes, seeded, training_batch
from tiny_training import VISION, all_losses, write
from torch import nn

from uniwetok_hf.training.bit_usage import BitUsage
from uniwetok_hf.training.class_batches import ClassBatch
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.conversation_batches import MicroBatch
from uniwetok_hf.training.run import RunningMetrics
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainer, ClassToImageTrainingConfig
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig, TaskMetrics
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig


def test_metrics():
    """Also those of a checkpoint, which come from the CPU."""
    inputs, codes = training_batch(patch_size=2)
    mllm = build(patch_size=2)
    counts = {"tasks": torch.tensor([0, 1]), "text_tokens": torch.tensor([3, 2]), "image_tokens": torch.tensor([8, 4])}
    batch = MicroBatch(inputs | {"codes": codes}, [0, 1], **counts)

    def compute(device):
        metrics, bits, tasks = RunningMetrics(), BitUsage(), TaskMetrics(["one", "other"])
        for _ in range(2):
            output = on(device, mllm)(**batch.inputs_on(device), generator=seeded(0))
            metrics.add({"loss": output.loss, "share": 0.5}, items=2)
            bits.update(random_codes(1, 2, 3)[None].to(device))
            tasks.add(batch, output)
            for part in (metrics, bits, tasks):
                part.load_state_dict(part.state_dict())
        metrics.add({"loss": output.loss})
        bits.update(random_codes(1, 2, 3)[None].to(device))
        tasks.add(batch, output)
        found = bits.mean_entropy, bits.stuck, bits.dead, bits.usage
        return metrics.sums["loss"], found, tasks.by_task, tasks.overall

    assert_same(compute)


def test_training_of_the_image_tokenizer(fixtures, tmp_path, monkeypatch):
    """A step with every loss, a line of the log and a validation."""
    source = {"path": str(fixtures / "emoji")}
    fields = {**VISION, **all_losses(tmp_path), "data": [source], "validation_data": source}
    fields["adversarial"] |= {"start_step": 0}
    trainers = build_trainers(UniWeTokTrainer, UniWeTokTrainingConfig, fields, tmp_path)

    def compute(device):
        trainer = trainers[device]
        networks = [*trainer.loss_networks().values(), trainer.model, trainer.perceptual, trainer.teacher]
        place(trainer, networks, device, monkeypatch)
        trainer.train_step(next(iter(trainer.batches)), 0)
        return logged(trainer.take_metrics() | trainer.validate(1)), trainer.ema.shadow_params[0]

    assert_same(compute)


def test_training_of_the_language_model(tmp_path, monkeypatch):
    """A step, a line of the log, and a validation with pictures from a prompt."""
    fields = language_training(tmp_path) | {"prompts": ["a red square"]}
    trainers = build_trainers(MLLMTrainer, MLLMTrainingConfig, fields, tmp_path)

    def compute(device):
        trainer = trainers[device]
        place(trainer, [trainer.mllm], device, monkeypatch)
        trainer.train_step(trainer.batches[0], 0)
        validation = trainer.validation.validation_batches(2)
        return logged(trainer.take_metrics() | trainer.validate(validation, 1)), trainer.ema.shadow_params[0]

    assert_same(compute)


def test_training_of_the_class_to_image_model(tmp_path, monkeypatch):
    """A step on codes and one on pictures, a line of the log, and a validation with pictures of a class."""
    fields = class_training(tmp_path) | {"sample_classes": [1]}
    trainers = build_trainers(ClassToImageTrainer, ClassToImageTrainingConfig, fields, tmp_path)

    def compute(device):
        trainer = trainers[device]
        place(trainer, [trainer.pipeline.transformer, trainer.pipeline.vision_model], device, monkeypatch)
        [batch], _ = trainer.batches.step(0, 1.0)
        trainer.train_step([batch], 0)
        pictures = seeded_pictures(len(batch.numbers))
        trainer.train_step([ClassBatch(None, pictures, batch.class_labels, batch.numbers)], 1)
        validation = trainer.validation.validation_batches(2)
        return logged(trainer.take_metrics(2) | trainer.validate(validation, 1)), trainer.ema.shadow_params[0]

    assert_same(compute)


@pytest.mark.parametrize("kind", ["padded", "packed", "classes", "tokenizer"])
def test_a_step_waits_for_its_device_once(kind, fixtures, tmp_path, monkeypatch):
    """When it asks whether losses and gradients are finite. What else could wait: copies to the device, counts of
    tokens, and tensors as long as there are tokens of a kind."""
    if kind == "tokenizer":
        fields = {**VISION, **all_losses(tmp_path), "data": [{"path": str(fixtures / "emoji")}]}
        fields["adversarial"] |= {"start_step": 0}
        trainer = build_trainers(UniWeTokTrainer, UniWeTokTrainingConfig, fields, tmp_path)[DEVICE]
        networks = [*trainer.loss_networks().values(), trainer.model, trainer.perceptual, trainer.teacher]
        batches = iter(trainer.batches)
        steps = [next(batches) for _ in range(2)]
    elif kind == "classes":
        trainer = build_trainers(ClassToImageTrainer, ClassToImageTrainingConfig, class_training(tmp_path), tmp_path)
        trainer = trainer[DEVICE]
        networks, steps = [trainer.pipeline.transformer], [trainer.batches.step(step, 1.0)[0] for step in range(2)]
    else:
        packed = {"batch_size": None, "length_group_steps": 1, "packed_tokens": 300} if kind == "packed" else {}
        fields = language_training(tmp_path) | packed
        trainer = build_trainers(MLLMTrainer, MLLMTrainingConfig, fields, tmp_path)[DEVICE]
        networks, steps = [trainer.mllm], [trainer.read_step(step) for step in range(2)]
    with one_device(with_copies=True) as waits:
        place(trainer, networks, DEVICE, monkeypatch)
        trainer.train_step(steps[0], 0)
        waits.clear()
        trainer.train_step(steps[1], 1)
    # The language model of the prior, one of transformers, looks whether its rows are packed.
    assert waits == (["aten._local_scalar_dense.default"] if kind == "tokenizer" else []) + ["aten._to_copy.default"]


def seeded_pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=seeded(0)) * 2 - 1


def build_trainers(trainer_class, config_class, fields: dict, folder: Path) -> dict[torch.device, Any]:
    """Two equal trainers, both on the CPU."""
    fields["learning_rate"] = 1e-6  # Adam makes whole steps of rounding errors
    return {
        device: trainer_class(read_config(config_class, write(folder, fields, output_dir=str(folder / device.type))))
        for device in (CPU, DEVICE)
    }


def place(trainer, networks: list[nn.Module], device: torch.device, monkeypatch) -> None:
    """Moves a new trainer to `device`, where Accelerate would have placed it."""
    monkeypatch.setattr(type(trainer.accelerator), "device", device)
    torch.__future__.set_swap_module_params_on_conversion(True)  # the optimizer has the parameters already
    for network in networks:
        network.to(device)
    torch.__future__.set_swap_module_params_on_conversion(False)
    trainer.ema.to(device)
    if device == DEVICE:  # which has no fused kernels
        optimizers = [trainer.optimizer, getattr(trainer, "discriminator_optimizer", None)]
        for group in (group for optimizer in optimizers if optimizer for group in optimizer.param_groups):
            group["fused"] = None


def logged(metrics: dict) -> dict:
    """What does not depend on the machine."""
    return {name: value for name, value in metrics.items() if not name.endswith("_per_second")}
