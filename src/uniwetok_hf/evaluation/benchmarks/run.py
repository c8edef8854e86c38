# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A run of a benchmark: from its prompts to a folder that its judge reads, and from the judge's output to a report."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path

from ...files import read_json
from ...pipelines import UniWeTokEditPipeline
from ...provenance import short_name
from ...version import __version__
from ..processes import ALONE, Processes, stopped_alike
from ..prompts import check_prompts
from ..reports import Report
from ..runs import SETTINGS_FILE, begin_run, check_begun, told, weights_digest
from .base import Benchmark
from .files import BenchmarkFile, check_files, generate_files, prompts_digest, sources_digest
from .rewriting import PARTS, REWRITTEN_FILE, name_of_rewriter, rewrite_prompts


def run_benchmark(
    benchmark: Benchmark,
    pipe,
    out: str | Path,
    prompts: str,
    model_name: str,
    images: str | None = None,
    *,
    num_images: int | None = None,
    limit: int | None = None,
    variant: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    rewriter: str | None = None,
    processes: Processes = ALONE,
    on_start: Callable[[int], object] | None = None,
    on_images: Callable[[int], object] | None = None,
    stop: threading.Event | None = None,
    **call,
) -> list[str] | None:
    """Generates this process' pictures, and goes on where an interrupted run stopped.

    Args:
        benchmark: one of `BENCHMARKS`.
        pipe: a [`UniWeTokPipeline`].
        out: gets `settings.json` and the folder that the judge reads.
        prompts, images: where they lie, see `prompts_help` of the benchmark.
        model_name: of the pipeline, for results.
        num_images: pictures of each prompt, by default as published.
        limit: only the first prompts: a dry run.
        variant: what results call prompts that are not the published ones.
        batch_size, seed, on_images, stop: see [`generate_files`].
        rewriter: a chat model that rewrites the prompts first, see [`load_rewriter`]. It is off for published scores.
        processes: those that share the pictures.
        on_start: called with the number of pictures of all processes.
        call: further arguments of the pipeline.

    Returns:
        The commands of the judge, when all pictures are there and can be read; None in all processes but the first.

    Raises:
        ValueError: for prompts that are not those of the benchmark, and when `out` was begun with other settings, or
            holds pictures of no known ones.
        Stopped: when `stop` was set.
        OSError: when the folder can't be written.
    """
    out, num_images = Path(out), num_images or benchmark.num_images
    name_of_set = benchmark.name_of_set(benchmark.read(prompts, images, 1), variant)
    files = first_files(benchmark.read(prompts, images, num_images), limit)
    pipe, call = prepare_call(benchmark, pipe, call)
    if not benchmark.is_editing:
        benchmark.check_size(call["height"], call["width"])
        check_prompts(pipe, [file.prompt for file in files], call["height"], call["width"])
    elif rewriter is not None:
        raise ValueError(f"`rewriter`: {benchmark.title} is of edits, whose instructions are not rewritten.")
    settings = {
        "benchmark": benchmark.name,
        "set": name_of_set,
        "prompts": prompts_digest(files),
        "rewriter": rewriter,
        "limit": limit,
        "num_images": num_images,
        "batch_size": batch_size,
        "seed": seed,
        **settings_of_pipeline(pipe, call),
    }
    if benchmark.is_editing:
        settings["sources"] = sources_digest(files)
    folder = out / benchmark.root(short_name(model_name))
    outputs = folder.name, REWRITTEN_FILE, PARTS
    check_begun(out, settings, outputs)
    begin = partial(begin_run, out, settings, notes_of_run(pipe, model_name, prompts, images), outputs)
    if rewriter is not None:
        check = partial(check_prompts, pipe, height=call["height"], width=call["width"])
        files = rewrite_prompts(files, out, rewriter, check, begin, pipe.mllm.device, processes, stop)
    begin()
    if on_start is not None:
        on_start(sum(file.num_images for file in files))
    generate_files(
        pipe,
        files,
        folder,
        batch_size,
        seed,
        process_index=processes.index,
        num_processes=processes.count,
        on_images=on_images,
        stop=stop,
        **call,
    )
    with stopped_alike(stop):
        processes.wait()
    if not processes.is_main:
        return None
    check_files(folder, files, benchmark.write_beside(folder, files, prompts))
    return benchmark.judge_commands(folder.resolve(), str(prompts), images, call.get("height", 0), num_images)


