# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The way through one stage of a training, the same for all trainers: it is resumed, logged, stopped and finished
here, and what a step computes is theirs."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..files import save_whole
from ..provenance import RECORD
from ..signals import Stopped
from .agreement import any_process, failed_together, lost_processes_named, written_together
from .checkpoints import (
    CheckpointWriter,
    check_run,
    find_own_disks,
    last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_data_state,
    readable,
)
from .export import names_of
from .resume import check_data, saved_settings
from .run import (
    CheckpointClock,
    SkippedSamples,
    StepGuard,
    averaged_weights,
    make_average,
    make_optimizer,
    start_accelerator,
    stopped_after,
    stops_after_step,
)
from .sharding import ShardedState, find_fsdp2, shard_model, shares_weights, weights_gathered_anew
from .status import RunStatus, failed_starts_noted, only_run
from .trackers import start_trackers


def finished(config) -> Path | None:
    """The result of a finished stage, None when it is not finished."""
    folder = Path(config.output_dir) / config.result
    return folder if folder.is_dir() else None


def run_stage(trainer_class: "type[StageTrainer]", config) -> Path:
    """Runs one stage, which SIGTERM and Ctrl-C stop; see [`StageTrainer.train`]."""
    stop = threading.Event()
    with stops_after_step(stop):
        with failed_starts_noted(Path(config.output_dir)):
            trainer = trainer_class(config, stop)
        return trainer.train()


