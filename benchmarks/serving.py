# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Measures `uniwetok serve`, which it starts itself, with clients on the same machine.

    python benchmarks/serving.py throughput [--what edit] [--max-batch-sizes 1 4 8 16] [--clients 1 2 4 8 16 40]
    python benchmarks/serving.py holding [--clients 40] [--seconds 600]
    python benchmarks/serving.py kill [--clients 8] [--seconds 90] [--kill-after 30]

- throughput: for each batch limit and number of clients, answers per second and the time to an answer, after a
  warm-up. A client asks again as soon as it has its answer.
- holding: many clients with a mix of generations, edits, answers and conversations with pictures, of which a tenth
  leaves in the middle of requests. Every answer is compared, pixel by pixel and word by word, with what the pipelines
  answered to the same request alone, before. The server's queue is short, so that it refuses some (429), which are
  asked again.
- kill: the same on two replicas of Ray, one of which is killed.

Exit code 1 when an answer is wrong or lost. Needs the extra `serve`, for `kill` also `ray`. The model is the embedded
one on the CPU, or the pipeline of `--model`.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from serving_holding import expect, hold, kill, print_counts  # noqa: E402
from serving_server import running_server  # noqa: E402
from serving_throughput import measure_throughput, print_throughput  # noqa: E402


def run_throughput(args: argparse.Namespace) -> tuple[dict, bool]:
    measured = measure_throughput(args.model, args.what, args.max_batch_sizes, args.clients, args.seconds)
    rows = print_throughput(measured, args.what)
    return {"rows": rows}, not any(row["failed"] for row in rows)


def run_holding(args: argparse.Namespace) -> tuple[dict, bool]:
    expected = expect(args.model, args.distinct, args.seed, args.threads)
    words = ["--max-batch-size", str(args.max_batch_size), "--max-waiting", str(args.max_waiting)]
    with running_server(*_model(args), *words) as server:
        result = hold(server, expected, args.clients, args.seconds, args.seed)
    is_right, memory = print_counts(result), result["memory"]
    print(
        f"{args.clients} clients, {result['seconds']:.0f} s.\n"
        f"Memory of the server: {memory['first_minute']:.0f} MiB in the first minute, {memory['last_minute']:.0f} in "
        f"the last, at most {memory['largest']:.0f}."
    )
    return result, is_right


def run_kill(args: argparse.Namespace) -> tuple[dict, bool]:
    expected = expect(args.model, args.distinct, args.seed, args.threads)
    words = ["--engine", "ray", "--num-replicas", str(args.num_replicas)]
    with running_server(*_model(args), *words, "--max-batch-size", str(args.max_batch_size)) as server:
        result = kill(server, expected, args.clients, args.seconds, args.kill_after, args.seed)
    is_right = print_counts(result)
    new, back = (
        "never" if result[name] is None else f"after {result[name]:.1f} s"
        for name in ("new_process_after", "back_after")
    )
    print(
        f"{args.clients} clients, {args.num_replicas} replicas. One was killed after {result['killed_after']:.0f} s; "
        f"of {result['asked_again']} requests that it had, another was asked.\n"
        f"Answers per second: {result['rate_before']:.2f} before, {result['rate_after']:.2f} in the ten seconds "
        f"after, {result['rate_at_the_end']:.2f} in the last ten; none for {result['longest_pause']:.1f} s at most.\n"
        f"A new process: {new}. Throughput back: {back}."
    )
    return result, is_right


def _model(args: argparse.Namespace) -> list[str]:
    return [args.model] if args.model else []


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", help="pipeline folder (default: the embedded model)")
    common.add_argument("--output", type=Path, metavar="FILE", help="the result as JSON")
    throughput = parts.add_parser("throughput", parents=[common])
    throughput.add_argument("--what", choices=("generation", "edit", "answer"), default="generation")
    throughput.add_argument("--max-batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16], metavar="N")
    throughput.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 40], metavar="N")
    throughput.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default: 20)")
    throughput.set_defaults(run=run_throughput)
    checked = argparse.ArgumentParser(add_help=False, parents=[common])
    checked.add_argument("--distinct", type=int, default=60, help="different requests (default: 60)")
    checked.add_argument("--seed", type=int, default=0, help="of the requests and their order (default: 0)")
    checked.add_argument("--max-batch-size", type=int, default=16, metavar="N", help="default: 16")
    holding = parts.add_parser("holding", parents=[checked])
    threads = {"type": int, "help": "of the pipelines that answer first (default: as many as the server has)"}
    holding.add_argument("--threads", **threads)
    holding.add_argument("--clients", type=int, default=40, help="default: 40")
    holding.add_argument("--seconds", type=float, default=600.0, help="default: 600")
    holding.add_argument("--max-waiting", type=int, default=4, metavar="N", help="length of the queue (default: 4)")
    holding.set_defaults(run=run_holding)
    killing = parts.add_parser("kill", parents=[checked])
    killing.add_argument("--threads", **threads, default=1)  # of a replica; the last bits depend on it
    killing.add_argument("--clients", type=int, default=8, help="default: 8")
    killing.add_argument("--seconds", type=float, default=90.0, help="default: 90")
    killing.add_argument("--num-replicas", type=int, default=2, help="default: 2")
    killing.add_argument("--kill-after", type=float, default=30.0, metavar="SECONDS", help="default: 30")
    killing.set_defaults(run=run_kill)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    result, is_right = args.run(args)
    about = machine()
    print(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}; float32 on the CPU.")
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("run", "output")}
        content = {"machine": about, "settings": settings} | result
        args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(not is_right)


def machine() -> dict:
    import torch

    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


if __name__ == "__main__":
    raise SystemExit(main())
