# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Seconds a picture of the class-to-image model, by batch, tokens per step and diffusion steps; with the authors' code
beside it, alternating, on the same random weights.

    python benchmarks/class_to_image.py
    python benchmarks/class_to_image.py --published path/to/BitDance/imagenet_gen

The authors' code is their folder `imagenet_gen`, which is not part of this package. It is run as it is, but for
attention by PyTorch in place of flash-attn, which needs an NVIDIA card, and without its image tokenizer: codes are
what is timed. With equal noise both must give the same codes, or the benchmark fails.
"""

import argparse
import importlib
import statistics
import sys
import time
import types
from pathlib import Path

import torch
import torch._inductor.config
from torch.nn import functional as F

from uniwetok_hf import UniWeTokClassToImageConfig, UniWeTokClassToImageModel
from uniwetok_hf.conversion.keys import class_to_image_rules, published_name


NUM_BITS, CLASSES = 32, 1000
GUIDANCE = {1: 3.2, 2: 3.9, 4: 6.1}


def build(patch_size: int, grid_size: int) -> UniWeTokClassToImageModel:
    """Size B with random weights, none of them 0."""
    config = UniWeTokClassToImageConfig(
        num_bits=NUM_BITS, grid_size=grid_size, patch_size=patch_size, is_first_patch_apart=True
    )
    torch.manual_seed(0)
    model = UniWeTokClassToImageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.image_head.named_parameters():
            if not parameter.any() and parameter.ndim > 1:
                parameter.normal_(std=0.02)
    return model


def flash_attention(query, key, value, causal=False, dropout_p=0.0):
    """In place of flash-attn: [B, L, heads, head_dim]."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)


def load_published(folder: Path, model: UniWeTokClassToImageModel, is_compiled: bool):
    """The authors' model with the weights of ours."""
    sys.modules["flash_attn"] = types.SimpleNamespace(flash_attn_func=flash_attention)
    if not is_compiled:
        torch._dynamo.config.disable = True
    torch._inductor.config.fallback_random = True  # noise by the same generator
    sys.path.insert(0, str(folder))
    patch_size, config = model.config.patch_size, model.config
    module = importlib.import_module("src.model" if patch_size == 1 else "src.model_parallel")
    module.VQModel = lambda *args, **kwargs: torch.nn.Identity()
    options = {} if patch_size == 1 else {"parallel_num": patch_size**2, "parallel_mode": "patch"}
    published = module.BitDance_B(
        resolution=16 * config.grid_size,
        down_size=16,
        patch_size=1,
        latent_dim=NUM_BITS,
        diff_batch_mul=4,
        cls_token_num=config.num_class_tokens,
        num_classes=CLASSES,
        **options,
    ).eval()
    published.vae.decode = lambda codes: codes
    rules = class_to_image_rules(config.head_config.has_attention)
    fused: dict[str, list[torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        fused.setdefault(published_name(name, rules), []).append(tensor)
    published.load_state_dict({name: torch.cat(parts) for name, parts in fused.items()})
    return published


def run_ours(model, labels: torch.Tensor, steps: int) -> torch.Tensor:
    options = {"guidance_scale": GUIDANCE[model.config.patch_size], "num_inference_steps": steps}
    # Compiled with weights as constants, which a CPU packs; the authors' code is compiled as it says.
    with torch._inductor.config.patch(freezing=True):
        return model.generate_codes(labels, **options, generator=torch.Generator().manual_seed(0)).codes


def run_published(model, labels: torch.Tensor, steps: int, guidance_scale: float) -> torch.Tensor:
    torch.manual_seed(0)
    return model.sample(labels, steps, guidance_scale)


def timed(function, *arguments) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    codes = function(*arguments)
    return time.perf_counter() - start, codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, metavar="DIR", help="the authors' folder imagenet_gen")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the authors' code, and of our head")
    parser.add_argument("--grid-size", type=int, default=8, help="tokens of a side; published: 16 (default: 8)")
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[1, 2], choices=GUIDANCE)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[25])
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each, alternating (default: 3)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {args.grid_size} x {args.grid_size} tokens")
    print("| tokens per step | batch | steps | ours, s/picture | authors' | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for patch_size in args.patch_sizes:
        model = build(patch_size, args.grid_size)
        published = load_published(args.published, model, args.compiled) if args.published else None
        if args.compiled:
            model.image_head.compile()
        for batch in args.batches:
            labels = torch.arange(batch) * 37 % CLASSES
            for steps in args.steps:
                ours, theirs = [], []
                for number in range(args.rounds + 1):  # the first one warms up
                    seconds, codes = timed(run_ours, model, labels, steps)
                    ours.append(seconds)
                    if published is not None:
                        seconds, wanted = timed(run_published, published, labels, steps, GUIDANCE[patch_size])
                        theirs.append(seconds)
                        share = (codes != wanted).float().mean().item()
                        if number == 0 and share > 0.01:
                            raise SystemExit(f"{share:.1%} of the bits differ")
                own = statistics.median(ours[1:]) / batch
                line = f"| {patch_size} x {patch_size} | {batch} | {steps} | {own:.2f} |"
                if theirs:
                    other = statistics.median(theirs[1:]) / batch
                    line += f" {other:.2f} | {other / own:.2f} |"
                print(line if theirs else line + " | |", flush=True)


if __name__ == "__main__":
    main()
