# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Scores of many generated pictures as a set, against real ones: Fréchet distance, precision and recall.

With the weights of FID's Inception network, which the user gives, `torch-fidelity` computes FID, Inception score,
precision and recall as they are published. Without them, the features of any vision model are compared; such numbers
are comparable only with those of the same model, and are never called FID.

Both sets are `.npz` files with `arr_0`, uint8 [N, H, W, 3], as `uniwetok sample-classes` writes them. They stay on the
disk, but for the batch that is looked at.
"""

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .distributions import frechet_distance, precision_recall_outcomes
from .intervals import Score, jackknife_score, share_score
from .judges import Judge
from .reports import Report, ScoreRow


PROTOCOL = "classes"
LOCAL_HEADER = 30  # bytes of a file's header in a zip, before its name


def open_samples(path: str | Path) -> np.ndarray:
    """`arr_0` of an `.npz` as an array that lies in the file, uint8 [N, H, W, 3].

    Raises:
        ValueError: when the file is no such archive, or a compressed one.
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
            return np.memmap(path, np.uint8, "r", file.tell(), shape)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no file of pictures: {error}.") from error


class _Pictures(torch.utils.data.Dataset):
    """Pictures one by one, uint8 [3, H, W], as torch-fidelity reads them."""

    def __init__(self, samples: np.ndarray):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.samples[index])).permute(2, 0, 1)


def evaluate_classes(
    samples: str | Path,
    references: str | Path,
    inception: str | Path | None = None,
    feature_model: Judge | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> Report:
    """
    Compares generated pictures with real ones.

    Args:
        samples, references: `.npz` files.
        inception: file of the weights of FID's Inception network, as torch-fidelity takes it.
        feature_model: instead, any vision model.
        batch_size: pictures at once.
        device: where the Inception network computes.

    Raises:
        ValueError: when neither or both of `inception` and `feature_model` are given, or a file is damaged.
        ImportError: when `torch-fidelity` is needed and not installed.
    """
    if (inception is None) == (feature_model is None):
        raise ValueError("Give either `inception` or `feature_model`.")
    generated, real = open_samples(samples), open_samples(references)
    protocol = {"generated": f"{len(generated)} pictures", "real": f"{len(real)} pictures of {Path(references).name}"}
    if inception is not None:
        protocol["features"] = f"FID's Inception network ({Path(inception).name}), by torch-fidelity"
        scores = _published_scores(generated, real, inception, batch_size, device)
    else:
        protocol["features"] = f"{feature_model.describe()}: no FID"
        scores = _scores_of_features(
            _features(feature_model, generated, batch_size), _features(feature_model, real, batch_size)
        )
    return Report(PROTOCOL, "", "", "", protocol, [ScoreRow({"what": "generated"}, scores, for_card=True)])


def _published_scores(
    generated: np.ndarray, real: np.ndarray, inception: str | Path, batch_size: int, device: str
) -> dict[str, Score]:
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"`inception` needs torch-fidelity, and torchvision: pip install torch-fidelity ({error})"
        ) from error
    found = torch_fidelity.calculate_metrics(
        input1=_Pictures(generated),
        input2=_Pictures(real),
        fid=True,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",  # for precision and recall, too, as ADM's evaluator has them
        feature_extractor_weights_path=str(inception),
        batch_size=batch_size,
        cuda=torch.device(device).type == "cuda",
        verbose=False,
    )
    names = {
        "fid": "frechet_inception_distance",
        "inception_score": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    return {name: Score(float(found[key]), len(generated)) for name, key in names.items()}


def _features(model: Judge, samples: np.ndarray, batch_size: int) -> np.ndarray:
    parts = []
    for start in tqdm(range(0, len(samples), batch_size), desc="features", disable=None):
        pictures = [Image.fromarray(np.array(one)) for one in samples[start : start + batch_size]]
        parts.append(model.embed_images(pictures, batch_size))
    return np.concatenate(parts)


def _scores_of_features(generated: np.ndarray, real: np.ndarray) -> dict[str, Score]:
    precise, recalled = precision_recall_outcomes(generated, real)
    return {
        "frechet": jackknife_score(frechet_distance, generated, real),
        "precision": share_score(precise),
        "recall": share_score(recalled),
    }
