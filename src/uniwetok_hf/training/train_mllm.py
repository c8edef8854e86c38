# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the unified language model: `uniwetok train mllm --config stage.yaml`, alone or under `accelerate launch`.

    loss = 0.01 cross-entropy of the text to say + diffusion loss of the pictures to draw              (spec 3.3, 3.1)

- One mixture of tasks: captions to draw, questions to answer, edits, conversations; of drawings and edits the user's
  turn is left out now and then, for guidance.
- Pictures come as codes (`uniwetok encode-dataset`). Bits of those to be drawn are flipped on input, never as targets.
- Stages as in the paper: one unified pretraining, separate finetunes for drawing, editing and chat (`init_from`), and
  a short one in which a step draws more tokens (`mllm: {patch_size: ...}`).
- With `lora` adapters learn in place of the model, and are all that is saved.

A step is one optimizer step over `batch_size` samples, whatever the number of processes and pieces: which samples they
are, their words, flips, times and noise belong to their running numbers (`samples`), and the two losses are divided by
the text and image tokens of the whole step. So 2 processes, or 2 pieces, compute what 1 computes, and a resumed run
goes on as if it had not stopped.
"""

import contextlib
import json
import math
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from ..adapters import save_adapter
from ..data.encoded import encoder_fingerprint
from ..data.samples import NOISE, sample_generators
from ..files import save_whole
from ..provenance import RECORD, training_record
from .checkpoints import load_checkpoint, make_output_folder, save_checkpoint
from .config import config_values, flat_values, read_config, setting
from .conversation_batches import ConversationBatches, Piece, prefetched
from .lora import LoraSettings, add_lora, checkpoint_adapters_only
from .picture_batches import picture_grid
from .run import (
    Figures,
    averaged_weights,
    interrupt_sets,
    log_images,
    start_accelerator,
    stop_unless_finite,
    stopped_after,
)
from .start import start_folder, start_pipeline
from .tasks import TaskMixture, TaskSource


# Times of the flow at which validation tells how many bits the head gets right. At 0 it sees noise alone: what is over
# one half there, the language model knew. A mean over the training's times lies in between and says less.
ACCURACY_TIMES = (0.0, 0.25, 0.5, 0.75)


@dataclass
class MLLMTrainingConfig:
    """One stage."""

    output_dir: str = setting(
        help="folder of the run: checkpoints, log.jsonl, samples, and at the end `pipeline`, or with `lora` `adapter`"
    )
    data: list[TaskSource] = setting(help="encoded datasets and what is practised on them; each has a weight")
    max_train_steps: int = setting(help="optimizer steps")
    batch_size: int = setting(help="samples a step over all processes")
    validation_data: list[TaskSource] = setting([], "held-out rows; empty: no validation")
    validation_samples: int = setting(128, "how many of each of them")
    # what it starts from: `init_from`, or `vision_model` with `language_model` or `text_model`
    init_from: str | None = setting(None, "the stage before (its output_dir), or a pipeline to go on with")
    vision_model: str | None = setting(
        None, "the trained image tokenizer: its last stage, a model, or a pipeline's (uniwetok-emoji)"
    )
    language_model: str | None = setting(
        None, "causal language model (folder or Hub name) to start from: Qwen3, Llama, ..."
    )
    text_model: dict = setting({}, "instead of that, a new one: model_type and fields of its config")
    vocab_size: int = setting(2048, "text_model: entries of its text vocabulary, which is trained on the data")
    num_size_tokens: int | None = setting(None, "longest side of a picture in tokens; null: 4096 pixels")
    head: dict = setting({}, "fields of the new diffusion head's config")
    mllm: dict = setting(
        {}, "fields of the whole model's config: patch_size, text_loss_weight, bit_flip_probability, ..."
    )
    trainable: list[str] = setting([], "expressions of which the names of trained parameters hold one; empty: all")
    lora: LoraSettings | None = setting(None, "adapters that learn in place of the model; null: the model learns")
    # the pipeline that comes out; null: as in init_from
    resolution: int | None = setting(None, "side in pixels of pictures that are drawn where a call says none")
    input_size: dict | None = setting(None, "`size` of the image processor: what given pictures are brought to")
    num_inference_steps: int | None = setting(None, "diffusion steps where a call says none")
    guidance_scale: float | None = setting(None, "guidance where a call says none")
    image_guidance_scale: float | None = setting(None, "of edits: guidance by the picture alone")
    negative_prompt: str | None = setting(None, "of edits: the words that this is made with, which change nothing")
    describe_first: bool | None = setting(None, "of edits: whether it says what it will draw before it draws")
    save_dtype: str = setting("float32", "how its weights are stored: float32, bfloat16 or float16")
    prompts: list[str] = setting(
        [], "what is drawn at each validation, four times each, to look at; not under FSDP and DeepSpeed"
    )
    # the samples
    text_dropout: float = setting(0.1, "how often the user's turn is left out of drawings and edits")
    length_group_steps: int = setting(1, "steps whose samples are sorted by length before they are cut into batches")
    max_length: int | None = setting(None, "tokens that a sample may have; a longer one is an error")
    # the optimizer
    learning_rate: float = setting(1e-5, "of AdamW (paper: 1e-5)")
    lr_scheduler: str = setting("constant_with_warmup", "name of a schedule of transformers.get_scheduler")
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached")
    lr_scheduler_kwargs: dict = setting({}, "what else the schedule takes, such as min_lr_rate")
    adam_beta1: float = setting(0.9, "Adam's first momentum")
    adam_beta2: float = setting(0.95, "Adam's second momentum")
    adam_epsilon: float = setting(1e-15, "Adam's epsilon (paper: 1e-15)")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    max_grad_norm: float | None = setting(1.0, "gradients are scaled down to this norm; null: never")
    ema_decay: float | None = setting(None, "decay of the weight average that is validated and saved; null: none")
    # running it
    gradient_accumulation_steps: int = setting(1, "pieces into which each process cuts its share of a step")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    mixed_precision: str | None = setting(None, "no, fp16 or bf16; null: as accelerate is configured")
    compile: bool = setting(False, "torch.compile the layers; takes a minute and a C++ compiler")
    attn_implementation: str | None = setting(
        None,
        "sdpa, eager, flex_attention, ...; null: the model's. On a CPU eager is fastest for short sequences",
    )
    seed: int = setting(0, "of weights, order, words, flips and noise")
    logging_steps: int = setting(50, "steps between lines of the log")
    validation_steps: int = setting(500, "steps between validations")
    checkpointing_steps: int = setting(500, "steps between checkpoints")
    checkpoints_total_limit: int = setting(2, "how many checkpoints are kept")
    report_to: list[str] = setting([], "trackers beside log.jsonl: tensorboard, wandb, ...")

    def __post_init__(self):
        if self.save_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`save_dtype` must be float32, bfloat16 or float16, got {self.save_dtype!r}.")
        for name in ("batch_size", "max_train_steps", "length_group_steps", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if not self.data:
            raise ValueError("`data` must name at least one encoded dataset.")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"`text_dropout` must be from 0 to 1, got {self.text_dropout}.")
        if self.lora:
            if self.init_from is None or "patch_size" in self.mllm:
                raise ValueError("`lora` needs `init_from`, a finished pipeline, and leaves its `mllm.patch_size`.")
            if self.trainable:
                raise ValueError("`trainable` can't be given with `lora`, whose `targets` say what learns.")

    @property
    def result(self) -> str:
        """Name of the folder that says that the stage is finished."""
        return "adapter" if self.lora else "pipeline"


class MLLMTrainer:
    """One stage of training."""

    def __init__(self, config: MLLMTrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.accelerator, self.tracker = start_accelerator(config, self.folder)
        self.stop = threading.Event()  # ends the run after the step, with a checkpoint
        self.is_sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.is_sharded and config.ema_decay is not None:
            raise ValueError("`ema_decay` must be null under FSDP and DeepSpeed, where no process has all weights.")
        if self.is_sharded and config.lora:
            raise ValueError("`lora` trains on one device or on copies (DDP), not yet under FSDP and DeepSpeed.")
        mixture, held_out = self.open_tasks(config.data, config.text_dropout), None
        if config.validation_data:
            held_out = self.open_tasks(config.validation_data)
        self.pipeline = start_pipeline(config, mixture.texts())
        self.mllm = self.pipeline.mllm
        if config.attn_implementation is not None:
            self.mllm.set_attn_implementation(config.attn_implementation)
        self.batches = self.make_batches(mixture)
        self.held_out_batches = held_out and self.make_batches(held_out)
        make_output_folder(self.folder, config.result)

        if config.lora:
            self.parameters = add_lora(self.mllm, config.lora, config.seed)
            checkpoint_adapters_only(self.accelerator)
        else:
            self.parameters = choose_parameters(self.mllm, config.trainable)
        if config.gradient_checkpointing:
            self.mllm.activation_checkpointing_enable()
        if config.compile:
            compile_layers(self.mllm)
        optimizer, scheduler = self.make_optimizer()
        if (deepspeed := self.accelerator.state.deepspeed_plugin) is not None:  # it would ask a DataLoader
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = self.batches.piece_size
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(self.mllm, optimizer, scheduler)
        self.ema = None
        if config.ema_decay is not None:
            self.ema = EMAModel(self.parameters, decay=config.ema_decay)
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)

    def open_tasks(self, sources: list[TaskSource], text_dropout: float = 0.0) -> TaskMixture:
        config = self.config
        options = f"--size {config.resolution or 'N'} --model {config.vision_model or config.init_from}"
        return TaskMixture(sources, config.seed, text_dropout, encode_options=options)

    def make_batches(self, mixture: TaskMixture) -> ConversationBatches:
        config = self.config
        mixture.check_encoder(encoder_fingerprint(self.mllm.vision_model))
        return ConversationBatches(
            mixture,
            self.pipeline.processor,
            self.mllm.config.vision_config.num_bits,
            config.batch_size,
            config.seed,
            length_group_steps=config.length_group_steps,
            accumulation_steps=config.gradient_accumulation_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            max_length=config.max_length,
        )

    def make_optimizer(self):
        config = self.config
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        return optimizer, scheduler

    def train_step(self, pieces: list[Piece], step: int):
        """One step. Losses are divided by the tokens of all of its pieces, those of other processes too."""
        accelerator = self.accelerator
        counts = torch.tensor([[piece.num_text_tokens, piece.num_image_tokens] for piece in pieces]).sum(0)
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").clamp_min(1)
        for piece in pieces:
            with accelerator.accumulate(self.model):
                self.train_piece(piece, counts, step)

    def train_piece(self, piece: Piece, counts: torch.Tensor, step: int):
        """Adds a piece's part of the step's loss; the last of them makes the step."""
        accelerator, config = self.accelerator, self.config
        output = self.compute_losses(piece, num_items_in_batch=counts[0], num_image_tokens_in_batch=counts[1])
        # Parts add up to the step's loss; accumulation and DDP would take their mean.
        loss = output.loss * config.gradient_accumulation_steps * accelerator.num_processes
        stop_unless_finite(accelerator, {"loss": loss}, step, self.folder)
        accelerator.backward(loss)
        self.tally.add(piece, output)
        self.figures.add({"loss": loss})
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or math.inf)
            if norm is not None:  # DeepSpeed clips by itself, and may have no norm yet
                norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
                self.figures.add({"grad_norm": norm})
                if accelerator.scaler is None:  # which passes over a step whose gradients are not finite
                    stop_unless_finite(accelerator, {"grad_norm": norm}, step, self.folder)
        self.optimizer.step()
        if accelerator.sync_gradients:
            self.scheduler.step()
            if self.ema:
                self.ema.step(self.parameters)
        self.optimizer.zero_grad()

    def compute_losses(self, piece: Piece, **options):
        """The model's output for a piece, with losses but no logits."""
        device = self.accelerator.device
        return self.model(
            **piece.inputs_on(device),
            generator=sample_generators(self.config.seed, piece.numbers, NOISE),
            logits_to_keep=torch.empty(0, dtype=torch.long, device=device),
            use_cache=False,
            **options,
        )

    def train(self) -> Path:
        """Runs the stage to its end, from its last checkpoint if there is one, and returns the folder of its result.

        Raises:
            FloatingPointError: at a loss that is not finite; the checkpoints are kept.
            KeyboardInterrupt: after the step in which `stop` was set; its checkpoint is kept.
            ValueError: when the last checkpoint is broken, or a row is not as its format says.
        """
        config, accelerator = self.config, self.accelerator
        self.figures, self.tally = Figures(), TaskTally(self.batches.names)
        start, state = load_checkpoint(accelerator, self.folder)
        if state:
            self.load_state_dict(state)
        if self.ema:  # its weights were read to the CPU
            self.ema.to(accelerator.device)
        if accelerator.is_main_process:
            self.tracker.rewind(start)
        accelerator.init_trackers("uniwetok", flat_values(config))
        held_out = self.held_out_batches.held_out(config.validation_samples) if self.held_out_batches else []

        self.model.train()
        bar = tqdm(total=config.max_train_steps, initial=start, desc=self.folder.name, mininterval=10)
        steps = range(start, config.max_train_steps)
        for step, pieces in zip(steps, prefetched(self.batches.__getitem__, steps), strict=True):
            self.train_step(pieces, step)
            self.figures.add({}, items=config.batch_size)
            bar.update()

            done, is_last, figures = step + 1, step + 1 == config.max_train_steps, {}
            if done % config.logging_steps == 0 or is_last:
                items = self.figures.items
                figures = self.figures.take(accelerator, "samples") | self.tally.take(accelerator)
                figures["tokens_per_second"] = figures["samples_per_second"] * figures.pop("tokens") / items
                figures["learning_rate"] = self.scheduler.get_last_lr()[0]
                bar.set_postfix(loss=f"{figures['loss']:.3f}")
            if done % config.validation_steps == 0 or is_last:
                figures |= self.validate(held_out, done)
            if figures:
                accelerator.log(figures, step=done)
            is_stopped = self.stop.is_set()
            if done % config.checkpointing_steps == 0 or is_last or is_stopped:
                save_checkpoint(accelerator, self.folder, done, self.state_dict(), config.checkpoints_total_limit)
            if is_stopped and not is_last:
                raise stopped_after(done)
        for tracker in accelerator.trackers:  # `end_training` would also part from the other processes
            tracker.finish()
        return self.save()

    def state_dict(self) -> dict:
        """Where this process is, beside what Accelerate saves; its data follow from the step."""
        return {"figures": self.figures.state_dict(), "tally": self.tally.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.figures.load_state_dict(state["figures"])
        self.tally.load_state_dict(state["tally"])

    @torch.no_grad()
    def validate(self, held_out: list[Piece], step: int) -> dict[str, float]:
        """Losses of each task and bit accuracies on held-out rows, and drawings of the prompts, by the averaged model
        where there is one. All processes compute the same."""
        self.model.eval()
        averaged = averaged_weights(self.ema, self.parameters) if self.ema else contextlib.nullcontext()
        with averaged, torch.compiler.set_stance("force_eager"):  # not worth compiling for
            figures = self.measure(held_out) if held_out else {}
            if self.config.prompts and self.accelerator.is_main_process and not self.is_sharded:
                self.draw_prompts(step)
        self.model.train()
        return figures

    def measure(self, pieces: list[Piece]) -> dict[str, float]:
        """`validation_...` figures of held-out samples."""
        tally = TaskTally(self.held_out_batches.names)
        right, num_tokens = torch.zeros(len(ACCURACY_TIMES)), 0
        for piece in pieces:
            tally.add(piece, self.compute_losses(piece))
            if piece.num_image_tokens:
                accuracy = self.compute_losses(piece, timesteps=ACCURACY_TIMES).bit_accuracy
                right += piece.num_image_tokens * accuracy.float().cpu()
                num_tokens += piece.num_image_tokens
        figures = tally.take(self.accelerator)
        if num_tokens:
            figures |= {f"bit_accuracy_t{time}": n.item() / num_tokens for time, n in zip(ACCURACY_TIMES, right)}
        return {f"validation_{name}": value for name, value in figures.items() if name != "tokens"}

    def draw_prompts(self, step: int) -> None:
        """A grid of four drawings of each of the config's prompts, a row each."""
        self.pipeline.set_progress_bar_config(disable=True)
        prompts = list(self.config.prompts)
        generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(4)]
        drawn = self.pipeline(prompts, num_images_per_prompt=4, generator=generators, output_type="pt").images
        log_images(self.accelerator, {"drawings": picture_grid(list(drawn * 2 - 1), columns=4)}, step)

    def save(self) -> Path:
        """Writes `pipeline` or `adapter`, which says that the stage is finished."""
        accelerator, folder = self.accelerator, self.folder / self.config.result
        if self.ema:
            self.ema.copy_to(self.parameters)
        weights = accelerator.get_state_dict(self.model) if self.is_sharded else None
        if accelerator.is_main_process:
            if self.is_sharded:
                self.pipeline.mllm = whole_model(self.mllm, weights)
            pipeline = self.pipeline.to(getattr(torch, self.config.save_dtype))
            # No loss here looks through a network, but those of the image tokenizer or of earlier stages may have.
            record = training_record(started_from=[start_folder(self.config)])
            record["training"] = config_values(self.config)

            def save_result(path: Path):
                if self.config.lora:
                    save_adapter(pipeline.mllm, path, base_model=self.config.init_from)
                else:
                    pipeline.save_pretrained(path)
                (path / RECORD).write_text(json.dumps(record, indent=1))

            save_whole(save_result, folder)
        accelerator.wait_for_everyone()
        return folder


