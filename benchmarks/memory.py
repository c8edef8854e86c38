# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What gradient checkpointing and decoding in slices save: peak memory and CPU time, with uniwetok-emoji.

    python benchmarks/memory.py [--threads 1]

Every measurement runs in a process of its own. Its memory is the growth of the process's largest resident size over
what it had with the model loaded and used once at a small size, so it counts activations, gradients and the
optimizer's state, not weights and PyTorch. The last column says that the result is the same: the loss, or the mean of
the squared pixels.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path


# Nothing here may import torch: on Linux a new process inherits the peak memory of the one that starts it.
CASES = {
    "tokenizer, training step of 8 pictures, 256 x 256": ("train_tokenizer", "gradient checkpointing"),
    "language model, training step of 8 rows, 64 + 256 tokens": ("train_mllm", "gradient checkpointing"),
    "decoding 16 pictures, 512 x 512": ("decode", "slices"),
    "encoding 16 pictures, 512 x 512": ("encode", "slices"),
}


def train_tokenizer(saving: bool):
    """A step of the image tokenizer, as a function of batch size and side in tokens."""
    import torch

    model = load().vision_model.train()
    if saving:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: int, side: int) -> float:
        pictures = torch.rand(batch, 3, 32 * side, 32 * side, generator=seeded()) * 2 - 1
        loss = (model(pictures, generator=seeded()).sample - pictures).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, (8, 8)


def train_mllm(saving: bool):
    """A step of the language model: text and a picture to generate in each row."""
    import torch

    model = load().train()
    model.vision_model.requires_grad_(False)
    if saving:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    config = model.config

    def step(batch: int, side: int) -> float:
        words = torch.randint(0, 2048, (batch, 60), generator=seeded())
        header = [config.vision_start_token_id] + 2 * [config.size_token_id + side - 1]
        picture = torch.tensor(header + side**2 * [config.image_token_id] + [config.vision_end_token_id])
        input_ids = torch.cat([words, picture.expand(batch, -1)], dim=1)
        codes = torch.randint(0, 2, (batch, 128, side, side), generator=seeded()) * 2.0 - 1
        labels = input_ids.where(input_ids < 2048, -100)
        is_target = torch.ones(batch, dtype=torch.bool)
        inputs = {"input_ids": input_ids, "labels": labels, "codes": codes, "image_is_target": is_target}
        loss = model(**inputs, use_cache=False, generator=seeded()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, (8, 16)


def decode(saving: bool):
    """Codes to pictures."""
    import torch

    model = load().vision_model
    if saving:
        model.enable_slicing()

    @torch.no_grad()
    def step(batch: int, side: int) -> float:
        codes = torch.randint(0, 2, (batch, 128, side, side), generator=seeded()) * 2.0 - 1
        return model.decode(codes, generator=seeded()).sample.square().mean().item()

    return step, (16, 16)


def encode(saving: bool):
    """Pictures to codes; the result is the mean square of the latents."""
    import torch

    model = load().vision_model
    if saving:
        model.enable_slicing()

    @torch.no_grad()
    def step(batch: int, side: int) -> float:
        pictures = torch.rand(batch, 3, 32 * side, 32 * side, generator=seeded()) * 2 - 1
        return model.encode(pictures).latents.square().mean().item()

    return step, (16, 16)


def load():
    """The embedded language model in float32, with its image tokenizer."""
    import torch

    from uniwetok_hf import UniWeTokForCausalLM, embedded_path

    return UniWeTokForCausalLM.from_pretrained(embedded_path("uniwetok-emoji") / "mllm", dtype=torch.float32).eval()


def seeded():
    import torch

    return torch.Generator().manual_seed(0)


def measure(case: str, saving: bool, threads: int | None) -> dict:
    """Runs in the process of one measurement."""
    import torch

    if threads:
        torch.set_num_threads(threads)

    def peak() -> float:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / 2**20 if sys.platform == "darwin" else largest / 2**10  # MiB

    step, size = globals()[case](saving)
    step(1, 2)  # loads what autograd and the optimizer load on first use
    before, start = peak(), time.process_time()
    result = step(*size)
    seconds = time.process_time() - start
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return about | {"seconds": seconds, "memory": peak() - before, "result": result}


def measure_in_new_process(case: str, saving: bool, threads: int | None) -> dict:
    command = [sys.executable, __file__, "--case", case] + ["--saving"] * saving
    command += ["--threads", str(threads)] if threads else []
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(completed.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[case for case, _ in CASES.values()], help="one measurement, as JSON")
    parser.add_argument("--saving", action="store_true", help="of --case, with checkpointing or slices")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch (default: its own choice)")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.saving, arguments.threads)))
        return

    print("| what | how | peak memory | CPU time | result |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, (case, how) in CASES.items():
        results = {saving: measure_in_new_process(case, saving, arguments.threads) for saving in (False, True)}
        for saving, result in results.items():
            cells = f"{result['memory']:.0f} MiB | {result['seconds']:.1f} s | {result['result']:.6f}"
            print(f"| {name} | {how if saving else 'plain'} | {cells} |", flush=True)
        memory, seconds = (results[True][key] / results[False][key] for key in ("memory", "seconds"))
        print(f"| | ratio | {memory:.2f} | {seconds:.2f} | |", flush=True)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    threads = f"{result['threads']} of {os.cpu_count()} CPU threads"
    print(f"\ntorch {result['torch']}, {threads}, {system}; float32, one run each.")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a clone that is not installed, too
    main()
