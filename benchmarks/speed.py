# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What a user waits for on a CPU, beside what the machine does at best, and beside another version or other weights.

    python benchmarks/speed.py
    python benchmarks/speed.py --other-python old/bin/python         # of an environment with another version
    python benchmarks/speed.py --other-model path/to/pipeline --kinds small
    python benchmarks/speed.py --other-option int8 --kinds language-model

Kinds: `image-tokenizer`, that of the paper's size; `language-model`, 64 tokens by a language model of 184 M and a
head of 30 M parameters, 25 diffusion steps, guidance 3; `small`, the embedded model. All in float32; weights of the
first two are random, and the same on both sides. Each side has a process of its own, and they take turns: one waits
while the other works. Times are medians over the rounds, of which the first does not count. Options of the language
model: packed and int8, by `pack_linears`; bfloat16; int8-weights, of linear layers by torchao; compile, the binary
head by `torch.compile` with frozen weights; half-the-steps, of diffusion.

GFLOP are those of matrix products and convolutions. The machine's limits are measured with large ones, before. MB are
the weights' size, as often as they are used: with few rows, reading them is what takes the time.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path


KINDS = ("image-tokenizer", "language-model", "small")
JOBS = Path(__file__).parent / "speed_jobs.py"


class Worker:
    """A process that does the jobs of one kind when asked to."""

    def __init__(
        self, kind: str, python: str, model: str | None = None, option: str | None = None, threads: int | None = None
    ):
        command = [python, str(JOBS), kind]
        command += ["--model", model] if model else []
        command += ["--option", option] if option else []
        command += ["--threads", str(threads)] if threads else []
        environment = os.environ | ({"TORCHINDUCTOR_FREEZING": "1"} if option == "compile" else {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.jobs: list[str] = self.answer()["jobs"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended: see above")
        return json.loads(line)

    def ask(self, job: str, seed: int | None) -> dict:
        """What came of a job; without a seed, what it computes."""
        print(json.dumps({"job": job, "seed": seed}), file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error) -> None:
        self.process.communicate()


def equal_share(found: list[str | None], others: list[str | None]) -> str:
    """Share of equal bits."""
    pairs = [(a, b) for a, b in zip(found, others, strict=True) if a is not None and b is not None]
    if not pairs:
        return ""
    equal = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))
    return f"{equal / sum(len(one) for one, _ in pairs):.2%}"


def measure(workers: list[Worker], job: str, rounds: int) -> tuple[list[float], str]:
    """Median seconds of each side, and the share of equal bits."""
    results: list[list[dict]] = [[] for _ in workers]
    for seed in range(rounds + 1):
        for worker, result in zip(workers, results, strict=True):
            result.append(worker.ask(job, seed))
    seconds = [statistics.median(one["seconds"] for one in result[1:]) for result in results]
    bits = [[one["bits"] for one in result] for result in results]
    return seconds, equal_share(bits[0], bits[-1]) if len(workers) > 1 else ""


def measure_limits(threads: int | None) -> dict[str, float]:
    """GFLOP per second of a large matrix product and a large convolution."""
    with Worker("limits", sys.executable, threads=threads) as worker:
        return {
            job: worker.ask(job, None)["flop"] / min(worker.ask(job, seed)["seconds"] for seed in range(20)) / 1e9
            for job in worker.jobs
        }


def row(workers: list[Worker], job: str, rounds: int, best: dict[str, float]) -> str:
    """Of the table."""
    seconds, equal = measure(workers, job, rounds)
    computed = workers[0].ask(job, None)
    gflop, gigabytes = computed["flop"] / 1e9, computed["bytes"] / 1e9
    cells = [job, f"{seconds[0]:.3g}"]
    if gflop:
        cells += [f"{gflop:.3g}", f"{gflop / seconds[0]:.3g}"]
        cells += [f"{gflop / seconds[0] / limit:.0%}" for limit in best.values()]
        cells += [f"{1000 * gigabytes:.0f}", f"{gigabytes / seconds[0]:.1f}"]
    else:
        cells += [""] * (4 + len(best))
    if len(workers) > 1:
        cells += [f"{seconds[1]:.3g}", f"{seconds[1] / seconds[0]:.2f}", equal]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--other-python", metavar="FILE", help="Python of an environment with another version")
    parser.add_argument("--model", metavar="M", help="pipeline folder of `small` (default: the embedded one)")
    parser.add_argument("--other-model", metavar="M", help="another one, beside it")
    parser.add_argument(
        "--other-option", metavar="NAME", help="packed, bfloat16, int8, int8-weights, compile or half-the-steps"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: as torch has it")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (default: 5)")
    args = parser.parse_args()
    if args.other_option and args.kinds != ["language-model"]:
        parser.error("--other-option is of --kinds language-model")
    has_other = bool(args.other_python or args.other_model or args.other_option)

    best = measure_limits(args.threads)
    print("; ".join(f"{job}: {gflops:.0f} GFLOP/s" for job, gflops in best.items()), end="\n\n")
    columns = ["work", "s", "GFLOP", "GFLOP/s", *(f"of {job}" for job in best), "MB of weights", "GB/s"]
    columns += ["other, s", "times as fast", "equal bits"] if has_other else []
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
    for kind in args.kinds:
        small = kind == "small"
        sides = [{"python": sys.executable, "model": args.model if small else None}]
        if has_other:
            other = {"python": args.other_python or sys.executable, "model": args.other_model if small else None}
            sides.append(other | {"option": args.other_option})
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(kind, threads=args.threads, **side)) for side in sides]
            for job in workers[0].jobs:
                print(row(workers, job, args.rounds, best), flush=True)


if __name__ == "__main__":
    main()
