# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The process that works for `speed.py`: it reads a line of JSON for each job, and answers by one. `uniwetok_hf` may
be another version here, so that only what all versions have is used."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

import uniwetok_hf


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from random_weights import randomized  # noqa: E402


PROMPT, INSTRUCTION, QUESTION = "a noto emoji of red apple", "redraw in fluent style", "what is this?"
SIDE = 256  # pixels
NUM_TOKENS, STEPS, GUIDANCE, PROMPT_LENGTH = 64, 25, 3.0, 32
TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 3072,
    "tie_word_embeddings": True,
}
HEAD = {"condition_size": 1024, "hidden_size": 768, "num_hidden_layers": 4, "num_modulation_layers": 2}
IDS = {"image_token_id": 31000, "vision_start_token_id": 31001, "vision_end_token_id": 31002}
SIZE_ID, QUERY_ID = 31100, 31200

OPTIONS = ("packed", "bfloat16", "int8", "int8-weights", "compile", "half-the-steps")  # of the language model
Job = Callable[[int], torch.Tensor | None]  # takes a seed, and returns the codes that came out


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def limits(model: str | None, option: str | None) -> dict[str, Job]:
    """What the machine does at best."""
    one, other = torch.randn(2048, 2048), torch.randn(2048, 2048)
    maps, kernel = torch.randn(1, 256, 64, 64), torch.randn(256, 256, 3, 3)

    def multiply(seed: int) -> None:
        torch.matmul(one, other)

    def convolve(seed: int) -> None:
        F.conv2d(maps, kernel, padding=1)

    return {"a matrix product": multiply, "a convolution": convolve}


def image_tokenizer(model: str | None, option: str | None) -> dict[str, Job]:
    """A picture to codes and back, at the paper's size."""
    vision = randomized(uniwetok_hf.UniWeTokModel(uniwetok_hf.UniWeTokConfig()))
    pixel_values = torch.rand(1, 3, SIDE, SIDE, generator=seeded(0)) * 2 - 1
    codes = vision.encode(pixel_values).codes

    def decode(seed: int) -> None:
        vision.decode(codes, generator=seeded(seed))

    return {
        f"encode {SIDE} x {SIDE}": lambda seed: vision.encode(pixel_values).codes,
        f"decode {SIDE} x {SIDE}": decode,
    }


def with_option(mllm: torch.nn.Module, option: str | None) -> torch.nn.Module:
    """A language model with packed weights, also in int8, in bfloat16, with int8 for weights alone, or with its head
    compiled."""
    if option in ("packed", "int8"):
        from uniwetok_hf.modeling.linear_uniwetok import pack_linears

        pack_linears(mllm, dtype=torch.int8 if option == "int8" else torch.float32)
    elif option == "bfloat16":
        mllm.to(torch.bfloat16)
    elif option == "int8-weights":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(mllm, Int8WeightOnlyConfig())
    elif option == "compile":
        mllm.image_head.compile(fullgraph=True)
    return mllm


def language_model(model: str | None, option: str | None) -> dict[str, Job]:
    """64 tokens, by tokens of a patch and pictures at once."""
    num_steps = STEPS // 2 if option == "half-the-steps" else STEPS
    vision = uniwetok_hf.UniWeTokConfig(
        base_channels=16, num_hidden_layers=1, num_attention_heads=4, num_norm_groups=8
    )
    jobs: dict[str, Job] = {}
    for patch_size in (1, 2, 4):
        config = uniwetok_hf.UniWeTokMLLMConfig(
            text_config=AutoConfig.for_model("qwen3", **TEXT),
            vision_config=vision,
            head_config=HEAD | {"num_bits": vision.num_bits},
            patch_size=patch_size,
            size_token_id=SIZE_ID,
            num_size_tokens=64,
            query_token_id=QUERY_ID,
            **IDS,
        )
        mllm = with_option(randomized(uniwetok_hf.UniWeTokForCausalLM(config)), option)
        side = SIZE_ID + int(NUM_TOKENS**0.5) - 1
        start = [IDS["vision_start_token_id"], side, side, *(QUERY_ID + i for i in range(patch_size**2 - 1))]
        for batch in (1, 4):
            words = torch.randint(0, 30000, (batch, PROMPT_LENGTH), generator=seeded(1))
            prompts = torch.cat([words, torch.tensor([start] * batch)], dim=1)

            def generate(seed: int, mllm=mllm, prompts=prompts) -> torch.Tensor:
                return mllm.generate_codes(
                    prompts,
                    negative_input_ids=prompts[:1, PROMPT_LENGTH - 1 :],
                    guidance_scale=GUIDANCE,
                    num_inference_steps=num_steps,
                    generator=[seeded(seed + row) for row in range(len(prompts))],
                ).codes

            jobs[f"{NUM_TOKENS} tokens, P = {patch_size**2}, {batch} at once"] = generate
    return jobs


def small(model: str | None, option: str | None) -> dict[str, Job]:
    """The embedded pipeline, or another, and the command from its start."""
    folder = model or str(uniwetok_hf.embedded_path("uniwetok-emoji"))
    pipe = uniwetok_hf.UniWeTokPipeline.from_pretrained(folder, dtype=torch.float32)
    edit_pipe = uniwetok_hf.UniWeTokEditPipeline.from_pipe(pipe)
    for each in (pipe, edit_pipe):
        each.set_progress_bar_config(disable=True)
    picture = pipe(PROMPT, generator=seeded(0)).images[0]
    question = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]

    def draw(seed: int) -> None:
        pipe(PROMPT, generator=seeded(seed))

    def edit(seed: int) -> None:
        edit_pipe(picture, INSTRUCTION, generator=seeded(seed))

    def answer(seed: int) -> None:
        template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = pipe.processor.apply_chat_template([{"role": "user", "content": question}], **template)
        pipe.mllm.generate(**inputs, max_new_tokens=8, do_sample=False)

    def command(seed: int) -> None:
        with tempfile.TemporaryDirectory() as output:
            options = ["--model", folder, "--output", f"{output}/apple.png"]
            arguments = [sys.executable, "-m", "uniwetok_hf", "generate", PROMPT, *options]
            subprocess.run(arguments, check=True, capture_output=True)

    def imports(seed: int) -> None:
        subprocess.run([sys.executable, "-c", "import torch, transformers, diffusers"], check=True)

    return {
        "a picture": draw,
        "an edit": edit,
        "an answer": answer,
        "`uniwetok generate` from nothing": command,
        "of it torch, transformers and diffusers": imports,
    }


KINDS = {"limits": limits, "image-tokenizer": image_tokenizer, "language-model": language_model, "small": small}


def counted(job: Job) -> dict[str, float]:
    """FLOP of matrix products and convolutions, and bytes of weights, each as often as it is used."""
    num_bytes = 0

    def note(module, inputs, output):
        nonlocal num_bytes
        num_bytes += sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        with FlopCounterMode(display=False) as counter:
            job(0)
    finally:
        handle.remove()
    return {"flop": counter.get_total_flops(), "bytes": num_bytes}


def timed(job: Job, seed: int) -> dict:
    start = time.perf_counter()
    codes = job(seed)
    seconds = time.perf_counter() - start
    bits = None if codes is None else "".join("01"[int(bit)] for bit in (codes > 0).flatten())
    return {"seconds": seconds, "bits": bits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--model")
    parser.add_argument("--option", choices=OPTIONS)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print goes elsewhere
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    jobs = KINDS[args.kind](args.model, args.option)
    print(json.dumps({"jobs": list(jobs)}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        job = jobs[asked["job"]]
        found = counted(job) if asked["seed"] is None else timed(job, asked["seed"])
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
