"""Used by training/test_processes.py, alone or in several processes: trains as configs say and saves the gradients of
every step as the optimizers get them.

    python dump_gradients.py tokenizer|mllm|fsdp CONFIG OUTPUT [tokenizer|mllm CONFIG OUTPUT ...]

`fsdp` trains the language model with its weights spread over the processes, and saves no gradients.
"""

import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from uniwetok_hf.training.config import read_config
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
    trainer = MLLMTrainer(read_config(MLLMTrainingConfig, config))
    step, dumped = trainer.optimizer.step, []

    def dump():
        if trainer.accelerator.sync_gradients:
            dumped.append(gradients(trainer.parameters))
        step()

    trainer.optimizer.step = dump
    trainer.train()
    return dumped


def train_fsdp(config: str) -> list:
    # Accelerate passes over FSDP on CPUs; told that these are GPUs, it takes it.
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = MLLMTrainer(read_config(MLLMTrainingConfig, config))
    if trainer.accelerator.distributed_type != DistributedType.FSDP:
        raise SystemExit("this is no FSDP")
    trainer.train()
    return []


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    dump = {"tokenizer": dump_tokenizer, "mllm": dump_mllm, "fsdp": train_fsdp}
    for what, config, output in zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True):
        dumped = dump[what](config)
        if PartialState().is_main_process:
            torch.save(dumped, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
