# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The metrics of `uniwetok_hf.evaluation` as one module of the `evaluate` library, with a configuration for each:

    metric = evaluate.load(METRICS_MODULE, "psnr")
    metric.compute(predictions=outputs, references=originals)

`evaluate.load` copies this one file into its cache and reads its imports line by line: no `import a, b`, and this
package by its full name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
import torch

from uniwetok_hf.evaluation.bits import bit_statistics
from uniwetok_hf.evaluation.choices import chance_of, choose_rivals, cosines, r_precision_outcomes, top_k_outcomes
from uniwetok_hf.evaluation.distributions import frechet_distance, precision_recall_outcomes
from uniwetok_hf.evaluation.intervals import Score, jackknife_score, mean_score, share_score
from uniwetok_hf.evaluation.judges import PerceptualNetwork
from uniwetok_hf.evaluation.metrics import perceptual_distance, psnr, ssim
from uniwetok_hf.evaluation.probe import linear_probe_outcomes
from uniwetok_hf.evaluation.words import exact_match, token_f1


PICTURES = {"predictions": datasets.Image(), "references": datasets.Image()}
VECTOR = datasets.List(datasets.Value("float64"))
PICTURE_INPUTS = """
    predictions: 8-bit pictures, PIL or uint8 arrays [H, W, 3] or [H, W], of any sizes.
    references: the originals, of the same sizes."""
MEAN_OUTPUTS = "count (pictures, identical ones left out where the value is infinite), interval (95 %)"


def psnr_values(predictions, references):
    return score_values("psnr", mean_score(psnr(predictions, references)))


def ssim_values(predictions, references):
    return score_values("ssim", mean_score(ssim(predictions, references)))


def perceptual_values(predictions, references, network):
    distances = perceptual_distance(predictions, references, PerceptualNetwork.from_pretrained(network).network)
    return score_values("perceptual_distance", mean_score(distances))


def frechet_values(predictions, reference_features):
    score = jackknife_score(frechet_distance, np.asarray(predictions), np.asarray(reference_features))
    return score_values("frechet_distance", score)


def precision_recall_values(predictions, reference_features, num_neighbours=3):
    inside = precision_recall_outcomes(predictions, reference_features, num_neighbours)
    precision, recall = (share_score(outcomes) for outcomes in inside)
    return {
        "precision": precision.value,
        "recall": recall.value,
        "precision_count": precision.count,
        "recall_count": recall.count,
        "precision_interval": list(precision.interval),
        "recall_interval": list(recall.interval),
    }


def r_precision_values(predictions, references, num_rivals=31, seed=0):
    rivals = choose_rivals([tuple(text) for text in references], num_rivals, torch.Generator().manual_seed(seed))
    outcomes = r_precision_outcomes(np.asarray(predictions), np.asarray(references), rivals)
    return score_values("r_precision", share_score(outcomes, chance_of(rivals)))


def zero_shot_values(predictions, references, class_embeddings, k=1):
    similarities = cosines(np.asarray(predictions), np.asarray(class_embeddings))
    outcomes = top_k_outcomes(similarities, np.asarray(references), k)
    return score_values("accuracy", share_score(outcomes, min(1.0, k / len(class_embeddings))))


def linear_probe_values(predictions, references, train_features, train_labels, l2=1e-3):
    labels = [str(label) for label in train_labels]
    outcomes = linear_probe_outcomes(train_features, labels, np.asarray(predictions), references, l2)
    return score_values("accuracy", share_score(outcomes))


def bit_values(predictions):
    return bit_statistics(torch.tensor(np.asarray(predictions), dtype=torch.float32)[:, :, None, None])


def answer_values(predictions, references):
    pairs = list(zip(predictions, references, strict=True))
    exact = share_score(exact_match(*pair) for pair in pairs)
    f1 = mean_score((token_f1(*pair) for pair in pairs), bounds=(0.0, 1.0))
    return {
        "exact_match": exact.value,
        "f1": f1.value,
        "count": exact.count,
        "exact_match_interval": list(exact.interval),
        "f1_interval": list(f1.interval) if f1.interval else None,
    }


def score_values(name: str, score: Score) -> dict:
    """A score as `name`, `count`, and `interval` and `chance` where it has them."""
    values = {name: score.value, "count": score.count}
    values |= {"interval": list(score.interval)} if score.interval is not None else {}
    return values | ({"chance": score.chance} if score.chance is not None else {})


@dataclass(frozen=True)
class Configuration:
    """One metric: what it is, its arguments and results, the types of the inputs, and the function."""

    description: str
    citation: str
    inputs: str
    outputs: str
    features: dict
    compute: Callable[..., dict]


