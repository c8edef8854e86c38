# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The settings of a training of the image tokenizer: the fields of its YAML files (`config.py`)."""

from dataclasses import dataclass
from typing import Literal

from ..data.skipped import MAX_SHARE
from ..data.sources import PictureSource
from .config import APPLY, KEEP, check_at_least, check_training, setting
from .picture_batches import Bucket


@dataclass
class EntropySettings:
    weight: float = setting(0.1, "weight in the loss", on_resume=APPLY)
    sample_weight: float = setting(1.0, "weight of the entropy of single tokens, which is minimised", on_resume=APPLY)
    batch_weight: float = setting(1.0, "weight of the entropy of the batch, which is maximised", on_resume=APPLY)
    temperature: float = setting(
        0.01, "tau: bits with a latent within about tau of 0 count as undecided", on_resume=APPLY
    )

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"`entropy.temperature` must be above 0, got {self.temperature}.")


@dataclass
class PerceptualSettings:
    model: str = setting(
        help="backbone or vision model (folder or Hub name), or an LPIPS .safetensors file", on_resume=KEEP
    )
    weight: float = setting(1.0, "weight in the loss", on_resume=APPLY)
    layers: list[int] | None = setting(
        None, "feature maps or hidden states to compare; null: the default of the loss", on_resume=APPLY
    )


@dataclass
class AdversarialSettings:
    weight: float = setting(0.1, "weight of the generator loss", on_resume=APPLY)
    start_step: int = setting(0, "first step of the discriminator", on_resume=APPLY)
    learning_rate: float | None = setting(
        None, "learning rate of the discriminator; null: that of the model", on_resume=APPLY
    )
    lecam_weight: float = setting(0.05, "weight of LeCam regularisation in the discriminator's loss", on_resume=APPLY)
    base_channels: int = setting(64, "width of the discriminator", on_resume=KEEP)
    num_layers: int = setting(3, "strided layers of the discriminator", on_resume=KEEP)

    def __post_init__(self):
        check_at_least(self, 0, "start_step", "learning_rate", section="adversarial")
        check_at_least(self, 1, "base_channels", "num_layers", section="adversarial")


@dataclass
class DistillationSettings:
    teacher: str = setting(
        help="vision model or dual encoder (folder or Hub name) whose pooled features are the target", on_resume=KEEP
    )
    weight: float = setting(1.0, "theta: weight in the loss", on_resume=APPLY)
    post_weight: float = setting(
        1.0, "eta: weight of the codes after the sign, relative to the latents before it", on_resume=APPLY
    )
    head: Literal["attention", "linear"] = setting(
        "attention",
        "what makes a vector of latents, and one of codes: a learned query that attends to them, or a linear layer of "
        "their mean",
        on_resume=KEEP,
    )
    hidden_size: int = setting(256, "width of the two attention pools", on_resume=KEEP)
    num_attention_heads: int = setting(4, "heads of the two attention pools", on_resume=KEEP)

    def __post_init__(self):
        check_at_least(self, 1, "hidden_size", "num_attention_heads", section="distillation")


@dataclass
class PriorSettings:
    weight: float = setting(1.0, "mu: weight in the loss", on_resume=APPLY)
    hidden_size: int = setting(
        256, "width of the small autoregressive model; the defaults are the 8.6 M of the paper", on_resume=KEEP
    )
    num_hidden_layers: int = setting(8, "number of its blocks", on_resume=KEEP)
    num_attention_heads: int = setting(4, "attention heads of each of its blocks", on_resume=KEEP)
    architecture: Literal["language_model", "class_to_image"] = setting(
        "language_model",
        "language_model: parts of the unified model, any size of pictures; class_to_image: the network that the "
        "paper's BitDance-T is named after, for one square size",
        on_resume=KEEP,
    )

    def __post_init__(self):
        check_at_least(self, 1, "hidden_size", "num_hidden_layers", "num_attention_heads", section="prior")


