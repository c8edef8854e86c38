"""`uniwetok benchmark imagenet|reconstruction|zero-shot`, and the scores of several processes."""

import json
import shlex
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont
from tiny_judges import build_vit, random_inception
from tiny_training import build_siglip

from uniwetok_hf import UniWeTokModel
from uniwetok_hf.cli.benchmark_imagenet import TEMPLATES
from uniwetok_hf.cli.main import build_parser
from uniwetok_hf.evaluation.inception import InceptionFeatures
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.reconstruction import evaluate_reconstruction
from uniwetok_hf.evaluation.words import character_accuracy
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher


PRINTED = "Computing evaluations...\nInception Score: 120.5\nFID: 3.25\nsFID: 6e-1\nPrecision: 0.81\nRecall: 0.55\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def results(folder):
    values = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    return values, {
        tuple(row.get(name) for name in ("what", "size", "of")): row["scores"] for row in values["results"]
    }


def test_imagenet(succeeds, fails, class_folder, workplace):
    command = [
        "benchmark",
        "imagenet",
        class_folder,
        "out",
        "--num-images",
        6,
        "--steps",
        1,
        "--references",
        "real.npz",
    ]
    lines = succeeds(*command)
    out = workplace / "out"
    assert lines[0].startswith("out: all pictures are there")
    assert lines[1] == f"python evaluations/evaluator.py {workplace}/real.npz {out}/samples.npz > {out}/evaluator.txt"
    for line in lines:  # ours can be parsed
        if line.startswith("uniwetok "):
            build_parser().parse_args(shlex.split(line)[1:])
    Path("evaluator.txt").write_text(PRINTED)
    lines = succeeds(*command, "--collect", "evaluator.txt")
    (row,) = results("out/scores")[0]["results"]
    found = {name: score["value"] for name, score in row["scores"].items()}
    assert found == {"fid": 3.25, "sfid": 0.6, "inception_score": 120.5, "precision": 0.81, "recall": 0.55}
    assert row["scores"]["fid"]["count"] == 6 and not Path("out/scores/model-index.yaml").exists()  # a dry run
    assert {"- num inference steps: 1", "- shift: 1", "- temperature: 1"} <= set(lines)
    before = Path("out/scores/results.json").read_bytes()
    for text in (PRINTED.replace("FID: 3.25\n", ""), PRINTED + "FID: 3\n", PRINTED.replace("3.25", "nan")):
        Path("evaluator.txt").write_text(text)
        assert "lines of `FID: number`, not one: it is not ADM's" in fails(*command, "--collect", "evaluator.txt")
    assert "No such file" in fails(*command, "--collect", "absent.txt")
    settings = Path("out/settings.json")
    values = json.loads(settings.read_text()) | {"num_images": 50000}
    settings.write_text(json.dumps({name: value for name, value in values.items() if name != "shift"}))  # of before
    Path("evaluator.txt").write_text(PRINTED)
    assert not any("shift" in line for line in succeeds(*command, "--collect", "evaluator.txt"))
    assert "FID" in Path("out/scores/model-index.yaml").read_text()
    before = Path("out/scores/results.json").read_bytes()
    other = ["benchmark", "imagenet", class_folder, "empty", "--collect", "evaluator.txt"]
    assert "empty is no folder of `sample-classes`" in fails(*other)
    assert Path("out/scores/results.json").read_bytes() == before and not Path("empty").exists()


def test_reconstruction(succeeds, fails, pipeline_folder, workplace):
    pictures = [Image.new("RGB", (size, 96), (0, size, 0)) for size in (64, 96, 300)]
    Dataset.from_dict({"image": pictures, "kind": ["face", "face", "text"]}).to_parquet("data.parquet")
    command = ["benchmark", "reconstruction", pipeline_folder, "out", "--data", "data.parquet", "--split", "train"]
    succeeds(*command, "--by", "kind", "--limit", 3)
    values, rows = results("out")
    assert {key[1] for key in rows} == {"256x256", "native"} and ("model", "native", "face") in rows
    assert rows["model", "256x256", "all"]["psnr"]["count"] == 3 and values["task"] == "reconstruction"
    assert not Path("out/model-index.yaml").exists()  # of a dry run
    succeeds(*command)
    assert Path("out/model-index.yaml").exists()
    assert "no column words; they have image, kind" in fails(*command, "--text-column", "words")


