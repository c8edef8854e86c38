# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The timings of `gpu.py`, with random weights: encoding and decoding, text to image, training steps; eager, compiled
and as CUDA graphs."""

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from gpu_bench import Bench, compilation, count_flops, generation_inputs, picture_batch, tf32


def time_peak(bench: Bench) -> None:
    """What the other numbers are relative to."""
    bench.row("matrix product in bfloat16, and a copy", lambda: bench.peak)


def build_tokenizer(bench: Bench, dtype: torch.dtype):
    from uniwetok_hf import UniWeTokConfig, UniWeTokModel

    return bench.build(lambda: UniWeTokModel(UniWeTokConfig(**bench.sizes.vision)), dtype).eval()


def tokenizer_calls(bench: Bench, model, side: int, batch: int) -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """The two halves of an image tokenizer and random inputs for them."""
    tokens = side // model.config.stride
    shape = (batch, model.config.num_bits, tokens, tokens)
    pixels, noise = bench.random(batch, 3, side, side, dtype=model.dtype), bench.random(*shape, dtype=model.dtype)
    return {"encode": (model.encoder, [pixels]), "decode": (model.decoder, [bench.codes(*shape), noise])}


@torch.no_grad()
def time_tokenizer(bench: Bench) -> None:
    """Encoding and decoding, eager, as CUDA graphs at small batches, without channels last, and in TF32."""
    from uniwetok_hf.modeling import modeling_uniwetok

    model = build_tokenizer(bench, torch.bfloat16)

    def measure(half: str, side: int, batch: int, flops: int, use_graph: bool = False) -> dict:
        function, inputs = tokenizer_calls(bench, model, side, batch)[half]
        call = functools.partial(function, *inputs)
        call = bench.device.graphed(call) if use_graph else call
        return bench.speed(call, batch, batch * flops) if call else {"note": "CUDA only"}

    flops = {}
    for side in bench.sizes.sides:
        for half, (function, inputs) in tokenizer_calls(bench, model, side, 1).items():
            flops[half, side] = count_flops(functools.partial(function, *inputs))
    grid = sorted(itertools.product(bench.sizes.sides, bench.sizes.batches), key=lambda case: case[0] ** 2 * case[1])
    for side, batch in grid:
        for half in ("encode", "decode"):
            case = functools.partial(measure, half, side, batch, flops[half, side])
            bench.row(f"{half} {side} x {side}, batch {batch}, bf16, eager", case)
            if batch < 64 and side == bench.sizes.sides[0]:
                what = f"{half} {side} x {side}, batch {batch}, bf16, CUDA graph"
                bench.row(what, functools.partial(case, use_graph=True))
    side, batch = bench.sizes.sides[0], bench.sizes.batches[-1]
    with patch.object(modeling_uniwetok, "for_convolution", lambda hidden_states: hidden_states):
        for half in ("encode", "decode"):
            what = f"{half} {side} x {side}, batch {batch}, bf16, eager, channels first"
            bench.row(what, functools.partial(measure, half, side, batch, flops[half, side]))
    model.float()
    side, batch = bench.sizes.sides[0], bench.sizes.batches[1]
    for half, is_tf32 in itertools.product(("encode", "decode"), (True, False)):
        with tf32(is_tf32):
            what = f"{half} {side} x {side}, batch {batch}, {'TF32' if is_tf32 else 'fp32'}, eager"
            bench.row(what, functools.partial(measure, half, side, batch, flops[half, side]))


@torch.no_grad()
def time_tokenizer_compiled(bench: Bench) -> None:
    """Compiled encoding and decoding, without and with CUDA graphs."""
    model = build_tokenizer(bench, torch.bfloat16)

    def measure(half: str, side: int, batch: int, mode: str | None) -> dict:
        function, inputs = tokenizer_calls(bench, model, side, batch)[half]
        flops = count_flops(functools.partial(function, *inputs))
        with compilation() as breaks:
            start = time.perf_counter()
            compiled = torch.compile(function, dynamic=False, backend=bench.backend, mode=mode)
            call = functools.partial(compiled, *inputs)
            call()
            bench.device.synchronize()
            seconds = time.perf_counter() - start
            return bench.speed(call, batch, flops, compile_seconds=seconds) | breaks()

    for side, batch in bench.sizes.compiled:
        for half, (what, mode) in itertools.product(("encode", "decode"), bench.compile_modes.items()):
            row = f"{half} {side} x {side}, batch {batch}, bf16, {what}"
            bench.row(row, functools.partial(measure, half, side, batch, mode))


def build_language_model(bench: Bench, text: dict, dtype: torch.dtype, patch_size: int = 1):
    """The unified model around a language model of the sizes of `text`, with a head as wide as it."""
    from transformers import Qwen3Config

    from uniwetok_hf import UniWeTokConfig, UniWeTokForCausalLM, UniWeTokMLLMConfig

    vision = UniWeTokConfig(**bench.sizes.vision)
    width = text["hidden_size"]
    head = {**bench.sizes.head, "hidden_size": width, "condition_size": width, "num_bits": vision.num_bits}
    parts = {"text_config": Qwen3Config(**text), "vision_config": vision, "head_config": head}
    config = UniWeTokMLLMConfig(**parts, patch_size=patch_size, **bench.sizes.token_ids)
    return bench.build(lambda: UniWeTokForCausalLM(config), dtype)


def choose_language_model(bench: Bench, least_gib: float) -> tuple[str, dict]:
    """The largest language model that fits, in the order of the sizes; the last in any case."""
    names = list(bench.sizes.language)
    free = bench.device.free_gib()
    name = names[0] if free is None or free >= least_gib else names[-1]
    return name, bench.sizes.language[name]


@torch.no_grad()
def time_picture(bench: Bench, mllm, side: int, batch: int) -> dict:
    """Text to image of a batch: the first patches, and from them the whole picture. Patches to come read a longer
    cache, so the whole is rather more than that."""
    from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow

    config, tokens = mllm.config, side // mllm.config.vision_config.stride
    total = tokens**2 // config.tokens_per_patch
    timed, ends = min(total, bench.sizes.patches), []
    generator, prompts = bench.device.generator(0), generation_inputs(mllm, batch, tokens, tokens, num_words=64)
    settings = {"guidance_scale": 7.5, "num_inference_steps": bench.sizes.steps, "generator": generator}

    def generate(count: int) -> None:
        def on_patch(step: int, _) -> bool:
            bench.device.synchronize()
            ends.append(time.perf_counter())
            return step + 1 == count

        ends[:] = [time.perf_counter()]
        mllm.generate_codes(**prompts, **settings, callback=on_patch)

    generate(min(2, timed))  # the first run loads kernels or compiles, for the prompt and for a patch
    generate(timed)
    first, *others = (end - begin for begin, end in itertools.pairwise(ends))
    patch_seconds = statistics.median(others or [first])

    flow = BinaryFlow()
    flow.set_timesteps(bench.sizes.steps)
    width = config.text_config.hidden_size
    condition = bench.random(2 * batch, config.tokens_per_patch, width, dtype=mllm.dtype)
    head_ms = bench.time(lambda: mllm.image_head.sample(condition, flow, 7.5, generator), most=3)
    codes = bench.codes(batch, config.vision_config.num_bits, tokens, tokens).to(mllm.dtype)
    decode_ms = bench.time(lambda: mllm.vision_model.decode(codes, generator=generator), most=3)
    seconds = first + (total - 1) * patch_seconds + decode_ms / 1000
    return {
        "seconds": seconds,
        "pictures_per_second": batch / seconds,
        "first_patch_ms": 1000 * first,
        "patch_ms": 1000 * patch_seconds,
        "head_ms": head_ms,
        "language_model_ms": 1000 * patch_seconds - head_ms,
        "decode_ms": decode_ms,
        "timed": f"{timed} of {total} patches",
        "peak_gib": bench.device.peak_gib(),
    }


def time_generation(bench: Bench) -> None:
    """Text to image, eager."""
    name, text = choose_language_model(bench, least_gib=40)
    mllm = build_language_model(bench, text, torch.bfloat16).eval()
    largest = bench.sizes.sides[-1]
    for side, batch, p in itertools.product(
        bench.sizes.sides, bench.sizes.generation_batches, bench.sizes.patch_sizes
    ):
        mllm.config.patch_size = p  # no weight depends on it
        what = f"{side} x {side}, P = {p * p}, batch {batch}, {name} bf16, eager"
        is_needed = side < largest or batch == 1  # a patch of a larger picture costs the same
        if is_needed and side % (p * mllm.config.vision_config.stride) == 0:
            bench.row(what, functools.partial(time_picture, bench, mllm, side, batch))


def time_generation_compiled(bench: Bench) -> None:
    """Text to image with the head compiled, which runs 51 times per patch, without and with CUDA graphs; then with the
    layers of the language model compiled, too, which a static cache gives one shape for all patches."""
    name, text = choose_language_model(bench, least_gib=40)
    mllm = build_language_model(bench, text, torch.bfloat16).eval()
    mllm.generation_config.cache_implementation = "static"
    side = bench.sizes.sides[1]

    def measure(p: int, what: str) -> None:
        mllm.config.patch_size = p
        with compilation():
            row = f"{side} x {side}, P = {p * p}, batch 1, {name} bf16, {what}"
            bench.row(row, functools.partial(time_picture, bench, mllm, side, 1))

    for p, (what, mode) in itertools.product(bench.sizes.patch_sizes, bench.compile_modes.items()):
        mllm.image_head.compile(dynamic=False, backend=bench.backend, mode=mode)
        measure(p, f"head {what}")
    for layer in mllm.model.language_model.layers:
        layer.compile(dynamic=False, backend=bench.backend)
    for p in bench.sizes.patch_sizes:
        measure(p, f"head {what}, layers of the language model compiled")


def tokenizer_step(bench: Bench, folder: str, batch: int, is_compiled: bool) -> tuple[Callable, int]:
    """A step, and the tokens of a picture, of the trainer of `imagenet_uniwetok`, with every loss, on random pictures.
    The networks of the losses have random weights; weights and optimizer are in float32, computation in bfloat16."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from uniwetok_hf.losses.adversarial import PatchDiscriminator
    from uniwetok_hf.losses.distillation import PrePostDistillation
    from uniwetok_hf.losses.perceptual import LPIPS, VGG16_WIDTHS
    from uniwetok_hf.losses.prior import GenerativePrior
    from uniwetok_hf.losses.teacher import Teacher
    from uniwetok_hf.training import train_uniwetok
    from uniwetok_hf.training.config import find_config, read_config
    from uniwetok_hf.training.picture_batches import PictureBatch

    def loss_networks(config, num_bits: int, stride: int, device) -> tuple:
        seen, sizes = config.distillation, bench.sizes.teacher
        vision, size = SiglipVisionConfig(**sizes), (sizes["image_size"], sizes["image_size"])
        teacher = bench.build(lambda: Teacher(SiglipVisionModel(vision), size, pooling="pooled output"))
        pools = PrePostDistillation(num_bits, sizes["hidden_size"], seen.hidden_size, seen.num_attention_heads)
        prior = (config.prior.hidden_size, config.prior.num_hidden_layers, config.prior.num_attention_heads)
        judge = (config.adversarial.base_channels, config.adversarial.num_layers)
        perceptual = bench.build(lambda: LPIPS(bench.sizes.lpips_widths or VGG16_WIDTHS))
        discriminator = PatchDiscriminator(*judge, min(32, judge[0]))
        return perceptual, teacher, pools, GenerativePrior(num_bits, *prior), discriminator

    fields = {"output_dir": folder, "batch_size": batch, "validation_data": None, "compile": is_compiled}
    config = read_config(
        train_uniwetok.UniWeTokTrainingConfig, find_config("imagenet_uniwetok"), **fields, **bench.sizes.training
    )
    with patch.multiple(train_uniwetok, open_batches=lambda *_: None, build_loss_networks=loss_networks):
        trainer = train_uniwetok.UniWeTokTrainer(config)
    side = bench.sizes.training_side
    pictures = PictureBatch(bench.random(batch, 3, side, side).clamp(-1, 1), list(range(batch)), [], 0, 0)
    tokens = (side // trainer.unwrap(trainer.model).config.stride) ** 2
    return lambda: trainer.train_step(pictures, step=0), tokens


def language_step(bench: Bench, folder: str, batch: int, is_compiled: bool) -> tuple[Callable, int]:
    """A step, and the tokens of a row, of the trainer of `paper_mllm_pretrain` on rows of 64 words and a picture.
    Weights and optimizer in float32, computation in bfloat16, with gradient checkpointing."""
    from uniwetok_hf.training.config import find_config, read_config
    from uniwetok_hf.training.conversation_batches import MicroBatch
    from uniwetok_hf.training.run import RunningMetrics, StepGuard, start_accelerator
    from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig, TaskMetrics

    class SyntheticTrainer(MLLMTrainer):
        """Without data sets and without a pipeline, which would have to be read from disk."""

        def __init__(self, config, mllm):
            self.config, self.folder, self.mllm = config, Path(folder), mllm
            self.pipeline, self.fsdp, self.shards, self.is_sharded = SimpleNamespace(mllm=mllm), None, None, False
            self.accelerator, self.tracker = start_accelerator(config, self.folder)
            self.guard = StepGuard(self.accelerator, self.folder, config.max_skipped_steps)
            self.batches = SimpleNamespace(names=["captions"], micro_batch_size=config.batch_size)
            self.prepare_model()
            self.model.train()
            self.metrics, self.task_metrics = RunningMetrics(), TaskMetrics(self.batches.names)

    fields = {"output_dir": folder, "batch_size": batch, "packed_tokens": None, "num_readers": 0}
    fields |= {"gradient_accumulation_steps": 1, "compile": is_compiled}
    config = read_config(MLLMTrainingConfig, find_config("paper_mllm_pretrain"), **fields)
    text = list(bench.sizes.language.values())[-1]
    mllm = build_language_model(bench, text, torch.float32, config.mllm["patch_size"])
    trainer = SyntheticTrainer(config, mllm)
    tokens = bench.sizes.language_side // mllm.config.vision_config.stride
    inputs = picture_batch(mllm, bench.codes(batch, mllm.config.vision_config.num_bits, tokens, tokens), num_words=64)
    counts = torch.full((batch,), 64), torch.full((batch,), tokens**2)
    micro_batch = MicroBatch(inputs, list(range(batch)), torch.zeros(batch, dtype=torch.long), *counts)
    return lambda: trainer.train_step([micro_batch], step=0), inputs["input_ids"].shape[1]


# What is trained: the function that makes a step, and what a row says about it.
TRAININGS = {
    "image tokenizer": (tokenizer_step, "imagenet_uniwetok, all losses"),
    "language model": (language_step, "paper_mllm_pretrain"),
}


def measure_training(bench: Bench, what: str, batch: int, is_compiled: bool) -> dict:
    """Speed of a step. Its operations are counted as it runs, eager, those of checkpointing twice."""
    from accelerate.state import AcceleratorState

    make_step, values = TRAININGS[what][0], {}
    compile_with = functools.partial(torch.compile, backend=bench.backend)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            compilation() as breaks,
            patch.object(torch, "compile", compile_with),
        ):
            step, tokens = make_step(bench, f"{folder}/eager", batch, is_compiled=False)
            flops = count_flops(step)
            if is_compiled:
                step = None
                bench.device.release()
                step, _ = make_step(bench, f"{folder}/compiled", batch, is_compiled=True)
                start = time.perf_counter()
                step()
                bench.device.synchronize()
                values = {"compile_seconds": time.perf_counter() - start} | breaks()
            values = bench.speed(step, batch, flops, **values)
    finally:  # accelerate remembers the precision of a process' first training
        AcceleratorState._reset_state(reset_partial_state=True)
    return values | {"tokens_per_second": tokens * values["pictures_per_second"]}


def time_training(what: str, bench: Bench, is_compiled: bool = False) -> None:
    """A training step at the largest batch that there is memory for. A model of 8 B and its optimizer need 16 bytes
    per parameter, more than one card has: the language model is the smaller one."""
    is_language = what == "language model"
    batches = bench.sizes.language_batches if is_language else bench.sizes.training_batches
    name = TRAININGS[what][1] + (f" around {list(bench.sizes.language)[-1]}" if is_language else "")
    for batch in [bench.fitting[what]] if what in bench.fitting else batches:
        row = f"{name}, batch {batch}, bf16, {'compiled' if is_compiled else 'eager'}"
        if bench.row(row, functools.partial(measure_training, bench, what, batch, is_compiled)):
            bench.fitting[what] = batch
            break
