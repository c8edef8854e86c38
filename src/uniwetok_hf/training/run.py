# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the trainers share: Accelerate, the optimizer, which parameters train, the log, stopping, averaged weights."""

import contextlib
import copy
import dataclasses
import gc
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, LoggerType, parse_flag_from_env
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, get_scheduler
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..data.skipped import SkippedItems
from ..files import whole_file, writing
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.noise_uniwetok import copy_to_device
from ..signals import Stopped, signals_set
from .agreement import deepspeed_on_cpus, lost_processes_named, process_group_options
from .checkpoints import list_checkpoints
from .config import field_named
from .sharding import find_fsdp2
from .trackers import JsonLinesTracker


def choose_precision(mixed_precision: str | None) -> str | None:
    """`mixed_precision` of a config as Accelerate takes it: "auto" is bfloat16 where the device computes with it, on
    GPUs that don't float16, else "no". Warns when a CPU without instructions for bfloat16 is to use it.

    Raises:
        ValueError: for another value than auto, no, fp16, bf16 and None.
    """
    if mixed_precision not in (None, "auto", "no", "fp16", "bf16"):
        raise ValueError(f"`mixed_precision` must be auto, no, fp16 or bf16, got {mixed_precision!r}.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if device.type == "cpu":
        has_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        if mixed_precision == "bf16" and not has_bf16:
            warnings.warn(
                "`mixed_precision: bf16` is many times slower than `no` on this processor, which has no instructions "
                "for bfloat16; `auto` chooses what is fast.",
                stacklevel=2,
            )
        return ("bf16" if has_bf16 else "no") if mixed_precision == "auto" else mixed_precision
    if mixed_precision != "auto":
        return mixed_precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"


def forget_stage() -> None:
    """Before the next stage of a command: its precision is its own, and the memory of the last one is free."""
    AcceleratorState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def uncompiled(is_compiled: bool, config: PreTrainedConfig) -> Iterator[None]:
    """Inside the block compiled layers of a model of `config` run as they are: a few batches without gradients are
    done before their graphs would be made. Not with flex attention, which takes all memory uncompiled."""
    is_eager = is_compiled and config._attn_implementation != "flex_attention"
    with torch.compiler.set_stance("force_eager" if is_eager else "default"):
        yield


def start_accelerator(config, folder: Path) -> tuple[Accelerator, JsonLinesTracker]:
    """The Accelerator of a config, which logs to `folder` and to the trackers in `report_to`. What the config says
    counts, whatever variables of the environment say to Accelerate.

    Raises:
        ValueError: when the processes and micro-batches can't share `batch_size` samples, or Accelerate is configured
            for a kind of parallelism that the trainers don't know.
    """
    if unknown := sorted(set(config.report_to) - set(LoggerType.list())):
        raise ValueError(f"`report_to` must be of {', '.join(LoggerType.list())}, got {unknown[0]!r}.")
    tracker = JsonLinesTracker(folder, dataclasses.asdict(config))
    precision = choose_precision(config.mixed_precision)
    with lost_processes_named():
        accelerator = Accelerator(
            mixed_precision=precision,
            # As an object: a number would give way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS. Under FSDP gradients
            # become shards after each micro-batch: whole ones, of all weights, would stay on every GPU in between.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.gradient_accumulation_steps,
                sync_each_batch=parse_flag_from_env("ACCELERATE_USE_FSDP"),
            ),
            dynamo_backend="no",  # `compile` of the config decides, not ACCELERATE_DYNAMO_BACKEND
            log_with=[tracker, *config.report_to],
            project_dir=folder,
            step_scheduler_with_optimizer=False,  # the schedule counts our steps, whatever the number of processes
            # Else processes of `torchrun` on CPUs would not communicate; those of DeepSpeed do, if not told of CPUs.
            cpu=not torch.accelerator.is_available() and not deepspeed_on_cpus(),
            kwargs_handlers=process_group_options(config.process_timeout_minutes),
        )
    batch_size = getattr(config, "batch_size", None)
    if batch_size is not None and batch_size % (accelerator.num_processes * config.gradient_accumulation_steps):
        raise ValueError(
            f"`batch_size`={config.batch_size} must be a multiple of processes x `gradient_accumulation_steps` = "
            f"{accelerator.num_processes} x {config.gradient_accumulation_steps}."
        )
    for name in ("FSDP", "DEEPSPEED"):
        runs = accelerator.distributed_type.name == name or (name == "FSDP" and find_fsdp2(accelerator) is not None)
        if parse_flag_from_env(f"ACCELERATE_USE_{name}") and not runs:
            raise ValueError(
                f"Accelerate is configured with {name} (ACCELERATE_USE_{name} in the environment), but would run "
                f"without it, as {accelerator.distributed_type.name}: it takes {name} in several processes only, and "
                "FSDP on GPUs. Start so, or without that configuration."
            )
    if find_fsdp2(accelerator) is not None and accelerator.mixed_precision == "fp16":
        raise ValueError(
            "`mixed_precision` must be bf16 or no under FSDP 2, which fp16 would need a scaler of its own for"
            f"{'; `auto` is fp16 on these GPUs, which have no bfloat16' if config.mixed_precision == 'auto' else ''}."
        )
    parallel = accelerator.parallelism_config
    for name in ("tp_size", "cp_size", "sp_size") if parallel else ():
        if getattr(parallel, name, 1) > 1:
            raise ValueError(
                f"Accelerate is configured with `{name}`={getattr(parallel, name)} (PARALLELISM_CONFIG_* in the "
                "environment): the trainers divide samples between processes, and weights with FSDP, but no layers."
            )
    if getattr(accelerator.state, "fsdp_plugin", None) and accelerator.state.fsdp_plugin.activation_checkpointing:
        raise ValueError(
            "Accelerate is configured with activation checkpointing (FSDP_ACTIVATION_CHECKPOINTING in the "
            "environment): set `gradient_checkpointing` of the training instead."
        )
    if (deepspeed := accelerator.state.deepspeed_plugin) is not None:
        overrule_deepspeed(deepspeed.deepspeed_config, config, precision)
    return accelerator, tracker


