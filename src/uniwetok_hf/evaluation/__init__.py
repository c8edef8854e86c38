"""Metrics of pictures, codes, generations, edits and answers, and the protocols of `uniwetok evaluate`, one file each:
`reconstruction`, `latents`, `generation`, `editing`, `captioning`, `class_scores` (docs/evaluation.md). `benchmarks`
have judges of their own, `lmms` is the model for lmms-eval (docs/benchmarks.md).

Only what needs no model is imported here. `METRICS_MODULE` is the path of all metrics as a module of the `evaluate`
library: `evaluate.load(METRICS_MODULE, "psnr")`.
"""

from pathlib import Path

from .bits import BitStatistics, bit_statistics
from .choices import r_precision_outcomes, top_k_outcomes
from .distributions import frechet_distance, precision_recall
from .intervals import Score, mean_score, share_score
from .metrics import perceptual_distance, psnr, ssim
from .probe import linear_probe_outcomes
from .words import exact_match, token_f1


METRICS_MODULE = str(Path(__file__).parent / "uniwetok_metrics")

__all__ = [
    "METRICS_MODULE",
    "BitStatistics",
    "Score",
    "bit_statistics",
    "exact_match",
    "frechet_distance",
    "linear_probe_outcomes",
    "mean_score",
    "perceptual_distance",
    "precision_recall",
    "psnr",
    "r_precision_outcomes",
    "share_score",
    "ssim",
    "token_f1",
    "top_k_outcomes",
]
