# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""GenEval, DPG-Bench and WISE: pictures of prompts."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from ...files import whole_file
from ..intervals import Score, mean_of_scores, mean_score
from ..reports import ScoreRow
from .base import Benchmark, check_complete, field_of, parse_json, read_text
from .files import BenchmarkFile


class GenEval(Benchmark):
    """553 prompts of objects, four pictures each: `<number>/samples/<number>.png` beside `<number>/metadata.jsonl`."""

    name = "geneval"
    title = "GenEval"
    judge = "GenEval's evaluate_images.py (Mask2Former Swin-S, CLIP ViT-L-14)"
    prompts_help = "evaluation_metadata.jsonl of the judge's repository"
    num_images = 4
    official = {"f2e1b9bd366ff3de76bad987d2204ed7ae5fe44e632b29b725d0277536cbaef8": "GenEval"}

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        return [
            BenchmarkFile(f"{index:05d}/samples/{k:05d}.png", row["prompt"])
            for index, row in enumerate(self._rows(prompts))
            for k in range(num_images)
        ]

    def _rows(self, prompts: str) -> list[dict]:
        rows = []
        for number, line in enumerate(read_text(prompts, "`prompts`").splitlines(), 1):
            where = f"`prompts` {prompts}, line {number}"
            row = parse_json(line, where)
            for name, kind in {"tag": str, "prompt": str, "include": list}.items():
                field_of(row, name, kind, where)
            rows.append(row)
        if not rows:
            raise ValueError(f"`prompts` {prompts} is empty.")
        return rows

    def write_beside(self, folder: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[str]:
        lines = read_text(prompts, "`prompts`").splitlines()
        for number in sorted({file.path.split("/")[0] for file in files}):
            path = folder / number / "metadata.jsonl"
            with whole_file(path, is_shared=True) as temporary:
                temporary.write_text(lines[int(number)] + "\n", encoding="utf-8")
        return []

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        results = folder.parent / "results.jsonl"
        return [
            f"python evaluation/evaluate_images.py {quote(str(folder))} --outfile {quote(str(results))} "
            "--model-path MASK2FORMER"
        ]

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        found: list[str] = []
        right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for number, line in enumerate(read_text(output, "the judge's output").splitlines(), 1):
            where = f"{output}, line {number}"
            row = parse_json(line, where)
            found.append("/".join(Path(field_of(row, "filename", str, where)).parts[-3:]))
            number = found[-1].split("/")[0]
            right[field_of(row, "tag", str, where)][number].append(field_of(row, "correct", bool, where))
        check_complete(found, files, output)
        # Intervals are over prompts, whose pictures are alike; all have equally many, so the mean is that of pictures.
        by_task = {
            task: mean_score([sum(own) / len(own) for own in prompts.values()], bounds=(0.0, 1.0))
            for task, prompts in right.items()
        }
        overall = mean_of_scores(list(by_task.values()))
        rows = [ScoreRow({"of": "overall"}, {"geneval": overall}, for_card=True)]
        return rows + [ScoreRow({"of": task}, {"geneval": score}) for task, score in by_task.items()]


class DPGBench(Benchmark):
    """1,065 long prompts, four pictures each in one file `<item_id>.png`, a grid of two by two."""

    name = "dpg"
    title = "DPG-Bench"
    judge = "DPG-Bench's compute_dpg_bench.py (mPLUG-large)"
    prompts_help = "folder dpg_bench/prompts of the judge's repository"
    num_images = 4
    official = {"478abba5ac47675720148da5db343fa1e28a04bc7af0cedf9b970cfb83530033": "DPG-Bench"}

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        if num_images not in (1, 4):
            raise ValueError(f"`num_images` of DPG-Bench must be 1 or 4, a grid of two by two, got {num_images}.")
        paths = sorted(Path(prompts).glob("*.txt"))
        if not paths:
            raise ValueError(f"`prompts` {prompts} is no folder of .txt files.")
        return [BenchmarkFile(f"{path.stem}.png", _not_empty(path), num_images) for path in paths]

    def check_size(self, height: int, width: int) -> None:
        if height != width:
            raise ValueError(
                f"`height` and `width` must be equal: DPG-Bench's judge cuts squares, got {height}, {width}."
            )

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        return [f"PIC_NUM={num_images} bash dpg_bench/dist_eval.sh {quote(str(folder))} {side}"]

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        text = read_text(output, "the judge's output")
        found, scores = [], []
        for line in text.splitlines():
            if match := re.fullmatch(r"(.*\.png)((?:, [\d.]+)+)", line):
                found.append(Path(match[1]).name)
                scores.append(float(match[2].split(", ")[-1]))
        check_complete(found, files, output)
        rows = [ScoreRow({"of": "overall"}, {"dpg": mean_score(scores, bounds=(0.0, 1.0))}, for_card=True)]
        summary = re.search(r"L1 category scores:\n((?:\t.*\n)*)", text)
        for line in summary[1].splitlines() if summary else []:
            category, _, value = line.strip().rpartition(": ")
            rows.append(ScoreRow({"of": category}, {"dpg": Score(float(value) / 100, len(files))}))
        return rows


class Wise(Benchmark):
    """1,000 prompts that need knowledge: `1.png` to `1000.png`."""

    name = "wise"
    title = "WISE"
    judge = "WISE's judge"
    prompts_help = "folder of the three JSON files of the judge's repository"
    official = {
        "10548876224a0a3bd2b577e4f1c4933302b7bc0e33962ed0b40cd6998a91c322": "WISE_Verified",
        "26e601d8068466d3104e2ab977e06e48cc827bea9b7f215fda6621b8f85b5069": "WISE of 2025",
    }

    NAMES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    # First and last number of each category, and its weight in the overall score.
    VERIFIED = {
        "culture": (1, 400, 0.4),
        "time": (401, 520, 0.12),
        "space": (521, 640, 0.12),
        "biology": (641, 760, 0.12),
        "physics": (761, 880, 0.12),
        "chemistry": (881, 1000, 0.12),
    }
    OF_2025 = {
        "culture": (1, 400, 0.4),
        "time": (401, 567, 0.167),
        "space": (568, 700, 0.133),
        "biology": (701, 800, 0.1),
        "physics": (801, 900, 0.1),
        "chemistry": (901, 1000, 0.1),
    }

    def read(self, prompts: str, images: str | None, num_images: int) -> list[BenchmarkFile]:
        if num_images != 1:
            raise ValueError(f"`num_images` of WISE must be 1, got {num_images}.")
        files = []
        for path in self._paths(prompts):
            rows = parse_json(read_text(path, "`prompts`"), f"`prompts` {path}")
            for row in rows if isinstance(rows, list) else [None]:
                number = field_of(row, "prompt_id", int, f"`prompts` {path}")
                files.append(BenchmarkFile(f"{number}.png", field_of(row, "Prompt", str, f"`prompts` {path}")))
        return files

    def _paths(self, prompts: str) -> list[Path]:
        paths = [path for name in self.NAMES for path in sorted(Path(prompts).glob(f"{name}*.json"))]
        paths = [path for path in paths if "rewrite" not in path.name]
        if not paths:
            raise ValueError(f"`prompts` {prompts} holds none of {', '.join(f'{name}*.json' for name in self.NAMES)}.")
        return paths

    def _is_verified(self, prompts: str) -> bool:
        """Whether the set is WISE_Verified, or that of 2025, of other prompts and with another judge."""
        return all("verified" in path.stem for path in self._paths(prompts))

    def judge_commands(self, folder: Path, prompts: str, images: str | None, side: int, num_images: int) -> list[str]:
        if self._is_verified(prompts):
            return [f"IMAGE_DIR={quote(str(folder))} bash eval_qwen.sh"]
        results = f"{folder}/Results"
        return [
            f'cd WISE_legacy && python gpt_eval.py --model gpt-4o-2024-05-13 --api_key "$OPENAI_API_KEY" '
            f"--json_path data/{name}.json --image_dir {quote(str(folder))} --output_dir {quote(f'{results}/{name}')} "
            f"--result_full {quote(f'{results}/{name}_full_results.json')} "
            f"--result_scores {quote(f'{results}/{name}_scores_results.jsonl')}"
            for name in self.NAMES
        ]

    def collect(self, output: Path, files: Sequence[BenchmarkFile], prompts: str) -> list[ScoreRow]:
        paths = sorted(output.glob("*_results.jsonl")) if output.is_dir() else [output]
        is_verified = self._is_verified(prompts)
        scores, found = {}, []
        for path in paths:
            for number, line in enumerate(read_text(path, "the judge's output").splitlines(), 1):
                where = f"{path}, line {number}"
                row = parse_json(line, where)
                prompt = field_of(row, "prompt_id", int, where)
                found.append(f"{prompt}.png")
                if ("score" in row) != is_verified:
                    judges = "WISE_Verified (eval_qwen.sh)", "the prompts of 2025 (WISE_legacy/gpt_eval.py)"
                    one, other = judges if is_verified else reversed(judges)
                    raise ValueError(f"{where} is by the judge of {other}; the pictures are of {one}.")
                scores[prompt] = (
                    float(field_of(row, "score", (int, float), where)) if is_verified else _wiscore(row, where)
                )
        check_complete(found, files, output)
        rows, overall = [], 0.0
        categories = self.VERIFIED if is_verified else self.OF_2025
        for category, (first, last, weight) in categories.items():
            own = [value for prompt, value in scores.items() if first <= prompt <= last]
            if own:
                rows.append(ScoreRow({"of": category}, {"wiscore": mean_score(own, bounds=(0.0, 1.0))}))
                overall += weight * sum(own) / len(own)
        if len(rows) == len(categories):
            rows.insert(0, ScoreRow({"of": "overall"}, {"wiscore": Score(overall, len(scores))}, for_card=True))
        return rows


def _wiscore(row: dict, where: str) -> float:
    """Of the judge of 2025: three scores of 0 to 2."""
    weights = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
    return sum(weight * field_of(row, name, (int, float), where) for name, weight in weights.items()) / 2


def _not_empty(path: Path) -> str:
    text = read_text(path, "`prompts`").strip()
    if not text:
        raise ValueError(f"`prompts` {path} is empty.")
    return text
