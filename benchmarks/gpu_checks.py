# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The checks of `gpu.py`: whether the package computes on the device what it computes on the CPU."""

import copy
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_bench import (
    ROOT,
    Bench,
    Device,
    compilation,
    difference,
    equal_share,
    generation_inputs,
    picture_batch,
    psnr,
    seeded,
    within,
)
from safetensors.torch import load_file


GOLDEN = ROOT / "tests" / "fixtures" / "golden"


def convert(name: str, folder: str) -> Path:
    from uniwetok_hf import convert_checkpoint

    return convert_checkpoint(GOLDEN / name, Path(folder) / name)


def load_tensors(bench: Bench, path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.to(bench.device.torch) for name, tensor in load_file(path).items()}


def check_golden(bench: Bench) -> None:
    """Image tokenizers and the quantizer against the golden vectors."""
    from uniwetok_hf import UniWeTokModel
    from uniwetok_hf.losses.entropy import entropy_loss
    from uniwetok_hf.modeling.codes_uniwetok import binarize, pack_codes

    @torch.no_grad()
    def tokenizer(name: str, dtype: torch.dtype) -> dict:
        golden = load_tensors(bench, GOLDEN / name / "golden.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            model = UniWeTokModel.from_pretrained(convert(name, folder), dtype=dtype).eval().to(bench.device.torch)
        encoded = model.encode(golden["pixel_values"])
        sample = model.decode(golden["quant"], noise=golden["noise"]).sample
        values = {
            "equal_bits": equal_share(encoded.codes, golden["quant"]),
            "psnr": psnr(sample, golden["reconstruction"]),
            "latents": difference(encoded.latents, golden["pre_quant"]),
            "reconstruction": difference(sample, golden["reconstruction"]),
        }
        if dtype == torch.float32:
            return {"passed": within(1e-3, values["latents"], values["reconstruction"])} | values
        return {"passed": values["equal_bits"] > 0.9 and values["psnr"] > 25} | values

    def quantizer() -> dict:
        golden = load_tensors(bench, GOLDEN / "quantizer.safetensors")
        latents = golden["latents"].requires_grad_()
        losses = entropy_loss(latents)
        losses.loss.backward()
        bits = equal_share(pack_codes(binarize(latents.detach())).flatten(1, 2), golden["group_index"])
        gradient = difference(latents.grad, golden["grad"]) / golden["grad"].abs().max().item()
        loss = difference(losses.loss, golden["loss"])
        return {"passed": bits == 1 and within(1e-3, loss, gradient), "equal_bits": bits} | {
            "loss": loss,
            "gradient": gradient,
        }

    for name in ("tokenizer_uniwetok", "tokenizer_bitdance"):
        for dtype in (torch.float32, torch.bfloat16):
            bench.row(f"{name}, {dtype}".replace("torch.", ""), functools.partial(tokenizer, name, dtype))
    bench.row("quantizer, float32", quantizer)


def check_golden_generation(bench: Bench) -> None:
    """A whole text-to-image run against the golden one; bfloat16 takes other bits, so its share is no check."""
    from uniwetok_hf import UniWeTokPipeline

    path = GOLDEN / "t2i_4x"
    golden, call = load_tensors(bench, path / "golden.safetensors"), json.loads((path / "golden.json").read_text())

    @torch.no_grad()
    def generation(dtype: torch.dtype) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            pipe = UniWeTokPipeline.from_pretrained(convert("t2i_4x", folder), dtype=dtype).to(bench.device.torch)
        inputs, negative = pipe.processor.generation_inputs([call["prompt"]] * 2, call["height"], call["width"])
        output = pipe.mllm.generate_codes(
            inputs["input_ids"].to(bench.device.torch),
            attention_mask=inputs["attention_mask"].to(bench.device.torch),
            negative_input_ids=negative["input_ids"].to(bench.device.torch),
            guidance_scale=call["guidance_scale"],
            num_inference_steps=call["num_sampling_steps"],
            generator=seeded(call["seed"]),
            output_conditions=True,
        )
        condition = torch.cat(output.conditions, 1)
        head = pipe.mllm.image_head(golden["head_x"], golden["head_t"], golden["head_c"].to(dtype))
        image = pipe.mllm.vision_model.decode(golden["codes"], noise=golden["decoder_noise"]).sample
        values = {
            "equal_bits": equal_share(output.codes, golden["codes"]),
            "psnr": psnr(image, golden["image"]),
            "head": difference(head, golden["head_out"]),
            "image": difference(image, golden["image"]),
            "conditions": difference(condition, golden["head_condition"]),
        }
        if dtype == torch.float32:
            return {"passed": within(1e-3, values["head"], values["image"]) and values["equal_bits"] > 0.99} | values
        return {"passed": values["psnr"] > 25} | values

    for dtype in (torch.float32, torch.bfloat16):
        bench.row(f"text to image, {dtype}".replace("torch.", ""), functools.partial(generation, dtype))


def load_embedded(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
    """The language model that ships with the package, with its image tokenizer."""
    from uniwetok_hf import UniWeTokForCausalLM, embedded_path

    return UniWeTokForCausalLM.from_pretrained(embedded_path(), subfolder="mllm", dtype=dtype).eval().to(device)


def shipped_pictures(count: int):
    """Pictures of `embedded/pictures`, and their `pixel_values`."""
    from PIL import Image

    from uniwetok_hf import UniWeTokProcessor, embedded_path

    processor = UniWeTokProcessor.from_pretrained(embedded_path(), subfolder="processor")
    paths = sorted((embedded_path().parent / "pictures").glob("*.png"))[:count]
    images = [Image.open(path).convert("RGB") for path in paths]
    return images, processor.image_processor(images, return_tensors="pt")["pixel_values"], processor


def public_calls(mllm, pixel_values: torch.Tensor, codes: torch.Tensor) -> dict[str, Callable]:
    """Every public call of the models as a function of the generator, on the model's device."""
    from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow

    pixel_values, codes = pixel_values.to(mllm.device), codes.to(mllm.device)
    rows, vision, head, flow = len(codes), mllm.vision_model, mllm.image_head, BinaryFlow()
    flow.set_timesteps(4)
    size = mllm.config.text_config.hidden_size
    condition = torch.randn(2 * rows, 1, size, generator=seeded()).to(mllm.device)
    batch, prompts = picture_batch(mllm, codes), generation_inputs(mllm, rows, 2, 2)
    clean = condition[:rows, :, : codes.shape[1]].sign()

    def text(_) -> torch.Tensor:
        inputs = {"input_ids": prompts["input_ids"], "max_new_tokens": 4, "do_sample": False}
        return mllm.generate(**inputs, pad_token_id=0, eos_token_id=None).float()

    return {
        "encode": lambda _: vision.encode(pixel_values).codes,
        "encode a list": lambda _: torch.stack(vision.encode([*pixel_values]).codes),
        "decode": lambda generator: vision.decode(codes, generator=generator).sample,
        "decode a list": lambda generator: torch.stack(vision.decode([*codes], generator=generator).sample),
        "reconstruct": lambda generator: vision(pixel_values, generator=generator).sample,
        "image features": lambda _: torch.cat(mllm.get_image_features(pixel_values).pooler_output),
        "language model's losses": lambda generator: mllm(**batch, generator=generator).loss[None],
        "head's loss": lambda generator: head.compute_loss(clean, condition[:rows], generator)[None],
        "head's sample": lambda generator: head.sample(condition, flow, 2.0, generator),
        "generate_codes": lambda generator: (
            mllm.generate_codes(**prompts, guidance_scale=2.0, num_inference_steps=4, generator=generator).codes
        ),
        "generate text": text,
    }


def check_calls(bench: Bench) -> None:
    """Devices and generators of every public call: none, of the CPU, of the device, a list of both. With one of the
    CPU the result is compared with that of the CPU."""
    reference, mllm = load_embedded(), load_embedded(bench.device.torch)
    pixel_values = shipped_pictures(2)[1][:, :, :64, :64].contiguous()
    codes = reference.vision_model.encode(pixel_values).codes.detach()
    expected, ours = public_calls(reference, pixel_values, codes), public_calls(mllm, pixel_values, codes)

    @torch.no_grad()
    def call(name: str) -> dict:
        device = bench.device
        generators = {"none": None, "CPU": seeded(), "device": device.generator(0)}
        generators["list"] = [seeded(1), device.generator(1)]
        results = {kind: ours[name](generator) for kind, generator in generators.items()}
        for kind, result in results.items():
            if result.device.type != device.torch.type or not result.isfinite().all():
                return {"passed": False, "error": f"generator {kind}: on {result.device}, or not finite"}
        wanted, found = expected[name](seeded()), results["CPU"]
        if name in ("encode", "encode a list", "generate_codes", "generate text"):
            share = equal_share(found, wanted)
            return {"passed": share >= (0.95 if name == "generate_codes" else 0.99), "equal_bits": share}
        error = difference(found, wanted)
        return {"passed": error <= 1e-3, "difference": error}

    for name in ours:
        bench.row(name, functools.partial(call, name))
    for name in ("pixel", "perceptual", "adversarial", "entropy", "distillation", "prior"):
        bench.row(f"loss: {name}", functools.partial(compare_loss, bench, name, pixel_values, codes))


def compare_loss(bench: Bench, name: str, pixel_values: torch.Tensor, codes: torch.Tensor) -> dict:
    """A loss of the image tokenizer and its gradient, on the device and on the CPU."""
    from uniwetok_hf.losses.adversarial import PatchDiscriminator, generator_loss
    from uniwetok_hf.losses.distillation import PrePostDistillation
    from uniwetok_hf.losses.entropy import entropy_loss
    from uniwetok_hf.losses.perceptual import LPIPS
    from uniwetok_hf.losses.pixel import l1_loss
    from uniwetok_hf.losses.prior import GenerativePrior

    makers = {
        "perceptual": lambda: LPIPS((8,) * 13),
        "adversarial": lambda: PatchDiscriminator(32, 2),
        "distillation": lambda: PrePostDistillation(codes.shape[1], 16, hidden_size=32),
        "prior": lambda: GenerativePrior(codes.shape[1], hidden_size=32, num_hidden_layers=1),
    }
    cpu = Bench(Device("cpu"), bench.report, tiny=True, deadline=bench.deadline)
    network = cpu.build(makers[name]) if name in makers else None

    def measure(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        net = copy.deepcopy(network).to(device) if network else None
        pixels, latents = pixel_values.to(device), (0.1 * codes).to(device).requires_grad_()
        sample = pixels.mul(0.9).requires_grad_()
        losses: dict[str, Callable] = {
            "pixel": lambda: l1_loss(sample, pixels),
            "perceptual": lambda: net(sample, pixels),
            "adversarial": lambda: generator_loss(net(sample)),
            "entropy": lambda: entropy_loss(latents, temperature=1.0).loss,
            "distillation": lambda: net(latents, latents.sign(), torch.ones(len(codes), 16, device=device)).loss,
            "prior": lambda: net(latents, seeded()),
        }
        loss = losses[name]()
        loss.backward()
        return loss, latents.grad if sample.grad is None else sample.grad

    (loss, gradient), (wanted, wanted_gradient) = measure(bench.device.torch), measure(torch.device("cpu"))
    errors = difference(loss, wanted), difference(gradient, wanted_gradient)
    passed = loss.device.type == gradient.device.type == bench.device.torch.type and within(1e-3, *errors)
    return {"passed": passed, "difference": errors[0], "gradient": errors[1]}


def check_codes(bench: Bench) -> None:
    """Codes and reconstructions of the shipped pictures, against those of the CPU in float32."""
    _, pixel_values, _ = shipped_pictures(4 if bench.tiny else 28)

    @torch.no_grad()
    def reconstruct(device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        model = load_embedded(device, dtype).vision_model
        codes = model.encode(pixel_values.to(device)).codes
        return codes.float().cpu(), model.decode(codes, generator=seeded()).sample

    wanted, sample = reconstruct("cpu", torch.float32)
    quality = psnr(sample, pixel_values)

    def compare(dtype: torch.dtype, least: float) -> dict:
        codes, sample = reconstruct(bench.device.torch, dtype)
        share, ours = equal_share(codes, wanted), psnr(sample, pixel_values)
        return {
            "passed": share >= least and ours > quality - 0.5,
            "equal_bits": share,
            "psnr": ours,
            "psnr_cpu": quality,
        }

    bench.row("float32", lambda: compare(torch.float32, 0.999))
    bench.row("bfloat16", lambda: compare(torch.bfloat16, 0.95))


def check_pipelines(bench: Bench) -> None:
    """Text to image, editing and a conversation, with a generator of the CPU, against the same on the CPU."""
    from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline, embedded_path

    image = shipped_pictures(1)[0][0]
    pipes = []
    for device in (bench.device.torch, "cpu"):
        pipe = UniWeTokPipeline.from_pretrained(embedded_path(), dtype=torch.float32).to(device)
        pipe.set_progress_bar_config(disable=True)
        pipes.append(pipe)
    options = {"num_inference_steps": 2, "height": 64, "width": 64} if bench.tiny else {}

    def generate(pipe) -> torch.Tensor:
        return pipe("a red apple", generator=seeded(), output_type="latent", **options).images

    def edit(pipe) -> torch.Tensor:
        edits = UniWeTokEditPipeline.from_pipe(pipe)
        edits.set_progress_bar_config(disable=True)
        source = edits.encode_image(image)
        arguments = {"generator": seeded(), "output_type": "latent", **options}
        return edits(source, "make it blue", **arguments).images

    def talk(pipe) -> torch.Tensor:
        conversation = UniWeTokConversation(pipe)
        conversation.say("draw a red apple", generator=seeded(), **options)
        reply = conversation.say("what is it?", max_new_tokens=8, generator=seeded(), **options)
        shown = conversation.say("draw it in blue", images=image, generator=seeded(), **options)
        texts = torch.tensor([list(f"{reply.text:64}{shown.text:64}".encode()[:128])])
        return torch.cat([texts.float(), *(codes.reshape(1, -1).cpu() for codes in conversation.codes)], dim=1)

    def compare(call: Callable) -> dict:
        ours, wanted = call(pipes[0]), call(pipes[1])
        if ours.shape != wanted.shape:
            return {"passed": False, "error": f"{list(ours.shape)} values, on the CPU {list(wanted.shape)}"}
        share = equal_share(ours, wanted)
        return {"passed": share >= 0.95, "equal_bits": share}

    bench.row("text to image", lambda: compare(generate))
    bench.row("editing", lambda: compare(edit))
    bench.row("conversation", lambda: compare(talk))
    bench.row("pictures", lambda: {"passed": len(pipes[0](["a cat", "a dog"], **options).images) == 2})


def check_syncs(bench: Bench) -> None:
    """How often the sampler's loop waits for the device: a patch of twice as many steps must not wait more often."""
    mllm = load_embedded(bench.device.torch)
    prompts = generation_inputs(mllm, 2, 2, 2)

    def count(steps: int, generator) -> int | None:
        settings = {"guidance_scale": 2.0, "num_inference_steps": steps, "generator": generator}
        return bench.device.count_syncs(lambda: mllm.generate_codes(**prompts, **settings))

    def compare(make_generator: Callable) -> dict:
        if count(2, make_generator()) is None:  # loads kernels
            return {"note": "counted on CUDA only"}
        few, many = count(4, make_generator()), count(8, make_generator())
        values = {"per_patch": few / 4, "per_step": (many - few) / (4 * 4)}
        return {"passed": many == few} | values

    bench.row("generator of the device", lambda: compare(lambda: bench.device.generator(0)))
    bench.row("generator of the CPU", lambda: compare(seeded))
    bench.row("a list of generators of the CPU", lambda: compare(lambda: [seeded(1), seeded(2)]))


def training_losses(mllm, batch: dict, steps: int = 3) -> list[float]:
    """Losses of a few steps on one batch, with the same noise in each."""
    parameters = [parameter for parameter in mllm.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-3), []
    for _ in range(steps):
        loss = mllm(**batch, generator=seeded(), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check_lora(bench: Bench) -> None:
    """Trains an adapter for three steps, saves and loads it."""
    from uniwetok_hf.adapters import lora_config, save_adapter

    def train() -> dict:
        mllm = load_embedded(bench.device.torch)
        mllm.add_adapter(lora_config(r=4))
        batch = picture_batch(mllm, bench.codes(2, 128, 2, 2))
        devices = {parameter.device.type for parameter in mllm.parameters()}
        losses = training_losses(mllm, batch)
        again = load_embedded(bench.device.torch)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_adapter(mllm, folder)
            again.load_adapter(folder)
            loaded, trained = (model(**batch, generator=seeded()).loss.item() for model in (again, mllm))
        passed = losses[-1] < losses[0] and abs(loaded - trained) <= 1e-3 and devices == {bench.device.torch.type}
        return {"passed": passed, "first_loss": losses[0], "last_loss": losses[-1], "loaded": abs(loaded - trained)}

    bench.row("three steps, saved and loaded", train)


def check_fsdp(bench: Bench) -> None:
    """FSDP2 with one process, as docs/training.md shards: three steps have the losses of the unsharded model."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    def train(is_sharded: bool) -> list[float]:
        mllm = load_embedded(bench.device.torch)
        mllm.vision_model.requires_grad_(False)
        if is_sharded:
            mesh = init_device_mesh(bench.device.torch.type, (1,))
            for module in [*mllm.model.language_model.modules(), *mllm.image_head.modules()]:
                if isinstance(module, GradientCheckpointingLayer):
                    fully_shard(module, mesh=mesh)
            fully_shard(mllm, mesh=mesh)
        return training_losses(mllm, picture_batch(mllm, codes))

    def compare() -> dict:
        backend = "nccl" if bench.device.is_cuda else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        try:
            sharded = train(is_sharded=True)
        finally:
            distributed.destroy_process_group()
        errors = [abs(one - other) for one, other in zip(sharded, train(is_sharded=False), strict=True)]
        return {"passed": within(1e-3, *errors), "difference": max(errors), "last_loss": sharded[-1]}

    codes = bench.codes(2, 128, 2, 2)
    bench.row("three steps of the language model", compare)


def packed(batch: dict) -> dict:
    """Rows without padding as the documents of one row."""
    rows, length = batch["input_ids"].shape
    inputs = {name: batch[name].reshape(1, -1) for name in ("input_ids", "labels")}
    inputs["position_ids"] = torch.arange(length, device=batch["input_ids"].device).repeat(rows)[None]
    return inputs | {"codes": batch["codes"], "image_is_target": batch["image_is_target"]}


def check_packed(bench: Bench) -> None:
    """Documents of one row by flex attention: losses, and on GPUs gradients, are those of padded rows by a dense mask.
    And how often a step waits for the device when the places of its tokens were found before."""

    def step(attention: str, batch: dict) -> tuple[float, torch.Tensor | None]:
        mllm = load_embedded(bench.device.torch)
        mllm.set_attn_implementation(attention)
        mllm.vision_model.requires_grad_(False)
        has_backward = attention == "eager" or bench.device.torch.type != "cpu"
        with torch.set_grad_enabled(has_backward):
            loss = mllm(**batch, generator=[seeded(row) for row in range(len(batch["codes"]))], use_cache=False).loss
        if not has_backward:
            return loss.item(), None
        loss.backward()
        trained = [p.grad.flatten() for p in mllm.parameters() if p.grad is not None]
        return loss.item(), torch.cat(trained)

    def compare() -> dict:
        batch = picture_batch(load_embedded(bench.device.torch), codes)
        (loss, gradient), (wanted, expected) = step("flex_attention", packed(batch)), step("eager", batch)
        values = {"passed": within(1e-4, abs(loss - wanted)), "difference": abs(loss - wanted)}
        if gradient is not None:
            values["gradients"] = ((gradient - expected).norm() / expected.norm()).item()
            values["passed"] &= values["gradients"] < 1e-3
        return values

    def count() -> dict:
        mllm = load_embedded(bench.device.torch).train()
        batch = packed(picture_batch(mllm, codes))
        places = mllm.find_places(**batch)
        generator = [seeded(row) for row in range(len(codes))]

        def step() -> None:
            mllm(**batch, places=places, generator=generator, use_cache=False).loss.backward()

        step()  # loads kernels
        waits = bench.device.count_syncs(step)
        return {"note": "counted on CUDA only"} if waits is None else {"passed": waits == 0, "waits": waits}

    codes = bench.codes(3, 128, 2, 2)
    bench.row("losses and gradients by flex attention", compare)
    bench.row("waits of forward and backward", count)


def check_compile(bench: Bench) -> None:
    """Compiled encoding, decoding and generation give what the eager ones give, without graph breaks."""
    mllm = load_embedded(bench.device.torch)
    pixel_values = shipped_pictures(2)[1][:, :, :64, :64].contiguous()
    with torch.no_grad():
        codes = mllm.vision_model.encode(pixel_values.to(bench.device.torch)).codes
    calls = public_calls(mllm, pixel_values, codes)
    encode, decode, head = mllm.vision_model.encode, mllm.vision_model.decode, mllm.image_head
    pixels, noise = pixel_values.to(bench.device.torch), bench.random(*codes.shape)
    hidden_size = mllm.config.text_config.hidden_size
    head_inputs = bench.random(2, 1, 128), torch.rand(2, device=bench.device.torch), bench.random(2, 1, hidden_size)

    @torch.no_grad()
    def compare(eager: Callable, compiled: Callable, bits: bool) -> dict:
        expected = eager()
        with compilation() as breaks:
            start = time.perf_counter()
            found = compiled()
            bench.device.synchronize()
            values = {"seconds": time.perf_counter() - start} | breaks()
        error, share = difference(found, expected), equal_share(found, expected)
        passed = values["graph_breaks"] == 0 and (share >= 0.95 if bits else error <= 1e-3)
        return {"passed": passed, "difference": error, "equal": share} | values

    def compiled(function: Callable) -> Callable:
        return torch.compile(function, backend=bench.backend)

    def write_with_static_cache() -> torch.Tensor:  # on CUDA transformers compiles the steps
        inputs = {"input_ids": generation_inputs(mllm, 2, 2, 2)["input_ids"], "max_new_tokens": 4, "do_sample": False}
        inputs |= {"pad_token_id": 0, "eos_token_id": None, "cache_implementation": "static"}
        return mllm.generate(**inputs).float()

    def generate_with_compiled_head() -> torch.Tensor:
        mllm.image_head.compile(backend=bench.backend)
        return calls["generate_codes"](seeded())

    def row(what: str, eager: Callable, compiled: Callable, bits: bool = False) -> None:
        bench.row(what, lambda: compare(eager, compiled, bits))

    row("encode", lambda: encode(pixels).latents, lambda: compiled(encode)(pixels).latents)
    row("decode", lambda: decode(codes, noise=noise).sample, lambda: compiled(decode)(codes, noise=noise).sample)
    row("head", lambda: head(*head_inputs), lambda: compiled(head)(*head_inputs))
    row("text, static cache", lambda: calls["generate text"](None), write_with_static_cache, bits=True)
    row("generate_codes", lambda: calls["generate_codes"](seeded()), generate_with_compiled_head, bits=True)
