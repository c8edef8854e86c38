"""Run by test_processes.py, alone or under `torch.distributed.run`: trains the tokenizer as a config says and writes
down the gradients of every step as the optimizers get them.

    python dump_gradients.py CONFIG OUTPUT
"""

import sys

import torch

from uniwetok_hf.training.configuration import read_config
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig


def main(config: str, output: str) -> None:
    torch.set_num_threads(1)
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, config))
    optimize, dumped = trainer.optimize, []

    def dump(parameters, optimizer, scheduler, name):
        dumped.append([None if parameter.grad is None else parameter.grad.clone() for parameter in parameters])
        optimize(parameters, optimizer, scheduler, name)

    trainer.optimize = dump
    trainer.train()
    if trainer.accelerator.is_main_process:
        torch.save(dumped, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
