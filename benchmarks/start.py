# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How long a command takes in a new process, and how much of that is importing the libraries.

    python benchmarks/start.py                    # a minute
    path/to/env/bin/python benchmarks/start.py    # with the packages that are installed there

transformers and diffusers import what is asked of them, so that `import torch, transformers, diffusers` is the least;
the second row also has the classes that the package's own are made of. Optional packages (peft, torchao, scipy) make
both slower where they are installed. Rows take turns; seconds are medians, and the first round does not count.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time


LIBRARIES = "import torch, transformers, diffusers"
CLASSES = (
    f"{LIBRARIES}; transformers.PreTrainedModel, transformers.Qwen3ForCausalLM, transformers.ProcessorMixin; "
    "diffusers.DiffusionPipeline"
)


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (default: 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate = ["generate", "a noto emoji of red apple", "--output", f"{folder}/apple.png"]
        rows = {
            f"`{LIBRARIES}`": ["-c", LIBRARIES],
            "the same, and classes of theirs": ["-c", CLASSES],
            "`uniwetok --help`": ["-m", "uniwetok_entry", "--help"],
            "`uniwetok generate`, one picture": ["-m", "uniwetok_entry", *generate],
        }
        times = {name: [] for name in rows}
        for _ in range(args.rounds + 1):
            for name, arguments in rows.items():
                times[name].append(seconds(arguments))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    libraries, classes = list(medians.values())[:2]
    print("| new process | s | beyond the libraries | beyond their classes |\n| --- | ---: | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median - libraries:.2f} | {median - classes:.2f} |")


if __name__ == "__main__":
    main()
