# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Benchmarks with judges of their own: the pictures are generated and laid out here, and judged elsewhere.

- `base`: what a benchmark tells; `text_to_image`, `editing`: GenEval, DPG-Bench, WISE, GEdit-Bench, ImgEdit
- `files`: pictures as files, the same on any number of processes
- `run`: a run, from prompts to a folder that is checked, and from the judge's output to a report
"""

from .base import Benchmark
from .editing import GEditBench, ImgEdit
from .files import BenchmarkFile, check_files, generate_files
from .run import collect_benchmark, run_benchmark
from .text_to_image import DPGBench, GenEval, Wise


BENCHMARKS = {one.name: one for one in (GenEval(), DPGBench(), Wise(), GEditBench(), ImgEdit())}

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkFile",
    "DPGBench",
    "GEditBench",
    "GenEval",
    "ImgEdit",
    "Wise",
    "check_files",
    "collect_benchmark",
    "generate_files",
    "run_benchmark",
]
