"""`uniwetok benchmark geneval|dpg|wise|gedit|imgedit`: pictures as the judge of each reads them, and its scores; and
those of `benchmark_imagenet`."""

import argparse
import threading
from pathlib import Path
from shlex import quote

from uniwetok_hf.signals import signals_set

from . import benchmark_imagenet
from .common import (
    CommandError,
    add_command,
    add_edit_options,
    add_group,
    add_seed_option,
    finite_float,
    output_folder,
    positive_int,
    user_errors,
)
from .encode_dataset import device_of_process
from .evaluate import show_report


DESCRIPTION = """\
Generate the pictures of a benchmark, in the layout that its judge reads, and collect the judge's scores.
Under `accelerate launch` all processes share them; an interrupted run is resumed by the same command.
"""
EXAMPLES = [
    "geneval runs/mllm/pipeline results/geneval --prompts geneval/prompts/evaluation_metadata.jsonl",
    "dpg runs/mllm/pipeline results/dpg --prompts ELLA/dpg_bench/prompts --limit 4",
    "geneval runs/mllm/pipeline results/geneval --collect results/geneval/results.jsonl",
]
# What each measures, and what --prompts has to be. Help does not import `uniwetok_hf.evaluation.benchmarks`.
NAMES = {
    "geneval": ("objects, their number, colours and places", "evaluation_metadata.jsonl of the judge's repository"),
    "dpg": ("long descriptions", "folder dpg_bench/prompts of the judge's repository"),
    "wise": ("prompts that need knowledge", "folder of the three JSON files of the judge's repository"),
    "gedit": ("edits in English and Chinese", "the dataset stepfun-ai/GEdit-Bench (default), or a folder of it"),
    "imgedit": ("edits of nine kinds", "basic_edit.json of the judge's repository"),
}
EDITING = ("gedit", "imgedit")


def add_commands(commands) -> None:
    """Adds `benchmark` with a sub-command for each benchmark."""
    group = add_group(commands, "benchmark", DESCRIPTION, EXAMPLES, "NAME")
    for name, (what, prompts_help) in NAMES.items():
        parser = add_command(
            group,
            name,
            run_benchmark,
            f"Generate the pictures of {name}: {what}.\nThe commands of its judge are printed when all are there.",
            [example.partition(" ")[2] for example in EXAMPLES if example.startswith(f"{name} ")],
        )
        _add_options(parser, name, prompts_help)
    benchmark_imagenet.add_commands(group)


def _add_options(parser: argparse.ArgumentParser, name: str, prompts_help: str) -> None:
    parser.add_argument("pipeline", metavar="PIPELINE", help="pipeline folder or Hub id; uniwetok-emoji ships")
    parser.add_argument("out", metavar="OUT", help="folder: settings.json, and the folder that the judge reads")
    parser.add_argument(
        "--prompts", metavar="P", help=prompts_help, default="stepfun-ai/GEdit-Bench" if name == "gedit" else None
    )
    if name == "imgedit":
        parser.add_argument("--images", metavar="DIR", help="folder of the pictures to edit")
    parser.add_argument("--variant", metavar="NAME", help="what results call prompts that are not the published ones")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N prompts: a dry run")
    if name in ("geneval", "dpg"):
        parser.add_argument(
            "--num-images", type=positive_int, metavar="N", help="pictures of each prompt (default: 4, as published)"
        )
    if name in EDITING:
        add_edit_options(parser)
    else:
        parser.add_argument("--height", type=positive_int, metavar="N", help="in pixels (default: the model's)")
        parser.add_argument("--width", type=positive_int, metavar="N", help="in pixels (default: the model's)")
        parser.add_argument(
            "--rewriter",
            metavar="M",
            help="chat model that rewrites the prompts first: folder, Hub name or server's URL",
        )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps per patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale", type=finite_float, metavar="W", help="weight of the prompt (default: the model's)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="pictures generated at once (default: 16)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")
    add_seed_option(parser, "seed of all pictures")
    parser.add_argument(
        "--collect", metavar="PATH", help="what the judge wrote: prints and saves its scores, generates nothing"
    )
    parser.add_argument("--judge", metavar="NAME", help="with --collect: the judge and its version, for the results")


def run_benchmark(args: argparse.Namespace) -> None:
    """`uniwetok benchmark`."""
    from uniwetok_hf.evaluation.benchmarks import BENCHMARKS
    from uniwetok_hf.evaluation.processes import Processes

    benchmark = BENCHMARKS[args.kind]
    output_folder(args.out)
    if args.collect is not None:
        _collect(args, benchmark)
        return
    if args.prompts is None:
        raise CommandError(f"--prompts is needed: {benchmark.prompts_help}")
    with user_errors():
        processes = Processes.join()
    commands = _generate(args, benchmark, processes)
    if commands is None:
        return
    print(f"{args.out}: all pictures are there. In the judge's repository:")
    for line in commands:
        print(line)
    print(f"uniwetok benchmark {args.kind} {quote(args.pipeline)} {quote(args.out)} --collect WHAT_IT_WROTE")


def _generate(args: argparse.Namespace, benchmark, processes) -> list[str] | None:
    from tqdm.auto import tqdm

    from uniwetok_hf.evaluation.benchmarks import run_benchmark as generate

    from .loading import load_pipeline

    call = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        **{name: getattr(args, name, None) for name in ("height", "width", "image_guidance_scale", "describe_first")},
    }
    pipeline = load_pipeline(args.pipeline, device_of_process(args.device))
    stop = threading.Event()
    with (
        user_errors(),
        signals_set(stop, "Stopping after this batch. Press Ctrl-C again to stop at once."),
        tqdm(desc="generating", unit=" pictures", disable=None if processes.is_main else True) as bar,
    ):
        return generate(
            benchmark,
            pipeline,
            args.out,
            args.prompts,
            args.pipeline,
            getattr(args, "images", None),
            num_images=getattr(args, "num_images", None),
            limit=args.limit,
            variant=args.variant,
            batch_size=args.batch_size,
            seed=args.seed,
            rewriter=getattr(args, "rewriter", None),
            processes=processes,
            on_start=lambda total: bar.reset(-(-total // processes.count)),
            on_images=bar.update,
            stop=stop,
            **call,
        )


def _collect(args: argparse.Namespace, benchmark) -> None:
    from uniwetok_hf.evaluation.benchmarks import collect_benchmark

    with user_errors():
        report = collect_benchmark(benchmark, args.out, args.collect, args.judge)
    show_report(report, Path(args.out) / "scores")
