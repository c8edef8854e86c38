# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""GEdit-Bench and ImgEdit: edits of pictures, judged by a vision-language model."""

import csv
import functools
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from PIL import Image

from ...data.images import read_image
from ...data.sources import PictureSource, open_source, read_cell
from ..intervals import mean_of_scores, mean_score
from ..reports import ScoreRow
from .base import Benchmark, check_complete, field_of, parse_json, read_text, safe_name
from .files import BenchmarkFile, save_picture


class GEditBench(Benchmark):
    """606 edits in English and in Chinese: `fullset/<task>/<language>/<key>.png`, beside it the source as
    `<key>_SRCIMG.png`."""

    name = "gedit"
    title = "GEdit-Bench"
    judge = "VIEScore"
    prompts_help = "the dataset stepfun-ai/GEdit-Bench, by that name or as a folder"
    is_editing = True

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        if num_images != 1:
            raise ValueError(f"`num_images` of GEdit-Bench must be 1, got {num_images}.")
        return self._files(self._rows(prompts), prompts)

    def _files(self, rows, prompts: str) -> list[BenchmarkFile]:
        files = []
        texts = rows.select_columns(["task_type", "instruction_language", "key", "instruction"])
        for index, row in enumerate(texts):
            where = f"`prompts` {prompts}, row {index}"
            parts = [safe_name(row[name], where) for name in ("task_type", "instruction_language", "key")]
            source = functools.partial(_cell, rows, index, "input_image_raw")
            files.append(BenchmarkFile(f"fullset/{'/'.join(parts)}.png", row["instruction"], 1, source))
        return files

    def _rows(self, prompts: str):
        rows = open_source(PictureSource(prompts, "train", image_column="input_image_raw"))
        wanted = ("key", "task_type", "instruction", "instruction_language", "input_image", "input_image_raw")
        if missing := [name for name in wanted if name not in rows.features]:
            raise ValueError(f"`prompts` {prompts} is not GEdit-Bench: it has no {', '.join(missing)}.")
        return rows

    def root(self, model_name: str) -> str:
        return model_name.removesuffix("/pipeline").rsplit("/", 1)[-1]  # of runs/name/pipeline, or owner/name

    def write_beside(self, folder: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[str]:
        rows, wanted, sources = self._rows(prompts), {file.path for file in files}, []
        for index, file in enumerate(self._files(rows, prompts)):
            if file.path in wanted:
                sources.append(f"{file.path.removesuffix('.png')}_SRCIMG.png")
                if not (folder / sources[-1]).is_file():
                    save_picture(_cell(rows, index, "input_image"), folder / sources[-1])
        return sources

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        where = f"--model_name {quote(folder.name)} --save_path {quote(str(folder.parent))}"
        return [
            f"cd GEdit-Bench && python test_gedit_score.py {where} --backbone gpt4o",
        ]

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        by_kind = defaultdict(lambda: defaultdict(list))
        found = []
        for path in sorted(output.glob("*_gpt_score.csv")):
            if path.name.endswith("_combined_gpt_score.csv"):
                continue
            for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path, "the judge's output"))), 2):
                where = f"{path}, line {number}"
                edited = Path(field_of(row, "edited_image", str, where))
                found.append("/".join(edited.parts[-4:]))
                task, language = edited.parts[-3:-1]
                by_kind[language][task].append(
                    [_number(row, name, where) for name in ("sementics_score", "quality_score")]
                )
        check_complete(found, files, output)
        rows = []
        for language, tasks in sorted(by_kind.items(), reverse=True):  # en, cn
            scores = {task: self._scores(values) for task, values in sorted(tasks.items())}
            mean = {
                name: mean_of_scores([own[name] for own in scores.values()])
                for name in ("gedit_sc", "gedit_pq", "gedit_o")
            }
            rows.append(ScoreRow({"language": language, "of": "mean of the tasks"}, mean, for_card=True))
            rows += [ScoreRow({"language": language, "of": task}, own) for task, own in scores.items()]
        return rows

    def _scores(self, values: Sequence[Sequence[float]]):
        return {
            "gedit_sc": mean_score((semantics for semantics, _ in values), bounds=(0.0, 10.0)),
            "gedit_pq": mean_score((quality for _, quality in values), bounds=(0.0, 10.0)),
            "gedit_o": mean_score(
                (math.sqrt(semantics * quality) for semantics, quality in values), bounds=(0.0, 10.0)
            ),
        }


