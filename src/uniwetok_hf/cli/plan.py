"""`uniwetok plan`: what a training takes, before it takes it."""

import argparse
import warnings
from pathlib import Path

from .common import CommandError, add_command, finite_float, positive_int, user_errors
from .train import TRAINERS, read_training_config


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "plan",
        run_plan,
        "Estimate memory, tokens or pictures a step, hours and data of a training on GPUs.\n"
        "Nothing is loaded but configs: it takes seconds on a laptop. Needs the extra `train`.",
        [
            "paper_mllm_pretrain --gpus 64 --memory 80",
            "my_mllm.yaml --gpus 8 --memory 80 --tokens-per-second 90000",
            "imagenet_uniwetok --gpus 8 --pictures-per-second 600",
        ],
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of any training, or name of a shipped config")
    parser.add_argument("--gpus", type=positive_int, default=8, metavar="N", help="how many (default: 8)")
    parser.add_argument("--memory", type=finite_float, default=80.0, metavar="GB", help="of each (default: 80)")
    parser.add_argument(
        "--tokens-per-second",
        type=finite_float,
        metavar="R",
        help="of all GPUs together, as log.jsonl of a language model has it: adds hours, and data read a day",
    )
    parser.add_argument(
        "--pictures-per-second",
        type=finite_float,
        metavar="R",
        help="the same, as log.jsonl of an image tokenizer or a class-to-image model has it",
    )


def run_plan(args: argparse.Namespace) -> None:
    """`uniwetok plan`."""
    from uniwetok_hf.training.config import find_config

    for option in ("tokens_per_second", "pictures_per_second"):
        if (rate := getattr(args, option)) is not None and rate <= 0:
            raise CommandError(f"--{option.replace('_', '-')} must be above 0, got {rate}")
    with user_errors(ValueError, OSError):
        kind, config = read_any_config(find_config(args.config))
        if kind == "mllm":
            refuse(args.pictures_per_second, "--pictures-per-second", kind)
            plan, notes = plan_tokens(config, args)
        else:
            refuse(args.tokens_per_second, "--tokens-per-second", kind)
            plan, notes = plan_pictures(kind, config, args)
    print(f"{plan.parameters:,} parameters, {plan.trained:,} train, on {args.gpus} GPUs.\n")
    print_memory(plan, args.memory)
    print("\n".join(f"- {note}" for note in notes))


def read_any_config(path: Path) -> tuple[str, object]:
    """The kind of training that a file is for, and its config.

    Raises:
        ValueError: when it is for none; the message is that of the kind whose fields it has.
    """
    errors = {}
    for kind in TRAINERS:
        try:
            return kind, read_training_config(kind, path, {})
        except CommandError:  # of another kind, whose turn comes
            continue
        except ValueError as error:
            errors[kind] = error
    raise min(errors.values(), key=lambda error: "unknown field" in str(error))


def refuse(value: float | None, option: str, kind: str) -> None:
    """
    Raises:
        CommandError: when an option is given that another kind of training has.
    """
    if value is not None:
        raise CommandError(f"{option} is not for a config of `uniwetok train {kind}`")


def plan_tokens(config, args: argparse.Namespace) -> tuple:
    """The plan of a language model, and what is to be said of its steps."""
    from uniwetok_hf.training.plan import TEXT_SHARE, plan_training

    plan, rate = plan_training(config, args.gpus), args.tokens_per_second
    kind = "packed" if config.packed_tokens else "if every sample had `max_length`"
    notes = [
        f"{plan.tokens:,} tokens a step ({kind}), {plan.tokens * plan.steps:,} in {plan.steps:,} steps.",
        f"Counted so: {TEXT_SHARE:.0%} of the tokens are text to be predicted, the others are to be generated: "
        + " or ".join(f"{plan.pictures(side):,} pictures of {side} x {side}" for side in (256, 512, 1024))
        + " a step.",
    ]
    if rate is not None:
        hours, codes = plan.hours(rate), plan.gib_a_day(rate)
        notes.append(f"At {rate:,.0f} tokens a second: {hours:,.1f} hours, {codes:,.1f} GiB of codes a day.")
    return plan, notes


def plan_pictures(kind: str, config, args: argparse.Namespace) -> tuple:
    """The plan of an image tokenizer or a class-to-image model, and what is to be said of its steps."""
    from uniwetok_hf.training.plan_pictures import PICTURE_BYTES, plan_classes, plan_uniwetok

    is_tokenizer, rate = kind == "tokenizer", args.pictures_per_second
    with warnings.catch_warnings(record=True) as assumed:
        warnings.simplefilter("always")
        plan = (plan_uniwetok if is_tokenizer else plan_classes)(config, args.gpus)
    size = " of the first size" if is_tokenizer and len(config.buckets) > 1 else ""
    notes = [f"{plan.pictures:,} pictures{size} a step, {plan.pictures * plan.steps:,} in {plan.steps:,} steps."]
    if rate is not None:
        data = f"files of {PICTURE_BYTES / 1000:.0f} kB" if is_tokenizer else "codes"
        notes.append(
            f"At {rate:,.0f} pictures a second: {plan.hours(rate):,.1f} hours, {rate * 86400:,.0f} pictures a day, "
            f"{plan.gib_a_day(rate):,.1f} GiB of {data}."
        )
    return plan, notes + [str(warning.message) for warning in assumed if str(warning.message).startswith("`")]


def print_memory(plan, memory: float) -> None:
    """The memory of a GPU by part, and whether it fits into `memory`, in GB."""
    from uniwetok_hf.training.plan import GIB

    titles = {"copies": "copies (DDP)", "shards": "shards (FSDP)"}
    titles = {kind: title for kind, title in titles.items() if kind in plan.memory}
    print(f"| GiB of a GPU | {' | '.join(titles.values())} |\n| --- |{' ---: |' * len(titles)}")
    for name in dict.fromkeys(name for parts in plan.memory.values() for name in parts):
        cells = [f"{plan.memory[kind][name]:.1f}" if name in plan.memory[kind] else "" for kind in titles]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| together | {' | '.join(f'{plan.total(kind):.1f}' for kind in titles)} |\n")
    available = memory * 1e9 / GIB
    for kind, title in titles.items():
        needed = plan.total(kind)
        fits = "fits into" if needed < 0.9 * available else "is close to"
        fits = fits if needed < available else "does not fit into"
        print(f"- {title.split('(')[1][:-1]}: {needed:.1f} GiB {fits} {available:.1f} GiB.")
