"""Benchmarks with judges of their own: folders as the judges read them, and their output read back.

The readers here are written by the judges' documented layouts (docs/benchmarks.md).
"""

import csv
import json
import os
import re
import shlex
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_models import build_tiny_pipeline

from uniwetok_hf import BinaryFlowScheduler, UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.cli.benchmark import EDITING, NAMES
from uniwetok_hf.cli.loading import load_pipeline
from uniwetok_hf.cli.main import main
from uniwetok_hf.data.samples import stream_seed
from uniwetok_hf.evaluation.benchmarks import BENCHMARKS, BenchmarkFile, collect_benchmark, run_benchmark
from uniwetok_hf.evaluation.benchmarks.files import make_grid, plan_batches
from uniwetok_hf.evaluation.benchmarks.run import revision_of, settings_of_pipeline
from uniwetok_hf.evaluation.processes import Processes
from uniwetok_hf.signals import Stopped


PROMPTS = ("a red circle", "two cats", "a dog and a cat")
TASKS = ("single_object", "counting", "two_object")


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


@pytest.fixture
def sets(tmp_path):
    """A small set of each benchmark: `prompts` by name."""
    return {name: make(tmp_path / f"{name}-prompts") for name, make in MAKERS.items()}


def make_geneval(path: Path) -> str:
    rows = [
        {"tag": task, "include": [{"class": "cat", "count": 1}], "prompt": prompt}
        for task, prompt in zip(TASKS, PROMPTS, strict=True)
    ]
    path.mkdir()
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path / "metadata.jsonl")


def make_dpg(path: Path) -> str:
    path.mkdir()
    for name, prompt in zip(("0", "partiprompts13", "drawbench_7"), PROMPTS, strict=True):
        (path / f"{name}.txt").write_text(f"{prompt}\n", encoding="utf-8")
    return str(path)


def make_wise(path: Path, suffix: str = "") -> str:
    path.mkdir()
    names = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    for name, number, prompt in zip(names, (1, 450, 641), PROMPTS, strict=True):
        row = {"Prompt": prompt, "Explanation": "it is", "Subcategory": "x", "prompt_id": number}
        (path / f"{name}{suffix}.json").write_text(json.dumps([row]), encoding="utf-8")
        (path / f"{name}_rewrite.json").write_text(json.dumps([row]), encoding="utf-8")
    return str(path)


def colour(index: int, side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, 64), (80 * index, 30, 200))


def make_gedit(path: Path) -> str:
    rows = [
        {
            "key": f"key{index}",
            "task_type": ("subject-add", "style_change", "subject-add")[index],
            "instruction": prompt,
            "instruction_language": ("en", "cn", "en")[index],
            "input_image": colour(index, 32),
            "input_image_raw": colour(index, 64 + 64 * (index == 1)),
            "Intersection_exist": True,
        }
        for index, prompt in enumerate(PROMPTS)
    ]
    Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def make_imgedit(path: Path) -> str:
    edits = {}
    for index, prompt in enumerate(PROMPTS):
        (path / "animal").mkdir(parents=True, exist_ok=True)
        colour(index).save(path / "animal" / f"{index}.jpg")
        edits[str(1000 + index)] = {
            "id": f"animal/{index}.jpg",
            "prompt": prompt,
            "edit_type": ("add", "style", "add")[index],
        }
    (path / "edits.json").write_text(json.dumps(edits), encoding="utf-8")
    return str(path / "edits.json")


MAKERS = {"geneval": make_geneval, "dpg": make_dpg, "wise": make_wise, "gedit": make_gedit, "imgedit": make_imgedit}


def run(name: str, pipe, sets, out, **options):
    options.setdefault("variant", "ours")
    images = str(Path(sets["imgedit"]).parent) if name == "imgedit" else None
    return run_benchmark(BENCHMARKS[name], pipe, out, sets[name], "someone/tiny", images, batch_size=4, **options)


class Turn(Processes):
    """A process whose turn it is: the others had theirs, or will have it."""

    def gather(self, value):
        return [value]


