# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the unified language model: `uniwetok train mllm --config stage.yaml`, alone or under `accelerate launch`.

    loss = 0.01 cross-entropy of the assistant's text + diffusion loss of its pictures            (docs/method.md 3.5)

- One mixture of tasks: text-to-image generation, questions, edits, conversations. For classifier-free guidance the
  user's turn of some generations and edits is left out.
- Pictures come as codes (`uniwetok encode-dataset`). In the input, but not in the targets, some bits are flipped.
- Stages as in the paper: one unified pretraining, independent finetunes for generation, editing and chat
  (`init_from`), and a short one with larger patches (`mllm: {patch_size: ...}`).
- With `lora` adapters are trained instead of the model, and only they are saved.

A step is one optimizer step over `batch_size` samples, whatever the number of processes and micro-batches: which
samples they are, their texts, flips, times and noise belong to their running numbers (`samples`), and the two losses
are divided by the text and image tokens of the whole step. So 2 processes, or 2 micro-batches, compute what 1
computes, and a resumed run continues exactly. At scale a step is `packed_tokens` on each process instead, in packed
rows without padding; the losses are those of the same samples in padded rows.
"""

import copy
import math
import threading
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn import functional as F
from transformers.utils import is_flash_attn_2_available

from ..adapters import save_adapter
from ..data.encoded import encoder_fingerprint
from ..data.samples import NOISE, sample_generators
from ..modeling.noise_uniwetok import copy_to_device
from ..provenance import training_record
from .agreement import written_together
from .checkpoints import (
    make_output_folder,
)
from .config import config_values
from .conversation_batches import ConversationBatches, MicroBatch, prefetched
from .export import ARCHITECTURE, ExportFields, names_of, pipeline_parts, write_architecture
from .lora import add_lora, checkpoint_adapters_only
from .packed_batches import PackedBatches
from .resume import vocabulary_digest
from .run import (
    RunningMetrics,
    SkippedSamples,
    choose_parameters,
    log_images,
    picture_grid,
    uncompiled,
)
from .settings_mllm import MLLMTrainingConfig
from .sharded_start import start_sharded
from .stage import ACCURACY_TIMES, PipelineTrainer, compile_layers, run_stage
from .start import start_folder, start_pipeline
from .tasks import TaskMixture


class MLLMTrainer(PipelineTrainer):
    """One stage of training."""

    part = "mllm"

    def __init__(self, config: MLLMTrainingConfig, stop: threading.Event | None = None):
        """When `stop` is set on any process, the run ends after the current step, with a checkpoint."""
        super().__init__(config, stop)
        if self.is_sharded and self.fsdp is None and config.lora:
            raise ValueError(
                "`lora` trains on one device, on copies (DDP) and under FSDP 2, not under DeepSpeed and FSDP 1."
            )

        # What an error about pictures without codes recommends: `uniwetok encode-dataset ...` with these options.
        options = f"--size {config.resolution or 'N'} --model {config.vision_model or config.init_from}"
        mixture = TaskMixture(config.data, config.seed, config.text_dropout, encode_options=options)
        validation = None
        if config.validation_data:
            validation = TaskMixture(config.validation_data, config.seed, encode_options=options)
        if self.fsdp is not None:
            self.pipeline, self.fingerprint = start_sharded(config, mixture.texts(), self.accelerator)
        else:
            self.pipeline = start_pipeline(config, mixture.texts())
            self.fingerprint = encoder_fingerprint(self.pipeline.mllm.vision_model)
        self.pipeline.processor.check_words(config.prompts, "prompts")
        self.mllm = self.pipeline.mllm
        attention = config.attn_implementation
        if attention is None and config.packed_tokens is not None:
            attention = packed_attention(
                self.accelerator.device, self.mllm.config.patch_size, self.accelerator.mixed_precision
            )
        if attention is not None:
            self.mllm.set_attn_implementation(attention)
        rows = "padded" if config.packed_tokens is None else "packed"
        found = self.mllm.config.text_config._attn_implementation
        self.accelerator.print(f"Attention over {rows} rows by {found}")
        self.batches = self.make_batches(mixture)
        self.validation = validation and self.make_batches(validation)
        share = self.accelerator.process_index, self.accelerator.num_processes
        for batches in filter(None, (self.batches, self.validation)):
            batches.mixture.check_rows(config.max_skipped_share, batches.max_length, *share)
        make_output_folder(self.folder, config.result)
        self.skipped = SkippedSamples(self.folder, self.accelerator.process_index, config.max_skipped_share)
        self.prepare_model()
        self.metrics, self.task_metrics = RunningMetrics(), TaskMetrics(self.batches.names)

    def prepare_model(self) -> None:
        """Chooses the parameters that train, and makes their optimizer and averages."""
        config = self.config
        if config.lora:
            self.parameters = add_lora(self.mllm, config.lora, config.seed)
            if self.fsdp is None:
                checkpoint_adapters_only(self.accelerator)
        else:
            self.parameters = choose_parameters(self.mllm, config.trainable, frozen_patterns(self.mllm))
        if config.gradient_checkpointing:
            self.mllm.activation_checkpointing_enable()
        if config.compile:
            compile_layers(self.mllm.model.language_model, self.mllm.image_head)
        self.place_model(self.batches.micro_batch_size, [{"params": self.parameters}], config.adam_epsilon)

    def make_batches(self, mixture: TaskMixture) -> ConversationBatches:
        config = self.config
        mixture.check_encoder(self.fingerprint)
        parts = mixture, self.pipeline.processor, self.mllm.config.vision_config.num_bits
        shares = {
            "accumulation_steps": config.gradient_accumulation_steps,
            "process_index": self.accelerator.process_index,
            "num_processes": self.accelerator.num_processes,
            "max_length": config.max_length,
        }
        if config.packed_tokens is not None:
            shares["num_readers"] = config.num_readers
            return PackedBatches(*parts, config.packed_tokens, config.seed, **shares)
        return ConversationBatches(*parts, config.batch_size, config.seed, config.length_group_steps, **shares)

    def train_steps(self, start: int) -> None:
        config = self.config
        validation_batches = self.validation.validation_batches(config.validation_samples) if self.validation else []
        self.model.train()
        steps = range(start, config.max_train_steps)
        with self.batches.readers():
            for done, micro_batches in enumerate(prefetched(self.read_step, steps), start + 1):
                self.skipped.note(*self.batches.skipped(done - 1))
                self.train_step(micro_batches, done - 1)
                self.position = self.batches.state_dict(done)
                self.bar.update()
                is_last = done == config.max_train_steps
                metrics = {}
                if done % config.logging_steps == 0 or is_last:
                    metrics = self.take_metrics()
                    self.bar.set_postfix(loss=f"{metrics.get('loss', math.nan):.3f}")
                if done % config.validation_steps == 0 or is_last:
                    metrics |= self.validate(validation_batches, done)
                self.end_step(done, metrics)

    def read_step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, with what the losses need to know of their values: found on the CPU, where it
        keeps no device waiting."""
        micro_batches = self.batches[step]
        for batch in micro_batches:
            batch.places = self.mllm.find_places(**batch.inputs)
        return micro_batches

    def data_state(self) -> dict:
        own = self.config.text_model and vocabulary_digest(self.pipeline.processor.tokenizer)
        rows = [len(task) for task in self.batches.mixture.tasks]
        return {"rows": rows, "encoder": self.fingerprint, "vocabulary": own or None}

    def state_dict(self) -> dict:
        """The state of a run besides what Accelerate saves. The position in the data follows from the step, but where
        rows are packed."""
        return self.data_state() | {
            # Of all processes: the run may go on with another number.
            "positions": gather_object([self.position]) if self.position else [],
            "metrics": self.metrics.state_dict(),
            "task_metrics": self.task_metrics.state_dict(),
            "skipped": self.skipped.state_dict(),
            "skipped_steps": self.guard.num_skipped,
        }

    def load_state_dict(self, state: dict) -> None:
        positions, now = state.get("positions", []), self.accelerator.num_processes
        if positions and len(positions) != now:
            self.accelerator.print(
                f"Processes are {now} from here on, and were {len(positions)}. A step has the packed rows of all: "
                "`gradient_accumulation_steps` can keep its number of tokens, or `learning_rate` follow it."
            )
        self.batches.load_state_dict(positions)
        self.guard.resume(state.get("skipped_steps", 0))
        self.metrics.load_state_dict(state["metrics"])
        self.task_metrics.load_state_dict(state["task_metrics"])
        self.skipped.load_state_dict(state.get("skipped"))

    def train_step(self, micro_batches: list[MicroBatch], step: int) -> None:
        """One step. Losses are divided by the tokens of all of its micro-batches, those of other processes too. When
        one is not finite, weights and metrics stay as they were."""
        config, accelerator = self.config, self.accelerator
        counts = torch.tensor([[batch.num_text_tokens, batch.num_image_tokens] for batch in micro_batches]).sum(0)
        counts = accelerator.reduce(copy_to_device(counts, accelerator.device), "sum").clamp_min(1)
        losses, before = [], (self.metrics.copy(), copy.copy(self.task_metrics))
        for batch in micro_batches:
            with accelerator.accumulate(self.model):
                output = self.compute_losses(batch, num_items_in_batch=counts[0], num_image_tokens_in_batch=counts[1])
                # The losses add up to that of the step; accumulation and DDP would take their mean.
                loss = output.loss * config.gradient_accumulation_steps * accelerator.num_processes
                losses.append(loss.detach())
                self.backward(loss, step)
                self.task_metrics.add(batch, output)
                self.metrics.add({"loss": loss})
        if (norm := self.take_step(losses, step)) is not None:
            self.metrics.add(norm)
        else:
            self.metrics, self.task_metrics = before
        packed = sum(len(batch.numbers) for batch in micro_batches) * accelerator.num_processes
        self.metrics.add({}, items=config.batch_size or packed)

    def compute_losses(self, batch: MicroBatch, **options):
        """The output of the model for a micro-batch, with losses but without logits."""
        device = self.accelerator.device
        with self.accelerator.autocast():  # which Accelerate does for copies of a model, and not for shards
            return self.model(
                **batch.inputs_on(device),
                generator=sample_generators(self.config.seed, batch.numbers, NOISE),
                logits_to_keep=torch.empty(0, dtype=torch.long, device=device),
                use_cache=False,
                **options,
            )

    def take_metrics(self) -> dict[str, float]:
        """The line of the log: means since the previous line, over all processes."""
        num_samples = self.metrics.items
        metrics = self.metrics.take(self.accelerator, "samples") | self.task_metrics.take(self.accelerator)
        tokens_per_sample = metrics.pop("tokens") / num_samples
        if self.guard.num_skipped:
            metrics["skipped_steps"] = self.guard.num_skipped
        metrics["tokens_per_second"] = metrics["samples_per_second"] * tokens_per_sample
        is_packed = self.config.packed_tokens is not None  # else every process knows of all samples
        skipped = self.skipped.total(self.accelerator) if is_packed else self.skipped.count
        return metrics | {"learning_rate": self.scheduler.get_last_lr()[0], "skipped_samples": skipped}

    @torch.no_grad()
    def validate(self, batches: list[MicroBatch], step: int) -> dict[str, float]:
        """Losses of each task and bit accuracies, and pictures generated from the prompts, by the averaged model if
        there is one."""
        self.model.eval()
        metrics = {}
        with self.averaged_weights():
            if batches:
                with uncompiled(self.config.compile, self.mllm.config.text_config):
                    metrics = {f"validation_{name}": value for name, value in self.measure(batches).items()}
            if self.config.prompts and self.accelerator.is_main_process and not self.is_sharded:
                with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                    self.generate_samples(step)
        self.model.train()
        return metrics

    def measure(self, batches: list[MicroBatch]) -> dict[str, float]:
        """Losses of each task, and the share of right bits at each of `ACCURACY_TIMES`."""
        tasks, device = TaskMetrics(self.validation.names), self.accelerator.device
        right = torch.zeros(len(ACCURACY_TIMES) + 1, device=device, dtype=torch.float32)  # the last: image tokens
        # Batches without pictures to generate do not take the head.
        turns = self.validation_turns(batches, kind=lambda batch: batch.num_image_tokens == 0)
        for batch, counts, together in turns:
            output = self.compute_losses(batch)
            if counts:
                tasks.add(batch, output)
            if any(one.num_image_tokens for one in together):
                accuracy = self.compute_losses(batch, timesteps=ACCURACY_TIMES).bit_accuracy
                if counts and batch.num_image_tokens:
                    right += batch.num_image_tokens * F.pad(accuracy.float(), (0, 1), value=1.0)
        metrics = tasks.take(self.accelerator)
        del metrics["tokens"]
        *right, num_tokens = self.accelerator.reduce(right, "sum").tolist()
        if num_tokens:
            metrics |= {f"bit_accuracy_t{time}": n / num_tokens for time, n in zip(ACCURACY_TIMES, right)}
        return metrics

    def generate_samples(self, step: int) -> None:
        """Logs a grid of four pictures for each prompt of the config, one row per prompt."""
        self.pipeline.set_progress_bar_config(disable=True)
        prompts = list(self.config.prompts)
        generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(4)]
        images = self.pipeline(prompts, num_images_per_prompt=4, generator=generators, output_type="pt").images
        log_images(self.accelerator, {"drawings": picture_grid(list(images * 2 - 1), columns=4)}, step)

    def save_result(self, path: Path, weights: dict[str, torch.Tensor] | None) -> None:
        config = self.config
        if not config.lora:
            super().save_result(path, weights)
            return
        dtype = getattr(torch, config.save_dtype)
        if weights is None:
            self.pipeline.to(dtype)
        else:
            weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        save_adapter(self.mllm, path, base_model=config.init_from, weights=weights)

    def record(self) -> dict:
        """`training.json` of the result. No loss here looks through a network, but those of the image tokenizer or of
        earlier stages may have."""
        return training_record(started_from=[start_folder(self.config)]) | {"training": config_values(self.config)}

    def write_architecture(self) -> None:
        """Writes what `uniwetok export` needs besides a checkpoint."""
        config, parts = self.config, pipeline_parts(self.pipeline)
        names = self.ema and names_of(self.parameters, self.mllm)
        if config.lora:
            parts = [(self.mllm.config, "mllm"), (self.mllm.peft_config["default"], "")]
        fields = ExportFields(config.result, names, config.save_dtype, config.lora and config.init_from)
        with written_together(self.accelerator, self.folder / ARCHITECTURE):
            if self.accelerator.is_main_process:
                write_architecture(self.folder, fields, self.record(), *parts)