def test_zero_shot(succeeds, make_vision_folder, tmp_path, workplace):
    folder = make_vision_folder().rename(tmp_path / "model")
    teacher = Teacher.from_pretrained(build_siglip(tmp_path / "siglip"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pools = PrePostDistillation(16, teacher.embedding_size, hidden_size=16, num_attention_heads=2)
    pools.save_pretrained(tmp_path / "losses" / "distillation")
    names = [f"class {number}" for number in range(11)]
    pictures = [Image.new("RGB", (64, 64), (20 * number, 0, 0)) for number in range(11)]
    Dataset.from_dict({"image": pictures, "label": names}).to_parquet("data.parquet")
    command = ["benchmark", "zero-shot", folder, "out", "--data", "data.parquet", "--split", "train", "--size", 64]
    succeeds(*command, "--teacher", tmp_path / "siglip")
    values, rows = results("out")
    assert set(rows["codes", None, None]) == {"top1", "top5", "top10"} and "probe" not in rows["latents", None, None]
    assert values["protocol"]["texts"] == f"11 classes of the split, {', '.join(TEMPLATES)}"


def written(text: str) -> Image.Image:
    picture = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(picture).text((12, 24), text, fill="black", font=ImageFont.load_default(32))
    return picture


class Signs:
    """Reads the upper left pixel: of a picture that begins white, its text."""

    def __call__(self, picture):
        return "hello" if min(picture.getpixel((0, 0))) > 250 else "help"

    def describe(self):
        return "signs"


def test_scores_of_texts(vision_folder):
    model = UniWeTokModel.from_pretrained(vision_folder)
    rows = [{"image": Image.new("RGB", (32, 32), "white"), "words": words} for words in (["hel", "lo"], None, "hello")]
    rows.append({"image": Image.new("RGB", (32, 32), "black"), "words": "hello"})
    report = evaluate_reconstruction(model, rows, text_column="words", text_reader=Signs())
    scores = {row.labels["what"]: row.scores.get("text") for row in report.rows}
    own = scores["the pictures themselves"]
    assert own.count == 3 and own.value == pytest.approx((1 + 1 + 3 / 5) / 3)  # "hello", "hello", "help"
    assert scores["all white"].value == 1 and scores["model"].count == 3
    assert report.protocol["text read back"].startswith("signs: 1 - edit distance")
    with pytest.raises(ValueError, match="`text_column` must hold texts or lists of them, got 7"):
        evaluate_reconstruction(model, [rows[0] | {"words": 7}], text_column="words", text_reader=Signs())
    with pytest.raises(ValueError, match="`text_column` and `text_reader` must be given together"):
        evaluate_reconstruction(model, rows, text_column="words")


def test_text_is_read_back(succeeds, vision_folder, workplace):
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    texts = ["hello world", "apples 42", None]
    pictures = [written(text or "nothing") for text in texts]
    Dataset.from_dict({"image": pictures, "words": texts}).to_parquet("data.parquet")
    command = ["evaluate", "reconstruction", "data.parquet", "--split", "train", "--model", vision_folder]
    succeeds(*command, "--text-column", "words", "--output", "out")
    values, rows = results("out")
    assert rows["the pictures themselves", "native", None]["text"]["value"] == 1
    assert rows["model", "native", None]["text"]["count"] == 2  # the third has no text
    assert rows["all white", "native", None]["text"]["value"] == 0
    assert values["protocol"]["text read back"].startswith("RapidOCR 3")


def test_characters_by_hand():
    assert character_accuracy("Hello  World", "helloworld") == 1
    assert character_accuracy("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert character_accuracy("", "abc") == 0 == character_accuracy("abc", "") and character_accuracy(" ", "") == 1


def test_without_the_reader(monkeypatch, fails, vision_folder, workplace):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    Dataset.from_dict({"image": [written("hi")], "words": ["hi"]}).to_parquet("data.parquet")
    command = ["evaluate", "reconstruction", "data.parquet", "--split", "train", "--model", vision_folder]
    assert "Reading text needs rapidocr: pip install" in fails(*command, "--text-column", "words")


def test_rfid_is_of_fids_network_only(vision_folder, tmp_path, workplace):
    model = UniWeTokModel.from_pretrained(vision_folder)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    rows = [{"image": Image.fromarray(picture)} for picture in pictures]
    names = []
    network = InceptionFeatures(random_inception(), "random")
    for features in (network, Judge.from_pretrained(build_vit(tmp_path / "vit"))):
        report = evaluate_reconstruction(model, rows, [32], feature_model=features)
        names.append({"rfid", "frechet"} & set(report.rows[0].scores))
    assert names == [{"rfid"}, {"frechet"}]
