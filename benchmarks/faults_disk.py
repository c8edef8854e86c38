# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Commands of `faults.py` whose disk is full from the n-th write on.

Python tells an audit hook of each file that it opens to write, each folder that it makes and each name that it
changes. At the n-th of these the child takes all room from itself: RLIMIT_FSIZE is 0 from then on, so that the system
refuses each write to a file, also those of torch, safetensors and Arrow, which Python does not see. What differs from
a full disk is the error number (EFBIG, not ENOSPC), and that names can still be made. Further trials are of a disk
with room for small files: all that are larger than each file of the result in turn can't be written.
"""

import functools
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults_kills import RESULT
from faults_materials import ROOT, Materials
from faults_trials import (
    CRASHED,
    Kind,
    Wrong,
    check_one_line,
    command,
    contents,
    half_written,
    in_child,
)
from full_disk import files_limited


WRITES = ("os.mkdir", "os.rename", "os.link", "shutil.copyfile")


@dataclass
class Writer:
    """What writes into a folder: `job(folder)`, and `older(folder)`, which leaves something there before, or None
    where a folder must be new. `is_same(folder, reference)` compares results when the files can't be compared."""

    name: str
    job: Callable[[Path], Callable[[], object]]
    older: Callable[[Path], Callable[[], object]] | None = None
    result: str | None = None  # the one file to compare, else all


def is_write(event: str, arguments: tuple) -> bool:
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in (mode or "") for letter in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR))
        return writes and not str(path).startswith(("/dev/", "/proc/")) and not isinstance(path, int)
    return event in WRITES


def fills_up(job: Callable[[], object], number: int, size: int = 0) -> Callable[[], object]:
    """`job`, in which no file can grow beyond `size` bytes from the `number`-th write on."""

    def run() -> object:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if is_write(event, arguments):
                seen += 1
                if seen == number + 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        sys.addaudithook(hook)
        return job()

    return run


def counted(job: Callable[[], object], file: Path) -> Callable[[], object]:
    """`job`, after which `file` has its number of writes."""

    def run() -> object:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            seen += is_write(event, arguments)

        sys.addaudithook(hook)
        code, count = job(), seen
        file.write_text(str(count))
        return code

    return run


@dataclass
class Whole:
    """A writer with room: how many writes it makes, its files before and after, and their sizes."""

    writes: int
    before: dict[str, bytes]
    after: dict[str, bytes]
    sizes: list[int]


