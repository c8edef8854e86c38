# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the image tokenizer: `uniwetok train tokenizer --config stage.yaml`, alone or under `accelerate launch`.

    loss = l1 |x - x'| + l2 |x - x'|^2 + perceptual + adversarial     the picture comes back (WeTok; spec 2.4)
         + entropy [+ commitment]                                     codes are all used, tokens decided (spec 2.2)
         + Pre-Post Distillation                                      tokens mean something (paper 3.2)
         + Generative-Aware Prior                                     tokens can be predicted (paper, equation 7)

The three stages of the paper are three configs: one resolution, several resolutions and aspect ratios, and annealing
on faces and text. Each starts where the one before ended (`init_from`), its losses' own networks included.

A step is one optimizer step over `batch_size` pictures of one size, whatever the number of processes: crops, noise
and diffusion draws belong to the sample (`samples`), so 2 processes compute what 1 computes, and a resumed run goes on
as if it had not stopped. Only the histogram of the batch entropy is taken over what is in memory at once: processes
share it, but not the pieces of a step that `gradient_accumulation_steps` makes.
"""

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import get_scheduler

from ..data.samples import NOISE, PRIOR, sample_generators
from ..data.sources import PictureSource
from ..files import save_whole
from ..losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss, generator_loss
from ..losses.commitment import commitment_loss
from ..losses.distillation import PrePostDistillation
from ..losses.entropy import entropy_loss
from ..losses.perceptual import LPIPS, PerceptualLoss
from ..losses.pixel import l1_loss, l2_loss
from ..losses.prior import GenerativePrior
from ..losses.teacher import Teacher
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.noise_uniwetok import draw_noise
from ..provenance import loss_model, training_record
from .bit_usage import BitUsage
from .checkpoints import load_checkpoint, make_output_folder, save_checkpoint
from .config import config_values, flat_values, read_config, setting
from .picture_batches import Bucket, PictureBatches, picture_grid, validation_pictures
from .run import (
    Figures,
    averaged_weights,
    interrupt_sets,
    log_images,
    seeded_weights,
    start_accelerator,
    stop_unless_finite,
    stopped_after,
    trainable_parameters,
)


@dataclass
class EntropySettings:
    weight: float = setting(0.1, "weight in the loss")
    sample_weight: float = setting(1.0, "how much tokens are to be decided")
    batch_weight: float = setting(1.0, "how much all codes are to be used")
    temperature: float = setting(0.01, "tau: the smaller, the nearer to 0 a bit counts as undecided")


@dataclass
class PerceptualSettings:
    model: str = setting(help="backbone or vision model (folder or Hub name), or an LPIPS .safetensors file")
    weight: float = setting(1.0, "weight in the loss")
    layers: list[int] | None = setting(None, "feature maps or hidden states to compare; null: the loss' own choice")


@dataclass
class AdversarialSettings:
    weight: float = setting(0.1, "weight of the generator's part in the loss")
    start_step: int = setting(0, "step at which the discriminator begins")
    learning_rate: float | None = setting(None, "of the discriminator; null: that of the model")
    lecam_weight: float = setting(0.05, "weight of LeCam regularisation in the discriminator's loss")
    base_channels: int = setting(64, "width of the discriminator")
    num_layers: int = setting(3, "strided layers of the discriminator")


@dataclass
class DistillationSettings:
    teacher: str = setting(help="vision model or dual encoder (folder or Hub name) whose pooled features are taught")
    weight: float = setting(1.0, "theta: weight in the loss")
    post_weight: float = setting(1.0, "eta: weight of the tokens after the sign, beside those before it")
    hidden_size: int = setting(256, "width of the two attention pools")
    num_attention_heads: int = setting(4, "heads of the two attention pools")


@dataclass
class PriorSettings:
    weight: float = setting(1.0, "mu: weight in the loss")
    hidden_size: int = setting(256, "width of the small autoregressive model; the defaults are the 8.6 M of the paper")
    num_hidden_layers: int = setting(8, "its blocks")
    num_attention_heads: int = setting(4, "its heads")


@dataclass
class UniWeTokTrainingConfig:
    """One stage."""

    output_dir: str = setting(help="folder of the run: checkpoints, log.jsonl, samples, and at the end `model`")
    data: list[PictureSource] = setting(help="where pictures come from; each source has a weight")
    buckets: list[Bucket] = setting(help="sizes in pixels; every step has one of them, as often as its weight says")
    max_train_steps: int = setting(help="optimizer steps")
    batch_size: int = setting(help="pictures a step, over all processes, of the first bucket; others: as many tokens")
    batch_multiple: int | None = setting(
        None,
        "pictures of every step are a multiple of it; null: of processes x pieces, so that several buckets then "
        "give other batches on other numbers of processes",
    )
    validation_data: PictureSource | None = setting(None, "held-out pictures; null: no validation")
    validation_pictures: int = setting(128, "how many of them")
    # the model
    init_from: str | None = setting(None, "the stage before (its output_dir), or a model to start from")
    model: dict = setting({}, "without init_from: fields of a new UniWeTokConfig")
    trainable: list[str] = setting([], "beginnings of the names of the parameters to train; empty: all")
    # the loss
    l1_weight: float = setting(1.0, "weight of the absolute error")
    l2_weight: float = setting(1.0, "weight of the squared error")
    commitment_weight: float = setting(0.0, "alpha; 0 in UniWeTok, where SigLu bounds the latents (paper 3.3)")
    entropy: EntropySettings | None = setting(EntropySettings(), "group-wise entropy; null: off")
    perceptual: PerceptualSettings | None = setting(None, "distance between features of a frozen network; null: off")
    adversarial: AdversarialSettings | None = setting(None, "patch discriminator; null: off")
    distillation: DistillationSettings | None = setting(None, "Pre-Post Distillation; null: off")
    prior: PriorSettings | None = setting(None, "Generative-Aware Prior; null: off")
    # pictures
    flip: bool = setting(True, "whether pictures are mirrored half of the time (not where they hold text)")
    crop_probability: float = setting(1.0, "how often a random crop is taken instead of as much as fits the bucket")
    crop_scale: list[float] = setting([0.8, 1.0], "smallest and largest side of a crop over the largest that fits")
    num_threads: int = setting(2, "threads of each process that read and crop pictures")
    # the optimizers
    learning_rate: float = setting(1e-4, "of both optimizers")
    lr_scheduler: str = setting("constant_with_warmup", "name of a schedule of transformers.get_scheduler")
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached")
    lr_scheduler_kwargs: dict = setting({}, "what else the schedule takes, such as min_lr_rate")
    adam_beta1: float = setting(0.5, "Adam's first momentum (paper: 0.5)")
    adam_beta2: float = setting(0.9, "Adam's second momentum (paper: 0.9)")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    max_grad_norm: float | None = setting(1.0, "gradients are scaled down to this norm; null: never")
    ema_decay: float = setting(0.999, "decay of the weight average that is validated and saved")
    # running it
    gradient_accumulation_steps: int = setting(1, "pieces into which each process cuts its share of a step")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    mixed_precision: str | None = setting(None, "no, fp16 or bf16; null: as accelerate is configured")
    compile: bool = setting(False, "torch.compile the model (each bucket costs minutes once)")
    seed: int = setting(0, "of weights, order, crops and noise")
    logging_steps: int = setting(50, "steps between lines of the log")
    validation_steps: int = setting(500, "steps between validations")
    checkpointing_steps: int = setting(500, "steps between checkpoints")
    checkpoints_total_limit: int = setting(2, "how many checkpoints are kept")
    report_to: list[str] = setting([], "trackers beside log.jsonl: tensorboard, wandb, ...")


class UniWeTokTrainer:
    """One stage of training."""

    def __init__(self, config: UniWeTokTrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.accelerator, self.tracker = start_accelerator(config, self.folder)
        self.stop = threading.Event()  # ends the run after the step, with a checkpoint
        accelerator = self.accelerator
        self.batches = PictureBatches(
            config.data,
            config.buckets,
            config.batch_size,
            config.seed,
            flip=config.flip,
            crop_probability=config.crop_probability,
            crop_scale=tuple(config.crop_scale),
            multiple=self.batch_multiple(),
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            num_threads=config.num_threads,
        )
        self.build_networks()
        make_output_folder(self.folder, "model")

        parameters = [
            p for net in (self.model, self.distillation, self.prior) if net is not None for p in net.parameters()
        ]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer, self.scheduler = self.make_optimizer(self.parameters, config.learning_rate)
        self.averaged = [p for p in self.model.parameters() if p.requires_grad]
        self.ema = EMAModel(self.averaged, decay=config.ema_decay)
        if self.discriminator is not None:
            rate = config.adversarial.learning_rate or config.learning_rate
            self.discriminator_optimizer, self.discriminator_scheduler = self.make_optimizer(
                list(self.discriminator.parameters()), rate, skipped_steps=config.adversarial.start_step
            )

        if config.compile:  # alone: the networks of the losses are small
            self.model = torch.compile(self.model, dynamic=False)  # symbolic sizes fail in inductor
        prepared = ["model", "distillation", "prior", "discriminator", "optimizer", "scheduler"]
        prepared += ["discriminator_optimizer", "discriminator_scheduler"] if self.discriminator is not None else []
        for name in prepared:
            if getattr(self, name) is not None:
                setattr(self, name, accelerator.prepare(getattr(self, name)))
        self.ema.to(accelerator.device)
        accelerator.register_for_checkpointing(self.ema, self.lecam.to(accelerator.device))

    def batch_multiple(self) -> int:
        """
        Raises:
            ValueError: when the processes and pieces can't share `batch_multiple` pictures.
        """
        pieces = self.accelerator.num_processes * self.config.gradient_accumulation_steps
        multiple = self.config.batch_multiple or pieces
        if multiple % pieces:
            raise ValueError(f"`batch_multiple` must be a multiple of {pieces} (processes x pieces), got {multiple}.")
        return multiple

    def build_networks(self):
        """The model, the networks that belong to its losses, and the frozen ones that only judge it."""
        config = self.config
        stage = find_stage(config.init_from)
        if config.init_from:
            self.model = UniWeTokModel.from_pretrained(stage or config.init_from, dtype=torch.float32)
        else:
            with seeded_weights(config.seed):
                self.model = UniWeTokModel(UniWeTokConfig(**config.model))
        if self.model.config.num_hidden_layers == 0 and self.model.config.architecture == "hybrid":
            for half in (self.model.encoder, self.model.decoder):
                half.transformer.register_tokens.requires_grad_(False)  # exist, but nothing reads them
        trainable_parameters(self.model, config.trainable)
        if config.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        self.model.train().to(memory_format=torch.channels_last)  # a fifth to a half faster convolutions on CPUs

        self.teacher = self.perceptual = self.distillation = self.prior = self.discriminator = None
        self.lecam = LeCam()
        device, num_bits = self.accelerator.device, self.model.config.num_bits
        with seeded_weights(config.seed + 1):
            if settings := config.distillation:
                self.teacher = Teacher.from_pretrained(settings.teacher).to(device)
                self.distillation = PrePostDistillation(
                    num_bits,
                    self.teacher.embedding_size,
                    hidden_size=settings.hidden_size,
                    num_attention_heads=settings.num_attention_heads,
                    post_weight=settings.post_weight,
                )
            if settings := config.prior:
                self.prior = GenerativePrior(
                    num_bits,
                    hidden_size=settings.hidden_size,
                    num_hidden_layers=settings.num_hidden_layers,
                    num_attention_heads=settings.num_attention_heads,
                )
            if settings := config.adversarial:
                groups = min(32, settings.base_channels)
                self.discriminator = PatchDiscriminator(settings.base_channels, settings.num_layers, groups)
        if settings := config.perceptual:
            is_lpips = settings.model.endswith(".safetensors")
            self.perceptual = (
                LPIPS.from_file(settings.model)
                if is_lpips
                else PerceptualLoss.from_pretrained(settings.model, settings.layers)
            ).to(device)
        if stage:
            load_loss_networks(stage.parent / "losses", self.loss_networks())

    def loss_networks(self) -> dict[str, nn.Module]:
        """What a later stage goes on with, beside the model."""
        networks = {"distillation": self.distillation, "prior": self.prior, "discriminator": self.discriminator}
        if self.discriminator is not None:
            networks["lecam"] = self.lecam
        return {name: self.unwrap(net) for name, net in networks.items() if net is not None}

    def unwrap(self, network: nn.Module) -> nn.Module:
        """A network as it was before Accelerate wrapped or compiled it."""
        return self.accelerator.unwrap_model(network, keep_torch_compile=False)

    def make_optimizer(self, parameters: list[nn.Parameter], learning_rate: float, skipped_steps: int = 0):
        """AdamW and the schedule of all steps but the first `skipped_steps`."""
        config = self.config
        optimizer = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=max(config.max_train_steps - skipped_steps, 1),
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
        return optimizer, scheduler

    def generator_losses(self, pixel_values: torch.Tensor, numbers: list[int], step: int):
        """Reconstructs the pictures; returns the model's output and every part of the loss with its weight."""
        config, vision_config = self.config, self.unwrap(self.model).config
        height, width = (side // vision_config.stride for side in pixel_values.shape[2:])
        noise = draw_noise(  # here: generators would break a compiled graph
            (len(numbers), vision_config.num_bits, height, width),
            sample_generators(config.seed, numbers, NOISE),
            pixel_values.device,
        )
        output = self.model(pixel_values, noise=noise)
        losses = {
            "l1": (config.l1_weight, l1_loss(output.sample, pixel_values)),
            "l2": (config.l2_weight, l2_loss(output.sample, pixel_values)),
        }
        if self.perceptual is not None:
            with self.accelerator.autocast():
                losses["perceptual"] = (config.perceptual.weight, self.perceptual(output.sample, pixel_values))
        if self.discriminator is not None and step >= config.adversarial.start_step:
            discriminator = self.unwrap(self.discriminator).requires_grad_(False)
            losses["adversarial"] = (config.adversarial.weight, generator_loss(discriminator(output.sample)))
            discriminator.requires_grad_(True)
        if settings := config.entropy:
            entropy = entropy_loss(
                output.latents,
                vision_config.bits_per_group,
                settings.temperature,
                settings.sample_weight,
                settings.batch_weight,
            )
            losses["entropy"] = (settings.weight, entropy.loss)
            self.figures.add({"sample_entropy": entropy.sample_entropy, "batch_entropy": entropy.batch_entropy})
        if config.commitment_weight:
            losses["commitment"] = (config.commitment_weight, commitment_loss(output.latents))
        if self.distillation is not None:
            with self.accelerator.autocast():
                lesson = self.teacher.embed_pictures(pixel_values)
            taught = self.distillation(output.latents, output.codes, lesson.float())
            losses["distillation"] = (config.distillation.weight, taught.loss)
            self.figures.add({"distillation_pre": taught.pre, "distillation_post": taught.post})
        if self.prior is not None:
            generators = sample_generators(config.seed, numbers, PRIOR)
            losses["prior"] = (config.prior.weight, self.prior(output.codes, generators))
        return output, losses

    def train_step(self, pixel_values: torch.Tensor, numbers: list[int], step: int):
        """One piece of a step: the model learns, then the discriminator, from the same reconstruction."""
        accelerator = self.accelerator
        learners = [net for net in (self.model, self.distillation, self.prior, self.discriminator) if net is not None]
        with accelerator.accumulate(*learners):
            output, losses = self.generator_losses(pixel_values, numbers, step)
            figures = {name: value for name, (_, value) in losses.items()}
            stop_unless_finite(accelerator, figures, step, self.folder)
            accelerator.backward(sum(weight * value for weight, value in losses.values()))
            self.optimize(self.parameters, self.optimizer, self.scheduler, "grad_norm", step)
            if accelerator.sync_gradients:
                self.ema.step(self.averaged)

            if "adversarial" in losses:
                both = torch.cat([pixel_values, output.sample.detach().to(pixel_values.dtype)])
                real, fake = self.discriminator(both).chunk(2)
                figures["discriminator"] = discriminator_loss(real, fake)
                figures["lecam"] = self.lecam(real, fake)
                self.logits.append((real.detach(), fake.detach()))
                stop_unless_finite(accelerator, figures, step, self.folder)
                accelerator.backward(
                    figures["discriminator"] + self.config.adversarial.lecam_weight * figures["lecam"]
                )
                self.optimize(
                    list(self.discriminator.parameters()),
                    self.discriminator_optimizer,
                    self.discriminator_scheduler,
                    "discriminator_grad_norm",
                    step,
                )
                if accelerator.sync_gradients:
                    self.lecam.update(*(torch.cat(logits) for logits in zip(*self.logits, strict=True)))
                    self.logits.clear()
        self.bits.update(output.codes)
        self.figures.add(figures)

    def optimize(self, parameters, optimizer, scheduler, name: str, step: int):
        """The end of a backward pass: once all pieces of a step are done, clipping and the step itself."""
        accelerator = self.accelerator
        if accelerator.sync_gradients:
            accelerator.unscale_gradients(optimizer)  # `clip_grad_norm_` of accelerate would unscale both optimizers'
            norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
            self.figures.add({name: norm})
            if accelerator.scaler is None:  # which passes over a step whose gradients are not finite
                stop_unless_finite(accelerator, {name: norm}, step, self.folder)
        optimizer.step()
        if accelerator.sync_gradients:
            scheduler.step()
        optimizer.zero_grad()

    def train(self) -> Path:
        """Runs the stage to its end, from its last checkpoint if there is one, and returns the folder of the averaged
        model.

        Raises:
            FloatingPointError: at a loss that is not finite; the checkpoints are kept.
            KeyboardInterrupt: after the step in which `stop` was set; its checkpoint is kept.
            ValueError: when the last checkpoint is broken.
        """
        config, accelerator = self.config, self.accelerator
        self.figures, self.bits, self.skipped = Figures(), BitUsage(), 0
        self.logits = []  # of the pieces of the step, for LeCam's averages
        start, state = load_checkpoint(accelerator, self.folder)
        if state:
            self.load_state_dict(state)
            self.ema.to(accelerator.device)  # its weights were read to the CPU
        if accelerator.is_main_process:
            self.tracker.rewind(start)
        accelerator.init_trackers("uniwetok", flat_values(config))
        self.held_out = self.read_validation_pictures()

        bar = tqdm(total=config.max_train_steps, initial=start, desc=self.folder.name, mininterval=10)
        batches = iter(self.batches)
        for step in range(start, config.max_train_steps):
            batch = next(batches)
            self.report_skipped(batch.skipped)
            pieces = config.gradient_accumulation_steps
            length = len(batch.numbers) // pieces
            for piece, pixels in enumerate(batch.pixel_values.chunk(pieces)):
                pixels = pixels.to(accelerator.device, memory_format=torch.channels_last)
                self.train_step(pixels, batch.numbers[piece * length : (piece + 1) * length], step)
            enlarged = batch.num_enlarged / len(batch.numbers)
            self.figures.add({"enlarged_pictures": enlarged}, items=len(batch.numbers) * accelerator.num_processes)
            bar.update()

            done, is_last, figures = step + 1, step + 1 == config.max_train_steps, {}
            if done % config.logging_steps == 0 or is_last:
                figures = self.figures.take(accelerator, "pictures") | self.bit_figures()
                figures["psnr"] = 10 * math.log10(4 / max(figures["l2"], 1e-10))  # of the mean error
                skipped = accelerator.reduce(torch.tensor(self.skipped, device=accelerator.device), "sum")
                figures |= {"learning_rate": self.scheduler.get_last_lr()[0], "skipped_pictures": int(skipped)}
                bar.set_postfix(psnr=f"{figures['psnr']:.2f}", stuck_bits=figures["stuck_bits"])
            if self.held_out and (done % config.validation_steps == 0 or is_last):
                figures |= self.validate(done)
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

    def bit_figures(self) -> dict[str, float]:
        """How the bits were used since the last line of the log, on all processes."""
        bits = self.bits.over_processes()
        self.bits.reset()
        figures = {"bit_entropy": bits.mean_entropy, "stuck_bits": bits.stuck, "dead_bits": bits.dead}
        return figures | {"min_bit_usage": bits.usage.min().item(), "max_bit_usage": bits.usage.max().item()}

    def state_dict(self) -> dict:
        """Where this process is, beside what Accelerate saves."""
        parts = {"batches": self.batches, "figures": self.figures, "bits": self.bits}
        return {"skipped": self.skipped} | {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]
        if self.skipped_file.exists():  # what was skipped after the checkpoint will be met again
            lines = self.skipped_file.read_text().splitlines(keepends=True)
            temporary = self.skipped_file.with_suffix(".tmp")
            temporary.write_text("".join(lines[: self.skipped]))
            temporary.replace(self.skipped_file)
        for name, part in {"batches": self.batches, "figures": self.figures, "bits": self.bits}.items():
            part.load_state_dict(state[name])

    def report_skipped(self, names: list[str]) -> None:
        """Counts and writes down the pictures that could not be read."""
        self.skipped += len(names)
        if names:
            with open(self.skipped_file, "a") as file:
                file.writelines(f"{name}\n" for name in names)

    @property
    def skipped_file(self) -> Path:
        return self.folder / f"skipped-{self.accelerator.process_index}.txt"

    def read_validation_pictures(self) -> dict[str, torch.Tensor]:
        """This process' share of the held-out pictures, uint8 [N, 3, H, W] of each bucket's size."""
        config, accelerator = self.config, self.accelerator
        if config.validation_data is None:
            return {}
        held_out = {}
        for bucket in config.buckets:
            pictures = validation_pictures(
                config.validation_data, bucket.height, bucket.width, config.validation_pictures
            )
            held_out[f"{bucket.height}x{bucket.width}"] = pictures[
                accelerator.process_index :: accelerator.num_processes
            ]
        return held_out

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """PSNR and SSIM of the averaged model at every bucket's size, by the protocol of `evaluation.metrics`; each
        process looks at its share of the pictures, and the first draws a grid of its first ones."""
        from ..evaluation.metrics import psnr, ssim

        accelerator = self.accelerator
        model = self.unwrap(self.model).eval()
        figures, grids = {}, {}
        with averaged_weights(self.ema, self.averaged):
            for size, pictures in self.held_out.items():
                sums, shown = torch.zeros(3), []  # of PSNR, of SSIM, pictures
                numbers = range(accelerator.process_index, 10**9, accelerator.num_processes)
                for start in range(0, len(pictures), 16):
                    piece = pictures[start : start + 16]
                    originals = piece.float() / 127.5 - 1
                    noise = sample_generators(self.config.seed, numbers[start : start + len(piece)], NOISE)
                    pixel_values = originals.to(accelerator.device, memory_format=torch.channels_last)
                    samples = model(pixel_values, generator=noise).sample.float().clamp(-1, 1).cpu()
                    pairs = [to_uint8(samples), piece.permute(0, 2, 3, 1).numpy()]
                    sums += torch.tensor([psnr(*pairs).sum(), ssim(*pairs).sum(), len(piece)])
                    shown = shown or [one for pair in zip(originals, samples, strict=True) for one in pair]
                if shown:
                    grids[f"validation-{size}"] = picture_grid(shown, columns=8)
                sums = accelerator.reduce(sums.to(accelerator.device), "sum")
                figures[f"validation_psnr_{size}"] = (sums[0] / sums[2]).item()
                figures[f"validation_ssim_{size}"] = (sums[1] / sums[2]).item()
        model.train()
        log_images(accelerator, grids, step)
        return figures

    def save(self) -> Path:
        """Writes `losses`, then `model`, which says that the stage is finished."""
        accelerator, folder = self.accelerator, self.folder
        if accelerator.is_main_process:
            save_whole(lambda path: save_loss_networks(path, self.loss_networks()), folder / "losses")
            judges = []  # networks that this model learned to please must not judge it
            if self.teacher is not None:
                judges.append(loss_model("teacher", self.teacher, self.config.distillation.teacher))
            if self.perceptual is not None:
                judges.append(loss_model("perceptual", self.perceptual, self.config.perceptual.model))
            started_from = [find_stage(self.config.init_from) or self.config.init_from]
            record = training_record(judges, started_from if self.config.init_from else [])
            record["training"] = config_values(self.config)

            def save_model(path: Path):
                model = self.unwrap(self.model)
                with averaged_weights(self.ema, self.averaged):
                    model.save_pretrained(path)
                UniWeTokImageProcessor(stride=model.config.stride).save_pretrained(path)
                (path / "training.json").write_text(json.dumps(record, indent=1))

            save_whole(save_model, folder / "model")
        accelerator.wait_for_everyone()
        return folder / "model"


def find_stage(init_from: str | None) -> Path | None:
    """The model's folder of a finished stage called `init_from`; None when that is a model itself.

    Raises:
        ValueError: when the stage is there, but not finished.
    """
    if init_from is None or not (Path(init_from) / "log.jsonl").exists():
        return None
    if not (Path(init_from) / "model").is_dir():
        raise ValueError(f"`init_from` {init_from} is a stage that is not finished: it has no `model` yet.")
    return Path(init_from) / "model"


def save_loss_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    folder.mkdir(parents=True)
    for name, network in networks.items():
        if isinstance(network, PrePostDistillation):  # evaluation reads it too
            network.save_pretrained(folder / name)
        else:
            save_file(network.state_dict(), folder / f"{name}.safetensors")


def load_loss_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    """Loads the weights of those `networks` that the stage before had; the others stay new.

    Raises:
        ValueError: when one has another shape now.
    """
    for name, network in networks.items():
        path = folder / name / "model.safetensors" if (folder / name).is_dir() else folder / f"{name}.safetensors"
        if path.exists():
            try:
                network.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise ValueError(f"`{name}` has not the shape it had in {folder.parent}: {error}") from None


def to_uint8(pictures: torch.Tensor):
    """Float [N, 3, H, W] in [-1, 1] to uint8 arrays [N, H, W, 3], rounded as the image processor does."""
    return (127.5 * pictures + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def finished(config: UniWeTokTrainingConfig) -> Path | None:
    """The model of a stage that was run to its end."""
    folder = Path(config.output_dir) / "model"
    return folder if folder.is_dir() else None


def train(config: UniWeTokTrainingConfig) -> Path:
    """Runs one stage; see [`UniWeTokTrainer.train`]."""
    trainer = UniWeTokTrainer(config)
    with interrupt_sets(trainer.stop, trainer.accelerator):
        return trainer.train()


def main(config_path: str, **overrides) -> Path:
    return train(read_config(UniWeTokTrainingConfig, config_path, **overrides))
