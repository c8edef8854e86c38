"""`uniwetok evaluate`, end to end, on the emoji fixture and on files of other kinds, with tiny models."""

import json
import re
import shlex

import datasets
import pytest
import torch
import yaml
from datasets import Dataset, load_from_disk
from PIL import Image
from tiny_judges import build_clip, build_vit
from tiny_training import build_siglip

from uniwetok_hf.cli.main import build_parser, main
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.provenance import loss_model, training_record


PROTOCOLS = ("reconstruction", "latents", "generation", "editing", "captioning", "emoji")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it makes of Parquet files and folders for later: here, not in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def emoji(fixtures):
    return fixtures / "emoji"


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
        assert program == "uniwetok" and args.kind == args.measure.__name__ == protocol


def test_reconstruction(succeeds, emoji, vision_folder, tmp_path, workplace):
    judge = build_vit(tmp_path / "vit")
    lines = succeeds(
        *("evaluate", "reconstruction", emoji, "--model", vision_folder, "--sizes", 32, "native", "--by", "style"),
        *("--features", judge, "--perceptual", judge, "--count", 5, "--output", "out"),
    )
    assert lines[0] == "## Reconstruction: tiny-vision on emoji, test"
    assert lines[-3:] == ["out/results.json", "out/results.md", "out/model-index.yaml"]
    assert (workplace / "out" / "results.md").read_text(encoding="utf-8").splitlines() == lines[:-4]
    values, rows = results(workplace / "out")
    assert set(rows["model", "32x32", "all"]) == {"psnr", "ssim", "perceptual", "frechet"}
    assert rows["model", "native", "all"]["psnr"]["count"] == 5
    assert values["facts"]["codes at native"]["bytes_per_picture"] == 8  # 4 tokens of 16 bits
    assert values["protocol"]["did training losses see them"].startswith("not known")
    assert "weights 1" in values["protocol"]["perceptual distance"]
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
    assert warning.startswith("uniwetok: warning: 1 pictures could not be read and are left out; the first: ")
    values, rows = results(workplace / "results" / "reconstruction")
    assert values["protocol"]["pictures that could not be read"] == 1 and values["data"] == "data"
    assert rows["model", "native", None]["psnr"]["count"] == 3


def test_photographs(succeeds, vision_folder, workplace):
    succeeds("evaluate", "reconstruction", "--photographs", "--sizes", 32, "--model", vision_folder, "--output", "out")
    values, rows = results(workplace / "out")
    assert values["data"] == "photographs" and rows["model", "32x32", "astronaut"]["psnr"]["count"] == 1


def test_a_network_of_the_training_is_told(uniwetok, emoji, make_vision_folder, tmp_path, workplace):
    folder, judge = make_vision_folder(), build_vit(tmp_path / "vit")
    from transformers import AutoModel

    record(folder, loss_model("perceptual", AutoModel.from_pretrained(judge)))
    result = uniwetok(
        *("evaluate", "reconstruction", emoji, "--model", folder, "--count", 2, "--sizes", 32),
        *("--features", judge, "--output", "out"),
    )
    assert result.code == 0 and "trained against vit (perceptual)" in result.err[0]
    assert results(workplace / "out")[0]["protocol"]["did training losses see them"] == "yes, it is vit (perceptual)"


