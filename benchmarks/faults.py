# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Tries faults on the package: kills, malformed inputs, full disks, many users. Prints a table of kinds with how many
trials were right and wrong, and below it each wrong one with the command that repeats it. Exit code 1 if there is one.

    python benchmarks/faults.py                              # all of it, one to two hours on one core
    python benchmarks/faults.py --part kills disk --share 0.1 --seed 7
    python benchmarks/faults.py --only "disk, encode" --number 4     # one trial again, with all that it says

Everything is real: processes, signals, files. A trial runs in a child that is forked from this process, in which the
libraries are imported already; it is `uniwetok_hf.cli.main.main`, called as the command calls it. Models and data are
tiny, and made when the script starts. Linux and macOS; needs the extra `dev`. The parts:

- kills (`faults_kills.py`): trainings of both trainers with a checkpoint after each step. SIGKILL at any moment, half
  of them just after a checkpoint is begun, and SIGTERM in a random step; then the same command again. Right is: the
  weights and the log are those of an uninterrupted run, bit by bit, nothing half-written stays, and SIGTERM gives exit
  code 75 and the status "preempted".
- inputs (`faults_inputs.py`): random changes of pictures, codes, texts, conversations, configs, checkpoints, encoded
  data, archives and states of trainings. Right is: it works, or one line (of a command) or a `ValueError` or `OSError`
  (of Python) says what is wrong with what, and nothing half-written stays.
- disk (`faults_disk.py`): of each command that writes, for each n, all from its n-th write on fails. Right is: exit
  code 1, one line names the file and the reason, each older file is whole, and with room again the command ends well.
  Of `save_pretrained` that of pipelines is tried; that of a model alone is transformers', which writes in place.
- users (`faults_users.py`): ten threads for a minute on one pipeline, and ten visitors on the web page. Right is: each
  gets what it gets alone.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


# Before torch and numpy are imported: a process with threads can't be forked, and tiny models gain nothing from them.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(Path(__file__).parent)]

from faults_trials import Kind, preload, run_kind  # noqa: E402


PARTS = ("kills", "inputs", "disk", "users")


def find_kinds(parts: list[str], materials, minutes: float) -> list[Kind]:
    """The kinds of these parts, in the order of the table."""
    from faults_disk import Disk
    from faults_inputs import Inputs
    from faults_kills import Kills
    from faults_users import Users

    makers = {"kills": Kills, "inputs": Inputs, "disk": Disk}
    kinds = [kind for part in PARTS if part in parts and part in makers for kind in makers[part](materials).kinds()]
    return kinds + (Users(materials, 60 * minutes).kinds() if "users" in parts else [])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all of them")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each kind (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random trials (default: 0)")
    parser.add_argument("--only", metavar="KIND", nargs="+", help="these kinds, by their names in the table")
    parser.add_argument("--number", type=int, help="with --only KIND: this trial alone")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from faults_materials import Materials

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        os.environ["HF_HOME"] = f"{place}/hf"  # read when the libraries are imported
        preload()
        materials = Materials(Path(place) / "materials")
        materials.folder.mkdir()
        parts = [name.split(", ")[0] for name in args.only] if args.only else args.part
        kinds = find_kinds(parts if set(parts) <= set(PARTS) else list(PARTS), materials, args.share)
        if unknown := set(args.only or ()) - set(map(title, kinds)):
            raise SystemExit(f"there is no kind {min(unknown)!r}; there are {', '.join(map(repr, map(title, kinds)))}")
        kinds = [kind for kind in kinds if not args.only or title(kind) in args.only]
        wrong = try_all(kinds, args, Path(place))
    print(f"\n{sum(map(len, wrong.values()))} wrong, {time.monotonic() - start:.0f} s in all")
    for name, found in wrong.items():
        for number, words in found:
            print(f"\n- {name}: {words}\n  python benchmarks/faults.py --only {name!r} --number {number}")
    return int(any(wrong.values()))


def title(kind: Kind) -> str:
    return f"{kind.part}, {kind.name}"


def try_all(kinds: list[Kind], args: argparse.Namespace, place: Path) -> dict[str, list]:
    """Prints a row for each kind; returns the wrong trials of each."""
    print("| kind | tried | right | wrong | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    wrong = {}
    for kind in kinds:
        (tried, found), seconds = run_kind(kind, args.seed, args.share, place, args.number)
        wrong[title(kind)] = found
        print(f"| {title(kind)} | {tried} | {tried - len(found)} | {len(found)} | {seconds:.0f} |", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
