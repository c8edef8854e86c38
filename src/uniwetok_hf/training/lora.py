# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Training of adapters instead of the model: `lora` of a config of `uniwetok train mllm`.

The weights of the model do not change. Checkpoints and the result contain the adapter alone. There is no field for
dropout: its masks come from torch's global generator, so that a run could not be repeated. Flipped bits and
`text_dropout` regularise instead.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from ..adapters import lora_config, target_modules
from .config import KEEP, check_at_least, setting
from .run import seeded_weights


@dataclass
class LoraSettings:
    """Which layers get an adapter, and how large it is."""

    r: int = setting(16, "rank", on_resume=KEEP)
    alpha: float | None = setting(None, "updates are multiplied by alpha / r; null: r", on_resume=KEEP)
    targets: list[str] = setting(["language_model", "head"], "parts with adapters, of these two", on_resume=KEEP)
    options: dict = setting({}, "other fields of peft.LoraConfig, such as use_dora or target_modules", on_resume=KEEP)

    def __post_init__(self):
        check_at_least(self, 1, "r", section="lora")
        if not self.targets or (unknown := set(self.targets) - {"language_model", "head"}):
            got = min(unknown) if self.targets else "none"
            raise ValueError(f"`lora.targets` must be of language_model and head, got {got}.")


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
    """Adds an adapter called "default" to the unified model, and returns its parameters, the only trainable ones.

    Raises:
        ValueError: when it would change the image tokenizer, whose codes are the data, or matches no layer.
    """
    names = [name for name, _ in model.named_modules()]
    for part in settings.targets if "target_modules" not in settings.options else ():
        if not any(re.fullmatch(target_modules(part), name) for name in names):
            raise ValueError(
                f"`lora.targets`: no layer of {part} is called as in the Llama family; `lora.options` can name "
                "the layers: `target_modules`."
            )
    with seeded_weights(seed):
        model.add_adapter(lora_config(*settings.targets, r=settings.r, lora_alpha=settings.alpha, **settings.options))
    if any(parameter.requires_grad for parameter in model.vision_model.parameters()):
        raise ValueError("`lora.options`: `target_modules` must not match layers of the image tokenizer.")
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def checkpoint_adapters_only(accelerator: Accelerator) -> None:
    """Saves only trainable parameters in checkpoints, on any number of processes."""

    def trained(model: nn.Module) -> dict[str, torch.Tensor]:
        parameters = accelerator.unwrap_model(model, keep_torch_compile=False).named_parameters()
        return {name: parameter.detach() for name, parameter in parameters if parameter.requires_grad}

    def save(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        for index, model in enumerate(models):
            weights[index] = trained(model)

    def load(models: list[nn.Module], folder: str) -> None:
        own, stored = trained(models.pop()), load_file(Path(folder) / "model.safetensors")
        if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in stored.items()}:
            raise ValueError(f"The checkpoint {folder} is of another training: of all weights, or with other `lora`.")
        for name, tensor in own.items():
            tensor.copy_(stored[name])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)  # Accelerate does not load what it pops
