"""`uniwetok evaluate`, end to end, on folders, files and functions, with tiny models."""

import io
import json
import re
import shlex
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from datasets import Dataset, load_from_disk
from markdown_blocks import blocks
from PIL import Image
from tiny_judges import build_clip, build_vit
from tiny_training import build_siglip

from uniwetok_hf.cli.main import build_parser, main
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.provenance import loss_model, training_record


PROTOCOLS = ("reconstruction", "latents", "generation", "editing", "captioning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it makes of Parquet files and folders for later: here, not in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(fixtures):
    """A folder of `save_to_disk`, with the columns style, label and others."""
    return fixtures / "emoji" / "pictures"


COLOURS = ("red", "green", "blue", "black", "white")


@pytest.fixture
def edits(workplace):
    """Edits as a Parquet file."""
    plain = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    table = {"source": plain[:4], "target": plain[1:], "instruction": [f"make it {c}" for c in COLOURS[1:]]}
    Dataset.from_dict(table | {"how": ["a", "a", "b", "b"]}).to_parquet("edits.parquet")
    return "edits.parquet"


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return build_clip(tmp_path_factory.mktemp("judges") / "clip")


def results(folder):
    values = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = {(row["what"], row.get("size"), row.get("of")): row["scores"] for row in values["results"]}
    return values, rows


def record(folder, *models):
    (folder / "training.json").write_text(json.dumps(training_record(models)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_help_of_a_protocol_teaches(capsys, protocol):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", protocol, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text.split("\n\n")[1].splitlines()) == 2
    examples = text.split("examples:\n")[1].splitlines()
    assert len(examples) == 2
    for example in examples:
        program, *argv = shlex.split(example)
        args = build_parser().parse_args(argv)
        assert program == "uniwetok" and args.kind == protocol and args.measure.__name__ == f"measure_{protocol}"


def test_reconstruction(succeeds, pictures, vision_folder, tmp_path, workplace):
    judge = build_vit(tmp_path / "vit")
    lines = succeeds(
        *("evaluate", "reconstruction", pictures, "--model", vision_folder, "--sizes", 32, "native", "--by", "style"),
        *("--features", judge, "--perceptual", judge, "--count", 5, "--output", "out"),
    )
    assert lines[0] == "## Reconstruction: tiny-vision on pictures, test"
    assert lines[-3:] == ["out/results.json", "out/results.md", "out/model-index.yaml"]
    assert (workplace / "out" / "results.md").read_text(encoding="utf-8").splitlines() == lines[:-4]
    values, rows = results(workplace / "out")
    assert set(rows["model", "32x32", "all"]) == {"psnr", "ssim", "perceptual", "frechet"}
    assert rows["model", "native", "all"]["psnr"]["count"] == 5
    assert values["facts"]["codes at native"]["bytes_per_picture"] == 8  # 4 tokens of 16 bits
    assert values["protocol"]["did training losses see them"].startswith("not known")
    assert "all channels alike" in values["protocol"]["perceptual distance"]
    assert values["protocol"]["rows"] == "5, chosen with seed 0"
    (index,) = yaml.safe_load((workplace / "out" / "model-index.yaml").read_text())["model-index"]
    names = {metric["name"] for result in index["results"] for metric in result["metrics"]}
    assert "PSNR dB (32x32)" in names and "PSNR dB (native)" in names


def test_reconstruction_of_a_folder_of_pictures_with_a_broken_one(uniwetok, vision_folder, make_picture, workplace):
    (workplace / "data").mkdir()
    for seed in range(3):
        make_picture(f"data/{seed}.png", 40, 50, seed)
    (workplace / "data" / "broken.png").write_bytes(b"no picture")
    result = uniwetok("evaluate", "reconstruction", "data", "--split", "train", "--model", vision_folder)
    assert result.code == 0
    (warning,) = result.err
    assert warning.startswith("uniwetok: warning: 1 rows or pictures can't be used and are left out; the first: ")
    values, rows = results(workplace / "results" / "reconstruction")
    assert values["protocol"]["rows and pictures left out"] == 1 and values["data"] == "data"
    assert rows["model", "native", None]["psnr"]["count"] == 3


def test_photographs(succeeds, vision_folder, workplace):
    succeeds("evaluate", "reconstruction", "--photographs", "--sizes", 32, "--model", vision_folder, "--output", "out")
    values, rows = results(workplace / "out")
    assert values["data"] == "photographs" and rows["model", "32x32", "astronaut"]["psnr"]["count"] == 1


def test_a_network_of_the_training_is_told(uniwetok, pictures, make_vision_folder, tmp_path, workplace):
    folder, judge = make_vision_folder(), build_vit(tmp_path / "vit")
    from transformers import AutoModel

    record(folder, loss_model("perceptual", AutoModel.from_pretrained(judge)))
    result = uniwetok(
        *("evaluate", "reconstruction", pictures, "--model", folder, "--count", 2, "--sizes", 32),
        *("--features", judge, "--output", "out"),
    )
    assert result.code == 0 and "trained against vit (perceptual)" in result.err[0]
    assert results(workplace / "out")[0]["protocol"]["did training losses see them"] == "yes, it is vit (perceptual)"


def test_latents(uniwetok, succeeds, pictures, make_vision_folder, tmp_path, workplace):
    # The layout of a training: `model`, and beside it `losses/distillation`.
    folder = make_vision_folder().rename(tmp_path / "model")
    teacher = Teacher.from_pretrained(build_siglip(tmp_path / "siglip"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pools = PrePostDistillation(16, teacher.embedding_size, hidden_size=16, num_attention_heads=2)
    pools.save_pretrained(tmp_path / "losses" / "distillation")
    record(folder, loss_model("teacher", teacher, "siglip"))
    command = ["evaluate", "latents", pictures, "--label", "style", "--size", 64, "--model", folder, "--output", "out"]
    succeeds(*command, "--teacher", tmp_path / "siglip", "--template", "a {label} emoji", "--template", "{label}")
    values, rows = results(workplace / "out")
    assert set(rows["latents", None, None]) == {"top1", "probe"} == set(rows["teacher", None, None])
    assert rows["codes", None, None]["top1"]["chance"] == pytest.approx(1 / 3)
    assert rows["8x8 pixels", None, None]["probe"]["count"] == rows["codes", None, None]["top1"]["count"] > 5
    assert "3 classes" in values["protocol"]["texts"]
    # Without a teacher there is the probe alone, and another teacher is no teacher of this model.
    succeeds(*command, "--count", 12)
    assert set(results(workplace / "out")[1]["codes", None, None]) == {"probe"}
    other = build_clip(tmp_path / "clip")
    result = uniwetok(*command, "--teacher", other)
    assert result.code == 1 and "is not the teacher of this model, which training.json calls siglip" in result.err[0]


def test_generation(succeeds, pictures, pipeline_folder, clip, workplace):
    command = ["evaluate", "generation", pictures, "--split", "train", "--model", pipeline_folder, "--count", 6]
    command += ["--prompt", "a {style} emoji of {label}", "--within", "style"]
    lines = succeeds(*command, "--rivals", 3, "--steps", 1, "--judge", clip, "--output", "out")
    values, rows = results(workplace / "out")
    assert set(rows["model", None, None]) == {
        *("nearest_by_pixels", "nearest_by_judge", "r_precision", "frechet", "precision", "recall")
    }
    assert rows["other real", None, None]["frechet"]["count"] == 6  # as many as were drawn
    assert values["protocol"]["prompts"].startswith("6, such as: a ") and " emoji of " in values["protocol"]["prompts"]
    assert values["protocol"]["judge"].startswith("clip (CLIPModel, weights ")
    assert values["protocol"]["rows"] == "every second of 12, chosen with seed 0"
    assert values["protocol"]["diffusion steps per patch"] == 1 and values["protocol"]["guidance scale"] == 2
    assert values["protocol"]["rivals"] == "up to 3 others of the same style"
    assert any(re.match(r"\| model \|.*chance", line) for line in lines)


def test_generation_from_other_data_without_a_judge(succeeds, fails, pictures, pipeline_folder, workplace):
    rows = load_from_disk(str(pictures))["test"].select(range(5))
    Dataset.from_dict({"picture": rows["image"], "text": [[label, "x"] for label in rows["label"]]}).to_parquet(
        "captions.parquet"
    )
    command = ["evaluate", "generation", "captions.parquet", "--split", "train", "--model", pipeline_folder]
    succeeds(*command, "--image-column", "picture", "--steps", 1, "--output", "out")
    values, rows = results(workplace / "out")
    assert set(rows) == {("model", None, None), ("real, through the codes", None, None)}
    assert rows["model", None, None]["nearest_by_pixels"]["count"] == 5 and values["protocol"]["rows"] == "all"
    error = fails(*command, "--image-column", "picture", "--prompt", "{label}")
    assert "no column label; they have picture, text" in error
    assert "`prompt` '{label' is no template" in fails(*command, "--image-column", "picture", "--prompt", "{label")


def test_the_teacher_is_no_judge(fails, pictures, edits, clip, make_pipeline_with_record):
    folder = make_pipeline_with_record(clip)
    command = ["evaluate", "generation", pictures, "--prompt", "{label}", "--model", folder, "--count", 3]
    for option in ("--judge", "--features"):
        error = fails(*command, option, clip)
        assert "clip has the weights of clip, the teacher that this model was trained with" in error
    assert "has the weights of" in fails(
        "evaluate", "editing", edits, "--split", "train", "--model", folder, "--count", 2, "--judge", clip
    )


@pytest.fixture
def make_pipeline_with_record(pipeline_folder, tmp_path):
    def make(judge):
        import shutil

        from transformers import AutoModel

        folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
        record(folder, loss_model("teacher", AutoModel.from_pretrained(judge), judge))
        return folder

    return make


def test_editing(succeeds, edits, pipeline_folder, clip, workplace):
    command = ["evaluate", "editing", edits, "--split", "train", "--by", "how", "--model", pipeline_folder]
    command += ["--count", 4, "--steps", 1, "--rivals", 2, "--judge", clip]
    succeeds(*command, "--output", "out")
    _, rows = results(workplace / "out")
    assert {key[0] for key in rows} == {
        "model", "copy of the source", "words alone", "targets, through the codes"
    }  # fmt: skip
    assert {key[2] for key in rows} == {"all", "a", "b"}
    everything = rows["model", None, "all"]
    assert set(everything) == {"psnr_to_target", "nearest_by_pixels", "nearest_by_judge"}
    assert everything["nearest_by_judge"]["chance"] == pytest.approx(0.25)
    assert rows["model", None, "a"]["nearest_by_pixels"]["count"] == 2
    assert rows["copy of the source", None, "all"]["nearest_by_pixels"]["value"] == 0
    # The picture's weight changes the edits of the model, and nothing else.
    succeeds(*command, "--output", "apart", "--guidance-scale", 4, "--image-guidance-scale", 1)
    succeeds(*command, "--output", "plain", "--guidance-scale", 4)
    (values, apart), (plain_values, plain) = (results(workplace / name) for name in ("apart", "plain"))
    assert values["protocol"]["guidance scale"] == 4 and values["protocol"]["image guidance scale"] == 1
    assert values["protocol"]["negative prompt"] == "none"
    assert "image guidance scale" not in plain_values["protocol"]
    assert {key[0] for key in apart if apart[key] != plain[key]} == {"model"}
    # So does a description of the result that is generated first.
    succeeds(*command, "--output", "said", "--guidance-scale", 4, "--describe-first")
    said_values, said = results(workplace / "said")
    assert said_values["protocol"]["edits described first"] == "yes"
    assert plain_values["protocol"]["edits described first"] == "no"
    assert {key[0] for key in said if said[key] != plain[key]} == {"model"}


def test_editing_of_several_sizes_with_wrong_results_of_some_rows(uniwetok, pipeline_folder, workplace):
    def png(colour, *size):
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    sizes, broken = [(64, 64), (128, 64), (64, 64)], {"bytes": b"no picture", "path": None}
    rows = {
        "source": [png("red", *size) for size in sizes],
        "target": [png("blue", *size) for size in sizes],
        "instruction": ["a", "b", "c"],
        "others": [None, None, [png("white", 64, 64), broken]],
    }
    features = {name: datasets.Image() for name in ("source", "target")} | {"instruction": datasets.Value("string")}
    features = datasets.Features(features | {"others": datasets.List(datasets.Image())})
    Dataset.from_dict(rows, features=features).to_parquet("edits.parquet")
    command = ["evaluate", "editing", "edits.parquet", "--split", "train", "--steps", 1, "--output", "out"]
    result = uniwetok(*command, "--model", pipeline_folder)
    assert result.code == 0
    (warning,) = result.err
    assert "1 rows or pictures can't be used" in warning and "others[1] of row 2: not a picture" in warning
    values, rows = results(workplace / "out")
    assert values["protocol"]["rows and pictures left out"] == 1
    nearest = rows["model", None, None]["nearest_by_pixels"]
    assert nearest["count"] == 3 and nearest["chance"] == pytest.approx(1 / 3)  # target, source and one other each


def test_editing_has_no_column_of_pictures_to_choose(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "editing", "edits.parquet", "--image-column", "picture"])
    assert "unrecognized arguments: --image-column picture" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("`prompts` is too long"), IndexError("a bug")], ids=["input", "bug"])
def test_wrong_input_is_one_line_and_a_bug_keeps_its_traceback(uniwetok, edits, pipeline_folder, monkeypatch, error):
    from uniwetok_hf.evaluation import editing

    def broken(*args, **options):
        raise error

    monkeypatch.setattr(editing, "edit_pairs", broken)
    result = uniwetok("evaluate", "editing", edits, "--split", "train", "--model", pipeline_folder)
    assert result.code == 1
    if isinstance(error, ValueError):
        assert result.err == ["uniwetok: error: `prompts` is too long"]
    else:
        assert result.err[0].startswith("Traceback") and "IndexError: a bug" in result.err[-2]


def test_the_model_is_found_once(succeeds, pictures, pipeline_folder, clip, monkeypatch):
    from uniwetok_hf.cli import loading

    looked_at, kind_of = [], loading._kind_of
    monkeypatch.setattr(loading, "_kind_of", lambda folder, *rest: looked_at.append(folder) or kind_of(folder, *rest))
    succeeds(
        *("evaluate", "generation", pictures, "--prompt", "{label}", "--model", pipeline_folder, "--count", 2),
        *("--steps", 1, "--rivals", 1, "--judge", clip, "--features", clip),
    )
    assert looked_at == [pipeline_folder]


def test_data_of_a_users_own_function(succeeds, fails, pipeline_folder, make_picture, workplace):
    """The example of docs/evaluation.md."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = [code for language, code in blocks(page) if language == "python" and code.startswith("# edits.py")]
    (workplace / "edits.py").write_text(code)
    (workplace / "test").mkdir()
    for seed, name in enumerate(("apple", "hand")):
        make_picture(f"test/{name}.png", 64, 64, seed)
    command = ["evaluate", "editing", "--model", pipeline_folder, "--steps", 1]
    succeeds(*command, "edits.py:load_edits", "--by", "kind", "--output", "out")
    values, rows = results(workplace / "out")
    assert values["data"] == "edits.py:load_edits" and values["split"] == "test"
    nearest = rows["model", None, "colour"]["nearest_by_pixels"]
    assert nearest["count"] == 2 and nearest["chance"] == pytest.approx(1 / 3)  # target, source and `others`
    assert "no column when; they have source, instruction" in fails(*command, "edits.py:load_edits", "--by", "when")
    assert "defines no nothing; it defines load_edits" in fails(*command, "edits.py:nothing")


def test_captioning(succeeds, fails, pipeline_folder, workplace):
    command = ["evaluate", "captioning", "--split", "train", "--model", pipeline_folder, "--max-new-tokens", 3]
    command += ["--output", "out"]
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    table = {"image": plain, "question": ["colour?", "colour?"], "answer": ["red", "blue"], "kind": ["a", "b"]}
    Dataset.from_dict(table).to_parquet("questions.parquet")
    succeeds(*command, "questions.parquet")
    _, rows = results(workplace / "out")
    assert rows["model", None, None]["exact_match"]["chance"] == 0.5
    succeeds(*command, "questions.parquet", "--by", "kind")
    _, rows = results(workplace / "out")
    assert {key[2] for key in rows} == {"all", "a", "b"} and rows["model", None, "a"]["exact_match"]["chance"] == 1
    Dataset.from_dict({"image": plain}).to_parquet("pictures.parquet")
    assert "no column question, answer; they have image" in fails(*command, "pictures.parquet")


def test_what_can_not_be_measured(fails, pictures, edits, vision_folder, pipeline_folder, photo, tmp_path):
    vision = ["--model", vision_folder]
    assert "give either DATA or --photographs" in fails("evaluate", "reconstruction", *vision)
    assert "multiple of the model's 32 pixels, got 48" in fails(
        "evaluate", "reconstruction", pictures, "--sizes", 48, "--count", 1, *vision
    )
    assert "'nothing' is not in" in fails("evaluate", "reconstruction", pictures, "--split", "nothing", *vision)
    assert "nowhere" in fails("evaluate", "reconstruction", tmp_path / "nowhere", *vision)
    assert "is a file, not a folder" in fails("evaluate", "reconstruction", pictures, "--output", photo, *vision)
    assert "no column colour" in fails("evaluate", "latents", pictures, "--label", "colour", "--size", 32, *vision)
    assert "of no use without --teacher" in fails(
        "evaluate", "latents", pictures, "--label", "style", "--size", 32, "--pools", tmp_path, *vision
    )
    assert "nothing to measure" in fails(
        "evaluate", "latents", pictures, "--label", "style", "--size", 32, "--no-probe", "--count", 2, *vision
    )
    generation = ["evaluate", "generation", pictures, "--prompt", "{label}", "--count", 2]
    assert "but this command needs a pipeline folder" in fails(*generation, *vision)
    error = fails(*generation, "--judge", tmp_path, "--model", pipeline_folder)
    assert "`judge`" in error and "can't be loaded" in error
    error = fails("evaluate", "editing", edits, "--split", "nothing", "--model", pipeline_folder)
    assert "`split` 'nothing' is not in edits.parquet; there is train" in error
    latents = ["evaluate", "latents", pictures, "--label", "style", "--count", 4, *vision]
    assert "--split and --train-split are both train" in fails(*latents, "--size", 32, "--split", "train")
    assert "multiple of the model's 32 pixels, got 48" in fails(*latents, "--size", 48)
    blind = build_vit(tmp_path / "vit")
    error = fails(*generation, "--judge", blind, "--model", pipeline_folder)
    assert "reads no texts" in error


def test_missing_extras_are_named(fails, pictures, monkeypatch):
    from uniwetok_hf.cli import evaluate

    monkeypatch.setattr(evaluate, "find_spec", lambda name: None if name == "skimage" else True)
    assert 'evaluate needs scikit-image: pip install "uniwetok-hf[eval]"' in fails(
        "evaluate", "reconstruction", pictures
    )
