"""Used by training/test_processes.py, alone or in several processes: trains as configs say and saves the gradients of
every step as the optimizers get them.

    python dump_gradients.py tokenizer|mllm|classes|fsdp|fsdp-classes CONFIG OUTPUT [... CONFIG OUTPUT ...]

`fsdp` and `fsdp-classes` train a model with its weights spread over the processes, and save no gradients.
"""

import sys
from functools import partial

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

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


def train_fsdp(config: str, trainer_class=MLLMTrainer, config_class=MLLMTrainingConfig) -> list:
    # Accelerate passes over FSDP on CPUs; told that these are GPUs, it takes it.
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = trainer_class(read_config(config_class, config))
    if trainer.accelerator.distributed_type != DistributedType.FSDP:
        raise SystemExit("this is no FSDP")
    trainer.train()
    return []


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    dump = {"tokenizer": dump_tokenizer, "mllm": dump_mllm, "classes": dump_classes, "fsdp": train_fsdp}
    dump["fsdp-classes"] = partial(
        train_fsdp, trainer_class=ClassToImageTrainer, config_class=ClassToImageTrainingConfig
    )
    for what, config, output in zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True):
        dumped = dump[what](config)
        if PartialState().is_main_process:
            torch.save(dumped, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