def overrule_deepspeed(deepspeed_config: dict, config, precision: str | None) -> None:
    """Puts the training's micro-batches and clipping in the place of those of DeepSpeed's configuration, which does
    both by itself, and `precision`, unless it is None. Models are made whole and divided by `prepare`, not while they
    are made: new weights are drawn from others. Of ZeRO stage 3 the whole weights are gathered for the result."""
    unset_hf_deepspeed_config()
    if (zero := deepspeed_config.get("zero_optimization", {})).get("stage") == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    deepspeed_config["gradient_accumulation_steps"] = config.gradient_accumulation_steps
    deepspeed_config["gradient_clipping"] = config.max_grad_norm or 0.0  # 0 is never
    for name in ("fp16", "bf16") if precision is not None else ():  # Accelerate leaves what a file says
        deepspeed_config[name] = deepspeed_config.get(name, {}) | {"enabled": precision == name}


def choose_parameters(model: nn.Module, trainable: Sequence[str], never: Sequence[str] = ()) -> list[nn.Parameter]:
    """Freezes all parameters but those with a match of a regular expression in `trainable` in their names, all when it
    is empty, and returns those that train. Names that match an expression in `never` stay frozen.

    Raises:
        ValueError: for an expression that no name matches.
    """
    named = [  # tied weights under all of their names
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not any(re.search(part, name) for part in never)
    ]
    for part in trainable:
        if not any(re.search(part, name) for name, _ in named):
            parts = {".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name, _ in named}
            raise ValueError(
                f"`trainable`: no parameter's name matches {part!r}; the parts are {', '.join(sorted(parts))}."
            )
    chosen = {id(p) for name, p in named if not trainable or any(re.search(part, name) for part in trainable)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(
    config, parameters: list[nn.Parameter] | list[dict], learning_rate: float, num_steps: int, epsilon: float = 1e-8
):
    """AdamW of parameters, or of groups of them, and the learning rate schedule over `num_steps` steps.

    Raises:
        ValueError: for a schedule that is unknown, does not take its arguments, or does not follow the steps alone.
    """
    optimizer = torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=epsilon,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the memory: on CPUs a quarter of the time
    )
    fields = "lr_scheduler`, `lr_warmup_steps`, `lr_scheduler_kwargs"
    with field_named(fields):
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=num_steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(f"{config.lr_scheduler} follows a metric; schedules of the steps alone are accepted.")
        # Now, not at the step that first needs a wrong argument.
        rates = [float(scheduler.lr_lambdas[0](step)) for step in range(0, num_steps + 1, max(num_steps // 100, 1))]
        if not np.isfinite(rates).all():
            raise ValueError(f"the learning rate would be {rates}.")
    return optimizer, scheduler


def make_average(parameters: list[nn.Parameter], decay: float, num_steps: int) -> EMAModel:
    """The moving average of `parameters`: after the first step the weights, then decay * average + (1 - decay) *
    weights, with one decay for all steps, as in the method (docs/method.md 2.7). Warns when `num_steps` are so few
    that the average stays near the first weights.

    Raises:
        ValueError: for a decay that is not from 0 to 1.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"`ema_decay` must be 0 or more and below 1, got {decay}.")
    if num_steps > 10 and (rest := decay**num_steps) > 0.1:
        warnings.warn(
            f"`ema_decay: {decay}` is slow for {num_steps} steps: {rest:.0%} of the average that is saved are the "
            f"weights of the first step. For a run of this length {1 - 10 / num_steps:.3g} or less is better.",
            stacklevel=2,
        )
    return MovingAverage(parameters, decay=decay, min_decay=float(decay))


class MovingAverage(EMAModel):
    """The averages of all parameters are updated in place, by few kernels and one pass over the memory. (Those of
    diffusers need as much memory again, and can't be copied to shards.)"""

    @torch.no_grad()
    def step(self, parameters: list[nn.Parameter]) -> None:
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, [p.detach() for p in parameters], 1 - self.cur_decay_value)


class CheckpointClock:
    """Tells when a checkpoint is due: every `steps` steps and, where `minutes` is given, at the first line of the log
    after so many minutes. (At a line, where processes wait for each other anyway, as they must agree.) After a step
    that was skipped it waits for the next good one: a run that has diverged must not replace its good checkpoints."""

    def __init__(self, accelerator: Accelerator, config):
        self.accelerator, self.config = accelerator, config
        self.last, self.waits = time.monotonic(), False

    def is_due(self, step: int, was_skipped: bool = False) -> bool:
        """All processes must ask, at each step; a true answer starts the minutes anew."""
        config, due = self.config, step % self.config.checkpointing_steps == 0
        if config.checkpointing_minutes is not None and step % config.logging_steps == 0:
            late = torch.tensor(time.monotonic() - self.last > 60 * config.checkpointing_minutes)
            due = due or self.accelerator.reduce(late.float().to(self.accelerator.device), "sum").item() > 0
        if due:
            self.last = time.monotonic()
        self.waits = self.waits or due
        if was_skipped or not self.waits:
            return False
        self.waits = False
        return True


class RunningMetrics:
    """Means of metrics since the last line of the log; they stay on their device, so that adding does not wait."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.clock, self.items, self.steps = time.monotonic(), 0, 0

    def add(self, values: dict[str, torch.Tensor | float], items: int = 0) -> None:
        """Adds one value of each metric. At the end of a step, `items` is the number of samples of all processes."""
        for name, value in values.items():
            value = (
                value.detach().float() if torch.is_tensor(value) else torch.tensor(float(value), dtype=torch.float32)
            )
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.items += items
        self.steps += items > 0

    def take(self, accelerator: Accelerator, item: str) -> dict[str, float]:
        """Means over values and processes, `{item}_per_second` and `steps_per_second`; then starts again at 0."""
        means = {name: self.sums[name].to(accelerator.device) / self.counts[name] for name in sorted(self.sums)}
        means = {name: value.item() for name, value in accelerator.reduce(means, "mean").items()} if means else {}
        seconds = max(time.monotonic() - self.clock, 1e-9)
        means |= {f"{item}_per_second": self.items / seconds, "steps_per_second": self.steps / seconds}
        self.sums, self.counts = {}, {}
        self.clock, self.items, self.steps = time.monotonic(), 0, 0
        return means

    def copy(self) -> "RunningMetrics":
        """The metrics so far, which adding does not change."""
        copied = copy.copy(self)
        copied.sums, copied.counts = dict(self.sums), dict(self.counts)
        return copied

    def state_dict(self) -> dict:
        """The sums, for a checkpoint between two lines of the log."""
        return {"sums": {name: value.item() for name, value in self.sums.items()}, "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.sums = {name: torch.tensor(value, dtype=torch.float32) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


class SkippedSamples(SkippedItems):
    """The samples that one process left out, listed in `skipped-<process>.txt` of the run's folder."""

    def __init__(self, folder: Path, process_index: int, max_share: float):
        self.file = folder / f"skipped-{process_index}.txt"
        super().__init__(max_share, where=str(self.file))

    def note(self, reasons: Sequence[str], num_read: int) -> None:
        """Lists and counts those of a step, which has `num_read` samples.

        Raises:
            ValueError: when it is too many in all.
        """
        if reasons:
            with writing(self.file), open(self.file, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(" ".join(reason.split()) + "\n" for reason in reasons)
        self.add(reasons, num_read + len(reasons))

    def total(self, accelerator: Accelerator) -> int:
        """How many all processes have left out, where each reads its own."""
        return int(accelerator.reduce(torch.tensor(self.count, device=accelerator.device), "sum"))

    def load_state_dict(self, state: dict | int | None) -> None:
        """Goes on from a checkpoint, or begins without one: what was left out after it will be again. (Earlier
        versions have the count, or nothing.)"""
        state = state if isinstance(state, dict) else {"count": state or 0, "num_read": 0, "shown": []}
        super().load_state_dict(state)
        if self.file.exists():
            # A full disk cuts inside a letter, too.
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            with whole_file(self.file) as temporary:
                temporary.write_text("".join(lines[: self.count]), encoding="utf-8")


def picture_grid(pictures: Sequence[torch.Tensor], columns: int) -> Image.Image:
    """One image of many float [3, H, W] in [-1, 1] of one size, row by row."""
    height, width = pictures[0].shape[1:]
    sheet = Image.new("RGB", (columns * (width + 2), -(-len(pictures) // columns) * (height + 2)), "white")
    for index, picture in enumerate(UniWeTokImageProcessor().postprocess(list(pictures))):
        sheet.paste(picture, (index % columns * (width + 2), index // columns * (height + 2)))
    return sheet


def log_images(accelerator: Accelerator, images: dict[str, Image.Image], step: int) -> None:
    """Passes images to those trackers that take them."""
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name == "tensorboard":
            arrays = {name: np.asarray(image)[None] for name, image in images.items()}
            tracker.log_images(arrays, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [image] for name, image in images.items()}, step=step)
        elif tracker.name == "jsonl":
            tracker.log_images(images, step=step)


class StepGuard:
    """Decides which steps are taken: those whose losses and gradients are finite. The others are skipped, and counted
    in `num_skipped`. After more than `max_skipped_steps` of them since the run was started or resumed, it ends.

    Processes tell each other at each step, with one wait for the device. The `flags` of each go with it, so that
    nothing else has to wait: `raised` says which are set on any process."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        max_skipped_steps: int,
        flags: Callable[[], Sequence[bool]] = tuple,
    ):
        self.accelerator, self.folder, self.limit = accelerator, folder, max_skipped_steps
        self.flags, self.raised = flags, [False] * len(flags())
        self.before_end: Callable[[], None] = lambda: None  # so that the last checkpoint is written
        self.num_skipped = self.skipped_before = 0
        self.was_skipped = False  # the last step

    def resume(self, num_skipped: int) -> None:
        """Counts on from a checkpoint, with the whole limit again."""
        self.num_skipped = self.skipped_before = num_skipped

    def allows(self, losses: dict[str, torch.Tensor], norms: dict[str, torch.Tensor], step: int) -> bool:
        """Whether a step is taken. All processes must ask, after the backward pass and before the weights change.

        Args:
            losses: values of any shape, of all micro-batches.
            norms: of the gradients. One that is not finite while the losses are does not count as skipped when a
                gradient scaler looks for its scale: it skips such steps by itself.
            step: its number, from 0 on.

        Raises:
            FloatingPointError: on all processes, when too many steps were skipped; the last checkpoint is good.
        """
        values, scaler = losses | norms, self.accelerator.scaler
        device = self.accelerator.device
        is_bad = torch.stack([~value.detach().isfinite().all().to(device) for value in values.values()]).float()
        flags = copy_to_device(torch.tensor([float(flag) for flag in self.flags()]), device)
        shared = self.accelerator.reduce(torch.cat([is_bad, flags]), "sum").tolist()  # the one wait for the device
        bad = [name for name, processes in zip(values, shared, strict=False) if processes]
        self.raised = [processes > 0 for processes in shared[len(values) :]]
        self.was_skipped = bool(bad)
        if not bad:
            return True
        bad_losses = [name for name in bad if name in losses]
        if scaler is not None and not bad_losses and scaler.get_scale() > 1:
            return False
        self.num_skipped += 1
        count = self.num_skipped - self.skipped_before
        names = ", ".join(bad_losses or bad)  # the gradients of a loss that is not finite are not either
        if count > self.limit:
            raise FloatingPointError(self._last_words(step, names))
        if self.accelerator.is_main_process:
            tqdm.write(
                f"Step {step + 1} is skipped: not finite: {names} ({count} of at most {self.limit} such steps).",
                file=sys.stderr,
            )
        return False

    def require(self, losses: dict[str, torch.Tensor], step: int) -> None:
        """[`allows`] where a step can't be skipped any more: a loss that is not finite ends the run."""
        self.limit = 0
        self.allows(losses, {}, step)

    def _last_words(self, step: int, names: str) -> str:
        try:
            self.before_end()
            failed = ""
        except OSError as error:  # on all processes
            failed = f" ({error})"
        found = list_checkpoints(self.folder)
        last = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        last += failed
        before = f", after {self.limit} skipped steps (`max_skipped_steps`)" if self.limit else ""
        return (
            f"Not finite at step {step + 1}: {names}{before}; {last}. Set a smaller `learning_rate`: the same command "
            "goes on with it."
        )


def stops_after_step(stop: threading.Event) -> contextlib.AbstractContextManager:
    """Inside the block SIGTERM and the first Ctrl-C set `stop`, so that the current step can end and be saved; a
    second Ctrl-C ends the block at once."""
    return signals_set(stop, "Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")


def stopped_after(step: int) -> Stopped:
    """The exception of a training that was stopped after saving this step."""
    return Stopped(f"stopped after step {step}; the same command continues from there")


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside the block new models are initialised from `seed` on the CPU; torch's global generator is restored after
    it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the generators of GPUs for good
        yield


@contextlib.contextmanager
def averaged_weights(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block, `parameters` are their averages, if there are any."""
    if ema is None:
        yield
        return
    is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    shards = [parameter.detach().clone() for parameter in parameters] if is_sharded else []
    if not is_sharded:
        ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        if is_sharded:
            for parameter, shard in zip(parameters, shards, strict=True):
                parameter.data.copy_(shard)
        else:
            ema.restore(parameters)