class TaskTally:
    """Sums since the last line of the log, from which each task's own losses follow, and the share of bits that the
    head got right at the times it was trained at."""

    def __init__(self, names: list[str]):
        self.names = names
        self.by_task = torch.zeros(len(names), 4)  # text loss, text tokens, image loss, image tokens
        self.overall = torch.zeros(3)  # image tokens' shares of right bits, image tokens, all tokens

    def add(self, piece: Piece, output) -> None:
        """Adds what the model made of a piece; kept on the device, so that adding does not wait for it."""
        device, share = output.loss.device, 0.0
        image_losses = torch.zeros(len(piece.numbers))
        if output.image_loss is not None:
            image_losses, share = output.row_image_losses, output.bit_accuracy.mean()
        columns = [output.row_text_losses, piece.text_tokens, image_losses, piece.image_tokens]
        columns = torch.stack([column.to(device, torch.float32) for column in columns], dim=1)  # [rows, 4]
        self.by_task = self.by_task.to(device).index_add(0, piece.tasks.to(device), columns)
        counts = torch.tensor([piece.num_image_tokens, piece.num_image_tokens, piece.num_tokens], device=device)
        counts = counts.float()
        counts[0] *= share
        self.overall = self.overall.to(device) + counts

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """`text_loss_TASK` and `image_loss_TASK` of all processes, means over tokens, `bit_accuracy`, and the number
        of `tokens`; then starts anew."""
        sums = [self.by_task.to(accelerator.device), self.overall.to(accelerator.device)]
        by_task, (right, num_drawn, num_tokens) = (part.tolist() for part in accelerator.reduce(sums, "sum"))
        self.__init__(self.names)
        figures = {"tokens": num_tokens}
        for name, (text_loss, text_tokens, image_loss, image_tokens) in zip(self.names, by_task, strict=True):
            if text_tokens:
                figures[f"text_loss_{name}"] = text_loss / text_tokens
            if image_tokens:
                figures[f"image_loss_{name}"] = image_loss / image_tokens
        if num_drawn:
            figures["bit_accuracy"] = right / num_drawn
        return figures

    def state_dict(self) -> dict:
        """What a checkpoint between two lines of the log has to keep."""
        return {"by_task": self.by_task.tolist(), "overall": self.overall.tolist()}

    def load_state_dict(self, state: dict) -> None:
        self.by_task, self.overall = torch.tensor(state["by_task"]), torch.tensor(state["overall"])


