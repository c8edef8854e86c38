# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Weights that are spread over processes by FSDP 2: sharded, saved while the training goes on, and made whole again.

Accelerate shards the model as its configuration says. Only the first process has to load the weights: the models of
the others are on the meta device, and their shards are sent to them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


# Accelerate passes over FSDP on CPUs. With this variable set to 1, beside the ones of its configuration, the trainers
# shard there, too, over gloo: slow, for tests and for trying a configuration without GPUs.
ON_CPU = "UNIWETOK_FSDP_ON_CPU"
SHARDS = "shards"  # folder of a checkpoint
# Folders of checkpoints of earlier versions, and the parts of the state in each.
EARLIER = {"pytorch_model_fsdp_0": ["model"], "optimizer_0": ["optimizer"], "averages": ["averages", "steps"]}


def find_fsdp2(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """The settings of FSDP 2, when Accelerate is configured with it, and can shard here or is told to do so on CPUs.

    Raises:
        ValueError: when CPUs are to shard as FSDP 1 does.
    """
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    on_cpus = parse_flag_from_env(ON_CPU) and parse_flag_from_env("ACCELERATE_USE_FSDP")
    if plugin is None and on_cpus and accelerator.distributed_type.name == "MULTI_CPU":
        plugin = FullyShardedDataParallelPlugin()  # of the environment
        if plugin.fsdp_version != 2:
            raise ValueError(f"{ON_CPU} takes FSDP 2 only: set `fsdp_version: 2` (FSDP_VERSION=2 in the environment).")
    return plugin


def shares_weights(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only: under FSDP and DeepSpeed."""
    kinds = DistributedType.FSDP, DistributedType.DEEPSPEED
    return accelerator.distributed_type in kinds or find_fsdp2(accelerator) is not None


def layout_of(accelerator: Accelerator) -> str:
    """How the weights of a run lie in its checkpoints. Another layout can't be read: shards of FSDP 2 go on with any
    number of processes, those of DeepSpeed with theirs."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        return f"shards of DeepSpeed (ZeRO {stage}) by {accelerator.num_processes} processes"
    if find_fsdp2(accelerator) is not None:
        return "shards of FSDP 2"
    return "shards of FSDP 1" if accelerator.distributed_type == DistributedType.FSDP else "whole weights"


def precision_policy(mixed_precision: str) -> MixedPrecisionPolicy:
    """With bf16 layers compute and pass on bfloat16. Gradients are added up over processes in float32, and losses stay
    in it, as in copies (DDP); Accelerate would round both."""
    if mixed_precision != "bf16":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def shard_model(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Spreads the weights of a model over all processes, in place: those of the first process, whatever the others
    have. All processes must call it."""
    plugin.cpu_ram_efficient_loading = True
    plugin.mixed_precision_policy = precision_policy(accelerator.mixed_precision)
    if accelerator.is_fsdp2:
        fsdp2_prepare_model(accelerator, model)
        return
    environment = SimpleNamespace(  # what it reads of an Accelerator
        state=SimpleNamespace(fsdp_plugin=plugin),
        device=accelerator.device,
        is_main_process=accelerator.is_main_process,
        mixed_precision=accelerator.mixed_precision,
        parallelism_config=None,
        torch_device_mesh=None,
    )
    fsdp2_prepare_model(environment, model)


@contextlib.contextmanager
def weights_gathered_anew(model: nn.Module) -> Iterator[None]:
    """A block that changes shards of a model. FSDP keeps whole weights of some parts after a forward pass: they are
    given up before and after it, else passes would compute with those of before."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for part in parts:
            part.reshard()
        yield
    finally:
        for part in parts:
            part.reshard()


class ShardedState:
    """What a checkpoint of a sharded training holds: the shards of weights, optimizer and averages, and what
    Accelerate keeps of schedules, scalers and random states."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: EMAModel | None,
        names: Sequence[str],
        only_trained: bool = False,
        timeout: timedelta | None = None,
    ):
        """`names` are those of the averaged parameters. With `only_trained` frozen weights are left out. After
        `timeout` a process that does not write counts as lost."""
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.ema, self.names = ema, names
        self.options = StateDictOptions(ignore_frozen_params=only_trained, strict=not only_trained)
        # What writes in the background must not meet the training in the same group; NCCL knows no tensors of the CPU.
        self.group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def model_state(self, options: StateDictOptions) -> dict[str, torch.Tensor]:
        weights = get_model_state_dict(self.model, options=options)
        if not options.ignore_frozen_params:
            return weights
        # Of a tied weight torch leaves out one name only.
        return {
            name: weights[name] for name, p in self.model.named_parameters() if p.requires_grad and name in weights
        }

    def state_dict(self) -> dict:
        state = {
            "model": self.model_state(self.options),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=self.options),
        }
        if self.ema is not None:
            state["averages"] = dict(zip(self.names, self.ema.shadow_params, strict=True))
            state["steps"] = torch.tensor(self.ema.optimization_step)
        return state

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The weights, or those that train, on the CPU of the first process; empty on the others. All processes must
        call it."""
        return self.model_state(replace(self.options, full_state_dict=True, cpu_offload=True))

    def save_small(self, folder: Path) -> None:
        """Saves all but the shards."""
        accelerator = self.accelerator
        schedulers, index = accelerator._schedulers, accelerator.process_index
        save_accelerator_state(str(folder), [], [], schedulers, [], index, accelerator.step, accelerator.scaler)

    def save_shards(self, folder: Path) -> Future:
        """Copies the shards to the memory of the CPU, and writes them from there in the background. All processes must
        call it. The future is done when those of all processes are written."""
        started = checkpoint.async_save(self.state_dict(), checkpoint_id=folder / SHARDS, process_group=self.group)
        return started if isinstance(started, Future) else started.upload_completion

    def load(self, folder: Path) -> None:
        """Loads a checkpoint, of an earlier version, too, on any number of processes. All must call it."""
        state, accelerator = self.state_dict(), self.accelerator
        if (folder / SHARDS).is_dir():
            checkpoint.load(state, checkpoint_id=folder / SHARDS, process_group=self.group)
        else:
            for name, parts in EARLIER.items():
                if found := {part: state[part] for part in parts if part in state}:
                    checkpoint.load(found, checkpoint_id=folder / name, process_group=self.group)
                    state |= found
        set_model_state_dict(self.model, state["model"], options=self.options)
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=self.options)
        if self.ema is not None:  # its shards were loaded in place
            self.ema.optimization_step = int(state["steps"])
        schedulers, index = accelerator._schedulers, accelerator.process_index
        load_accelerator_state(str(folder), [], [], schedulers, [], index, accelerator.scaler)
