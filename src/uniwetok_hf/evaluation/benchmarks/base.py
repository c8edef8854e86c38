# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What every benchmark tells: its files, the command of its judge, and how the judge's output is read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..reports import ScoreRow
from .files import BenchmarkFile, prompts_digest


class Benchmark:
    """
    One benchmark. The folder that its judge reads is `OUT/<root>`.

    Attributes:
        name: on the command line.
        title: in tables.
        judge: what the scores are by, in results.
        prompts_help: what `prompts` has to be.
        num_images: pictures of each prompt, as published.
        is_editing: whether it edits pictures.
        official: digests of the sets of prompts that were published, and what each is called.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    judge: ClassVar[str]
    prompts_help: ClassVar[str]
    num_images: ClassVar[int] = 1
    is_editing: ClassVar[bool] = False
    official: ClassVar[dict[str, str]] = {}

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        """The files of the benchmark, in the order of the prompts.

        Raises:
            ValueError: when `prompts` or `images` are not what the benchmark needs.
        """
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """
        Raises:
            ValueError: when the judge can't read pictures of that size.
        """

    def root(self, model_name: str) -> str:
        """Name of the folder that the judge reads."""
        return "images"

    def write_beside(self, folder: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[str]:
        """Writes what the judge reads beside the files; returns the paths of what are pictures."""
        return []

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        """Commands to run in the judge's repository; `side` is that of a picture in pixels, `num_images` the number of
        each prompt's."""
        raise NotImplementedError

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        """Scores from what the judge wrote.

        Raises:
            ValueError: when it can't be read, or lacks pictures.
        """
        raise NotImplementedError

    def name_of_set(self, files: Sequence[BenchmarkFile], variant: str | None) -> str:
        """What results call the set of prompts, given its files with one picture each.

        Raises:
            ValueError: when it is none of the published ones, and `variant` does not name it.
        """
        found = self.official.get(prompts_digest(files))
        if variant is not None:
            return variant
        if found is None and self.official:
            raise ValueError(
                f"`prompts`: these {len(files)} files are not those of {' or '.join(self.official.values())}. Scores "
                "of other prompts are another benchmark: `variant` names it."
            )
        return found or "not checked"


def read_text(path: str | Path, what: str) -> str:
    """
    Raises:
        ValueError: naming `what`, when the file can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{what} {path}: {reason}.") from error


def parse_json(text: str, where: str):
    """
    Raises:
        ValueError: naming `where`, when the text is no JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}.") from error


def field_of(row: object, name: str, kinds: type | tuple[type, ...], where: str):
    """A field of a JSON object.

    Raises:
        ValueError: naming `where`, when it is missing or of another kind.
    """
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"{where} has no `{name}` as it should be.")
    return value


def check_complete(found: Sequence[str], files: Sequence[BenchmarkFile], output: Path) -> None:
    """
    Raises:
        ValueError: unless the judge scored each file once.
    """
    wanted = {file.path for file in files}
    if twice := sorted({path for path in found if found.count(path) > 1}) if len(found) != len(set(found)) else []:
        raise ValueError(f"{output} has {twice[0]} more than once.")
    if strange := sorted(set(found) - wanted):
        raise ValueError(f"{output} has {strange[0]}, which is no picture of this run.")
    if missing := sorted(wanted - set(found)):
        raise ValueError(
            f"{output} lacks {len(missing)} of {len(wanted)} pictures, the first is {missing[0]}: the score of the "
            "others is not that of the benchmark."
        )


def safe_name(text: str, where: str) -> str:
    """`text` as a part of a path.

    Raises:
        ValueError: naming `where`, when it could lead elsewhere.
    """
    if not text or text in (".", "..") or any(mark in text for mark in '/\\\0:*?"<>|'):
        raise ValueError(f"{where}: {text!r} can't be the name of a file.")
    return text