def prepare_call(benchmark: Benchmark, pipe, call: dict) -> tuple:
    """The pipeline of a benchmark, and the arguments of its calls. Edits have the size of their source."""
    if benchmark.is_editing:
        pipe = UniWeTokEditPipeline.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in call.items() if value is not None}
    if not benchmark.is_editing:
        call = {"height": pipe.config.default_size, "width": pipe.config.default_size} | call
    return pipe, call


def revision_of(pipe) -> str | None:
    """Commit of the Hub that the pipeline was loaded from, or None for a folder."""
    places = Path(pipe.config.get("_name_or_path") or "").parts
    return places[places.index("snapshots") + 1] if "snapshots" in places[:-1] else None


def notes_of_run(pipe, model_name: str, prompts: str, images: str | None) -> dict:
    """What is saved with the settings of a run, and may differ when it goes on."""
    return {
        "model": model_name,
        "revision": revision_of(pipe),
        "paths": {"prompts": str(prompts), "images": images and str(images)},
        "picture k": "has the seed stream_seed(seed, k), counted over all prompts",
        "versions": {"uniwetok-hf": __version__}
        | {name: version(name) for name in ("torch", "transformers", "diffusers")},
    }


def settings_of_pipeline(pipe, call: dict) -> dict:
    """What the pictures of a pipeline depend on, called with the arguments `call`: with its defaults, so that a run
    can't go on with others."""
    names = ["num_inference_steps", "guidance_scale"]
    is_edit = isinstance(pipe, UniWeTokEditPipeline)
    if is_edit:
        names += ["negative_prompt", "describe_first"]
    settings = {**call, **{name: pipe.value_or_default(name, call.get(name)) for name in names}}
    if is_edit:  # by default it is in proportion to the other
        scales = settings["guidance_scale"], call.get("image_guidance_scale")
        settings["image_guidance_scale"] = pipe.scale_for_images(*scales)
    return {
        **settings,
        "shift": pipe.scheduler.config.shift,
        "temperature": pipe.scheduler.config.temperature,
        "dtype": str(pipe.mllm.dtype).removeprefix("torch."),
        "weights": weights_digest(pipe.mllm),
    }


def first_files(files: Sequence[BenchmarkFile], limit: int | None) -> list[BenchmarkFile]:
    """The files of the first `limit` prompts."""
    by_prompt = groupby(files, key=lambda file: file.prompt)
    return [file for _, own in islice(by_prompt, limit) for file in own]


def collect_benchmark(benchmark: Benchmark, out: str | Path, output: str | Path, judge: str | None = None) -> Report:
    """The report of what the judge wrote about a run.

    Args:
        benchmark: one of `BENCHMARKS`.
        out: folder of the run.
        output: file or folder that the judge wrote.
        judge: the judge and its version, where they differ from `benchmark.judge`.

    Raises:
        ValueError: when `out` is no run of the benchmark, or the output can't be read or lacks pictures.
    """
    path = Path(out) / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(f"{out} is no folder of a benchmark: it has no {SETTINGS_FILE}.")
    settings = read_json(path)
    if settings.get("benchmark") != benchmark.name:
        raise ValueError(f"{out} is a run of {settings.get('benchmark')!r}, not of {benchmark.name!r}.")
    paths = settings["paths"]
    files = benchmark.read(paths["prompts"], paths["images"], settings["num_images"])
    files = first_files(files, settings["limit"])
    if prompts_digest(files) != settings["prompts"]:
        raise ValueError(f"`prompts` {paths['prompts']} has changed since {out} was generated.")
    name_of_set = settings["set"]
    if settings.get("rewriter") is not None:
        name_of_set += f", rewritten by {name_of_rewriter(Path(out))}"
    rows = benchmark.collect(Path(output), files, paths["prompts"])
    names = ("num_images", "num_inference_steps", "guidance_scale", "image_guidance_scale", "negative_prompt")
    names += ("describe_first", "height", "width", "shift", "temperature", "seed")
    protocol = {"judge": judge or benchmark.judge, "prompts": name_of_set}
    if settings["limit"] is not None:
        protocol["only the first prompts"] = settings["limit"]
        rows = [replace(row, for_card=False) for row in rows]
    protocol |= told(settings, names)
    protocol["dtype"] = settings["dtype"]
    return Report(benchmark.title, short_name(settings["model"]), benchmark.title, name_of_set, protocol, rows)