def choose_parameters(model: nn.Module, trainable: list[str]) -> list[nn.Parameter]:
    """Freezes all but the parameters whose names hold one of the expressions `trainable` (all when it is empty) and
    returns those that train. Two things never do: the image tokenizer, whose codes are the data, and with patches of
    one token the head's queries and keys, since attention over one token is its value.

    Raises:
        ValueError: for an expression that fits no name.
    """
    never = [r"^model\.vision_model\."]
    if model.config.patch_size == 1:
        never.append(r"^image_head\..*\.(q|k)_proj\.")
    named = [  # tied weights under all of their names
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not any(re.search(part, name) for part in never)
    ]
    names = [name for name, _ in named]
    for part in trainable:
        if not any(re.search(part, name) for name in names):
            parts = sorted({".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names})
            raise ValueError(f"`trainable`: no parameter's name holds {part!r}; the parts are {', '.join(parts)}.")
    chosen = {id(p) for name, p in named if not trainable or any(re.search(part, name) for part in trainable)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def compile_layers(model: nn.Module) -> None:
    """Compiles the layers of language model and head in place: one graph for all that are alike, of any length. What
    lies between them follows the data, and would break a graph of the whole."""
    for part in (model.model.language_model, model.image_head):
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(dynamic=True)


def whole_model(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of a model whose own weights are spread over processes, with `weights` from all of them."""
    with torch.device("meta"):
        whole = type(model)(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole


def finished(config: MLLMTrainingConfig) -> Path | None:
    """The pipeline, or the adapter, of a stage that was run to its end."""
    folder = Path(config.output_dir) / config.result
    return folder if folder.is_dir() else None


def train(config: MLLMTrainingConfig) -> Path:
    """Runs a stage, or goes on with it, and returns the folder of its pipeline or adapter."""
    trainer = MLLMTrainer(config)
    with interrupt_sets(trainer.stop, trainer.accelerator):
        return trainer.train()


def main(config_path: str, **overrides) -> Path:
    return train(read_config(MLLMTrainingConfig, config_path, **overrides))
