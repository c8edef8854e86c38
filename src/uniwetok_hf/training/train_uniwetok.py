# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the image tokenizer: `uniwetok train tokenizer --config stage.yaml`, alone or under `accelerate launch`.

    loss = l1 |x - x'| + l2 |x - x'|^2 + perceptual + adversarial     reconstruction (docs/method.md 2.1 - 2.3)
         + entropy [+ commitment]                                     all codes are used, bits are decided (2.4)
         + Pre-Post Distillation                                      codes carry semantics (2.5)
         + Generative-Aware Prior                                     codes can be predicted (2.6)

The three stages of the paper are three configs: one resolution, several resolutions and aspect ratios, and annealing
on faces and text. A stage starts from the previous one (`init_from`), the networks of its losses included.

A step is one optimizer step over `batch_size` pictures of one size, whatever the number of processes: crops, noise and
random numbers of the prior belong to the sample (`samples`), so 2 processes compute what 1 computes, and a resumed run
continues exactly. Only the histogram of the batch entropy depends on memory: it is shared by processes, but not by the
micro-batches of `gradient_accumulation_steps`.
"""

import copy
import json
import math
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..data.samples import NOISE, PRIOR, sample_generators
from ..evaluation.metrics import psnr, ssim
from ..files import one_line, save_whole
from ..losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss, generator_loss
from ..losses.commitment import commitment_loss
from ..losses.distillation import PrePostDistillation
from ..losses.entropy import entropy_loss
from ..losses.perceptual import LPIPS, PerceptualLoss
from ..losses.pixel import l1_loss, l2_loss
from ..losses.prior import ClassToImagePrior, GenerativePrior
from ..losses.teacher import Teacher
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.noise_uniwetok import draw_noise
from ..provenance import RECORD, LossModel, loss_model, short_name, training_record
from .agreement import written_together
from .bit_usage import BitUsage
from .checkpoints import (
    make_output_folder,
)
from .config import check_fields, config_values, field_named
from .export import ARCHITECTURE, ExportFields, names_of, write_architecture
from .picture_batches import Bucket, PictureBatch, PictureBatches, validation_pictures
from .run import (
    RunningMetrics,
    SkippedSamples,
    averaged_weights,
    choose_parameters,
    log_images,
    make_average,
    make_optimizer,
    picture_grid,
    seeded_weights,
)
from .settings_uniwetok import UniWeTokTrainingConfig
from .sharding import shares_weights
from .stage import StageTrainer, run_stage


# Pictures that the model sees at once in a validation, and pixels.
VALIDATION_BATCH = 16
VALIDATION_PIXELS = 16 * 256 * 256


class UniWeTokTrainer(StageTrainer):
    """One stage of training."""

    def __init__(self, config: UniWeTokTrainingConfig, stop: threading.Event | None = None):
        """When `stop` is set on any process, the run ends after the current step, with a checkpoint."""
        # Streams are read on from where they are; the position in other sources follows from the weights.
        are_streams = all(source.streaming for source in config.data)
        super().__init__(config, stop, also_applied=["data.weight"] if are_streams else [])
        accelerator = self.accelerator
        if shares_weights(accelerator):
            raise ValueError(
                "The image tokenizer trains in one process or in copies (DDP), not under FSDP and DeepSpeed: start it "
                "without that configuration (ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED in the environment)."
            )
        self.batches = open_batches(config, accelerator.process_index, accelerator.num_processes)
        self.validation = read_validation(config, accelerator.process_index, accelerator.num_processes)

        self.memory_format = memory_format(accelerator.mixed_precision, accelerator.device)
        self.model = build_model(config).to(memory_format=self.memory_format)
        self.perceptual, self.teacher, self.distillation, self.prior, self.discriminator = build_loss_networks(
            config, self.model.config.num_bits, self.model.config.stride, accelerator.device
        )
        if self.teacher is not None:
            self.teacher.model.to(teacher_dtype(accelerator.mixed_precision, accelerator.device))
        self.lecam = LeCam()
        if stage := find_stage(config.init_from):
            load_loss_networks(stage.parent / "losses", self.loss_networks())
        make_output_folder(self.folder, config.result)

        trained = [net for net in (self.model, self.distillation, self.prior) if net is not None]
        self.parameters = [p for net in trained for p in net.parameters() if p.requires_grad]
        self.averaged = [p for p in self.model.parameters() if p.requires_grad]
        self.ema = make_average(self.averaged, config.ema_decay, config.max_train_steps)
        optimizer, scheduler = make_optimizer(config, self.parameters, config.learning_rate, config.max_train_steps)
        discriminator_optimizer = discriminator_scheduler = None
        if settings := config.adversarial:
            discriminator_optimizer, discriminator_scheduler = make_optimizer(
                config,
                list(self.discriminator.parameters()),
                config.learning_rate if settings.learning_rate is None else settings.learning_rate,
                max(config.max_train_steps - settings.start_step, 1),
            )

        if config.compile:  # alone: the networks of the losses are small
            most = torch._dynamo.config.recompile_limit  # there is a graph for each size, and for its last batch
            torch._dynamo.config.recompile_limit = max(most, 2 * len(config.buckets))
            self.model = torch.compile(self.model, dynamic=False)  # inductor fails with symbolic sizes
        self.model, self.distillation, self.prior, self.discriminator = accelerator.prepare(
            self.model, self.distillation, self.prior, self.discriminator
        )
        self.optimizer, self.scheduler, self.discriminator_optimizer, self.discriminator_scheduler = (
            accelerator.prepare(optimizer, scheduler, discriminator_optimizer, discriminator_scheduler)
        )
        self.ema.to(accelerator.device)
        accelerator.register_for_checkpointing(self.ema, self.lecam.to(accelerator.device))

        self.metrics, self.bits = RunningMetrics(), BitUsage()
        self.skipped = SkippedSamples(self.folder, accelerator.process_index, config.max_skipped_share)
        self.logits = []  # of the discriminator in the micro-batches of this step, for LeCam's averages

    def loss_networks(self) -> dict[str, nn.Module]:
        """The networks that a later stage continues with, besides the model."""
        networks = {"distillation": self.distillation, "prior": self.prior, "discriminator": self.discriminator}
        if self.discriminator is not None:
            networks["lecam"] = self.lecam
        return {name: self.unwrap(net) for name, net in networks.items() if net is not None}

    def unwrap(self, network: nn.Module) -> nn.Module:
        """A network without the wrappers of Accelerate and torch.compile."""
        network = self.accelerator.unwrap_model(network, keep_torch_compile=False)
        return getattr(network, "_orig_mod", network)  # Accelerate leaves it where DDP is around it

    def train_steps(self, start: int) -> None:
        config, batches = self.config, iter(self.batches)
        for done in range(start + 1, config.max_train_steps + 1):
            self.train_step(next(batches), done - 1)
            self.bar.update()
            is_last = done == config.max_train_steps
            metrics = {}
            if done % config.logging_steps == 0 or is_last:
                metrics = self.take_metrics()
                shown = {name: f"{metrics[name]:.4g}" for name in ("psnr", "stuck_bits") if name in metrics}
                self.bar.set_postfix(shown)
            if self.validation and (done % config.validation_steps == 0 or is_last):
                metrics |= self.validate(done)
            self.end_step(done, metrics)

    def train_step(self, batch: PictureBatch, step: int) -> None:
        """In each micro-batch the model learns, and the discriminator from the same reconstruction. When a loss or a
        gradient of either is not finite, both and the metrics stay as they were."""
        config, accelerator = self.config, self.accelerator
        before, step_losses = (self.metrics.copy(), copy.copy(self.bits)), {}
        learners = [net for net in (self.model, self.distillation, self.prior, self.discriminator) if net is not None]
        size = len(batch.numbers) // config.gradient_accumulation_steps
        for index, pixel_values in enumerate(batch.pixel_values.split(size)):
            pixel_values = pixel_values.to(accelerator.device, non_blocking=True, memory_format=self.memory_format)
            with accelerator.accumulate(*learners):
                output, losses = self.compute_losses(pixel_values, batch.numbers[index * size :][:size], step)
                metrics = {name: value.detach() for name, (_, value) in losses.items()}
                accelerator.backward(sum(weight * value for weight, value in losses.values()))
                if "adversarial" in losses:
                    metrics |= self.train_discriminator(pixel_values, output.sample.detach())
            self.bits.update(output.codes)
            self.metrics.add(metrics)
            for name, value in metrics.items():
                step_losses.setdefault(name, []).append(value.reshape(()))
        self.take_step({name: torch.stack(values) for name, values in step_losses.items()}, before, step)
        self.skipped.note(batch.skipped, len(batch.numbers))
        enlarged = batch.num_enlarged / len(batch.numbers)
        self.metrics.add({"enlarged_pictures": enlarged}, items=len(batch.numbers) * accelerator.num_processes)

    def compute_losses(self, pixel_values: torch.Tensor, numbers: list[int], step: int):
        """Reconstructs the pictures; returns the output of the model, and weight and value of each loss."""
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
        if settings := config.perceptual:
            with self.accelerator.autocast():
                losses["perceptual"] = (settings.weight, self.perceptual(output.sample, pixel_values))
        if (settings := config.adversarial) and step >= settings.start_step:
            discriminator = self.unwrap(self.discriminator).requires_grad_(False)
            losses["adversarial"] = (settings.weight, generator_loss(discriminator(output.sample)))
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
            self.metrics.add({"sample_entropy": entropy.sample_entropy, "batch_entropy": entropy.batch_entropy})
        if config.commitment_weight:
            losses["commitment"] = (config.commitment_weight, commitment_loss(output.latents))
        if settings := config.distillation:
            with self.accelerator.autocast():
                teacher_features = self.teacher.embed_pictures(pixel_values)
            distilled = self.distillation(output.latents, output.codes, teacher_features.float())
            losses["distillation"] = (settings.weight, distilled.loss)
            self.metrics.add({"distillation_pre": distilled.pre, "distillation_post": distilled.post})
        if settings := config.prior:
            generators = sample_generators(config.seed, numbers, PRIOR)
            losses["prior"] = (settings.weight, self.prior(output.codes, generators))
        return output, losses

    def train_discriminator(self, pixel_values: torch.Tensor, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        """The part of the discriminator in a micro-batch; returns its losses."""
        accelerator = self.accelerator
        real, fake = self.discriminator(torch.cat([pixel_values, sample.to(pixel_values.dtype)])).chunk(2)
        losses = {"discriminator": discriminator_loss(real, fake), "lecam": self.lecam(real, fake)}
        accelerator.backward(losses["discriminator"] + self.config.adversarial.lecam_weight * losses["lecam"])
        self.logits.append((real.detach(), fake.detach()))
        return {name: value.detach() for name, value in losses.items()}

    def take_step(self, losses: dict[str, torch.Tensor], before: tuple[RunningMetrics, BitUsage], step: int) -> None:
        """Clips the gradients of all micro-batches and changes the weights, or takes the step back."""
        accelerator, trained = self.accelerator, [(self.optimizer, self.scheduler)]
        norms = {"grad_norm": self.clip_gradients(self.parameters, self.optimizer)}
        if self.logits:
            trained.append((self.discriminator_optimizer, self.discriminator_scheduler))
            parameters = list(self.discriminator.parameters())
            norms["discriminator_grad_norm"] = self.clip_gradients(parameters, self.discriminator_optimizer)
        is_taken = self.guard.allows(losses, norms, step)
        for optimizer, scheduler in trained:
            if not is_taken:
                optimizer.zero_grad()  # a step without gradients changes nothing but the scale of a scaler
            if accelerator.scaler is None:
                optimizer.step()
            else:  # the step of accelerate's optimizer would change the scale before the other one's
                accelerator.scaler.step(optimizer.optimizer)
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.scaler is not None:
            accelerator.scaler.update()
        if is_taken:
            self.ema.step(self.averaged)
            if self.logits:
                self.lecam.update(*(torch.cat(logits) for logits in zip(*self.logits, strict=True)))
            self.metrics.add(norms)
        else:
            self.metrics, self.bits = before
        self.logits.clear()

    def clip_gradients(self, parameters: list[nn.Parameter], optimizer) -> torch.Tensor:
        """Scales gradients down to `max_grad_norm`; returns the norm that they had."""
        self.accelerator.unscale_gradients(optimizer)  # accelerate's `clip_grad_norm_` would unscale both optimizers
        return nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)

    def take_metrics(self) -> dict[str, float]:
        """The line of the log: means since the previous line, over all processes."""
        accelerator, metrics = self.accelerator, self.metrics.take(self.accelerator, "pictures")
        if "l2" in metrics:  # a step at least was not skipped
            bits = self.bits.over_processes()
            metrics |= {"bit_entropy": bits.mean_entropy, "stuck_bits": bits.stuck, "dead_bits": bits.dead}
            metrics |= {"min_bit_usage": bits.usage.min().item(), "max_bit_usage": bits.usage.max().item()}
            metrics["psnr"] = 10 * math.log10(4 / max(metrics["l2"], 1e-10))  # of the mean error
        self.bits.reset()
        metrics["learning_rate"] = self.scheduler.get_last_lr()[0]
        if self.guard.num_skipped:
            metrics["skipped_steps"] = self.guard.num_skipped
        return metrics | {"skipped_pictures": self.skipped.total(accelerator)}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """PSNR and SSIM of the averaged model for each bucket, as `evaluation.metrics` defines them. Each process has
        its share of the pictures; the first process logs a grid of its first ones."""
        accelerator, model, processor = self.accelerator, self.unwrap(self.model).eval(), UniWeTokImageProcessor()
        first, count = accelerator.process_index, accelerator.num_processes
        metrics, grids = {}, {}
        with averaged_weights(self.ema, self.averaged), accelerator.autocast():
            for size, pictures in self.validation.items():
                sums, shown = torch.zeros(3, dtype=torch.float32), []  # sums of PSNR, of SSIM, number of pictures
                num_pixels = pictures.shape[2] * pictures.shape[3]
                at_once = max(1, min(VALIDATION_BATCH, VALIDATION_PIXELS // num_pixels))
                for start in range(0, len(pictures), at_once):
                    originals = pictures[start : start + at_once]
                    pixel_values = originals.float() / 127.5 - 1
                    numbers = [first + count * index for index in range(start, start + len(originals))]
                    samples = model(
                        pixel_values.to(accelerator.device, memory_format=self.memory_format),
                        generator=sample_generators(self.config.seed, numbers, NOISE),
                    ).sample.float()
                    pair = processor.postprocess(samples), originals.permute(0, 2, 3, 1).numpy()
                    sums += torch.tensor([psnr(*pair).sum(), ssim(*pair).sum(), len(originals)], dtype=torch.float32)
                    shown = shown or [one for pair in zip(pixel_values, samples, strict=True) for one in pair]
                if shown:
                    grids[f"validation-{size}"] = picture_grid(shown, columns=8)
                sums = accelerator.reduce(sums.to(accelerator.device), "sum")
                metrics[f"validation_psnr_{size}"] = (sums[0] / sums[2]).item()
                metrics[f"validation_ssim_{size}"] = (sums[1] / sums[2]).item()
        model.train()
        log_images(accelerator, grids, step)
        return metrics

    def data_state(self) -> dict:
        return {"rows": self.batches.num_rows}

    def state_dict(self) -> dict:
        """The state of this process, besides what Accelerate saves."""
        counts = self.data_state() | {"skipped_steps": self.guard.num_skipped}
        return counts | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        self.guard.resume(state.get("skipped_steps", 0))
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    @property
    def parts(self) -> dict:
        """What has a state."""
        return {"batches": self.batches, "metrics": self.metrics, "bits": self.bits, "skipped": self.skipped}

    def save(self) -> Path:
        """Writes `losses`, then `model`, which marks the stage as finished."""
        accelerator, folder = self.accelerator, self.folder
        with written_together(accelerator, folder / "model"):
            if accelerator.is_main_process:
                save_whole(lambda path: save_loss_networks(path, self.loss_networks()), folder / "losses")

                def save_model(path: Path):
                    model = self.unwrap(self.model)
                    with averaged_weights(self.ema, self.averaged):
                        model.save_pretrained(path)
                    UniWeTokImageProcessor(stride=model.config.stride).save_pretrained(path)
                    (path / RECORD).write_text(json.dumps(self.record(), indent=1), encoding="utf-8")

                save_whole(save_model, folder / "model")
        return folder / "model"

    def record(self) -> dict:
        """`training.json` of the model: the networks of its losses must not judge it."""
        config, seen = self.config, []
        if config.distillation:
            name = short_name(config.distillation.teacher)
            seen.append(LossModel("teacher", name, self.teacher.digests))
        if config.perceptual:
            seen.append(loss_model("perceptual", self.perceptual, config.perceptual.model))
        started_from = [find_stage(config.init_from) or config.init_from] if config.init_from else []
        return training_record(seen, started_from) | {"training": config_values(config)}

    def write_architecture(self) -> None:
        """Writes what `uniwetok export` needs besides a checkpoint."""
        model, path = self.unwrap(self.model), self.folder / ARCHITECTURE
        with written_together(self.accelerator, path):
            if self.accelerator.is_main_process:
                fields = ExportFields("model", names_of(self.averaged, model))
                processor = UniWeTokImageProcessor(stride=model.config.stride)
                write_architecture(self.folder, fields, self.record(), (model.config, ""), (processor, ""))


def open_batches(config: UniWeTokTrainingConfig, process_index: int, num_processes: int) -> PictureBatches:
    """
    Raises:
        ValueError: when the processes and micro-batches can't share `batch_multiple` pictures.
    """
    shares = num_processes * config.gradient_accumulation_steps
    multiple = config.batch_multiple or shares
    if multiple % shares:
        raise ValueError(
            f"`batch_multiple` must be a multiple of {shares} (processes x micro-batches), got {multiple}."
        )
    return PictureBatches(
        config.data,
        config.buckets,
        config.batch_size,
        config.seed,
        flip=config.flip,
        crop_probability=config.crop_probability,
        crop_scale=tuple(config.crop_scale),
        multiple=multiple,
        process_index=process_index,
        num_processes=num_processes,
        num_threads=config.num_threads,
    )


def read_validation(config: UniWeTokTrainingConfig, process_index: int, num_processes: int) -> dict[str, torch.Tensor]:
    """The validation pictures of a process, uint8 [N, 3, H, W] of each size. They are copies: a view would keep those
    of all processes in memory."""
    return {
        f"{bucket.height}x{bucket.width}": validation_pictures(
            config.validation_data, bucket.height, bucket.width, config.validation_pictures
        )[process_index::num_processes].clone()
        for bucket in (config.buckets if config.validation_data else [])
    }


def build_model(config: UniWeTokTrainingConfig) -> UniWeTokModel:
    """The model that a stage starts from, with only its trainable parameters requiring gradients."""
    if config.init_from is not None:
        start = find_stage(config.init_from) or config.init_from
        with field_named("init_from"):
            model = UniWeTokModel.from_pretrained(start, dtype=torch.float32)
    else:
        check_fields("model", config.model, UniWeTokConfig)
        with seeded_weights(config.seed), field_named("model"):
            model = UniWeTokModel(UniWeTokConfig(**config.model))
    for index, bucket in enumerate(config.buckets):
        if bucket.height % model.config.stride or bucket.width % model.config.stride:
            raise ValueError(
                f"`buckets[{index}]`: sides must be multiples of the model's {model.config.stride} pixels, got "
                f"{bucket.height} x {bucket.width}."
            )
    # Without Transformer layers nothing reads the register tokens.
    never = [r"transformer\.register_tokens$"] if model.config.num_hidden_layers == 0 else []
    choose_parameters(model, config.trainable, never)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def square_grid(buckets: list[Bucket], stride: int) -> int:
    """Tokens of a side of the only size of pictures.

    Raises:
        ValueError: when there are several sizes, or pictures are not square.
    """
    if len(buckets) != 1 or buckets[0].height != buckets[0].width:
        raise ValueError("`architecture: class_to_image` needs one square size in `buckets`.")
    return buckets[0].height // stride


def build_loss_networks(config: UniWeTokTrainingConfig, num_bits: int, stride: int, device: torch.device) -> tuple:
    """Networks of the losses, None for a loss that is off: perceptual and teacher, which are frozen, and distillation,
    prior and discriminator, which train."""
    perceptual = teacher = distillation = prior = discriminator = None
    if settings := config.perceptual:
        with field_named("perceptual.model"):
            if settings.model.endswith(".safetensors"):
                perceptual = LPIPS.from_file(settings.model).to(device)
            else:
                perceptual = PerceptualLoss.from_pretrained(settings.model, settings.layers).to(device)
    with seeded_weights(config.seed + 1):
        if settings := config.distillation:
            with field_named("distillation.teacher"):
                teacher = Teacher.from_pretrained(settings.teacher).drop_texts().to(device)
            with field_named("distillation"):
                distillation = PrePostDistillation(
                    num_bits,
                    teacher.embedding_size,
                    hidden_size=settings.hidden_size,
                    num_attention_heads=settings.num_attention_heads,
                    post_weight=settings.post_weight,
                    head=settings.head,
                )
        if settings := config.prior:
            sizes = {
                "hidden_size": settings.hidden_size,
                "num_hidden_layers": settings.num_hidden_layers,
                "num_attention_heads": settings.num_attention_heads,
            }
            with field_named("prior"):
                if settings.architecture == "class_to_image":
                    prior = ClassToImagePrior(num_bits, square_grid(config.buckets, stride), **sizes)
                else:
                    prior = GenerativePrior(num_bits, **sizes)
        if settings := config.adversarial:
            with field_named("adversarial"):
                groups = min(32, settings.base_channels)
                discriminator = PatchDiscriminator(settings.base_channels, settings.num_layers, groups)
            shortest = min(min(bucket.height, bucket.width) for bucket in config.buckets)
            if shortest < discriminator.min_side:
                raise ValueError(
                    f"`adversarial.num_layers`={settings.num_layers} needs pictures of at least "
                    f"{discriminator.min_side} pixels, `buckets` have sides of {shortest}."
                )
    return perceptual, teacher, distillation, prior, discriminator


def teacher_dtype(mixed_precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a frozen teacher's weights: on GPUs the bfloat16 that autocast would round them to in each step, in
    half of the memory."""
    return torch.bfloat16 if mixed_precision == "bf16" and device.type != "cpu" else torch.float32


