# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The settings of a training of the class-to-image model: the fields of its YAML files (`config.py`)."""

from dataclasses import dataclass

from ..data.skipped import MAX_SHARE
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from .class_batches import ClassSource
from .config import APPLY, KEEP, KEEP_NULL, check_at_least, check_share, check_training, field_named, setting
from .export import SAVE_DTYPES


# Fields of a model that don't change its weights, nor what it was trained to predict.
CHANGEABLE = ("class_dropout", "bit_flip_probability", "num_diffusion_draws")
INFERRED = ("num_bits", "num_classes", "grid_size")  # from the data


@dataclass
class ClassToImageTrainingConfig:
    """One training."""

    output_dir: str = setting(
        help="folder of the run: checkpoints, log.jsonl, samples, and at the end `pipeline`", on_resume=APPLY
    )
    data: list[ClassSource] = setting(help="datasets with classes, each with a weight", on_resume=KEEP)
    max_train_steps: int = setting(help="optimizer steps", on_resume=APPLY)
    batch_size: int = setting(help="pictures per step over all processes", on_resume=KEEP)
    validation_data: list[ClassSource] = setting([], "data for validation; empty: no validation", on_resume=APPLY)
    validation_samples: int = setting(128, "number of rows of each dataset in a validation", on_resume=APPLY)
    # the model
    vision_model: str | None = setting(
        None,
        "without init_from: the image tokenizer, the one that encoded the data: its last stage, a model, or the name "
        "of an embedded one",
        on_resume=KEEP,
    )
    init_from: str | None = setting(
        None, "a finished training (its output_dir), or a pipeline to continue from", on_resume=KEEP
    )
    model: dict = setting(
        {}, "fields of the model's config; those of its size only without init_from", on_resume=CHANGEABLE
    )
    head: dict = setting({}, "without init_from: fields of the diffusion head's config", on_resume=KEEP)
    labels: list[str] | None = setting(
        None,
        "names of the classes in the order of their numbers; null: those of init_from or of the data",
        on_resume=KEEP,
    )
    # the pipeline that comes out; null: as in init_from
    num_inference_steps: int | None = setting(None, "default number of diffusion steps", on_resume=APPLY)
    temperature: float | None = setting(None, "what the sampler's noise is multiplied with", on_resume=APPLY)
    guidance_scale: float | None = setting(None, "default guidance scale", on_resume=APPLY)
    guidance_schedule: str | None = setting(
        None, "default course of the guidance over the patches: linear or constant", on_resume=APPLY
    )
    save_dtype: str = setting("float32", "dtype of the saved weights: float32, bfloat16 or float16", on_resume=APPLY)
    sample_classes: list[int] = setting(
        [], "classes of which each validation generates eight pictures to look at; not under FSDP", on_resume=APPLY
    )
    # the samples
    resolution: int | None = setting(
        None, "side in pixels of pictures that are not encoded; null: all data are codes", on_resume=KEEP
    )
    num_threads: int = setting(2, "threads per process that read and crop pictures", on_resume=APPLY)
    crop_probability: float = setting(
        1.0, "probability of showing a crop in place of the whole picture, at first", on_resume=APPLY
    )
    crop_end: list[float] = setting(
        [0.875, 0.9375],
        "parts of the training between which that falls to 0 (published: epochs 700 to 750 of 800)",
        on_resume=APPLY,
    )
    max_skipped_share: float = setting(
        MAX_SHARE,
        "share of the samples that may be left out, since they are damaged; more, and more than ten, end the run",
        on_resume=APPLY,
    )
    # the optimizer
    learning_rate: float = setting(6e-4, "learning rate of AdamW (published: 6e-4)", on_resume=APPLY)
    lr_scheduler: str = setting(
        "cosine_with_min_lr", "name of a schedule of transformers.get_scheduler", on_resume=APPLY
    )
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached (published: 20,000)", on_resume=APPLY)
    lr_scheduler_kwargs: dict = setting(
        {"min_lr": 1e-5}, "other arguments of the schedule, such as min_lr", on_resume=APPLY
    )
    adam_beta1: float = setting(0.9, "Adam's first momentum", on_resume=APPLY)
    adam_beta2: float = setting(0.95, "Adam's second momentum", on_resume=APPLY)
    weight_decay: float = setting(
        0.05, "decoupled weight decay, but of embeddings, projector, biases and norms", on_resume=APPLY
    )
    max_grad_norm: float | None = setting(
        1.0, "norm that gradients are scaled down to; null or 0: never", on_resume=APPLY
    )
    ema_decay: float | None = setting(
        0.9999,
        "decay, the same in all steps, of the weight average that is validated and saved; null: none",
        on_resume=KEEP_NULL,
    )
    max_skipped_steps: int = setting(
        3,
        "steps with a loss or gradient that is not finite, which are skipped, before the run ends",
        on_resume=APPLY,
    )
    # running it
    gradient_accumulation_steps: int = setting(1, "micro-batches per step on each process", on_resume=APPLY)
    gradient_checkpointing: bool = setting(
        False, "whether the backward pass computes activations again: less memory, more time", on_resume=APPLY
    )
    mixed_precision: str | None = setting(
        None,
        "precision of the computation: no, fp16, bf16, or auto, which chooses what the device does fast; null: as "
        "accelerate is configured",
        on_resume=APPLY,
    )
    compile: bool = setting(
        False,
        "whether the layers are compiled (torch.compile), which takes a minute and a C++ compiler",
        on_resume=APPLY,
    )
    attn_implementation: str | None = setting(
        None, "attention: sdpa, eager, flex_attention, ...; null: the model's", on_resume=APPLY
    )
    seed: int = setting(0, "seed of weights, order, crops, flips and noise; 0 or more", on_resume=KEEP)
    logging_steps: int = setting(50, "steps between lines of the log", on_resume=APPLY)
    validation_steps: int = setting(500, "steps between validations", on_resume=APPLY)
    checkpointing_steps: int = setting(500, "steps between checkpoints", on_resume=APPLY)
    checkpointing_minutes: float | None = setting(
        None,
        "minutes after which the next line of the log comes with a checkpoint, too; null: steps alone count",
        on_resume=APPLY,
    )
    checkpoints_total_limit: int = setting(2, "number of checkpoints that are kept", on_resume=APPLY)
    process_timeout_minutes: float | None = setting(
        None,
        "minutes after which a process that others wait for counts as lost; null: as torch has it, 10 to 30",
        on_resume=APPLY,
    )
    report_to: list[str] = setting([], "trackers in addition to log.jsonl: tensorboard, wandb, ...", on_resume=APPLY)

    def __post_init__(self):
        if self.save_dtype not in SAVE_DTYPES:
            raise ValueError(f"`save_dtype` must be float32, bfloat16 or float16, got {self.save_dtype!r}.")
        if self.guidance_schedule not in (None, "linear", "constant"):
            raise ValueError(f"`guidance_schedule` must be linear or constant, got {self.guidance_schedule!r}.")
        check_training(self)
        check_at_least(self, 1, "validation_samples", "num_inference_steps", "num_threads")
        check_at_least(self, 0, "temperature")
        check_share(self, "crop_probability")
        if len(self.crop_end) != 2 or not 0 <= self.crop_end[0] <= self.crop_end[1] <= 1:
            raise ValueError(
                f"`crop_end` must be two numbers from 0 to 1, the smaller one first, got {self.crop_end}."
            )
        if fixed := [name for name in INFERRED if name in self.model]:
            raise ValueError(f"`model.{fixed[0]}` follows from the data and can't be given.")
        if self.init_from is None and self.vision_model is None:
            raise ValueError("Give `vision_model`, the image tokenizer, or `init_from`.")
        if self.init_from is not None:
            given = [name for name in ("vision_model", "head") if getattr(self, name)]
            given += [f"model.{name}" for name in self.model if name not in CHANGEABLE]
            if given:
                raise ValueError(f"`{given[0]}` can't be given together with `init_from`, which brings its own.")
            with field_named("model"):  # a finished model takes them without its config's own checks
                UniWeTokClassToImageConfig(**self.model)

    def crop_probability_at(self, step: int) -> float:
        """The probability of showing a crop in `step`: constant, then falling to 0 (docs/method.md 4)."""
        start, end = (part * self.max_train_steps for part in self.crop_end)
        rest = 1.0 if step < start else 0.0 if step >= end else (end - step) / (end - start)
        return self.crop_probability * rest

    @property
    def result(self) -> str:
        """Name of the folder that marks the training as finished."""
        return "pipeline"
