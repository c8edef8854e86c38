"""Used by training/test_processes.py, alone or in several processes: trains as configs say and saves the gradients of
every step as the optimizers get them.

    python dump_gradients.py tokenizer|mllm|classes CONFIG OUTPUT [... CONFIG OUTPUT ...]
"""

import sys

import torch
from accelerate import PartialState

from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainer, ClassToImageTrainingConfig
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig


def gradients(parameters) -> list[torch.Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]


def dump_tokenizer(config: str) -> list:
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, config))
    clip, dumped = trainer.clip_gradients, []

    def dump(parameters, *arguments):
        dumped.append(gradients(parameters))
        return clip(parameters, *arguments)

    trainer.clip_gradients = dump
    trainer.train()
    return dumped


def dump_mllm(config: str) -> list:
    return dump_steps(MLLMTrainer(read_config(MLLMTrainingConfig, config)))


def dump_classes(config: str) -> list:
    return dump_steps(ClassToImageTrainer(read_config(ClassToImageTrainingConfig, config)))


def dump_steps(trainer) -> list:
    step, dumped = trainer.optimizer.step, []

    def dump():
        if trainer.accelerator.sync_gradients:
            dumped.append(gradients(trainer.parameters))
        step()

    trainer.optimizer.step = dump
    trainer.train()
    return dumped


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    dump = {"tokenizer": dump_tokenizer, "mllm": dump_mllm, "classes": dump_classes}
    for what, config, output in zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True):
        dumped = dump[what](config)
        if PartialState().is_main_process:
            torch.save(dumped, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