@dataclass
class UniWeTokTrainingConfig:
    """One stage."""

    output_dir: str = setting(
        help="folder of the run: checkpoints, log.jsonl, samples, and at the end `model`", on_resume=APPLY
    )
    data: list[PictureSource] = setting(help="sources of pictures, each with a weight", on_resume=KEEP)
    buckets: list[Bucket] = setting(
        help="sizes in pixels; each step has one of them, in proportion to the weights", on_resume=APPLY
    )
    max_train_steps: int = setting(help="optimizer steps", on_resume=APPLY)
    batch_size: int = setting(
        help="pictures per step over all processes, of the first bucket; others: as many tokens", on_resume=APPLY
    )
    batch_multiple: int | None = setting(
        None,
        "a number that the pictures per step are a multiple of; null: of processes x micro-batches, so that several "
        "buckets give other batches on other numbers of processes",
        on_resume=APPLY,
    )
    validation_data: PictureSource | None = setting(
        None, "pictures for validation; null: no validation", on_resume=APPLY
    )
    validation_pictures: int = setting(128, "number of pictures in a validation", on_resume=APPLY)
    # the model
    init_from: str | None = setting(
        None, "the previous stage (its output_dir), or a model to start from", on_resume=KEEP
    )
    model: dict = setting({}, "without init_from: fields of a new UniWeTokConfig", on_resume=KEEP)
    trainable: list[str] = setting(
        [],
        "regular expressions, such as decoder: parameters whose names match one are trained; empty: all",
        on_resume=KEEP,
    )
    # the loss
    l1_weight: float = setting(1.0, "weight of the absolute error", on_resume=APPLY)
    l2_weight: float = setting(1.0, "weight of the squared error", on_resume=APPLY)
    commitment_weight: float = setting(
        0.0, "alpha; 0 in UniWeTok, where SigLu bounds the latents (docs/method.md 2.4)", on_resume=APPLY
    )
    entropy: EntropySettings | None = setting(EntropySettings(), "group-wise entropy; null: off", on_resume=APPLY)
    perceptual: PerceptualSettings | None = setting(
        None, "distance between features of a frozen network; null: off", on_resume=KEEP
    )
    adversarial: AdversarialSettings | None = setting(None, "patch discriminator; null: off", on_resume=KEEP)
    distillation: DistillationSettings | None = setting(None, "Pre-Post Distillation; null: off", on_resume=KEEP)
    prior: PriorSettings | None = setting(None, "Generative-Aware Prior; null: off", on_resume=KEEP)
    # pictures
    flip: bool = setting(
        True, "whether half of the pictures are mirrored; false for pictures of text", on_resume=APPLY
    )
    crop_probability: float = setting(
        1.0, "probability of a crop of random size instead of the largest one", on_resume=APPLY
    )
    crop_scale: list[float] = setting(
        [0.8, 1.0], "smallest and largest side of a random crop, relative to the largest one", on_resume=APPLY
    )
    num_threads: int = setting(2, "threads per process that read and crop pictures", on_resume=APPLY)
    max_skipped_share: float = setting(
        MAX_SHARE,
        "share of the pictures that may be left out, since they can't be read; more, and more than ten, end the run",
        on_resume=APPLY,
    )
    # the optimizers
    learning_rate: float = setting(1e-4, "learning rate of both optimizers", on_resume=APPLY)
    lr_scheduler: str = setting(
        "constant_with_warmup", "name of a schedule of transformers.get_scheduler", on_resume=APPLY
    )
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached", on_resume=APPLY)
    lr_scheduler_kwargs: dict = setting({}, "other arguments of the schedule, such as min_lr_rate", on_resume=APPLY)
    adam_beta1: float = setting(0.5, "Adam's first momentum (paper: 0.5)", on_resume=APPLY)
    adam_beta2: float = setting(0.9, "Adam's second momentum (paper: 0.9)", on_resume=APPLY)
    weight_decay: float = setting(0.0, "decoupled weight decay", on_resume=APPLY)
    max_grad_norm: float | None = setting(
        1.0, "norm that gradients are scaled down to; null or 0: never", on_resume=APPLY
    )
    ema_decay: float = setting(
        0.999, "decay, the same in all steps, of the weight average that is validated and saved", on_resume=APPLY
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
        False, "whether the model is compiled (torch.compile), which takes minutes per bucket", on_resume=KEEP
    )
    seed: int = setting(0, "seed of weights, order, crops and noise; 0 or more", on_resume=KEEP)
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
        check_training(self)
        check_at_least(self, 1, "validation_pictures", "num_threads", "batch_multiple")
        if self.init_from is not None and self.model:
            raise ValueError("`model` can't be given together with `init_from`, which brings its own.")

    @property
    def result(self) -> str:
        """Name of the folder that marks the stage as finished."""
        return "model"