def test_latents(uniwetok, succeeds, emoji, make_vision_folder, tmp_path, workplace):
    # The layout of a training: `model`, and beside it `losses/distillation`.
    folder = make_vision_folder().rename(tmp_path / "model")
    teacher = Teacher.from_pretrained(build_siglip(tmp_path / "siglip"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pools = PrePostDistillation(16, teacher.embedding_size, hidden_size=16, num_attention_heads=2)
    pools.save_pretrained(tmp_path / "losses" / "distillation")
    record(folder, loss_model("teacher", teacher, "siglip"))
    command = ["evaluate", "latents", emoji, "--label", "style", "--size", 64, "--model", folder, "--output", "out"]
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


def test_generation(succeeds, emoji, pipeline_folder, clip, workplace):
    command = ["evaluate", "generation", emoji, "--split", "train", "--model", pipeline_folder, "--count", 6]
    lines = succeeds(*command, "--rivals", 3, "--steps", 1, "--judge", clip, "--output", "out")
    values, rows = results(workplace / "out")
    assert set(rows["model", None, None]) == {
        *("nearest_by_pixels", "nearest_by_judge", "r_precision", "frechet", "precision", "recall")
    }
    assert rows["other real", None, None]["frechet"]["count"] == 6  # as many as were drawn
    assert values["protocol"]["prompts"].startswith("6, such as: a ") and " emoji of " in values["protocol"]["prompts"]
    assert values["protocol"]["judge"].startswith("clip (CLIPModel, weights ")
    assert values["protocol"]["diffusion steps a patch"] == 1 and values["protocol"]["guidance scale"] == 2
    assert values["protocol"]["rivals"] == "up to 3 others of the same style"
    assert any(re.match(r"\| model \|.*chance", line) for line in lines)


def test_generation_from_other_data_without_a_judge(succeeds, fails, emoji, pipeline_folder, workplace):
    rows = load_from_disk(str(emoji / "pictures"))["test"].select(range(5))
    Dataset.from_dict({"picture": rows["image"], "text": [[label, "x"] for label in rows["label"]]}).to_parquet(
        "captions.parquet"
    )
    command = ["evaluate", "generation", "captions.parquet", "--split", "train", "--model", pipeline_folder]
    succeeds(*command, "--image-column", "picture", "--steps", 1, "--output", "out")
    values, rows = results(workplace / "out")
    assert set(rows) == {("model", None, None), ("real, through the codes", None, None)}
    assert rows["model", None, None]["nearest_by_pixels"]["count"] == 5
    assert "needs the column 'label'" in fails(*command, "--image-column", "picture", "--prompt", "{label}")


def test_the_teacher_is_no_judge(fails, emoji, clip, make_pipeline_with_record):
    folder = make_pipeline_with_record(clip)
    for option in ("--judge", "--features"):
        error = fails("evaluate", "generation", emoji, "--model", folder, "--count", 3, option, clip)
        assert "clip has the weights of clip, the teacher that this model was trained with" in error
    assert "has the weights of" in fails(
        "evaluate", "editing", emoji, "--model", folder, "--count", 2, "--judge", clip
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


def test_editing(succeeds, emoji, pipeline_folder, clip, workplace):
    command = ["evaluate", "editing", emoji, "--model", pipeline_folder, "--count", 4, "--steps", 1, "--rivals", 2]
    succeeds(*command, "--judge", clip, "--output", "out")
    _, rows = results(workplace / "out")
    assert {key[0] for key in rows} == {"model", "copy of the source", "words alone"}
    everything = next(scores for key, scores in rows.items() if key[0] == "model")
    assert set(everything) == {"psnr_to_target", "nearest_by_pixels", "nearest_by_judge"}
    assert everything["nearest_by_judge"]["chance"] == pytest.approx(0.25)
    # The picture's weight changes the edits of the model, and nothing else.
    succeeds(*command, "--judge", clip, "--output", "apart", "--guidance-scale", 4, "--image-guidance-scale", 1)
    succeeds(*command, "--judge", clip, "--output", "plain", "--guidance-scale", 4)
    (values, apart), (plain_values, plain) = (results(workplace / name) for name in ("apart", "plain"))
    assert values["protocol"]["guidance scale"] == 4 and values["protocol"]["image guidance scale"] == 1
    assert values["protocol"]["negative prompt"] == "none"
    assert "image guidance scale" not in plain_values["protocol"]
    assert {key[0] for key in apart if apart[key] != plain[key]} == {"model"}
    # So do words that come before them.
    succeeds(*command, "--judge", clip, "--output", "said", "--guidance-scale", 4, "--describe-first")
    said_values, said = results(workplace / "said")
    assert said_values["protocol"]["edits described first"] == "yes"
    assert plain_values["protocol"]["edits described first"] == "no"
    assert {key[0] for key in said if said[key] != plain[key]} == {"model"}
    # A split whose sources lie in others.
    succeeds(*command, "--split", "test_combinations", "--output", "combinations")


def test_editing_of_other_data(succeeds, pipeline_folder, workplace):
    colours = ["red", "green", "blue", "black"]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in colours]
    table = {"source": pictures[:3], "target": pictures[1:], "instruction": [f"make it {c}" for c in colours[1:]]}
    Dataset.from_dict(table | {"how": ["a", "a", "b"]}).to_parquet("edits.parquet")
    succeeds(
        *("evaluate", "editing", "edits.parquet", "--split", "train", "--by", "how", "--steps", 1),
        *("--model", pipeline_folder, "--output", "out"),
    )
    _, rows = results(workplace / "out")
    assert rows["model", None, "a"]["nearest_by_pixels"]["count"] == 2
    assert rows["copy of the source", None, "all"]["nearest_by_pixels"]["value"] == 0


def test_captioning(succeeds, fails, emoji, pipeline_folder, workplace):
    command = ["evaluate", "captioning", "--model", pipeline_folder, "--max-new-tokens", 3, "--output", "out"]
    succeeds(*command, emoji, "--count", 4)
    _, rows = results(workplace / "out")
    assert {"name", "style", "group", "all"} <= {key[2] for key in rows}
    assert rows["model", None, "style"]["exact_match"]["count"] == 4
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    table = {"image": pictures, "question": ["colour?", "colour?"], "answer": ["red", "blue"]}
    Dataset.from_dict(table).to_parquet("questions.parquet")
    succeeds(*command, "questions.parquet", "--split", "train")
    _, rows = results(workplace / "out")
    assert rows["model", None, None]["exact_match"]["chance"] == 0.5
    Dataset.from_dict({"image": pictures}).to_parquet("pictures.parquet")
    assert "no column question, answer; they have image" in fails(*command, "pictures.parquet", "--split", "train")


def test_emoji(succeeds, fails, emoji, pipeline_folder, make_pipeline_with_record, clip, workplace):
    command = ["evaluate", "emoji", emoji, "--count", 3, "--steps", 1, "--output", "out"]
    succeeds(*command, "--model", pipeline_folder, "--judge", clip)
    values, rows = results(workplace / "out")
    assert values["split"] == "test_combinations"
    assert rows["model", None, "drawings"]["r_precision"]["count"] == 4  # two rows, asked for in two ways
    assert {("model", None, "names"), ("judge, real", None, "names"), ("real", None, "drawings")} <= set(rows)
    assert any(key[2].startswith("edits") for key in rows)
    assert "is no folder of `uniwetok data emoji`" in fails(
        "evaluate", "emoji", workplace, "--judge", clip, "--model", pipeline_folder
    )
    taught = make_pipeline_with_record(clip)
    assert "has the weights of clip, the teacher" in fails(*command, "--model", taught, "--judge", clip)


def test_what_can_not_be_measured(fails, emoji, vision_folder, pipeline_folder, photo, tmp_path):
    vision = ["--model", vision_folder]
    assert "give either DATA or --photographs" in fails("evaluate", "reconstruction", *vision)
    assert "multiple of the model's 32 pixels, got 48" in fails(
        "evaluate", "reconstruction", emoji, "--sizes", 48, "--count", 1, *vision
    )
    assert "'nothing' is not in" in fails("evaluate", "reconstruction", emoji, "--split", "nothing", *vision)
    assert "nowhere" in fails("evaluate", "reconstruction", tmp_path / "nowhere", *vision)
    assert "is a file, not a folder" in fails("evaluate", "reconstruction", emoji, "--output", photo, *vision)
    assert "no column colour" in fails("evaluate", "latents", emoji, "--label", "colour", "--size", 32, *vision)
    assert "of no use without --teacher" in fails(
        "evaluate", "latents", emoji, "--label", "style", "--size", 32, "--pools", tmp_path, *vision
    )
    assert "nothing to measure" in fails(
        "evaluate", "latents", emoji, "--label", "style", "--size", 32, "--no-probe", "--count", 2, *vision
    )
    assert "but this command needs a pipeline folder" in fails("evaluate", "generation", emoji, "--count", 2, *vision)
    error = fails("evaluate", "generation", emoji, "--count", 2, "--judge", tmp_path, "--model", pipeline_folder)
    assert "`judge`" in error and "can't be loaded" in error
    error = fails("evaluate", "editing", emoji, "--split", "nothing", "--model", pipeline_folder)
    assert "--split nothing" in error and "train, validation, test" in error
    blind = build_vit(tmp_path / "vit")
    error = fails("evaluate", "generation", emoji, "--count", 2, "--judge", blind, "--model", pipeline_folder)
    assert "reads no texts" in error


def test_missing_extras_are_named(fails, emoji, monkeypatch):
    from uniwetok_hf.cli import evaluating

    monkeypatch.setattr(evaluating, "find_spec", lambda name: None if name == "skimage" else True)
    assert 'evaluate needs scikit-image: pip install "uniwetok-hf[eval]"' in fails("evaluate", "reconstruction", emoji)
