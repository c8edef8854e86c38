"""`uniwetok plan`: what a training of the language model takes, before it takes it."""

import argparse

from .common import CommandError, add_command, finite_float, positive_int, user_errors
from .train import read_training_config


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "plan",
        run_plan,
        "Estimate memory, tokens a step, hours and data of a training of the language model on GPUs.\n"
        "Nothing is loaded but configs: it takes seconds on a laptop. Needs the extra `train`.",
        [
            "paper_mllm_pretrain --gpus 64 --memory 80",
            "my_mllm.yaml --gpus 8 --memory 80 --tokens-per-second 90000",
        ],
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or name of a shipped config")
    parser.add_argument("--gpus", type=positive_int, default=8, metavar="N", help="how many (default: 8)")
    parser.add_argument("--memory", type=finite_float, default=80.0, metavar="GB", help="of each (default: 80)")
    parser.add_argument(
        "--tokens-per-second",
        type=finite_float,
        metavar="R",
        help="of all GPUs together, as log.jsonl has it: adds hours, and data read a day",
    )


def run_plan(args: argparse.Namespace) -> None:
    """`uniwetok plan`."""
    from uniwetok_hf.training.config import find_config
    from uniwetok_hf.training.plan import GIB, TEXT_SHARE, plan_training

    rate = args.tokens_per_second
    if rate is not None and rate <= 0:
        raise CommandError(f"--tokens-per-second must be above 0, got {rate}")
    with user_errors(ValueError, OSError):
        config = read_training_config("mllm", find_config(args.config), {})
        plan = plan_training(config, args.gpus)
    print(f"{plan.parameters:,} parameters, {plan.trained:,} of them train, on {args.gpus} GPUs.\n")
    names = list(dict.fromkeys(name for parts in plan.memory.values() for name in parts))
    print("| GiB of a GPU | copies (DDP) | shards (FSDP) |\n| --- | ---: | ---: |")
    for name in names:
        cells = [f"{plan.memory[kind][name]:.1f}" if name in plan.memory[kind] else "" for kind in plan.memory]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    print(f"| together | {plan.total('copies'):.1f} | {plan.total('shards'):.1f} |\n")
    memory = args.memory * 1e9 / GIB
    for kind, name in {"copies": "DDP", "shards": "FSDP"}.items():
        needed = plan.total(kind)
        fits = "fits into" if needed < 0.9 * memory else "is close to" if needed < memory else "does not fit into"
        print(f"- {name}: {needed:.1f} GiB {fits} {memory:.1f} GiB.")
    kind = "packed" if config.packed_tokens else "if every sample had `max_length`"
    print(f"- {plan.tokens:,} tokens a step ({kind}), {plan.tokens * plan.steps:,} in {plan.steps:,} steps.")
    print(f"- Counted so: {TEXT_SHARE:.0%} of the tokens are text to be predicted, the others are to be drawn.")
    if rate is not None:
        hours, codes = plan.hours(rate), plan.gib_a_day(rate)
        print(f"- At {rate:,.0f} tokens a second: {hours:,.1f} hours, {codes:,.1f} GiB of codes a day.")
