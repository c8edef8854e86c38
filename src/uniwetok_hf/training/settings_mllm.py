# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The settings of a training of the language model: the fields of its YAML files (`config.py`)."""

from dataclasses import dataclass

from ..data.skipped import MAX_SHARE
from .config import APPLY, KEEP, KEEP_NULL, check_at_least, check_share, check_training, setting
from .export import SAVE_DTYPES
from .lora import LoraSettings
from .start import CHANGEABLE, check_mllm
from .tasks import TaskSource


@dataclass
class MLLMTrainingConfig:
    """One stage."""

    output_dir: str = setting(
        help="folder of the run: checkpoints, log.jsonl, samples, and at the end `pipeline`, or with `lora` `adapter`",
        on_resume=APPLY,
    )
    data: list[TaskSource] = setting(help="encoded datasets and their tasks, each with a weight", on_resume=KEEP)
    max_train_steps: int = setting(help="optimizer steps", on_resume=APPLY)
    batch_size: int | None = setting(
        None, "samples per step over all processes, padded; null: `packed_tokens` count", on_resume=KEEP
    )
    packed_tokens: int | None = setting(
        None,
        "instead, tokens per micro-batch of each process: samples of all tasks behind each other, without padding "
        "(paper-size runs: 33,000 to 37,000)",
        on_resume=KEEP,
    )
    num_readers: int = setting(
        0, "processes that read samples for each process of `packed_tokens`; 0: a thread does", on_resume=APPLY
    )
    validation_data: list[TaskSource] = setting(
        [], "datasets and tasks for validation; empty: no validation", on_resume=APPLY
    )
    validation_samples: int = setting(128, "number of rows of each dataset in a validation", on_resume=APPLY)
    # the start: `init_from`, or `vision_model` with `language_model` or `text_model`
    init_from: str | None = setting(
        None, "the previous stage (its output_dir), or a pipeline to continue from", on_resume=KEEP
    )
    vision_model: str | None = setting(
        None,
        "the trained image tokenizer: its last stage, a model, a pipeline, or the name of an embedded one",
        on_resume=KEEP,
    )
    language_model: str | None = setting(
        None, "causal language model (folder or Hub name) to start from: Qwen3, Llama, ...", on_resume=KEEP
    )
    text_model: dict = setting({}, "a new language model instead: model_type and fields of its config", on_resume=KEEP)
    vocab_size: int = setting(
        2048, "size of the text vocabulary of `text_model`, which is trained on the data", on_resume=KEEP
    )
    num_size_tokens: int | None = setting(
        None, "longest side of a picture in tokens; null: 4096 pixels", on_resume=KEEP
    )
    head: dict = setting({}, "fields of the new diffusion head's config", on_resume=KEEP)
    mllm: dict = setting(
        {},
        "fields of the whole model's config: patch_size, text_loss_weight, bit_flip_probability, ...",
        on_resume=CHANGEABLE,
    )
    trainable: list[str] = setting(
        [],
        "regular expressions, such as image_head: parameters whose names match one are trained; empty: all",
        on_resume=KEEP,
    )
    lora: LoraSettings | None = setting(
        None, "adapters that are trained instead of the model; null: the model is trained", on_resume=KEEP
    )
    # the pipeline that comes out; null: as in init_from
    resolution: int | None = setting(None, "default side in pixels of generated pictures", on_resume=APPLY)
    input_size: dict | None = setting(None, "`size` of the image processor, for pictures in a prompt", on_resume=APPLY)
    num_inference_steps: int | None = setting(None, "default number of diffusion steps", on_resume=APPLY)
    temperature: float | None = setting(None, "what the sampler's noise is multiplied with", on_resume=APPLY)
    guidance_scale: float | None = setting(None, "default guidance scale", on_resume=APPLY)
    image_guidance_scale: float | None = setting(
        None, "default scale of the guidance by the picture, for edits", on_resume=APPLY
    )
    negative_prompt: str | None = setting(
        None, "default negative prompt of edits, an instruction that changes nothing", on_resume=APPLY
    )
    describe_first: bool | None = setting(
        None, "whether the model describes the result of an edit before it generates it", on_resume=APPLY
    )
    save_dtype: str = setting("float32", "dtype of the saved weights: float32, bfloat16 or float16", on_resume=APPLY)
    prompts: list[str] = setting(
        [],
        "prompts from which each validation generates four pictures to look at; not under FSDP and DeepSpeed",
        on_resume=APPLY,
    )
    # the samples
    text_dropout: float = setting(
        0.1,
        "probability of leaving out the user's turn of a generation or an edit, for classifier-free guidance",
        on_resume=APPLY,
    )
    length_group_steps: int = setting(
        1, "number of steps whose samples are sorted by length before they are cut into batches", on_resume=KEEP
    )
    max_length: int | None = setting(
        None, "maximum number of tokens of a sample; longer ones are left out", on_resume=APPLY
    )
    max_skipped_share: float = setting(
        MAX_SHARE,
        "share of the samples that may be left out, since they are damaged or too long; more, and more than ten, end "
        "the run",
        on_resume=APPLY,
    )
    # the optimizer
    learning_rate: float = setting(1e-5, "learning rate of AdamW (paper: 1e-5)", on_resume=APPLY)
    lr_scheduler: str = setting(
        "constant_with_warmup", "name of a schedule of transformers.get_scheduler", on_resume=APPLY
    )
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached", on_resume=APPLY)
    lr_scheduler_kwargs: dict = setting({}, "other arguments of the schedule, such as min_lr_rate", on_resume=APPLY)
    adam_beta1: float = setting(0.9, "Adam's first momentum", on_resume=APPLY)
    adam_beta2: float = setting(0.95, "Adam's second momentum", on_resume=APPLY)
    adam_epsilon: float = setting(1e-15, "Adam's epsilon (paper: 1e-15)", on_resume=APPLY)
    weight_decay: float = setting(0.0, "decoupled weight decay", on_resume=APPLY)
    max_grad_norm: float | None = setting(
        1.0, "norm that gradients are scaled down to; null or 0: never", on_resume=APPLY
    )
    ema_decay: float | None = setting(
        None,
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
        None,
        "attention: sdpa, eager, flex_attention, ...; null: the model's. On CPUs eager is fastest for short sequences",
        on_resume=APPLY,
    )
    seed: int = setting(0, "seed of weights, order, choice of texts, flips and noise; 0 or more", on_resume=KEEP)
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
        check_training(self)
        if (self.batch_size is None) == (self.packed_tokens is None):
            raise ValueError("Give either `batch_size`, in samples, or `packed_tokens`.")
        if self.packed_tokens is not None and self.length_group_steps != 1:
            raise ValueError("`length_group_steps` is of no use with `packed_tokens`: nothing is padded.")
        check_at_least(
            self, 1, "packed_tokens", "length_group_steps", "validation_samples", "num_size_tokens", "max_length"
        )
        check_at_least(self, 1, "resolution", "num_inference_steps")
        check_at_least(self, 0, "temperature")
        check_at_least(self, 0, "adam_epsilon", "num_readers")
        if self.num_readers and self.packed_tokens is None:
            raise ValueError("`num_readers` read for `packed_tokens`; with `batch_size` a thread does.")
        check_share(self, "text_dropout")
        check_mllm(self.mllm)
        if self.lora:
            if self.init_from is None or "patch_size" in self.mllm:
                raise ValueError(
                    "`lora` needs `init_from`, a finished pipeline, and can't change its `mllm.patch_size`."
                )
            if self.trainable:
                raise ValueError("`trainable` can't be given with `lora`, whose `targets` choose the trained layers.")

    @property
    def result(self) -> str:
        """Name of the folder that marks the stage as finished."""
        return "adapter" if self.lora else "pipeline"