class Disk:
    """The kinds of this part: one for each writer."""

    def __init__(self, materials: Materials):
        self.materials = materials

    def kinds(self) -> list[Kind]:
        return [Kind("disk", one.name, Places(self, one), self.trial(one), False) for one in self.writers()]

    def writers(self) -> list[Writer]:
        made = self.materials
        model = lambda: ("--model", made.pipeline)  # noqa: E731, materials are made when they are needed
        vision = lambda: ("--model", made.vision)  # noqa: E731

        def of(*words) -> Callable[[Path], Callable[[], int]]:
            """The command, with OUT for the folder and functions of the materials called."""

            def make(folder: Path):
                flat = []
                for word in words:
                    word = word() if callable(word) else word
                    flat += word if isinstance(word, tuple) else [word]
                return command(*(str(word).replace("OUT", str(folder)) for word in flat))

            return make

        picture, other = (lambda: made.picture), (lambda: sorted(made.pictures.iterdir())[1])
        golden = ROOT / "tests" / "fixtures" / "golden"
        evaluate = ("evaluate", "reconstruction", lambda: made.pictures, "--split", "train", vision, "--output", "OUT")
        trainers = "tokenizer", "mllm"  # in one process
        trained = [
            Writer(f"train {name}", functools.partial(self.training, name), None, f"run/{RESULT[name]}")
            for name in trainers
        ]
        exported = [
            Writer(f"export {name}", of("export", lambda name=name: made.runs[name] / "run", "OUT/out"))
            for name in trainers
        ]
        one_file = ("OUT/a.safetensors",)
        dataset = ("encode-dataset", lambda: made.pictures, "OUT/codes", "--size", "32", "--rows-per-part", "10")
        pairs = {  # what is tried, and how what it writes again was made
            "encode": (("encode", picture, other, vision, "--output", *one_file), ("--size", "32")),
            "decode": (("decode", lambda: made.codes, vision, "--output", "OUT"), ("--seed", "1")),
            "reconstruct": (("reconstruct", picture, other, vision, "--output", "OUT"), ("--seed", "1")),
            "generate": (("generate", "a", "b", model, "--output", "OUT"), ("--steps", "1")),
            "edit": (("edit", picture, "b", model, "--output", "OUT"), ("--steps", "1")),
            "evaluate": (evaluate, ("--count", "3")),
        }
        return [
            *trained,
            *(Writer(name, of(*words), of(*words, *older)) for name, (words, older) in pairs.items()),
            Writer("encode-dataset", of(*dataset, vision)),
            Writer("convert tokenizer", of("convert", golden / "tokenizer_uniwetok", "OUT/model")),
            Writer("convert pipeline", of("convert", golden / "t2i_4x", "OUT/pipeline")),
            *exported,
            Writer("save_pretrained", self.save_pipeline, functools.partial(self.save_pipeline, seed=1)),
        ]

    def training(self, trainer: str, folder: Path) -> Callable[[], int]:
        folder.mkdir(parents=True, exist_ok=True)
        return command("train", trainer, "--config", self.materials.training(trainer, folder, max_train_steps=2))

    def save_pipeline(self, folder: Path, seed: int = 0) -> Callable[[], int]:
        """Of Python: an `OSError` takes the place of the line of a command."""

        def job() -> int:
            from tiny_models import build_tiny_pipeline

            pipeline = build_tiny_pipeline(seed=seed, default_num_inference_steps=2 + seed)
            try:
                pipeline.save_pretrained(folder / "pipeline")
            except OSError as error:
                print(f"uniwetok: error: {error}", file=sys.stderr)
                return 1
            return 0

        return job

    @functools.cache  # noqa: B019, lives as long as the script
    def whole(self, name: str) -> Whole:
        """A writer's run with room."""
        writer = next(one for one in self.writers() if one.name == name)
        place = self.materials.folder / f"whole-{name}".replace(" ", "-")
        folder = place / "out"
        folder.mkdir(parents=True)
        if writer.older:
            self.must_end_well(in_child(writer.older(folder), place))
        before = contents(folder)
        self.must_end_well(in_child(counted(writer.job(folder), place / "count"), place))
        after = contents(folder)
        sizes = sorted({len(content) for content in after.values()} - {0})
        return Whole(int((place / "count").read_text()), before, after, sizes)

    @staticmethod
    def must_end_well(ended) -> None:
        if ended.code:
            raise RuntimeError(f"it fails with room, too: {ended.err[-2000:]}")

    def trial(self, writer: Writer) -> Callable[[int, Path], None]:
        def try_one(number: int, place: Path) -> None:
            whole, folder = self.whole(writer.name), place / "out"
            for name, content in whole.before.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            folder.mkdir(parents=True, exist_ok=True)
            job = writer.job(folder)
            before = contents(folder)
            if number < whole.writes:
                ended = in_child(fills_up(job, number), place)
            else:
                ended = in_child(limited(job, whole.sizes[number - whole.writes] - 1), place)
            if ended.code == CRASHED:
                raise Wrong(f"raises: {ended.last_words}")
            if ended.code:
                line = check_one_line(ended)
                if str(place) not in line and str(self.materials.folder) not in line and "/" not in line:
                    raise Wrong(f"names no file: {line}")
                self.check_left(writer, folder, before, whole)
                again = in_child(writer.job(folder), place)
                if again.code:
                    raise Wrong(f"with room again it ends with {again.code}: {again.last_words}; before: {line}")
            self.check_result(writer, folder, whole)

        return try_one

    def check_left(self, writer: Writer, folder: Path, before: dict, whole: Whole) -> None:
        """After a failure: what was there before is there, or the whole new file; nothing is half-written."""
        if rests := half_written(folder):
            raise Wrong(f"half-written: {', '.join(rests)}")
        found = contents(folder)
        for name, content in before.items():
            if found.get(name) not in (content, whole.after.get(name)):
                raise Wrong(f"{name} is neither the old nor the new one")
        if writer.result is None:
            for name in found.keys() - before.keys():
                if found[name] != whole.after.get(name) and not name.endswith("encoding.partial.json"):
                    raise Wrong(f"{name} is there and not whole")
        else:
            from uniwetok_hf.training.checkpoints import check_checkpoint, list_checkpoints

            for checkpoint in list_checkpoints(folder / "run"):
                check_checkpoint(checkpoint)

    def check_result(self, writer: Writer, folder: Path, whole: Whole) -> None:
        found = contents(folder)
        if rests := half_written(folder):
            raise Wrong(f"half-written at the end: {', '.join(rests)}")
        names = [writer.result] if writer.result else list(whole.after)
        for name in names:
            if name not in found:
                raise Wrong(f"ends well without {name}")
            if found[name] != whole.after[name] and not is_of_moment(name):
                raise Wrong(f"ends well with another {name}")


def is_of_moment(name: str) -> bool:
    """Whether a file says when, where or how fast it was made."""
    return Path(name).name in ("encoding.json", "results.json", "results.md", "model-index.yaml", "README.md")


def limited(job: Callable[[], object], size: int) -> Callable[[], object]:
    def run() -> object:
        with files_limited(size):
            return job()

    return run


class Places:
    """The numbers of a writer's trials, counted when they are asked for: its writes, then the sizes of its files."""

    def __init__(self, disk: Disk, writer: Writer):
        self.disk, self.writer = disk, writer

    def __len__(self) -> int:
        whole = self.disk.whole(self.writer.name)
        return whole.writes + len(whole.sizes)

    def __getitem__(self, index: int) -> int:
        if index >= len(self):
            raise IndexError(index)
        return index
