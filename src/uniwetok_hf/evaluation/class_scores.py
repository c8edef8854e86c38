# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Scores of many generated pictures as a set, against real ones: FID, Inception score, precision and recall.

They are those that are published when the features are of FID's Inception network, whose weights the user gives. The
features of any other vision model give a Fréchet distance that is comparable only with those of the same model, and is
never called FID.

Both sets are `.npz` files with `arr_0`, uint8 [N, H, W, 3], as `uniwetok sample-classes` writes them. They stay on the
disk, but for the batch that is looked at. ADM's reference batches hold 10,000 pictures, and mean and covariance of the
features of all, against which FID is published.
"""

import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import read_json
from .distributions import FeatureSums, frechet_of_moments, frechet_score, precision_recall_outcomes
from .inception import InceptionFeatures, inception_score
from .intervals import Score, share_score
from .judges import Judge
from .processes import ALONE, Processes
from .reports import Report, ScoreRow
from .runs import SETTINGS_FILE, told


PROTOCOL = "classes"
FEATURES = 2048  # of FID's network
LOCAL_HEADER = 30  # bytes of a file's header in a zip, before its name


def open_samples(path: str | Path) -> np.ndarray:
    """`arr_0` of an `.npz` as an array that lies in the file, uint8 [N, H, W, 3].

    Raises:
        ValueError: when the file is no such archive, or a compressed one, or holds fewer than two pictures.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("arr_0.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed; numpy.savez makes one that is not")
        with open(path, "rb") as file:
            file.seek(member.header_offset)
            name_length, extra_length = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:30])
            file.seek(name_length + extra_length, 1)
            major, _ = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(file)
            if dtype != np.uint8 or is_fortran or len(shape) != 4 or shape[3] != 3:
                raise ValueError(f"arr_0 is {dtype} {list(shape)}, not uint8 [N, H, W, 3]")
            if shape[0] < 2:
                raise ValueError(f"it holds {shape[0]} pictures; sets are compared, of two or more")
            return np.memmap(path, np.uint8, "r", file.tell(), shape)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no file of pictures: {error}.") from error


def open_statistics(path: str | Path) -> tuple[np.ndarray, np.ndarray] | None:
    """`mu` [2048] and `sigma` [2048, 2048] of an `.npz`, float64, or None when it has none: mean and covariance of
    FID's features of more pictures than `arr_0` holds, as the reference batches of ADM have them.

    Raises:
        ValueError: when they have other shapes, are not finite, or one is missing.
    """
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name].astype(np.float64) for name in ("mu", "sigma") if name in archive.files}
    if not found:
        return None
    shapes = {name: list(array.shape) for name, array in found.items()}
    if shapes != {"mu": [FEATURES], "sigma": [FEATURES, FEATURES]}:
        raise ValueError(f"{path}: mu [{FEATURES}] and sigma [{FEATURES}, {FEATURES}] are needed, got {shapes}.")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ValueError(f"{path}: mu and sigma must be finite.")
    return found["mu"], found["sigma"]


def settings_beside(samples: str | Path) -> dict:
    """How `uniwetok sample-classes` made the pictures, where its `settings.json` lies beside them."""
    path = Path(samples).parent / SETTINGS_FILE
    settings = read_json(path) if path.is_file() else {}
    names = ("num_inference_steps", "guidance_scale", "guidance_schedule", "shift", "temperature", "dtype", "seed")
    return told(settings, names)


def evaluate_classes(
    samples: str | Path,
    references: str | Path,
    feature_model: Judge | InceptionFeatures,
    batch_size: int = 64,
    processes: Processes = ALONE,
) -> Report:
    """
    Compares generated pictures with real ones.

    Args:
        samples, references: `.npz` files. FID is computed against `mu` and `sigma` of the references, where they have
            them.
        feature_model: FID's Inception network, or any other vision model.
        batch_size: pictures at once.
        processes: those that share the pictures, batch by batch.

    Returns:
        The report, the same in all processes.

    Raises:
        ValueError: when a file is damaged.
    """
    generated, real = open_samples(samples), open_samples(references)
    protocol = {
        "generated": f"{len(generated)} pictures",
        "real": f"{len(real)} pictures of {Path(references).name}",
        "features": feature_model.describe(),
    } | settings_beside(samples)
    if isinstance(feature_model, InceptionFeatures):
        statistics = open_statistics(references)
        protocol["FID against"] = "statistics of the file" if statistics else "its pictures"
        scores = _published_scores(feature_model, generated, real, statistics, batch_size, processes)
    else:
        protocol["features"] += ": no FID"
        scores = _scores_of_features(feature_model, generated, real, batch_size, processes)
    return Report(PROTOCOL, "", "", "", protocol, [ScoreRow({"what": "generated"}, scores, for_card=True)])


def _published_scores(
    network: InceptionFeatures,
    generated: np.ndarray,
    real: np.ndarray,
    statistics: tuple[np.ndarray, np.ndarray] | None,
    batch_size: int,
    processes: Processes,
) -> dict[str, Score]:
    embedded = (
        _embed(network.embed_batch, pictures, what, batch_size, processes)
        for pictures, what in ((generated, "generated"), (real, "real"))
    )
    (features, logits), (references, _) = (map(np.stack, zip(*found, strict=True)) for found in embedded)
    if statistics is not None:
        fid = Score(frechet_of_moments(FeatureSums.of(features).moments(), statistics), len(generated))
    else:
        fid = frechet_score(features, references)
    precise, recalled = precision_recall_outcomes(features, references)
    return {
        "fid": fid,
        "inception_score": Score(inception_score(logits), len(generated)),
        "precision": share_score(precise),
        "recall": share_score(recalled),
    }


def _embed(
    embed: Callable[[np.ndarray], Sequence], pictures: np.ndarray, what: str, batch_size: int, processes: Processes
) -> list:
    """What `embed` gives of each of the pictures [N, H, W, 3], batch by batch."""

    def batch(numbers: list[int]) -> Sequence:
        return embed(pictures[numbers[0] : numbers[-1] + 1])

    return processes.map(batch, range(len(pictures)), batch_size, f"features of {what} pictures")


def _scores_of_features(
    model: Judge, generated: np.ndarray, real: np.ndarray, batch_size: int, processes: Processes
) -> dict[str, Score]:
    def embed(arrays: np.ndarray) -> np.ndarray:
        return model.embed_images([Image.fromarray(np.array(array)) for array in arrays], batch_size)

    features, references = (
        np.stack(_embed(embed, pictures, what, batch_size, processes))
        for pictures, what in ((generated, "generated"), (real, "real"))
    )
    precise, recalled = precision_recall_outcomes(features, references)
    return {
        "frechet": frechet_score(features, references),
        "precision": share_score(precise),
        "recall": share_score(recalled),
    }
