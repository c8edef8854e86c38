# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the image tokenizer: `uniwetok train tokenizer --config stage.yaml`, alone or under `accelerate launch`.

The loss is reconstruction (L1 + L2) plus group-wise entropy (spec 2.2, 2.4); the commitment term is gone because SigLu
bounds the latents (paper 3.3). A run is a config; a later stage starts from an earlier one by `init_from`.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.modeling_uniwetok import UniWeTokModel
from .common import (
    averaged_weights,
    endless_batches,
    load_checkpoint,
    make_output_folder,
    read_config,
    save_checkpoint,
    save_final,
    seeded_weights,
)
from .losses.entropy import entropy_loss
from .pictures import PictureDataset, picture_grid


@dataclass
class UniWeTokTrainingConfig:
    """One stage of training.

    Fields: `data`, a folder of `uniwetok data`; `output_dir`; `resolution`, side in pixels; `steps` of `batch_size`
    pictures; `learning_rate` after `warmup_steps`, then a cosine to zero; `init_from`, a model to start from, or
    `model`, the fields of a new UniWeTokConfig; weights of the loss terms; `crop_probability`, how often a picture is
    replaced by a random crop of it; `max_grad_norm`; `ema_decay`; `seed`; `log_every` and `save_every` steps.
    """

    data: str
    output_dir: str
    resolution: int
    steps: int
    batch_size: int
    learning_rate: float = 1e-4
    warmup_steps: int = 200
    init_from: str | None = None
    model: dict = field(default_factory=dict)
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    entropy_weight: float = 0.1
    crop_probability: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    save_every: int = 500


def train(config: UniWeTokTrainingConfig) -> Path:
    """Runs one stage, resuming it when it was interrupted, and returns the folder of the averaged model.

    Raises:
        FloatingPointError: at a loss that is not finite; the last checkpoint is kept.
    """
    accelerator = Accelerator()
    # Data: every epoch has its own order, every picture its own crop and flip, both from seeds.
    pictures = PictureDataset(config.data, "train", config.resolution, config.crop_probability)
    held_out = PictureDataset(config.data, "validation", config.resolution)
    folder = make_output_folder(config.output_dir, "model")

    # Model, optimizer, average.
    if config.init_from:
        model = UniWeTokModel.from_pretrained(config.init_from, dtype=torch.float32)
    else:
        with seeded_weights(config.seed):
            model = UniWeTokModel(UniWeTokConfig(**config.model))
    model.train().to(memory_format=torch.channels_last)  # a fifth to a half faster convolutions on CPUs
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    ema = EMAModel(model.parameters(), decay=config.ema_decay)

    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.register_for_checkpointing(ema)
    ema.to(accelerator.device)
    start = load_checkpoint(accelerator, folder)
    batches = endless_batches(pictures, config.batch_size, config.seed, skip=start)
    generator = torch.Generator(accelerator.device)  # of the decoder's noise

    bar = tqdm(total=config.steps, initial=start, desc=f"tokenizer {config.resolution}px", mininterval=10)
    clock, logged = time.monotonic(), start
    for step in range(start, config.steps):
        pixel_values = next(batches)["pixel_values"].to(accelerator.device, memory_format=torch.channels_last)
        output = model(pixel_values, generator=generator.manual_seed(hash((config.seed, step))))
        error = output.sample - pixel_values
        l1, l2 = error.abs().mean(), error.square().mean()
        entropy = entropy_loss(output.latents, accelerator.unwrap_model(model).config.bits_per_group)
        loss = config.l1_weight * l1 + config.l2_weight * l2 + config.entropy_weight * entropy.loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {step}; {folder}/checkpoint holds the last one."
            )

        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        bar.update()

        is_save = (step + 1) % config.save_every == 0 or step + 1 == config.steps
        if (step + 1) % config.log_every == 0 or is_save:
            figures = {
                "step": step + 1,
                "l1": l1.item(),
                "psnr": 10 * math.log10(4 / l2.item()),
                "sample_entropy": entropy.sample_entropy.item(),
                "batch_entropy": entropy.batch_entropy.item(),
                "stuck_bits": _stuck_bits(output.codes),
                "pictures_per_second": (step + 1 - logged) * config.batch_size / (time.monotonic() - clock),
            }
            clock, logged = time.monotonic(), step + 1
            if is_save:
                if accelerator.is_main_process:
                    with averaged_weights(ema, accelerator.unwrap_model(model)):
                        figures["validation_psnr"] = validate(
                            accelerator.unwrap_model(model), held_out, folder, step + 1
                        )
                save_checkpoint(accelerator, folder, step + 1)
            bar.set_postfix(psnr=f"{figures['psnr']:.2f}", entropy=f"{figures['batch_entropy']:.2f}")
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")
    return save_final(accelerator.unwrap_model(model), ema, folder)


def _stuck_bits(codes: torch.Tensor) -> int:
    """How many of the bits of [B, bits, h, w] have one value all over the batch."""
    return int((codes.detach().transpose(0, 1).flatten(1).mean(1).abs() > 0.999).sum())


@torch.no_grad()
def validate(model: UniWeTokModel, pictures: PictureDataset, folder: Path, step: int, limit: int = 128) -> float:
    """PSNR over the first `limit` held-out pictures (mean of the per-picture values, unclamped outputs clamped to
    [-1, 1]); also leaves a grid of originals and reconstructions in `folder`."""
    model.eval()
    values, shown = [], []
    generator = torch.Generator().manual_seed(0)
    for index in range(min(limit, len(pictures))):
        pixel_values = pictures[index]["pixel_values"][None].to(model.device)
        sample = model(pixel_values, generator=generator).sample.clamp(-1, 1)
        values.append(10 * math.log10(4 / (sample - pixel_values).square().mean().clamp_min(1e-10).item()))
        if index % (limit // 16) == 0:
            shown += [pixel_values[0].cpu(), sample[0].cpu()]
    picture_grid(shown, columns=8).save(folder / f"validation-{step:06d}.png")
    model.train()
    return sum(values) / len(values)


def main(config_path: str, **overrides) -> Path:
    return train(read_config(UniWeTokTrainingConfig, config_path, **overrides))
