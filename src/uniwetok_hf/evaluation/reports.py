# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Results of an evaluation: printed and saved as a Markdown table, as JSON, and as the `model-index` of a model card.

Below every table stands the protocol, everything that the numbers depend on, so that they can be reproduced.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ..files import whole_file
from ..version import __version__
from .intervals import Score


# Title in the tables, and how a value is written.
METRICS = {
    "psnr": ("PSNR dB ↑", "{:.2f}"),
    "ssim": ("SSIM ↑", "{:.3f}"),
    "perceptual": ("perceptual ↓", "{:.3f}"),
    "frechet": ("Fréchet ↓", "{:.2f}"),
    "text": ("text read back ↑", "{:.1%}"),
    "rfid": ("rFID ↓", "{:.2f}"),
    "fid": ("FID ↓", "{:.2f}"),
    "sfid": ("sFID ↓", "{:.2f}"),
    "inception_score": ("inception score ↑", "{:.1f}"),
    "precision": ("precision ↑", "{:.1%}"),
    "recall": ("recall ↑", "{:.1%}"),
    "r_precision": ("R-precision ↑", "{:.1%}"),
    "nearest_by_pixels": ("nearest by pixels ↑", "{:.1%}"),
    "nearest_by_judge": ("nearest by judge ↑", "{:.1%}"),
    "psnr_to_target": ("PSNR to target dB ↑", "{:.2f}"),
    "top1": ("top 1 ↑", "{:.1%}"),
    "top5": ("top 5 ↑", "{:.1%}"),
    "top10": ("top 10 ↑", "{:.1%}"),
    "probe": ("linear probe ↑", "{:.1%}"),
    "geneval": ("GenEval ↑", "{:.1%}"),
    "dpg": ("DPG ↑", "{:.1%}"),
    "wiscore": ("WiScore ↑", "{:.3f}"),
    "gedit_sc": ("SC ↑", "{:.2f}"),
    "gedit_pq": ("PQ ↑", "{:.2f}"),
    "gedit_o": ("O ↑", "{:.2f}"),
    "imgedit": ("ImgEdit ↑", "{:.2f}"),
    "exact_match": ("exact match ↑", "{:.1%}"),
    "f1": ("word F1 ↑", "{:.3f}"),
}


@dataclass
class ScoreRow:
    """One line of a table: `labels` say what was measured (`{"what": "model", "size": "128x128"}`), `scores` hold the
    metrics by name; `for_card` says whether a model card lists them: scores of the model itself, of all samples."""

    labels: dict[str, str]
    scores: dict[str, Score]
    for_card: bool = False


def score_rows(
    labels: dict[str, str],
    groups: Sequence[str],
    score: Callable[[Sequence[int]], dict[str, Score]],
    for_card: bool = False,
) -> list[ScoreRow]:
    """
    The row of all samples and, where they are of several groups, a row of each.

    Args:
        labels: what was measured.
        groups: the group of each sample.
        score: the scores of some samples, which are given by their indices. A group without scores has no row.
        for_card: whether a model card lists the row of all samples.
    """
    of_group: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        of_group.setdefault(group, []).append(index)
    if len(of_group) < 2:
        rows = [ScoreRow(labels, score(range(len(groups))), for_card)]
    else:
        rows = [ScoreRow(labels | {"of": "all"}, score(range(len(groups))), for_card)]
        rows += [ScoreRow(labels | {"of": group}, score(of_group[group])) for group in sorted(of_group)]
    return [row for row in rows if row.scores]


