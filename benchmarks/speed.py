# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What a user waits for: seconds of a generation, an edit and an answer with the model loaded, and of the command
`uniwetok generate`. Medians; the first of each does not count.

    python benchmarks/speed.py [--threads 2]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline, embedded_path
from uniwetok_hf.cli.demo_sections import shipped_pictures
from uniwetok_hf.pipelines.writing import answer_question


PROMPT, INSTRUCTION, QUESTION = "a noto emoji of red apple", "redraw in fluent style", "what is this?"


def median(job, count: int = 9) -> float:
    times = []
    for seed in range(count):
        start = time.perf_counter()
        job(torch.Generator().manual_seed(seed))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def cold_start(seed: torch.Generator) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "uniwetok_hf", "generate", PROMPT, "--output", f"{folder}/apple.png"]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    pipe = UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32)
    edit = UniWeTokEditPipeline.from_pipe(pipe)
    for each in (pipe, edit):
        each.set_progress_bar_config(disable=True)
    picture = shipped_pictures()[0].image
    print(f"generation {median(lambda generator: pipe(PROMPT, generator=generator)):.2f} s")
    print(f"edit {median(lambda generator: edit(picture, INSTRUCTION, generator=generator)):.2f} s")
    described = median(lambda _: edit.describe_results([picture], [INSTRUCTION]))
    print(f"of it what is said before {described:.2f} s")
    print(f"answer {median(lambda _: answer_question(pipe.mllm, pipe.processor, [picture], QUESTION, 24)):.2f} s")
    print(f"`uniwetok generate` from nothing {median(cold_start, count=3):.1f} s")


if __name__ == "__main__":
    main()
