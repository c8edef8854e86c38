# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the class-to-image model: `uniwetok train class-to-image --config imagenet_b`, alone or under `accelerate
launch`.

    loss = diffusion loss of the tokens of pictures of a class                                   (docs/method.md 4)

- Pictures come as codes of a frozen image tokenizer (`uniwetok encode-dataset`), several crops of each, all of them
  also mirrored; or as pictures that it encodes in each step. So tokenizers can be compared by what is generated from
  their codes.
- The class of one picture in ten is left out, for classifier-free guidance; in the input, but not in the targets, some
  bits are flipped.
- Each token is noised `num_diffusion_draws` times.

A step is one optimizer step over `batch_size` pictures, whatever the number of processes and micro-batches: which
pictures they are, their crops, flips, times and noise belong to their running numbers (`samples`). So 2 processes, or
2 micro-batches, compute what 1 computes, and a resumed run continues exactly.
"""

import math
import threading
from pathlib import Path

import torch
from torch import nn

from ..data.encoded import encoder_fingerprint
from ..data.samples import NOISE, sample_generators
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from ..modeling.noise_uniwetok import copy_to_device
from ..pipelines import UniWeTokClassToImagePipeline
from ..provenance import training_record
from ..schedulers import BinaryFlowScheduler
from .agreement import written_together
from .checkpoints import make_output_folder
from .class_batches import ClassBatch, ClassBatches, ClassSource
from .config import check_fields, config_values, field_named
from .conversation_batches import prefetched
from .export import ARCHITECTURE, ExportFields, class_pipeline_parts, names_of, write_architecture
from .run import (
    RunningMetrics,
    SkippedSamples,
    log_images,
    picture_grid,
    seeded_weights,
    uncompiled,
)
from .settings_class_to_image import CHANGEABLE, ClassToImageTrainingConfig
from .stage import ACCURACY_TIMES, PipelineTrainer, compile_layers, run_stage
from .start import start_folder, vision_subfolder


PICTURES_PER_CLASS = 8  # in the grid of a validation


class ClassToImageTrainer(PipelineTrainer):
    """One training."""

    part = "transformer"

    def __init__(self, config: ClassToImageTrainingConfig, stop: threading.Event | None = None):
        """When `stop` is set on any process, the run ends after the current step, with a checkpoint."""
        super().__init__(config, stop)
        start = load_start(config)
        vision_config = (start if isinstance(start, UniWeTokModel) else start.vision_model).config
        known = config.labels or names_of_classes(start)
        self.batches = self.make_batches(config.data, vision_config, known)
        self.validation = None
        if config.validation_data:
            self.validation = self.make_batches(config.validation_data, vision_config, self.batches.names)
        self.pipeline = start_pipeline(config, start, self.batches)
        self.fingerprint = encoder_fingerprint(self.pipeline.vision_model)
        for batches in filter(None, (self.batches, self.validation)):
            batches.check_encoder(self.fingerprint)
            batches.check_rows(config.max_skipped_share)
            check_data(batches, self.pipeline.transformer.config)
        if config.labels is None and known is not None:
            check_names(self.batches, known)
        if strange := [label for label in config.sample_classes if not 0 <= label < self.batches.num_classes]:
            raise ValueError(f"`sample_classes` must be from 0 to {self.batches.num_classes - 1}, got {strange[0]}.")
        make_output_folder(self.folder, config.result)
        self.skipped = SkippedSamples(self.folder, self.accelerator.process_index, config.max_skipped_share)
        self.prepare_model()
        self.metrics = RunningMetrics()

    def make_batches(
        self, sources: list[ClassSource], vision_config: UniWeTokConfig, labels: list[str] | None
    ) -> ClassBatches:
        config = self.config
        return ClassBatches(
            sources,
            config.batch_size,
            config.seed,
            vision_config.stride,
            vision_config.num_bits,
            labels,
            config.resolution,
            config.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            config.num_threads,
        )

    def prepare_model(self) -> None:
        """Makes the model ready for training, and its optimizer and averages."""
        config, model = self.config, self.pipeline.transformer
        self.pipeline.vision_model.to(self.accelerator.device).requires_grad_(False)
        if config.attn_implementation is not None:
            model.set_attn_implementation(config.attn_implementation)
        if model.config.tokens_per_patch == 1:
            model.image_head.freeze_queries_and_keys()
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if config.compile:
            compile_layers(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.place_model(self.batches.micro_batch_size, decay_groups(model))

    def train_steps(self, start: int) -> None:
        config = self.config
        validation_batches = self.validation.validation_batches(config.validation_samples) if self.validation else []
        self.model.train()
        steps = range(start, config.max_train_steps)

        def read(step: int) -> tuple[list[ClassBatch], list[str]]:
            return self.batches.step(step, config.crop_probability_at(step))

        for done, (micro_batches, skipped) in enumerate(prefetched(read, steps), start + 1):
            self.skipped.note(skipped, sum(len(batch.numbers) for batch in micro_batches))
            self.train_step(micro_batches, done - 1)
            self.bar.update()
            is_last = done == config.max_train_steps
            metrics = {}
            if done % config.logging_steps == 0 or is_last:
                metrics = self.take_metrics(done)
                self.bar.set_postfix(loss=f"{metrics.get('loss', math.nan):.3f}")
            if done % config.validation_steps == 0 or is_last:
                metrics |= self.validate(validation_batches, done)
            self.end_step(done, metrics)

    def train_step(self, micro_batches: list[ClassBatch], step: int) -> None:
        """One step. When its loss is not finite, weights and metrics stay as they were."""
        config, accelerator = self.config, self.accelerator
        losses, before = [], self.metrics.copy()
        for batch in micro_batches:
            with accelerator.accumulate(self.model):
                output = self.compute_losses(batch)
                losses.append(output.loss.detach())
                self.backward(output.loss, step)  # all micro-batches are of one size: their mean is the loss
                self.metrics.add({"loss": output.loss, "bit_accuracy": output.bit_accuracy.mean()})
        if (norm := self.take_step(losses, step)) is not None:
            self.metrics.add(norm)
        else:
            self.metrics = before
        self.metrics.add({}, items=config.batch_size)

    def compute_losses(self, batch: ClassBatch, **options):
        """The output of the model for a micro-batch."""
        device, codes = self.accelerator.device, batch.codes
        if codes is None:
            with torch.no_grad(), self.accelerator.autocast():
                pixel_values = copy_to_device(batch.pixel_values, device)
                codes = self.pipeline.vision_model.encode(pixel_values).codes.float()
        generators = sample_generators(self.config.seed, batch.numbers, NOISE)
        inputs = (copy_to_device(part, device) for part in (codes, batch.class_labels))
        with self.accelerator.autocast():  # which Accelerate does for copies of a model, and not for shards
            return self.model(*inputs, generator=generators, **options)

    def take_metrics(self, done: int) -> dict[str, float]:
        """The line of the log: means since the previous line, over all processes; and how much was seen so far."""
        seen = done * self.config.batch_size
        metrics = self.metrics.take(self.accelerator, "pictures") | {
            "epoch": seen / sum(self.batches.num_rows),
            "tokens_seen": seen * self.pipeline.transformer.config.num_tokens,
            "crop_probability": self.config.crop_probability_at(done - 1),
            "learning_rate": self.scheduler.get_last_lr()[0],
            "skipped_samples": self.skipped.total(self.accelerator),
        }
        return metrics | ({"skipped_steps": self.guard.num_skipped} if self.guard.num_skipped else {})

    @torch.no_grad()
    def validate(self, batches: list[ClassBatch], step: int) -> dict[str, float]:
        """Loss and bit accuracies, and pictures of some classes, by the averaged model if there is one."""
        self.model.eval()
        metrics = {}
        with self.averaged_weights():
            if batches:
                with uncompiled(self.config.compile, self.pipeline.transformer.config):
                    metrics = self.measure(batches)
            if self.config.sample_classes and self.accelerator.is_main_process and not self.is_sharded:
                with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                    self.generate_samples(step)
        self.model.train()
        return metrics

    def measure(self, batches: list[ClassBatch]) -> dict[str, float]:
        """Loss, and the share of right bits at each of `ACCURACY_TIMES`."""
        sums = torch.zeros(len(ACCURACY_TIMES) + 2, device=self.accelerator.device, dtype=torch.float32)
        for batch, counts, _ in self.validation_turns(batches):
            loss = self.compute_losses(batch).loss
            accuracy = self.compute_losses(batch, timesteps=ACCURACY_TIMES).bit_accuracy
            if counts:
                sums += len(batch.numbers) * torch.stack([torch.ones_like(loss), loss, *accuracy]).float()
        count, loss, *right = self.accelerator.reduce(sums, "sum").tolist()
        accuracies = {f"validation_bit_accuracy_t{time}": n / count for time, n in zip(ACCURACY_TIMES, right)}
        return {"validation_loss": loss / count} | accuracies

    def generate_samples(self, step: int) -> None:
        """Logs a grid with a row of pictures for each of `sample_classes`."""
        self.pipeline.set_progress_bar_config(disable=True)
        labels = list(self.config.sample_classes)
        generators = [torch.Generator().manual_seed(seed) for _ in labels for seed in range(PICTURES_PER_CLASS)]
        images = self.pipeline(
            labels, num_images_per_label=PICTURES_PER_CLASS, generator=generators, output_type="pt"
        ).images
        log_images(self.accelerator, {"classes": picture_grid(list(images * 2 - 1), PICTURES_PER_CLASS)}, step)

    def data_state(self) -> dict:
        batches = self.batches
        classes = batches.num_classes if batches.names is None else list(batches.names)
        return {"rows": batches.num_rows, "encoder": self.fingerprint, "classes": classes}

    def state_dict(self) -> dict:
        """The state of a run besides what Accelerate saves. The position in the data follows from the step."""
        return self.data_state() | {
            "metrics": self.metrics.state_dict(),
            "skipped": self.skipped.state_dict(),
            "skipped_steps": self.guard.num_skipped,
        }

    def load_state_dict(self, state: dict) -> None:
        self.guard.resume(state.get("skipped_steps", 0))
        self.metrics.load_state_dict(state["metrics"])
        self.skipped.load_state_dict(state.get("skipped"))

    def record(self) -> dict:
        return training_record(started_from=[start_folder(self.config)]) | {"training": config_values(self.config)}

    def write_architecture(self) -> None:
        """Writes what `uniwetok export` needs besides a checkpoint."""
        config, model = self.config, self.pipeline.transformer
        names = self.ema and names_of(self.parameters, model)
        fields = ExportFields("class_pipeline", names, config.save_dtype)
        with written_together(self.accelerator, self.folder / ARCHITECTURE):
            if self.accelerator.is_main_process:
                write_architecture(self.folder, fields, self.record(), *class_pipeline_parts(self.pipeline))


def decay_groups(model: UniWeTokClassToImageModel) -> list[dict]:
    """The parameters with weight decay, and those without: class embedding, queries, projector, and all that have less
    than two axes (docs/method.md 4)."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = parameter.ndim < 2 or name.startswith(("class_embedding.", "queries.", "projector."))
            groups[not is_free].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]


def load_start(config: ClassToImageTrainingConfig) -> UniWeTokClassToImagePipeline | UniWeTokModel:
    """The pipeline of `init_from`, or the image tokenizer of a new one.

    Raises:
        ValueError: when what the config names is not what it should be.
    """
    folder = start_folder(config)
    if config.init_from is not None:
        with field_named("init_from"):
            return UniWeTokClassToImagePipeline.from_pretrained(folder, dtype=torch.float32)
    with field_named("vision_model"):
        return UniWeTokModel.from_pretrained(folder, subfolder=vision_subfolder(folder), dtype=torch.float32)


def names_of_classes(start: UniWeTokClassToImagePipeline | UniWeTokModel) -> list[str] | None:
    """Names of the classes that a pipeline knows, by number."""
    if isinstance(start, UniWeTokModel) or not start.config.id2label:
        return None
    return [name for _, name in sorted(start.config.id2label.items())]


def check_names(batches: ClassBatches, known: list[str]) -> None:
    """
    Raises:
        ValueError: when data that number classes have others than `known`, those of the model that they are to go on
            with: it would learn them under wrong names.
    """
    for rows in batches.sources:
        if strange := [name for name in rows.own_names or () if name not in known]:
            raise ValueError(
                f"`path` {rows.path}: the model of `init_from` has no class {strange[0]!r}; `labels` gives its "
                "classes other names, in the order of their numbers."
            )


def start_pipeline(
    config: ClassToImageTrainingConfig, start: UniWeTokClassToImagePipeline | UniWeTokModel, batches: ClassBatches
) -> UniWeTokClassToImagePipeline:
    """The pipeline that a training starts from: what [`load_start`] returned, or a new model around it.

    Raises:
        ValueError: when the fields of the model don't fit each other or the data.
    """
    if isinstance(start, UniWeTokClassToImagePipeline):
        for name in CHANGEABLE:
            if name in config.model:
                setattr(start.transformer.config, name, config.model[name])
        return with_defaults(start, config)
    check_fields("model", config.model, UniWeTokClassToImageConfig)
    check_fields("head", config.head, UniWeTokHeadConfig)
    with field_named("model`, `head"):
        if batches.size[0] != batches.size[1]:
            raise ValueError(f"pictures must be square, those of the data have {batches.size} tokens.")
        fields = {"num_bits": batches.num_bits, "num_classes": batches.num_classes, "grid_size": batches.size[0]}
        model_config = UniWeTokClassToImageConfig(**fields, **config.model)
        if config.head:
            head = model_config.head_config.to_dict() | {"intermediate_size": None} | config.head
            model_config = UniWeTokClassToImageConfig(**fields, **config.model, head_config=head)
        with seeded_weights(config.seed):
            model = UniWeTokClassToImageModel(model_config)
    scheduler = BinaryFlowScheduler(shift=model_config.head_config.timestep_shift)
    id2label = dict(enumerate(batches.names)) if batches.names else None
    image_processor = UniWeTokImageProcessor(stride=start.config.stride)
    pipeline = UniWeTokClassToImagePipeline(model, start, image_processor, scheduler, id2label=id2label)
    return with_defaults(pipeline, config)


def with_defaults(
    pipeline: UniWeTokClassToImagePipeline, config: ClassToImageTrainingConfig
) -> UniWeTokClassToImagePipeline:
    """Sets those of the pipeline's defaults that the config gives."""
    names = ("num_inference_steps", "guidance_scale", "guidance_schedule")
    given = {f"default_{name}": getattr(config, name) for name in names if getattr(config, name) is not None}
    kept = {
        name: value for name, value in pipeline.config.items() if name.startswith("default_") or name == "id2label"
    }
    if config.labels:
        given["id2label"] = dict(enumerate(config.labels))
    if config.temperature is not None:
        scheduler_config = pipeline.scheduler.config
        pipeline.scheduler = BinaryFlowScheduler.from_config(scheduler_config, temperature=config.temperature)
    return UniWeTokClassToImagePipeline(**pipeline.components, **kept | given)


def check_data(batches: ClassBatches, config: UniWeTokClassToImageConfig) -> None:
    """
    Raises:
        ValueError: when a model of `config` can't learn from the data.
    """
    found = {"num_bits": batches.num_bits, "grid_size": batches.size[0]}
    for name, value in found.items():
        if getattr(config, name) != value:
            path = batches.sources[0].path
            raise ValueError(f"`path` {path}: its codes have `{name}`={value}, the model {getattr(config, name)}.")
    if batches.size[0] != batches.size[1] or batches.num_classes > config.num_classes:
        raise ValueError(
            f"`path` {batches.sources[0].path} has {batches.num_classes} classes of {batches.size[0]} x "
            f"{batches.size[1]} tokens, the model {config.num_classes} of {config.grid_size} x {config.grid_size}."
        )


def train(config: ClassToImageTrainingConfig) -> Path:
    """Runs one training, which SIGTERM and Ctrl-C stop; see [`ClassToImageTrainer.train`]."""
    return run_stage(ClassToImageTrainer, config)