class TaskMetrics:
    """Sums since the last line of the log for the losses of each task, and for the share of bits that the head
    predicts right at its training times."""

    def __init__(self, names: list[str]):
        self.names = names
        self.by_task = torch.zeros(
            len(names), 4, dtype=torch.float32
        )  # text loss, text tokens, image loss, image tokens
        self.overall = torch.zeros(
            3, dtype=torch.float32
        )  # image tokens x share of right bits, image tokens, all tokens

    def add(self, batch: MicroBatch, output) -> None:
        """Adds a micro-batch and its output. The sums stay on their device, so this does not wait for it."""
        device = output.loss.device
        image_losses = torch.zeros(len(batch.numbers), dtype=torch.float32)
        right = torch.zeros((), device=device, dtype=torch.float32)  # image tokens x share of right bits
        if output.image_loss is not None:
            image_losses = output.row_image_losses
            right = batch.num_image_tokens * output.bit_accuracy.mean().float()
        columns = [output.row_text_losses, batch.text_tokens, image_losses, batch.image_tokens]
        counts = torch.tensor([batch.num_image_tokens, batch.num_tokens], dtype=torch.float32)
        columns = [copy_to_device(column, device, torch.float32) for column in columns]
        by_task, overall = copy_to_device(self.by_task, device), copy_to_device(self.overall, device)
        self.by_task = by_task.index_add(
            0, copy_to_device(batch.tasks, device), torch.stack(columns, dim=1)
        )  # [rows, 4]
        self.overall = overall + torch.cat([right[None], copy_to_device(counts, device)])

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """`text_loss_TASK` and `image_loss_TASK` of all processes, means over tokens, `bit_accuracy`, and the number
        of `tokens`; then starts again at 0."""
        sums = [self.by_task.to(accelerator.device), self.overall.to(accelerator.device)]
        by_task, (right, num_image_tokens, num_tokens) = (part.tolist() for part in accelerator.reduce(sums, "sum"))
        self.by_task, self.overall = torch.zeros_like(self.by_task), torch.zeros_like(self.overall)
        metrics = {"tokens": num_tokens}
        for name, (text_loss, text_tokens, image_loss, image_tokens) in zip(self.names, by_task, strict=True):
            if text_tokens:
                metrics[f"text_loss_{name}"] = text_loss / text_tokens
            if image_tokens:
                metrics[f"image_loss_{name}"] = image_loss / image_tokens
        if num_image_tokens:
            metrics["bit_accuracy"] = right / num_image_tokens
        return metrics

    def state_dict(self) -> dict:
        """The sums, for a checkpoint between two lines of the log."""
        return {"by_task": self.by_task.tolist(), "overall": self.overall.tolist()}

    def load_state_dict(self, state: dict) -> None:
        self.by_task, self.overall = (
            torch.tensor(state[name], dtype=torch.float32) for name in ("by_task", "overall")
        )
        self.overall[2] = 0  # tokens per second are those since the start


def packed_attention(device: torch.device, patch_size: int, mixed_precision: str) -> str:
    """The implementation for long packed rows: on GPUs one that skips what documents don't see of each other. Flash
    attention knows them by their positions, but is causal inside a patch, and of 16 bits."""
    if device.type != "cuda":
        return "sdpa"  # with a dense mask
    has_flash = patch_size == 1 and mixed_precision in ("bf16", "fp16") and is_flash_attn_2_available()
    return "flash_attention_2" if has_flash else "flex_attention"


def frozen_patterns(model: nn.Module) -> list[str]:
    """Regular expressions of the parameters that never train: those of the image tokenizer, whose codes are the data,
    and with patches of one token the queries and keys of the head, since attention over one token is its value."""
    head = [r"^image_head\..*\.(q|k)_proj\."] if model.config.patch_size == 1 else []
    return [r"^model\.vision_model\.", *head]


def train(config: MLLMTrainingConfig) -> Path:
    """Runs one stage, which SIGTERM and Ctrl-C stop; see [`MLLMTrainer.train`]."""
    return run_stage(MLLMTrainer, config)
