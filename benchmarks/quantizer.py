# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Time and peak memory of forward + backward of the entropy loss: our closed form against enumerating all 256 codes.

    python benchmarks/quantizer.py [--threads 1]

Every measurement runs in a process of its own. Its memory is the growth of the process's largest resident size over
what it had with everything imported and warmed up, so it counts gradients and all intermediates, not PyTorch itself.
Its time is the best of several runs; on a machine that is busy with something else, measure with one thread: threads
that wait for each other lose their turn to other work many times in one step.
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
SIZES = [(8, 128, 8, 8), (32, 128, 16, 16), (8, 128, 32, 32)]
FORMS = ("closed form", "enumeration")
RUNS = 10


def enumerated_loss(latents, bits_per_group=8, temperature=0.01, eps=1e-5):
    """The same loss as its definition words it (docs/method.md 2.4): softmax(2 u.c / temperature) over all codes c."""
    import torch

    rows = torch.arange(2**bits_per_group)[:, None] >> torch.arange(bits_per_group) & 1
    codebook = rows.float() * 2 - 1  # [256, 8]
    tokens = latents.movedim(1, -1).reshape(-1, bits_per_group)
    log_probabilities = torch.log_softmax(2 * tokens @ codebook.T / temperature, dim=-1)  # [M, 256]
    probabilities = log_probabilities.exp()
    sample = -(probabilities * log_probabilities).sum(-1).mean()
    mean = probabilities.mean(0)
    return sample + (mean * torch.log(mean + eps)).sum()


def measure(form: str, size: list[int], threads: int | None) -> dict:
    """Runs in the process of one measurement."""
    import torch

    from uniwetok_hf.losses.entropy import entropy_loss

    if threads:
        torch.set_num_threads(threads)

    def step(latents):
        latents.grad = None
        loss = entropy_loss(latents).loss if form == "closed form" else enumerated_loss(latents)
        loss.backward()
        return loss.item()

    def peak():
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / 2**20 if sys.platform == "darwin" else largest / 2**10  # MiB

    step(torch.zeros(1, 128, 1, 1, requires_grad=True))  # loads what autograd loads on first use
    latents = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.01).requires_grad_()
    before = peak()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        loss = step(latents)
        seconds.append(time.perf_counter() - start)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    gradient = latents.grad.norm().item()
    return about | {"seconds": min(seconds), "memory": peak() - before, "loss": loss, "gradient": gradient}


def measure_in_new_process(form: str, size: tuple[int, ...], threads: int | None) -> dict:
    command = [sys.executable, __file__, "--form", form, "--size", *map(str, size)]
    command += ["--threads", str(threads)] if threads else []
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(completed.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, help="one measurement only, printed as JSON")
    parser.add_argument("--size", type=int, nargs=4, default=SIZES[0], metavar=("B", "BITS", "H", "W"))
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch (default: its own choice)")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments.form, arguments.size, arguments.threads)))
        return

    print("| latents [B, bits, h, w] | form | time | peak memory | loss | gradient norm |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for size in SIZES:
        results = {form: measure_in_new_process(form, size, arguments.threads) for form in FORMS}
        for form, result in results.items():
            cells = f"{1e3 * result['seconds']:.1f} ms | {result['memory']:.1f} MiB | {result['loss']:.6f}"
            print(f"| {list(size)} | {form} | {cells} | {result['gradient']:.6f} |", flush=True)
        ours, theirs = (results[form] for form in FORMS)
        time_ratio, memory_ratio = (theirs[name] / max(ours[name], 1e-9) for name in ("seconds", "memory"))
        print(f"| | ratio | {time_ratio:.1f}x | {memory_ratio:.1f}x | | |")
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    threads = f"{ours['threads']} of {os.cpu_count()} CPU threads"
    print(f"\ntorch {ours['torch']}, {threads}, {system}; float32, best of {RUNS} runs.")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a clone that is not installed, too
    main()