CONFIGURATIONS = {
    "psnr": Configuration(
        "Peak signal-to-noise ratio in dB, mean over pictures.",
        "Huynh-Thu and Ghanbari, Scope of validity of PSNR in image/video quality assessment, 2008.",
        PICTURE_INPUTS,
        f"psnr, {MEAN_OUTPUTS}.",
        PICTURES,
        psnr_values,
    ),
    "ssim": Configuration(
        "Structural similarity, mean over pictures.",
        "Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.",
        PICTURE_INPUTS,
        f"ssim, {MEAN_OUTPUTS}.",
        PICTURES,
        ssim_values,
    ),
    "perceptual_distance": Configuration(
        "Distance in the features of a network, mean over pictures.",
        "Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, 2018.",
        f"""{PICTURE_INPUTS}
    network: folder or Hub name of a vision model, or a .safetensors file of LPIPS weights (docs/evaluation.md).""",
        f"perceptual_distance, {MEAN_OUTPUTS}.",
        PICTURES,
        perceptual_values,
    ),
    "frechet_distance": Configuration(
        "Fréchet distance of the normal distributions that fit two sets of features; its meaning depends on the "
        "feature model.",
        "Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.",
        """
    predictions: features [N, channels].
    reference_features: features [M, channels] of the same feature model; M may differ.""",
        "frechet_distance, count (N), interval (95 %, jackknife).",
        {"predictions": VECTOR},
        frechet_values,
    ),
    "precision_recall": Configuration(
        "Share of the predictions inside the manifold of the references (precision), and of the references inside "
        "that of the predictions (recall).",
        "Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019.",
        """
    predictions: features [N, channels].
    reference_features: features [M, channels] of the same feature model; M may differ.
    num_neighbours: k, 3 by default.""",
        "precision, recall, their counts and 95 % intervals.",
        {"predictions": VECTOR},
        precision_recall_values,
    ),
    "r_precision": Configuration(
        "How often a picture is nearer to its own text than to the texts of others, in the space of a dual encoder.",
        "Xu et al., AttnGAN: fine-grained text to image generation with attentional generative adversarial networks, "
        "2018.",
        """
    predictions: embeddings [N, channels] of pictures.
    references: embeddings [N, channels] of their texts.
    num_rivals: other texts that each picture is compared with, 31 by default.
    seed: of their choice.""",
        "r_precision, count, interval (95 %), chance.",
        {"predictions": VECTOR, "references": VECTOR},
        r_precision_values,
    ),
    "zero_shot": Configuration(
        "How often the right class is among the k whose texts are nearest to a picture, in the space of a dual "
        "encoder.",
        "Radford et al., Learning transferable visual models from natural language supervision, 2021.",
        """
    predictions: embeddings [N, channels] of pictures.
    references: numbers of their classes.
    class_embeddings: embeddings [classes, channels] of the classes' texts.
    k: 1 by default.""",
        "accuracy, count, interval (95 %), chance.",
        {"predictions": VECTOR, "references": datasets.Value("int64")},
        zero_shot_values,
    ),
    "linear_probe": Configuration(
        "Accuracy of a logistic regression from features to labels, fitted on a training split.",
        "Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016.",
        """
    predictions: features [N, channels] of the test split.
    references: labels of the test split.
    train_features: features [M, channels] of the training split.
    train_labels: labels of the training split.
    l2: weight of the penalty, 1e-3 by default.""",
        "accuracy, count, interval (95 %).",
        {"predictions": VECTOR, "references": datasets.Value("string")},
        linear_probe_values,
    ),
    "bit_statistics": Configuration(
        "Usage, entropy, stuck bits, largest correlation and compressed size of binary codes.",
        "Zhuang et al., UniWeTok: an unified binary tokenizer with codebook size 2^128, 2026.",
        """
    predictions: tokens [N, bits] of -1 and +1; those of a picture follow each other.""",
        'those of uniwetok_hf.evaluation.bits.BitStatistics.compute; a "picture" is a token here.',
        {"predictions": datasets.List(datasets.Value("int8"))},
        bit_values,
    ),
    "answer_scores": Configuration(
        "Share of answers that are equal to the reference but for case and punctuation, and mean F1 of their words.",
        "Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, 2016.",
        """
    predictions: answers.
    references: right answers.""",
        "exact_match, f1, count, and their 95 % intervals.",
        {"predictions": datasets.Value("string"), "references": datasets.Value("string")},
        answer_values,
    ),
}


class UniWeTokMetrics(evaluate.Metric):
    """The metric of one configuration."""

    def _info(self):
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(f"`config_name` must be one of {', '.join(CONFIGURATIONS)}, got {self.config_name!r}.")
        configuration = CONFIGURATIONS[self.config_name]
        return evaluate.MetricInfo(
            description=configuration.description,
            citation=configuration.citation,
            inputs_description=f"\nArgs:{configuration.inputs}\nReturns:\n    {configuration.outputs}\n",
            features=datasets.Features(configuration.features),
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds samples. Pictures are kept as arrays, without loss: `datasets` would save a PIL picture in the format
        of its file, JPEG for one, and so change it."""
        if CONFIGURATIONS[self.config_name].features is PICTURES:
            predictions, references = ([np.asarray(one) for one in many] for many in (predictions, references))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds one sample, as [`add_batch`]."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _compute(self, **inputs):
        return CONFIGURATIONS[self.config_name].compute(**inputs)