class StageTrainer:
    """One stage of training. The methods without a body are those of a trainer."""

    ema: EMAModel | None
    skipped: SkippedSamples

    def __init__(self, config, stop: threading.Event | None = None, also_applied: Collection[str] = ()):
        """When `stop` is set on any process, the run ends after the current step, with a checkpoint. `also_applied` is
        explained in [`check_resume`]."""
        self.config, self.folder, self.stop = config, Path(config.output_dir), stop or threading.Event()
        self.accelerator, self.tracker = start_accelerator(config, self.folder)
        self.changes = check_run(self.accelerator, config, config.result, also_applied)
        self.status = RunStatus(self.accelerator, self.folder, config.max_train_steps)
        self.checkpoints: CheckpointWriter | None = None
        self.shards: ShardedState | None = None  # of a trainer that spreads its weights
        self.guard = StepGuard(self.accelerator, self.folder, config.max_skipped_steps, self.flags)

    def flags(self) -> tuple[bool, bool]:
        """What the processes tell each other at each step: that this one was asked to stop, and that it could not
        write a checkpoint in the background."""
        return self.stop.is_set(), self.checkpoints is not None and self.checkpoints.has_failed

    def write_architecture(self) -> None:
        """Writes what an export needs besides a checkpoint."""
        raise NotImplementedError

    def train_steps(self, start: int) -> None:
        """Takes the steps after `start`, and calls [`end_step`] after each."""
        raise NotImplementedError

    def save(self) -> Path:
        """Writes the result of the stage, and returns its folder."""
        raise NotImplementedError

    def data_state(self) -> dict:
        """What lies behind the paths of the config, as [`check_data`] compares it."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """The state of this process, besides what Accelerate saves, and what its data are."""
        raise NotImplementedError

    def load_state_dict(self, state: dict) -> None:
        raise NotImplementedError

    def train(self) -> Path:
        """Runs the stage to its end, from its last checkpoint if there is one, and returns the folder of its result.

        Raises:
            FloatingPointError: after too many steps that are not finite; the checkpoints are kept.
            Stopped: after the step in which `stop` was set on a process; its checkpoint is kept.
            ConnectionError: when another process has ended or does not answer.
            OSError: when the log, a checkpoint or the result can't be written; the checkpoints before are kept.
            ValueError: when the last checkpoint is broken or of another version, a row does not fit its task, or
                another training is running in the same folder.
        """
        with only_run(self.accelerator, self.folder), self.status.of_block(), lost_processes_named():
            start, total = self.resume(), self.config.max_train_steps
            self.bar = tqdm(total=total, initial=start, desc=self.folder.name, mininterval=10)
            with self.bar:  # closed before an error is told, so that it has a line of its own
                try:
                    self.train_steps(start)
                except Exception:
                    self.checkpoints.rescue()
                    raise
                for tracker in self.accelerator.trackers:  # `end_training` would also leave the other processes
                    tracker.finish()
                result = self.save()
        if any_process(self.stop.is_set(), self.accelerator):  # too late for this stage, but there may be another
            raise Stopped("the training had reached its end, and is finished")
        return result

    def resume(self) -> int:
        """Loads the last checkpoint, starts the trackers, and returns the number of steps that were taken."""
        config, accelerator = self.config, self.accelerator
        find_own_disks(accelerator, self.folder)
        # With other data weights may have other shapes, and the architecture would not be that of the checkpoint.
        if (last := last_checkpoint(accelerator, self.folder)) is not None:
            with readable(last):
                check_data(read_data_state(accelerator, last), self.data_state(), config.data)
        self.write_architecture()
        start, state = load_checkpoint(accelerator, self.folder, self.changes, self.shards)
        self.status.saved(start)
        if any_process(self.stop.is_set(), accelerator):
            raise stopped_after(start)
        if state is not None:
            with readable(list_checkpoints(self.folder)[-1]):
                self.load_state_dict(state)
        else:  # a run that ended before its first checkpoint may have left a list
            self.skipped.load_state_dict(None)
        if self.ema:  # a checkpoint's weights are read to the CPU
            self.ema.to(accelerator.device)
        with failed_together(accelerator):
            if accelerator.is_main_process:
                self.tracker.rewind(start)
            start_trackers(accelerator, self.folder, start, config)
        self.clock = CheckpointClock(accelerator, config)
        keep = config.checkpoints_total_limit
        self.checkpoints = CheckpointWriter(accelerator, self.folder, keep, self.shards, self.status.saved)
        self.guard.before_end = self.checkpoints.finish
        return start

    def end_step(self, done: int, metrics: dict[str, float]) -> None:
        """After step `done`: logs `metrics`, if there are any, saves a checkpoint that is due, and stops if asked to.

        Raises:
            Stopped: when `stop` is set on a process, and it is not the last step.
        """
        config, accelerator, checkpoints = self.config, self.accelerator, self.checkpoints
        if metrics:
            accelerator.log(metrics, step=done)
        is_last = done == config.max_train_steps
        is_stopped, has_failed = self.guard.raised
        if metrics or accelerator.num_processes == 1:  # processes wait for each other at a line of the log anyway
            is_stopped = is_stopped or any_process(self.stop.is_set(), accelerator)
        if has_failed:
            checkpoints.finish()  # which raises what happened
        checkpoints.poll()
        if self.clock.is_due(done, self.guard.was_skipped) or is_last or is_stopped:
            checkpoints.save(done, self.state_dict(), saved_settings(config))
        if is_last or is_stopped:
            checkpoints.finish()
        if is_stopped and not is_last:
            raise stopped_after(done)


# Times of the flow at which a validation measures the share of bits that the head predicts right. At 0 its input is
# noise alone: what exceeds one half there comes from what the head is told.
ACCURACY_TIMES = (0.0, 0.25, 0.5, 0.75)


class PipelineTrainer(StageTrainer):
    """One stage of training the model `part` of a `pipeline`, by itself or under FSDP and DeepSpeed."""

    part: str
    pipeline: Any
    parameters: list[nn.Parameter]

    def __init__(self, config, stop: threading.Event | None = None):
        super().__init__(config, stop)
        self.fsdp = find_fsdp2(self.accelerator)
        self.is_sharded = shares_weights(self.accelerator)
        if self.is_sharded and self.fsdp is None and config.ema_decay is not None:
            raise ValueError(
                "`ema_decay` must be null under DeepSpeed and FSDP 1, whose weights are unnamed; FSDP 2 has averages."
            )

    def record(self) -> dict:
        """`training.json` of the result."""
        raise NotImplementedError

    def place_model(self, micro_batch_size: int, groups: list[dict], epsilon: float = 1e-8) -> None:
        """Makes the optimizer of `groups`, and averages of `parameters`. Accelerate wraps the model as it is, with
        adapters and compiled layers; under FSDP 2 it is sharded first, and optimizer and averages are of shards."""
        config, accelerator = self.config, self.accelerator
        model = getattr(self.pipeline, self.part)
        names = names_of(self.parameters, model)
        if self.fsdp is not None:
            in_groups = [names_of(group["params"], model) for group in groups]
            shard_model(accelerator, self.fsdp, model)
            shards = dict(model.named_parameters())
            self.parameters = [shards[name] for name in names]
            for group, members in zip(groups, in_groups, strict=True):
                group["params"] = [shards[name] for name in members]
        optimizer, scheduler = make_optimizer(config, groups, config.learning_rate, config.max_train_steps, epsilon)
        if (deepspeed := accelerator.state.deepspeed_plugin) is not None:  # which would look for a DataLoader
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = micro_batch_size
        if self.fsdp is not None:  # `prepare` would want to shard the model itself
            self.model = model
            self.optimizer = accelerator.prepare_optimizer(optimizer)
            self.scheduler = accelerator.prepare_scheduler(scheduler)
        else:
            self.model, self.optimizer, self.scheduler = accelerator.prepare(model, optimizer, scheduler)
        self.ema = None
        if config.ema_decay is not None:
            self.ema = make_average(self.parameters, config.ema_decay, config.max_train_steps)
            if self.fsdp is None:
                accelerator.register_for_checkpointing(self.ema)
        if self.fsdp is not None:
            only_trained = bool(getattr(config, "lora", None))
            minutes = config.process_timeout_minutes
            timeout = timedelta(minutes=minutes) if minutes else None
            self.shards = ShardedState(accelerator, model, optimizer, self.ema, names, only_trained, timeout)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside the block the weights of the model are their averages, if there are any."""
        if self.ema is None:
            yield
            return
        with weights_gathered_anew(self.model), averaged_weights(self.ema, self.parameters):
            yield

    def validation_turns(
        self, batches: Sequence, kind: Callable[[Any], int] = lambda batch: 0
    ) -> Iterator[tuple[Any, bool, Sequence]]:
        """The batches that this process computes in a validation, whether each counts, and those that all processes
        compute at that time. All take as many turns, in step; a batch that one repeats for that does not count.
        Processes that share the weights need each other in the same layers: batches of different kinds, which take
        different ones, are computed by all of them, one after the other, and count in the first process."""
        accelerator = self.accelerator
        index, count = accelerator.process_index, accelerator.num_processes
        batches = sorted(batches, key=kind)
        for start in range(0, len(batches), count):
            together = batches[start : start + count]
            if self.is_sharded and kind(together[0]) != kind(together[-1]):
                for batch in together:
                    yield batch, accelerator.is_main_process, [batch]
                continue
            is_own = index < len(together)
            yield together[index if is_own else 0], is_own, together

    def backward(self, loss: torch.Tensor, step: int) -> None:
        """The backward pass of a micro-batch."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:  # whose backward pass takes the step
            self.guard.require({"loss": loss}, step)
        self.accelerator.backward(loss)

    def take_step(self, losses: list[torch.Tensor], step: int) -> dict[str, torch.Tensor] | None:
        """Clips the gradients of all micro-batches and changes the weights; returns the norm of the gradients. When
        one of `losses` or the norm is not finite, the weights stay as they were, and it returns None."""
        norm = self.clip_gradients()
        is_taken = self.guard.allows({"loss": torch.stack(losses)}, norm, step)
        if not is_taken:
            self.optimizer.zero_grad()  # a step without gradients changes nothing but the scale of a scaler
        self.optimizer.step()
        self.scheduler.step()
        if self.ema and not self.guard.was_skipped:
            self.ema.step(self.parameters)
        self.optimizer.zero_grad()
        return norm if is_taken else None

    def clip_gradients(self) -> dict[str, torch.Tensor]:
        """Scales the gradients of a step down to `max_grad_norm`; returns the norm that they had."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        if norm is None:  # DeepSpeed clips by itself, and may have no norm yet
            return {}
        return {"grad_norm": norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)}

    def save_result(self, path: Path, weights: dict[str, torch.Tensor] | None) -> None:
        """Writes the result of the stage, but its record, to the folder `path`; with `weights`, where those of the
        model are shards."""
        if weights is not None:
            setattr(self.pipeline, self.part, whole_model(getattr(self.pipeline, self.part), weights))
        self.pipeline.to(getattr(torch, self.config.save_dtype))
        self.pipeline.save_pretrained(path)

    def save(self) -> Path:
        """Writes the result, which marks the stage as finished."""
        accelerator, folder = self.accelerator, self.folder / self.config.result
        if self.ema:
            self.ema.copy_to(self.parameters)
        weights = None
        if self.shards is not None:
            weights = self.shards.whole_weights()
        elif self.is_sharded:
            weights = accelerator.get_state_dict(self.model)
        with written_together(accelerator, folder):
            if accelerator.is_main_process:

                def save(path: Path) -> None:
                    self.save_result(path, weights)
                    (path / RECORD).write_text(json.dumps(self.record(), indent=1), encoding="utf-8")

                save_whole(save, folder)
        return folder


def whole_model(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A copy of a model whose weights are sharded over processes, with the whole `weights`."""
    with torch.device("meta"):
        whole = type(model)(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    if model.can_generate():
        whole.generation_config = model.generation_config
    return whole


def compile_layers(*parts: nn.Module) -> None:
    """Compiles the layers of `parts` in place: one graph for all layers of a kind, for any length. The code between
    them may depend on the data, and would break a graph of a whole model."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(dynamic=True)