def memory_format(mixed_precision: str, device: torch.device) -> torch.memory_format:
    """The order of bytes of feature maps and weights: channels last, by which convolutions are a fifth to a half
    faster, but for bfloat16 on CPUs: there convolutions reorder it anyway, and the backward pass of GroupNorm is slow
    with channels last."""
    in_bfloat16_on_cpu = mixed_precision == "bf16" and device.type == "cpu"
    return torch.contiguous_format if in_bfloat16_on_cpu else torch.channels_last


def find_stage(init_from: str | None) -> Path | None:
    """The model folder of a finished stage; None when `init_from` is a model itself.

    Raises:
        ValueError: when the stage is not finished.
    """
    if init_from is None or not (Path(init_from) / "log.jsonl").exists():
        return None
    if not (Path(init_from) / "model").is_dir():
        raise ValueError(f"`init_from` {init_from} is a stage that is not finished: it has no `model` yet.")
    return Path(init_from) / "model"


def save_loss_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    folder.mkdir(parents=True)
    for name, network in networks.items():
        if isinstance(network, PrePostDistillation):  # evaluation reads it, too
            network.save_pretrained(folder / name)
        else:
            save_file(network.state_dict(), folder / f"{name}.safetensors")


def load_loss_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    """Loads the weights of those `networks` that the previous stage had; the others stay new.

    Raises:
        ValueError: when a network has another shape now, or its file is damaged.
    """
    for name, network in networks.items():
        path = folder / name / "model.safetensors" if (folder / name).is_dir() else folder / f"{name}.safetensors"
        if path.exists():
            try:
                network.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise ValueError(f"`{name}` does not have the shape that it has in {folder.parent}: {error}") from None
            except SafetensorError as error:
                raise ValueError(
                    f"`init_from`: {path} is damaged ({one_line(error)}). Put a whole copy of it there."
                ) from None


def train(config: UniWeTokTrainingConfig) -> Path:
    """Runs one stage, which SIGTERM and Ctrl-C stop; see [`UniWeTokTrainer.train`]."""
    return run_stage(UniWeTokTrainer, config)