def pictures_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_geneval_is_read_by_its_judge(pipe, sets, tmp_path):
    commands = run("geneval", pipe, sets, tmp_path / "out")
    folder, seen = tmp_path / "out" / "images", {}
    for sub in os.listdir(folder):  # as evaluate_images.py does
        assert sub.isdigit()
        metadata = json.loads((folder / sub / "metadata.jsonl").read_text(encoding="utf-8"))
        names = [name for name in os.listdir(folder / sub / "samples") if re.match(r"\d+\.png", name)]
        seen[int(sub)] = (metadata["tag"], metadata["prompt"], len(names))
    assert seen == {index: (TASKS[index], prompt, 4) for index, prompt in enumerate(PROMPTS)}
    assert commands[0].startswith(f"python evaluation/evaluate_images.py {folder} --outfile ")
    for number in (0, 5, 11):
        generator = torch.Generator().manual_seed(stream_seed(0, number))
        wanted = np.asarray(pipe([PROMPTS[number // 4]], generator=[generator]).images[0])
        found = np.asarray(Image.open(folder / f"{number // 4:05d}" / "samples" / f"{number % 4:05d}.png"))
        assert np.abs(found.astype(int) - wanted).max() <= 1  # of another batch


def test_dpg_grids_are_cut_by_its_judge(pipe, sets, tmp_path):
    (command,) = run("dpg", pipe, sets, tmp_path / "out")
    folder = tmp_path / "out" / "images"
    assert command == f"PIC_NUM=4 bash dpg_bench/dist_eval.sh {folder} 64"
    assert sorted(os.listdir(folder)) == ["0.png", "drawbench_7.png", "partiprompts13.png"]
    files = BENCHMARKS["dpg"].read(sets["dpg"], None, 4)
    place = [file.path for file in files].index("drawbench_7.png")
    grid = Image.open(folder / "drawbench_7.png")
    assert grid.size == (128, 128)
    generators = [torch.Generator().manual_seed(stream_seed(0, 4 * place + k)) for k in range(4)]
    wanted = pipe([PROMPTS[2]] * 4, generator=generators).images
    (command,) = run("dpg", pipe, sets, tmp_path / "one", num_images=1)  # no grid to be cut
    assert command.startswith("PIC_NUM=1 ")
    for k, box in enumerate([(0, 0, 64, 64), (64, 0, 128, 64), (0, 64, 64, 128), (64, 64, 128, 128)]):
        assert (np.asarray(grid.crop(box)) == np.asarray(wanted[k])).all()


def test_wise_names_are_numbers(pipe, sets, tmp_path):
    commands, images = run("wise", pipe, sets, tmp_path / "out"), tmp_path / "out" / "images"
    assert sorted(os.listdir(images)) == ["1.png", "450.png", "641.png"]
    assert len(commands) == 3 and all("cd WISE_legacy && python gpt_eval.py" in command for command in commands)
    assert f"--result_scores {images}/Results/spatio-temporal_reasoning_scores_results.jsonl" in commands[1]
    verified = make_wise(tmp_path / "verified", "_verified")
    commands = BENCHMARKS["wise"].judge_commands(images, verified, None, 64, 1)
    assert commands == [f"IMAGE_DIR={images} bash eval_qwen.sh"]


def test_dpg_wants_squares(pipe, sets, tmp_path):
    with pytest.raises(ValueError, match="`height` and `width` must be equal: .*got 64, 128"):
        run("dpg", pipe, sets, tmp_path / "out", height=64, width=128)
    assert not (tmp_path / "out").exists()


def test_edits_go_on_with_the_same_sources_only(pipe, sets, tmp_path):
    options = {"variant": "ours", "batch_size": 4}
    folder = Path(shutil.copytree(Path(sets["imgedit"]).parent, tmp_path / "images"))
    places = str(folder / "edits.json"), "someone/tiny", str(folder)
    run_benchmark(BENCHMARKS["imgedit"], pipe, tmp_path / "out", *places, **options)
    colour(2).save(folder / "animal" / "0.jpg")
    with pytest.raises(ValueError, match="`sources`: .* was begun with"):
        run_benchmark(BENCHMARKS["imgedit"], pipe, tmp_path / "out", *places, **options)
    settings = tmp_path / "out" / "settings.json"  # an earlier version's
    settings.write_text(json.dumps({n: v for n, v in json.loads(settings.read_text()).items() if n != "sources"}))
    assert run_benchmark(BENCHMARKS["imgedit"], pipe, tmp_path / "out", *places, **options)


def test_the_scale_of_the_source_is_the_one_that_was_used(pipe, sets, tmp_path):
    edit = UniWeTokEditPipeline.from_pipe(pipe)
    edit.register_to_config(default_guidance_scale=5.0, default_image_guidance_scale=3.0)
    for guidance, wanted in ((10.0, 6.0), (1.0, None), (None, 3.0)):
        call = {} if guidance is None else {"guidance_scale": guidance}
        assert settings_of_pipeline(edit, call)["image_guidance_scale"] == wanted
    assert settings_of_pipeline(edit, {"image_guidance_scale": 4.0})["image_guidance_scale"] == 4.0


def test_gedit_has_results_and_sources(pipe, sets, tmp_path):
    (command,) = run("gedit", pipe, sets, tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    assert f"--model_name tiny --save_path {tmp_path / 'out'} " in command
    wanted = {"subject-add/en/key0", "style_change/cn/key1", "subject-add/en/key2"}
    assert set(pictures_in(folder / "fullset")) == {f"{key}{end}.png" for key in wanted for end in ("", "_SRCIMG")}
    assert Image.open(folder / "fullset/style_change/cn/key1.png").copy().size == (128, 64)
    source = Image.open(folder / "fullset/style_change/cn/key1_SRCIMG.png").copy()
    assert (np.asarray(source) == np.asarray(colour(1, 32))).all()
    generator = torch.Generator().manual_seed(stream_seed(0, 1))
    edit = UniWeTokEditPipeline.from_pipe(pipe)(colour(1, 128), PROMPTS[1], generator=[generator]).images[0]
    found = Image.open(folder / "fullset/style_change/cn/key1.png").copy()
    assert (np.asarray(found) == np.asarray(edit)).all()


def test_imgedit_names_are_keys(pipe, sets, tmp_path):
    (command,) = run("imgedit", pipe, sets, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out" / "images")) == ["1000.png", "1001.png", "1002.png"]
    assert f"--origin_img_root {Path(sets['imgedit']).parent}" in command


@pytest.mark.parametrize("name", BENCHMARKS)
def test_processes_and_interruptions_make_the_same_files(name, pipe, sets, tmp_path):
    run(name, pipe, sets, tmp_path / "alone")
    two, stop = tmp_path / "two", threading.Event()
    assert run(name, pipe, sets, two, processes=Turn(1, 2)) is None
    stop.set()
    with pytest.raises(Stopped, match="the same command continues from there"):
        run(name, pipe, sets, two, processes=Turn(0, 2), stop=stop)
    counted = []
    assert run(name, pipe, sets, two, processes=Turn(0, 2), on_images=counted.append)
    assert pictures_in(two) == pictures_in(tmp_path / "alone")
    again = []
    assert run(name, pipe, sets, two, on_images=again.append)  # nothing left to do
    assert sum(again) == 3 * BENCHMARKS[name].num_images > 0
    assert pictures_in(two) == pictures_in(tmp_path / "alone")


def test_batches_are_of_one_size(pipe, sets):
    files = BENCHMARKS["gedit"].read(sets["gedit"], None, 1)
    assert plan_batches(UniWeTokEditPipeline.from_pipe(pipe), files, 8) == [[0, 2], [1]]
    drawn = [BenchmarkFile(f"{index}.png", "x", 4) for index in range(5)]
    assert plan_batches(pipe, drawn, 8) == [[0, 1], [2, 3], [4]]
    assert plan_batches(pipe, drawn, 3) == [[0], [1], [2], [3], [4]]


def test_a_grid_goes_row_by_row():
    grid = np.asarray(make_grid([Image.new("RGB", (2, 1), (index, 0, 0)) for index in range(4)]))
    assert grid[:, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_a_dry_run(pipe, sets, tmp_path):
    run("geneval", pipe, sets, tmp_path / "out", limit=2, num_images=1)
    assert set(pictures_in(tmp_path / "out")) == {f"images/{number:05d}/samples/00000.png" for number in range(2)}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert (settings["limit"], settings["set"], settings["height"]) == (2, "ours", 64)
    assert settings["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", [name for name, one in BENCHMARKS.items() if one.official])
def test_other_prompts_are_another_benchmark(name, pipe, sets, tmp_path):
    with pytest.raises(ValueError, match="`prompts`: these 3 files are not those of .* `variant` names it"):
        run(name, pipe, sets, tmp_path / "out", variant=None)
    assert not (tmp_path / "out").exists()


def test_other_settings_are_another_folder(pipe, sets, tmp_path):
    run("wise", pipe, sets, tmp_path / "out")
    before = pictures_in(tmp_path)
    for options in ({"seed": 1}, {"guidance_scale": 3.0}, {"limit": 1}, {"variant": "theirs"}):
        with pytest.raises(ValueError, match=f"`{'prompts' if 'limit' in options else ''}.*was begun with"):
            run("wise", pipe, sets, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="`benchmark`: .* was begun with 'wise'"):
        run("dpg", pipe, sets, tmp_path / "out")
    assert pictures_in(tmp_path) == before


@pytest.mark.parametrize("name, path", [("geneval", "images/00000/samples/00000.png"), ("gedit", "tiny/x.png")])
def test_pictures_of_others_are_not_taken_for_its_own(name, path, pipe, sets, tmp_path):
    out = tmp_path / "out"
    (out / path).parent.mkdir(parents=True)
    colour(0).save(out / path)
    with pytest.raises(ValueError, match=f"holds {path.split('/')[0]}, but no settings.json .* name another folder"):
        run(name, pipe, sets, out)
    assert list(pictures_in(out)) == [path] and not (out / "settings.json").exists()


def test_half_of_a_surrogate_pair_in_the_settings(pipe, sets, tmp_path):
    """Of a path or an argument that is no UTF-8."""
    places = sets["wise"], os.fsdecode(b"runs/caf\xe9")
    options = {"variant": os.fsdecode(b"caf\xe9"), "limit": 1, "num_inference_steps": 1}
    for _ in range(2):  # begun, and gone on with
        assert run_benchmark(BENCHMARKS["wise"], pipe, tmp_path / "out", *places, **options)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert settings["set"] == options["variant"] and settings["model"] == places[1]


def test_defaults_of_the_pipeline_are_settings_too(pipe, sets, tmp_path):
    """A run goes on with what it was begun with, also where the second command names less than the first."""
    begun = {"image_guidance_scale": 9.0, "describe_first": True, "negative_prompt": "the same"}
    run("gedit", pipe, sets, tmp_path / "out", num_inference_steps=1, **begun)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert {name: settings[name] for name in begun} == begun and settings["shift"] == 1.0
    for left_out in begun:
        options = {name: value for name, value in begun.items() if name != left_out}
        with pytest.raises(ValueError, match=f"`{left_out}`: .* was begun with"):
            run("gedit", pipe, sets, tmp_path / "out", num_inference_steps=1, **options)
    for changed in ({"shift": 2.0}, {"temperature": 0.5}):
        other = UniWeTokPipeline.from_pipe(pipe, scheduler=BinaryFlowScheduler(**changed))
        other.set_progress_bar_config(disable=True)
        with pytest.raises(ValueError, match=f"`{[*changed][0]}`: .* was begun with 1.0"):
            run("gedit", other, sets, tmp_path / "out", num_inference_steps=1, **begun)


def test_what_the_judge_could_not_read_is_found(pipe, sets, tmp_path):
    run("wise", pipe, sets, tmp_path / "out")
    path = tmp_path / "out" / "images" / "450.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"450.png can't be read .*: remove it, and run the same command again"):
        run("wise", pipe, sets, tmp_path / "out")
    path.unlink()
    assert run("wise", pipe, sets, tmp_path / "out") and path.read_bytes() == whole
    colour(0).save(path.with_name("7.png"))
    with pytest.raises(ValueError, match=r"7.png is no picture of this benchmark"):
        run("wise", pipe, sets, tmp_path / "out")


def damage(sets, name: str, text: str) -> None:
    path = Path(sets[name])
    (path if path.is_file() else sorted(path.glob("*"))[0]).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("geneval", "", "is empty"),
        ("geneval", "{", "line 1 is no JSON"),
        ("geneval", '{"tag": "x", "prompt": 3, "include": []}', "line 1 has no `prompt`"),
        ("dpg", "  \n", "0.txt is empty"),
        ("wise", '{"Prompt": "x"}', "has no `prompt_id`"),
        ("imgedit", "[]", "must be an object of edits"),
        ("imgedit", '{"../x": {"id": "a.jpg", "prompt": "x", "edit_type": "add"}}', "can't be the name of a file"),
        ("imgedit", '{"x": {"id": "a.jpg", "prompt": "x", "edit_type": "add"}}', "the source of x.png can't be read"),
    ],
)
def test_damaged_prompts(name, text, message, pipe, sets, tmp_path):
    damage(sets, name, text)
    with pytest.raises(ValueError, match=message):
        run(name, pipe, sets, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_prompts_that_are_not_there(pipe, sets, tmp_path):
    for name in ("geneval", "dpg", "wise", "imgedit"):
        with pytest.raises(ValueError, match="`prompts`"):
            run(name, pipe, sets | {name: str(tmp_path / "nowhere")}, tmp_path / "out")
    with pytest.raises(ValueError, match="is not GEdit-Bench: it has no key, task_type"):
        rows = Dataset.from_list([{"input_image_raw": colour(0)}])
        rows.save_to_disk(tmp_path / "other")
        run("gedit", pipe, sets | {"gedit": str(tmp_path / "other")}, tmp_path / "out")


# --- what the judges write ---


def geneval_output(out: Path, right) -> Path:
    lines = []
    for number, (path, metadata) in enumerate(
        (path, json.loads((path.parents[1] / "metadata.jsonl").read_text(encoding="utf-8")))
        for path in sorted((out / "images").glob("*/samples/*.png"))
    ):
        row = {"filename": str(path), "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": right[number]}
        lines.append(json.dumps(row | {"reason": "", "metadata": json.dumps(metadata), "details": "{}"}))
    (out / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / "results.jsonl"


def test_geneval_scores_are_means_of_tasks(pipe, sets, tmp_path):
    run("geneval", pipe, sets, tmp_path / "out")
    output = geneval_output(tmp_path / "out", [True] * 4 + [True, False] * 2 + [False] * 4)
    report = collect_benchmark(BENCHMARKS["geneval"], tmp_path / "out", output)
    scores = {row.labels["of"]: row.scores["geneval"].value for row in report.rows}
    assert scores == {"overall": 0.5, "single_object": 1.0, "counting": 0.5, "two_object": 0.0}
    assert (report.model, report.split, report.protocol["num images"]) == ("someone/tiny", "ours", 4)
    assert "GenEval on GenEval, ours" not in report.model_index() and "GenEval" in report.model_index()
    lines = output.read_text(encoding="utf-8").splitlines()
    for kept, message in (
        (lines[1:], "lacks 1 of 12"),
        ([*lines, lines[0]], "more than once"),
        (["{"], "line 1 is no"),
    ):
        output.write_text("\n".join(kept), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            collect_benchmark(BENCHMARKS["geneval"], tmp_path / "out", output)


def test_dpg_scores(pipe, sets, tmp_path):
    run("dpg", pipe, sets, tmp_path / "out")
    output = tmp_path / "dpg-bench_results.txt"
    names = ("0", "drawbench_7", "partiprompts13")
    lines = [
        f"/a, b/{name}.png, 0.5, 1.0, 0.25, 0.25, {mean}" for name, mean in zip(names, (0.5, 1.0, 0.0), strict=True)
    ]
    summary = (
        "Model: x\nL1 category scores:\n\tentity: 50.0\n\tglobal: 75.5\nL2 category scores:\n\tentity - whole: 50.0\n"
    )
    output.write_text("\n".join(lines) + f"\n{summary}DPG-Bench score: 50.0\n", encoding="utf-8")
    report = collect_benchmark(BENCHMARKS["dpg"], tmp_path / "out", output)
    scores = {row.labels["of"]: row.scores["dpg"].value for row in report.rows}
    assert scores == {"overall": 0.5, "entity": 0.5, "global": 0.755}
    output.write_text("\n".join(lines[:2]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks 1 of 3 pictures, the first is partiprompts13.png"):
        collect_benchmark(BENCHMARKS["dpg"], tmp_path / "out", output)


def test_wise_scores_by_either_judge(pipe, sets, tmp_path):
    verified = {"wise": make_wise(tmp_path / "verified", "_verified")}
    run("wise", pipe, verified, tmp_path / "out")
    binary, parts = tmp_path / "scores.jsonl", tmp_path / "of_2025.jsonl"
    rows = [{"prompt_id": number, "score": score} for number, score in ((1, 1), (450, 0), (641, 1))]
    binary.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows = [{"prompt_id": n, "consistency": 2, "realism": 1, "aesthetic_quality": 0} for n in (1, 450, 641)]
    parts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    report = collect_benchmark(BENCHMARKS["wise"], tmp_path / "out", binary)
    scores = {row.labels["of"]: row.scores["wiscore"].value for row in report.rows}
    assert scores == {"culture": 1.0, "time": 0.0, "biology": 1.0}  # no overall of three categories
    with pytest.raises(ValueError, match=r"line 1 is by the judge of the prompts of 2025 .* are of WISE_Verified"):
        collect_benchmark(BENCHMARKS["wise"], tmp_path / "out", parts)

    run("wise", pipe, sets, tmp_path / "of_2025")
    report = collect_benchmark(BENCHMARKS["wise"], tmp_path / "of_2025", parts, judge="GPT-4o of May 2024")
    scores = {row.labels["of"]: row.scores["wiscore"].value for row in report.rows}
    assert scores == pytest.approx(dict.fromkeys(("culture", "time", "space"), (0.7 * 2 + 0.2) / 2))
    assert report.protocol["judge"] == "GPT-4o of May 2024"
    with pytest.raises(ValueError, match=r"line 1 is by the judge of WISE_Verified .* are of the prompts of 2025"):
        collect_benchmark(BENCHMARKS["wise"], tmp_path / "of_2025", binary)


@pytest.mark.parametrize("suffix, last", [("_verified", (400, 520, 640, 760, 880)), ("", (400, 567, 700, 800, 900))])
def test_the_overall_score_of_wise_is_weighted(tmp_path, suffix, last):
    """Points for culture and the last category alone; the next numbers, of other categories, have none."""
    prompts = make_wise(tmp_path / "prompts", suffix)
    files = [BenchmarkFile(f"{number}.png", "x") for number in range(1, 1001)]
    output, rows = tmp_path / "results", []
    output.mkdir()
    for number in range(1, 1001):
        right = number <= last[0] or number > last[-1]
        parts = dict.fromkeys(("consistency", "realism", "aesthetic_quality"), 2 * right)
        rows.append({"prompt_id": number} | ({"score": int(right)} if suffix else parts))
    for name, own in (("cultural_common_sense_scores", rows[:400]), ("spatio-temporal_reasoning", rows[400:])):
        (output / f"{name}_results.jsonl").write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    overall, *categories = BENCHMARKS["wise"].collect(output, files, prompts)
    assert overall.labels == {"of": "overall"}
    assert overall.scores["wiscore"].value == pytest.approx(0.4 + (0.12 if suffix else 0.1))
    firsts = (0, *last, 1000)
    counts = [row.scores["wiscore"].count for row in categories]
    assert counts == [after - before for before, after in zip(firsts, firsts[1:], strict=False)]
    assert [row.scores["wiscore"].value for row in categories] == pytest.approx([1, 0, 0, 0, 0, 1])


def test_gedit_scores_by_language(pipe, sets, tmp_path):
    run("gedit", pipe, sets, tmp_path / "out")
    output = tmp_path / "eval_results_new"
    output.mkdir()
    values = {"subject-add": [("en", "key0", 4, 9), ("en", "key2", 1, 4)], "style_change": [("cn", "key1", 10, 10)]}
    fields = ["source_image", "edited_image", "instruction", "sementics_score", "quality_score"]
    fields += ["intersection_exist", "instruction_language"]
    for task, rows in values.items():
        with open(output / f"tiny_{task}_gpt_score.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(fields)
            for language, key, semantics, quality in rows:
                path = f"/x/tiny/fullset/{task}/{language}/{key}.png"
                writer.writerow(["s", path, "do it", semantics, quality, True, language])
    (output / "tiny_combined_gpt_score.csv").write_text("not read", encoding="utf-8")
    report = collect_benchmark(BENCHMARKS["gedit"], tmp_path / "out", output)
    scores = {tuple(row.labels.values()): [score.value for score in row.scores.values()] for row in report.rows}
    assert scores == {
        ("en", "mean of the tasks"): [2.5, 6.5, 4.0],
        ("en", "subject-add"): [2.5, 6.5, 4.0],
        ("cn", "mean of the tasks"): [10.0, 10.0, 10.0],
        ("cn", "style_change"): [10.0, 10.0, 10.0],
    }
    (output / "tiny_style_change_gpt_score.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 pictures, the first is fullset/style_change/cn/key1.png"):
        collect_benchmark(BENCHMARKS["gedit"], tmp_path / "out", output)


def test_imgedit_scores_by_kind(pipe, sets, tmp_path):
    run("imgedit", pipe, sets, tmp_path / "out")
    output, text = tmp_path / "result.json", "Brief reasoning: fine.\nPrompt Compliance: {}\nVisual: {}\nDetail: 3\n"
    answers = {"1000": text.format(5, 4), "1001": text.format(1, 2), "1002": text.format(3, 3)}
    output.write_text(json.dumps(answers), encoding="utf-8")
    report = collect_benchmark(BENCHMARKS["imgedit"], tmp_path / "out", output)
    scores = {row.labels["of"]: row.scores["imgedit"].value for row in report.rows}
    assert scores == {"mean of the kinds": 2.75, "add": 3.5, "style": 2.0}
    output.write_text(json.dumps(answers | {"1001": {"error": "timeout"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="1001: the judge gave no score"):
        collect_benchmark(BENCHMARKS["imgedit"], tmp_path / "out", output)


def test_scores_of_another_run(pipe, sets, tmp_path):
    with pytest.raises(ValueError, match=r"is no folder of a benchmark: it has no settings.json"):
        collect_benchmark(BENCHMARKS["wise"], tmp_path, tmp_path / "scores.jsonl")
    run("wise", pipe, sets, tmp_path / "out")
    with pytest.raises(ValueError, match="is a run of 'wise', not of 'dpg'"):
        collect_benchmark(BENCHMARKS["dpg"], tmp_path / "out", tmp_path / "scores.txt")
    with pytest.raises(ValueError, match=r"the judge's output .*scores.jsonl: No such file"):
        collect_benchmark(BENCHMARKS["wise"], tmp_path / "out", tmp_path / "scores.jsonl")


def test_the_command_knows_the_benchmarks():
    assert list(NAMES) == list(BENCHMARKS)
    assert [name for name, one in BENCHMARKS.items() if one.is_editing] == list(EDITING)


def test_the_command(sets, tmp_path, capsys):
    """A dry run on the embedded model, and the scores of its judge."""
    out = tmp_path / "my results"
    command = ["benchmark", "geneval", "uniwetok-emoji", str(out)]
    assert main(command) == 1 and "--prompts is needed: evaluation_metadata.jsonl" in capsys.readouterr().err
    options = ["--prompts", sets["geneval"], "--limit", "1", "--num-images", "2", "--steps", "1"]
    assert main([*command, *options]) == 1
    assert "are not those of GenEval" in capsys.readouterr().err and not out.exists()
    assert main([*command, *options, "--variant", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "all pictures are there" in lines[0] and lines[1].startswith("python evaluation/evaluate_images.py")
    assert shlex.split(lines[2])[1:] == [*command, "--collect", "WHAT_IT_WROTE"]
    output = geneval_output(out, [True, False])
    assert main([*command, "--collect", str(output), "--judge", "GenEval of 2023"]) == 0
    assert "50.0%" in capsys.readouterr().out
    saved = json.loads((out / "scores" / "results.json").read_text(encoding="utf-8"))
    assert saved["protocol"]["judge"] == "GenEval of 2023" and saved["protocol"]["only the first prompts"] == 1
    assert not (out / "scores" / "model-index.yaml").exists()  # no score of a dry run gets on a card


def test_the_commit_of_a_pipeline_of_the_hub(pipe, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc123"
    pipe.save_pretrained(snapshot)
    assert revision_of(UniWeTokPipeline.from_pretrained(snapshot)) == "abc123"
    assert revision_of(load_pipeline(str(snapshot), "cpu")) == "abc123"
    assert revision_of(pipe) is None