@dataclass
class Report:
    """
    The result of an evaluation.

    Args:
        task: name of the protocol.
        model, data, split: what was measured, for the heading; the command line fills them in.
        protocol: name and value of everything that the numbers depend on.
        rows: lines of the table of scores.
        facts: numbers that are not scores, such as statistics of the codes: the columns of a second table.
        skipped: a line for each row or picture that can't be used and was left out; the command line fills it in.
    """

    task: str
    model: str = ""
    data: str = ""
    split: str = ""
    protocol: dict[str, str | int | float] = field(default_factory=dict)
    rows: list[ScoreRow] = field(default_factory=list)
    facts: dict[str, dict[str, float | int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        rows = [row.labels | {"scores": {name: s.to_dict() for name, s in row.scores.items()}} for row in self.rows]
        return {
            "task": self.task,
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "package": f"uniwetok-hf {__version__}",
            "protocol": self._whole_protocol(),
            "results": rows,
            "facts": self.facts,
        }

    def to_markdown(self) -> str:
        """Heading, table, and below it the facts and the protocol."""
        lines = [
            f"## {self.task[:1].upper()}{self.task[1:]}: {self.model} on {self.data}, {self.split}",
            "",
            *self._table(),
            "",
        ]
        lines += ["In brackets: 95 % interval; N: samples.", ""]
        if self.facts:
            lines += [*self._facts_table(), ""]
        lines += [f"- {name}: {_plain(value)}" for name, value in self._whole_protocol().items()]
        return "\n".join(lines) + "\n"

    def _whole_protocol(self) -> dict[str, str | int | float]:
        return self.protocol | ({"rows and pictures left out": len(self.skipped)} if self.skipped else {})

    def _table(self) -> list[str]:
        labels = list(dict.fromkeys(name for row in self.rows for name in row.labels))
        metrics = [name for name in METRICS if any(name in row.scores for row in self.rows)]
        head = [*labels, *(METRICS[name][0] for name in metrics), "N"]
        lines = [_line(head), _line(["---"] * len(head))]
        for row in self.rows:
            counts = sorted({score.count for score in row.scores.values()}, reverse=True)
            cells = [_cell(name, row.scores[name], counts) if name in row.scores else "" for name in metrics]
            lines.append(_line([*(str(row.labels.get(name, "")) for name in labels), *cells, f"{counts[0]:,}"]))
        return lines

    def _facts_table(self) -> list[str]:
        names = list(dict.fromkeys(name for column in self.facts.values() for name in column))
        lines = [_line(["", *self.facts]), _line(["---"] * (1 + len(self.facts)))]
        for name in names:
            cells = [_plain(column[name]) if name in column else "" for column in self.facts.values()]
            lines.append(_line([name.replace("_", " "), *cells]))
        return lines

    def model_index(self) -> str:
        """The block of a model card's YAML head that lists the scores of the model itself."""
        results = []
        for row in self.rows:
            if not row.for_card:
                continue
            # Scores of one data set are merged there, whatever else they say: the name must tell them apart.
            labels = [str(value) for value in row.labels.values() if value not in ("model", "all")]
            of = f" ({', '.join(labels)})" if labels else ""
            results += [
                EvalResult(
                    task_type="image-to-image" if self.task in ("reconstruction", "editing") else self.task,
                    task_name=self.task,
                    dataset_type=self.data.lower().replace(" ", "-"),
                    dataset_name=self.data,
                    dataset_split=self.split,
                    metric_type=metric,
                    metric_name=METRICS[metric][0].rstrip(" ↑↓") + of,
                    metric_value=round(score.value, 4),
                )
                for metric, score in row.scores.items()
                if score.to_dict()["value"] is not None
            ]
        if not results:
            return ""
        return ModelCardData(model_name=self.model, eval_results=results).to_yaml() + "\n"

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Writes `results.json`, `results.md` and, for what a model scored, `model-index.yaml` into `folder`, each
        whole or not at all."""
        contents = {
            "results.json": json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "results.md": self.to_markdown(),
            "model-index.yaml": self.model_index(),
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, text in contents.items():
            if not text:
                (folder / name).unlink(missing_ok=True)  # of a run before
            else:
                with whole_file(folder / name, is_shared=True) as temporary:
                    # Half of a surrogate pair, of a label or an argument, becomes its escape, also in JSON.
                    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
                written.append(folder / name)
        return written


def _cell(name: str, score: Score, counts: list[int]) -> str:
    values = score.to_dict()
    if values["value"] is None:
        return "–"
    form = METRICS[name][1]
    text = form.format(values["value"])
    if score.interval is not None and None not in values["interval"]:
        low, high = (form.format(end).rstrip("%") for end in score.interval)
        text += f" [{low}, {high}]"
    if score.chance is not None:
        text += f", chance {form.format(score.chance)}"
    return text if score.count == counts[0] else f"{text} (N {score.count:,})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
