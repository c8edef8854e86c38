# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The engine `ray` of `data/encoding.py` (extra `ray`): Ray Data hands parts, or shards of a stream, to actors. Each
reads the rows of its own, encodes them, and writes the same files as the built-in engine.

Ray gives what a killed actor had to another. Parts and pieces appear as a whole and are not made again, so each row is
encoded into one of them, whoever dies.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .encoded_parts import PartEncoder
from .encoding_pieces import (
    UNFINISHED,
    Piece,
    count_skipped,
    make_parts,
    pieces_of_shard,
    pieces_of_stream,
    pieces_of_table,
)
from .places import loaded_modules
from .ray_connection import connected
from .skipped import SkippedItems


MOST_TRIES = 5  # of one part or shard: Ray tries for ever, also what ends every actor


@dataclass(frozen=True)
class RayWork:
    """What an actor needs: the source, where its parts go, who encodes it, how many shards of a stream are encoded
    apart from each other (None: one part after the other), and `cpu` or `cuda`."""

    dataset: object
    folder: Path
    encoder: PartEncoder
    num_shards: int | None
    device: str

    def units(self) -> range:
        """What an actor does at a time: a shard, a part, or a whole stream that is not divided."""
        if self.num_shards is not None:
            return range(self.num_shards)
        if not hasattr(self.dataset, "__len__"):
            return range(1)
        return range(-(-len(self.dataset) // self.encoder.settings.rows_per_part))

    def pieces(self, unit: int) -> Iterator[Piece]:
        """The pieces of one of [`units`]."""
        rows_per_part = self.encoder.settings.rows_per_part
        if self.num_shards is not None:
            return pieces_of_shard(self.dataset, self.folder, rows_per_part, unit, self.num_shards)
        if not hasattr(self.dataset, "__len__"):
            return pieces_of_stream(self.dataset, self.folder, rows_per_part)
        return pieces_of_table(self.dataset, self.folder, rows_per_part, [unit])


def make_parts_on_ray(
    work: RayWork,
    num_processes: int,
    skipped: SkippedItems,
    report: Callable[[int, float], object],
    is_stopped: Callable[[], bool],
) -> list[Path] | None:
    """Has all parts made by up to `num_processes` actors.

    It connects to the cluster of `RAY_ADDRESS`, or starts Ray on this machine for as long as it takes, unless this
    process is connected. All machines must find folder, files and cache of the source in the same places.

    Args:
        work: with `cuda`, actors have a GPU each, or share them when they are more.
        skipped: counts the rows that are left out.
        report: called with the number of encodings of each part or shard that is done, and the seconds that it took.

    Returns:
        The parts, those of each part or shard in order; None when it was stopped before the last.

    Raises:
        ValueError: for a device that Ray can't give, or when rows can't be used.
        OSError: when Ray fails, or a file can't be read or written.
    """
    if work.device not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be cpu, or cuda, whose number Ray chooses, got {work.device!r}.")
    units = [{"unit": unit} for unit in work.units()]
    if not units:
        return []
    (work.folder / UNFINISHED).mkdir(exist_ok=True)
    for row in units:
        _tries_path(work.folder, row["unit"]).unlink(missing_ok=True)
    with _ray_data(num_processes) as ray:
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0)) if work.device == "cuda" else None
        if num_gpus == 0:
            raise ValueError("`device`: none of Ray's machines has a GPU.")
        threads = max(1, int(resources["CPU"]) // num_processes)
        for module in loaded_modules():  # of a user's own source
            ray.cloudpickle.register_pickle_by_value(module)
        shared = ray.put(work)  # once per machine; in a list, so that it is not fetched for the constructor
        size = {"min_size": 1, "initial_size": num_processes, "max_size": num_processes}
        results = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
            RayEncoder,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(**size, max_tasks_in_flight_per_actor=1),
            fn_constructor_args=[[shared], threads],
            num_cpus=1,
            num_gpus=num_gpus and share_of_gpu(num_gpus, num_processes),
        )
        try:
            return _collect(iter(results.iter_rows()), work.folder, skipped, report, is_stopped)
        except ray.exceptions.RayTaskError:  # a bug of ours
            raise
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise OSError(f"Ray gave up: {lines[0]} {lines[-1] if len(lines) > 1 else ''}") from error


class RayEncoder:
    """An actor, which does one unit after the other."""

    def __init__(self, work: list, threads: int):
        import ray

        self.work: RayWork = ray.get(work[0])
        self.count = 0
        torch.set_num_threads(threads)
        self.work.encoder.model.to(self.work.device)
        self.work.encoder.on_pictures = self._add

    def __call__(self, batch: dict) -> dict[str, list[str]]:
        """A row with the number of a `unit` becomes one with a `result`: JSON of the names of its parts, the number of
        encodings made, the seconds that they took, and kind and message of an error. (Ray would give an error back
        with a traceback.)"""
        self.count, parts, error, start = 0, [], None, time.monotonic()
        unit, write_part = int(batch["unit"][0]), self.work.encoder.write_part
        try:
            pieces = self.work.pieces(self._begin(unit))
            # Whether too many are left out is decided where all are counted.
            parts = make_parts(pieces, write_part, lambda: None, SkippedItems(1.0), lambda: False)
        except (ValueError, OSError) as raised:
            error = ["ValueError" if isinstance(raised, ValueError) else "OSError", str(raised)]
        made = {"parts": [part.name for part in parts], "count": self.count, "seconds": time.monotonic() - start}
        return {"result": [json.dumps(made | {"error": error})]}

    def _begin(self, unit: int) -> int:
        """Counts the tries of a unit, in a file, since those before ended their actors."""
        with open(_tries_path(self.work.folder, unit), "ab") as file:
            file.write(b".")
            if file.tell() > MOST_TRIES:
                kind = "part" if self.work.num_shards is None else "shard"
                raise ValueError(f"`dataset`: {kind} {unit} ended {MOST_TRIES} actors of Ray (out of memory?).")
        return unit

    def _add(self, count: int) -> None:
        self.count += count


def _collect(
    results, folder: Path, skipped: SkippedItems, report: Callable, is_stopped: Callable
) -> list[Path] | None:
    """The parts of all units, as they are done; None when it was stopped before."""
    parts = []
    with contextlib.closing(results):
        for row in results:
            result = json.loads(row["result"])
            if result["error"]:
                kind, message = result["error"]
                raise {"ValueError": ValueError, "OSError": OSError}[kind](message)
            report(result["count"], result["seconds"])
            found = [folder / name for name in result["parts"]]
            count_skipped(found, skipped)
            parts += found
            if is_stopped():
                return None
    return parts


def share_of_gpu(num_gpus: int, num_processes: int) -> float:
    """What an actor takes of a GPU, so that all find a place, although none is on two."""
    return 1 / max(1, -(-num_processes // num_gpus))


def _tries_path(folder: Path, unit: int) -> Path:
    return folder / UNFINISHED / f"tries-{unit:05d}"


@contextlib.contextmanager
def _ray_data(num_processes: int) -> Iterator:
    """The module `ray`, connected; `ray.data` is quiet where the connection is ours."""
    import ray
    import ray.data

    is_ours = not ray.is_initialized()
    with connected(num_processes):
        if is_ours:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield ray