class ImgEdit(Benchmark):
    """737 edits of nine kinds: `<key>.png`."""

    name = "imgedit"
    title = "ImgEdit-Bench"
    judge = "GPT-4o, by ImgEdit's basic_bench.py"
    prompts_help = "basic_edit.json of the judge's repository; `images` is the folder of the pictures"
    is_editing = True
    official = {"e1d9531ba464ded528a426d7499510d33cc4373ea30e14ccdbdace11ce834974": "ImgEdit-Bench, basic"}

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        if num_images != 1:
            raise ValueError(f"`num_images` of ImgEdit must be 1, got {num_images}.")
        if images is None or not Path(images).is_dir():
            raise ValueError(f"`images` must be the folder of ImgEdit's pictures, got {images}.")
        files = []
        for key, row in self._edits(prompts).items():
            where = f"`prompts` {prompts}, {key}"
            source = functools.partial(read_image, Path(images) / field_of(row, "id", str, where))
            prompt = field_of(row, "prompt", str, where)
            files.append(BenchmarkFile(f"{safe_name(key, where)}.png", prompt, 1, source))
        return files

    def _edits(self, prompts: str) -> dict:
        edits = parse_json(read_text(prompts, "`prompts`"), f"`prompts` {prompts}")
        if not isinstance(edits, dict) or not edits:
            raise ValueError(f"`prompts` {prompts} must be an object of edits by their keys.")
        return edits

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        edits, sources = (quote(str(Path(place).resolve())) for place in (prompts, images or "."))
        return [
            f"python Benchmark/Basic/basic_bench.py --result_img_folder {quote(str(folder))} "
            f"--edit_json {edits} --origin_img_root {sources} "
            "--prompts_json Benchmark/Basic/prompts.json"
        ]

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        answers = parse_json(read_text(output, "the judge's output"), str(output))
        if not isinstance(answers, dict):
            raise ValueError(f"{output} must be an object of answers by the keys of the edits.")
        check_complete([f"{key}.png" for key in answers], files, output)
        edits, by_kind = self._edits(prompts), defaultdict(list)
        for key, answer in answers.items():
            by_kind[field_of(edits[key], "edit_type", str, f"`prompts` {prompts}, {key}")].append(
                _mean_of_answer(answer, f"{output}, {key}")
            )
        scores = {kind: mean_score(values, bounds=(0.0, 5.0)) for kind, values in sorted(by_kind.items())}
        overall = mean_of_scores(list(scores.values()))
        rows = [ScoreRow({"of": "mean of the kinds"}, {"imgedit": overall}, for_card=True)]
        return rows + [ScoreRow({"of": kind}, {"imgedit": score}) for kind, score in scores.items()]


def _mean_of_answer(answer: object, where: str) -> float:
    """Mean of the scores in a judge's answer, lines of `name: number`, to two digits as the judge's script has it."""
    lines = [line.strip().split(": ") for line in answer.splitlines()] if isinstance(answer, str) else []
    scores = [int(parts[1]) for parts in lines if len(parts) == 2 and parts[1].isdigit()]
    if not scores:
        raise ValueError(f"{where}: the judge gave no score.")
    return round(sum(scores) / len(scores), 2)


def _cell(rows, index: int, column: str) -> Image.Image:
    return read_cell(rows[index][column], f"{column} of row {index}")


def _number(row: dict, name: str, where: str) -> float:
    try:
        value = float(row[name])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 10:
        raise ValueError(f"{where} has no `{name}` from 0 to 10.")
    return value
