# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Scores of many generated pictures as a set, against real ones: Fréchet distance, precision and recall.

With the weights of FID's Inception network, which the user gives, `torch-fidelity` computes FID, Inception score,
precision and recall as they are published. Without them, the features of any vision model are compared; such numbers
are comparable only with those of the same model, and are never called FID.

Both sets are `.npz` files with `arr_0`, uint8 [N, H, W, 3], as `uniwetok sample-classes` writes them. They stay on the
disk, but for the batch that is looked at. ADM's reference batches hold 10,000 pictures, and mean and covariance of the
features of all, against which FID is published.
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
FEATURES = 2048  # of FID's network
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


def open_statistics(path: str | Path) -> dict[str, np.ndarray] | None:
    """`mu` [2048] and `sigma` [2048, 2048] of an `.npz`, float64, or None when it has none: mean and covariance of
    FID's features of more pictures than `arr_0` holds, as the reference batches of ADM have them.

    Raises:
        ValueError: when they have other shapes, or one is missing.
    """
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name].astype(np.float64) for name in ("mu", "sigma") if name in archive.files}
    if not found:
        return None
    shapes = {name: list(array.shape) for name, array in found.items()}
    if shapes != {"mu": [FEATURES], "sigma": [FEATURES, FEATURES]}:
        raise ValueError(f"{path}: mu [{FEATURES}] and sigma [{FEATURES}, {FEATURES}] are needed, got {shapes}.")
    return found


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
        samples, references: `.npz` files. FID is computed against `mu` and `sigma` of the references, where they have
            them.
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
        statistics = open_statistics(references)
        protocol["FID against"] = "statistics of the file" if statistics else "its pictures"
        scores = _published_scores(generated, real, statistics, inception, batch_size, device)
    else:
        protocol["features"] = f"{feature_model.describe()}: no FID"
        scores = _scores_of_features(
            _features(feature_model, generated, batch_size), _features(feature_model, real, batch_size)
        )
    return Report(PROTOCOL, "", "", "", protocol, [ScoreRow({"what": "generated"}, scores, for_card=True)])


def _published_scores(
    generated: np.ndarray,
    real: np.ndarray,
    statistics: dict[str, np.ndarray] | None,
    inception: str | Path,
    batch_size: int,
    device: str,
) -> dict[str, Score]:
    try:
        from torch_fidelity import metric_fid, metric_isc, metric_prc, utils
    except ImportError as error:
        raise ImportError(
            f"`inception` needs torch-fidelity, and torchvision: pip install torch-fidelity ({error})"
        ) from error
    options = {"verbose": False, "cuda": torch.device(device).type == "cuda"}
    # One network for precision and recall, too, as ADM's evaluator has it.
    name, pooled, classified = "inception-v3-compat", "2048", "logits_unbiased"
    network = utils.create_feature_extractor(
        name, [pooled, classified], feature_extractor_weights_path=str(inception), **options
    )
    found, wanted = (
        utils.get_featuresdict_from_dataset(_Pictures(part), network, batch_size, save_cpu_ram=False, **options)
        for part in (generated, real)
    )
    statistics = statistics or metric_fid.fid_features_to_statistics(wanted[pooled].double())
    own = metric_fid.fid_features_to_statistics(found[pooled].double())
    scores = {
        **metric_fid.fid_statistics_to_metric(own, statistics, verbose=False),
        **metric_isc.isc_featuresdict_to_metric(found, classified, **options),
        **metric_prc.prc_featuresdict_to_metric(found, wanted, pooled, **options),
    }
    names = {
        "fid": metric_fid.KEY_METRIC_FID,
        "inception_score": metric_isc.KEY_METRIC_ISC_MEAN,
        "precision": metric_prc.KEY_METRIC_PRECISION,
        "recall": metric_prc.KEY_METRIC_RECALL,
    }
    return {name: Score(float(scores[key]), len(generated)) for name, key in names.items()}


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
