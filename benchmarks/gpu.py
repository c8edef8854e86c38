# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Checks the package on a GPU, then times it with random weights at the paper's sizes.

    python benchmarks/gpu.py --output gpu_results             # everything, in at most eight minutes on one card
    python benchmarks/gpu.py --part golden tokenizer --minutes 2
    python benchmarks/gpu.py --tiny --device cpu              # the same code at tiny sizes, as CI runs it

Needs a clone, torch with CUDA and transformers; nothing comes from the network. What else the machine lacks is listed
before the start, and only the parts that need it are left out. A part or row that fails is reported and the rest goes
on; the exit code is then 1. Checks compute in float32 without TF32 where they say nothing else. A time is the median
of repeated calls, on random data; `share_of_peak` is relative to a product of two bfloat16 matrices of 8192 x 8192 on
the same card. The parts are in `gpu_checks.py` and `gpu_timings.py`.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


START = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(ROOT / "src"))  # runs from a clone that is not installed

# Import names of what nothing runs without, and the packages that are not called as they are imported.
CORE = ("torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy", "PIL", "jinja2", "packaging")
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}


def find_missing(names) -> list[str]:
    """Those of the import names that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def pip_line(names) -> str:
    return "pip install " + " ".join(sorted(PACKAGES.get(name, name) for name in names))


def find_old() -> list[str]:
    """Packages older than the oldest that the tests were run on, which setup.py names."""
    from packaging.version import Version

    core = (ROOT / "setup.py").read_text().split("EXTRAS = ")[0]
    old = []
    for name, least in re.findall(r'"([\w-]+)>=([\d.]+)"', core):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if Version(version) < Version(least):
                old.append(f"{name} {version} is older than {least}")
    return old


def refuse(reason: str) -> NoReturn:
    print(f"benchmarks/gpu.py can't start: {reason}", file=sys.stderr)
    sys.exit(2)


if missing := find_missing(CORE):
    refuse(f"{', '.join(missing)} not installed ({pip_line(missing)})")

# Only now, since they need these packages.
import gpu_checks as checks  # noqa: E402
import gpu_timings as timings  # noqa: E402
import torch  # noqa: E402
from gpu_bench import Bench, Device, Report, describe_error, tf32  # noqa: E402


class OutOfTime(BaseException):
    """No `Exception`, so that nothing but the loop over the parts takes it for an error."""


@dataclass(frozen=True)
class Part:
    """A part is begun when half of `seconds` is left, and stopped after twice as many. `needs` are import names, or
    what `find_lacking` knows beside them."""

    name: str
    function: Callable[[Bench], None]
    seconds: float
    needs: tuple[str, ...] = ()


COMPILER = ("triton", "C compiler")
TRAINER = ("accelerate", "diffusers", "yaml")
train_tokenizer = functools.partial(timings.time_training, "image tokenizer")
train_language = functools.partial(timings.time_training, "language model")
PARTS = [  # checks, then timings, the most important first
    Part("golden", checks.check_golden, 10),
    Part("golden-generation", checks.check_golden_generation, 10, ("diffusers",)),
    Part("calls", checks.check_calls, 20),
    Part("codes", checks.check_codes, 15),
    Part("pipelines", checks.check_pipelines, 20, ("diffusers",)),
    Part("syncs", checks.check_syncs, 5),
    Part("lora", checks.check_lora, 10, ("peft",)),
    Part("fsdp", checks.check_fsdp, 10),
    Part("packed", checks.check_packed, 30, COMPILER),
    Part("compile", checks.check_compile, 60, COMPILER),
    Part("peak", timings.time_peak, 3),
    Part("tokenizer", timings.time_tokenizer, 60),
    Part("generation", timings.time_generation, 60),
    Part("training-tokenizer", train_tokenizer, 45, TRAINER),
    Part("training-language", train_language, 45, TRAINER),
    Part("generation-compiled", timings.time_generation_compiled, 60, COMPILER),
    Part("tokenizer-compiled", timings.time_tokenizer_compiled, 80, COMPILER),
    Part("training-language-compiled", functools.partial(train_language, is_compiled=True), 60, TRAINER + COMPILER),
    Part("training-tokenizer-compiled", functools.partial(train_tokenizer, is_compiled=True), 90, TRAINER + COMPILER),
]


def find_lacking(parts: list[Part], device: Device, tiny: bool) -> dict[str, str]:
    """What `parts` need and the machine lacks, with the way to get it."""
    needs = dict.fromkeys(need for part in parts for need in part.needs)
    compilers = {need: needs.pop(need) for need in COMPILER if need in needs}
    lacking = {name: pip_line([name]) for name in find_missing(needs)}
    if compilers and not tiny:  # tiny sizes are traced, but no code is generated
        if device.is_cuda and find_missing(["triton"]):
            lacking["triton"] = pip_line(["triton"])
        has_compiler = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
        if not (has_compiler and Path(sysconfig.get_path("include"), "Python.h").exists()):
            lacking["C compiler"] = "gcc and the headers of Python, for torch.compile"
    return lacking


def find_scarce(device: Device) -> list[str]:
    """What else to know before the start: what is scarce, or older than the oldest that the tests were run on."""
    found = [f"matplotlib, for plots ({pip_line(['matplotlib'])})"] if find_missing(["matplotlib"]) else []
    if not device.is_cuda:
        found.append("CUDA")
    elif device.free_gib() < 60:
        found.append(f"GPU memory, of which {device.free_gib():.0f} GiB are free: large rows will be out of memory")
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()))
    free = shutil.disk_usage(cache if cache.exists() else tempfile.gettempdir()).free / 2**30
    if free < 4:
        found.append(f"disk: {free:.1f} GiB are free in {cache}, where compiled code goes")
    found += [f"{old}, the oldest that the tests were run on" for old in find_old()]
    return found


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises [`OutOfTime`] inside the block after so many seconds."""

    def stop(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(bench: Bench, part: Part, lacking: dict[str, str]) -> None:
    report, start = bench.report, time.monotonic()
    if absent := [need for need in part.needs if need in lacking]:
        report.end_part(part.name, f"not run: lacks {', '.join(absent)}")
        return
    if bench.deadline - start < (0 if bench.tiny else part.seconds / 2):
        report.end_part(part.name, "not run: no time left")
        return
    bench.begin_part(part.name, bench.deadline if bench.tiny else min(bench.deadline, start + 2 * part.seconds))
    status, values = "done", {}
    try:
        with time_limit(bench.left() + 5), tf32(False):
            part.function(bench)
    except OutOfTime:
        status = "stopped: no time left"
    except Exception as error:
        status, values = "failed", describe_error(error)
        print(f"FAILED {part.name}: {values['error']}", flush=True)
    if any(row["part"] == part.name and row.get("passed") is False for row in report.rows):
        status = "failed"
    report.end_part(part.name, status, time.monotonic() - start, **values)


def hide_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not find_missing(["diffusers"]):
        from diffusers.utils import logging

        logging.disable_progress_bar()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--part", nargs="+", choices=names, metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=8, help="parts that don't fit are left out (default: 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, compiled by no compiler: the form for CPUs")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where gpu.json, gpu.md and plots go")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        refuse("there is no CUDA device; on a CPU: --tiny --device cpu")
    try:
        import uniwetok_hf  # noqa: F401
    except ImportError as error:
        refuse(f"{error}; {', '.join(find_old())}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    hide_progress_bars()
    device = Device(options.device)
    parts = [part for part in PARTS if options.part is None or part.name in options.part]
    lacking = find_lacking(parts, device, options.tiny)
    missing = [f"{name} ({how})" for name, how in lacking.items()] + find_scarce(device)
    report = Report(device.describe(), missing)
    print(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    print(f"Lacking: {'; '.join(missing) or 'nothing'}", flush=True)
    bench = Bench(device, report, options.tiny, START + 60 * options.minutes)
    for part in parts:
        run_part(bench, part, lacking)
        if options.output:
            report.write(options.output)
    if options.output and not find_missing(["matplotlib"]):
        report.draw(options.output)
    failed = sum(row.get("passed") is False for row in report.rows)
    checked = sum(row.get("passed") is not None for row in report.rows)
    print(f"{checked - failed} of {checked} checks passed, {time.monotonic() - START:.0f} s in all")
    return int(report.has_failed)


if __name__ == "__main__":
    sys.exit(main())
