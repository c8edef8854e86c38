"""`uniwetok train`, end to end: stages by name, fields from the command line, errors of one line."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_training import VISION, log_lines

from uniwetok_hf.cli.main import main
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainingConfig


@pytest.fixture
def stage(fixtures, workplace):
    """`stage(name, **fields)`: a config file of a tiny training, into the folder `name`."""
    source = {"path": str(fixtures / "emoji")}

    def write(name, **fields):
        path = workplace / f"{name}.yaml"
        settings = {**VISION, "data": [source], "output_dir": name, "max_train_steps": 1, "logging_steps": 1}
        path.write_text(yaml.safe_dump(settings | fields))
        return path.name

    return write


def test_stages_one_after_the_other(uniwetok, succeeds, stage, photo):
    stages = [stage("first"), stage("second", init_from="first", model={}, buckets=[{"height": 16, "width": 16}])]
    result = uniwetok("train", "tokenizer", "--config", *stages, "--set", "entropy.weight=0.01", "--set", "seed=3")
    assert (result.code, result.out) == (0, ["first/model", "second/model"])
    (line, *_) = succeeds("reconstruct", photo, "--model", "second/model")
    assert line.startswith("photo.png: 100x70 pixels")
    # What is finished is not trained again.
    result = uniwetok("train", "tokenizer", "--config", *stages)
    assert (result.code, result.out) == (0, ["first/model is finished", "second/model is finished"])


@pytest.mark.filterwarnings("ignore:.*many times slower.*")  # bfloat16 on some processors
def test_stages_have_a_precision_each(uniwetok, stage, workplace):
    stages = [
        stage("first", mixed_precision="bf16"),
        stage("second", init_from="first", model={}, mixed_precision="no"),
    ]
    AcceleratorState._reset_state()  # a command is a process of its own
    assert uniwetok("train", "tokenizer", "--config", *stages).code == 0
    stage("alone", init_from="first", model={}, mixed_precision="no")
    assert uniwetok("train", "tokenizer", "--config", "alone.yaml").code == 0
    assert log_lines(workplace / "second") == log_lines(workplace / "alone")


def test_stages_meet_but_once(fails, stage):
    stages = [stage("first", process_timeout_minutes=5), stage("second", init_from="first", model={})]
    assert "one `process_timeout_minutes`" in fails("train", "tokenizer", "--config", *stages)


def test_trainings_that_cannot_be(fails, photo, stage, workplace):
    config = stage("vision", data=[{"path": "nowhere"}])

    def failing(*arguments):
        return fails("train", "tokenizer", "--config", *arguments)

    assert "missing.yaml: no such file; those that ship are " in failing("missing.yaml")
    assert "unknown field colour" in failing(config, "--set", "colour=red")
    assert "`max_train_steps` must be a whole number, got 'many'" in failing(config, "--set", "max_train_steps=many")
    assert "missing field adversarial" not in failing(config, "--set", "entropy.size=3")
    assert "unknown field entropy.size" in failing(config, "--set", "entropy.size=3")
    assert "nowhere" in failing(config)
    assert "--set seed=[ is no YAML: " in failing(config, "--set", "seed=[")
    assert "output_dir" in failing(config, stage("other"), "--set", "output_dir=here")
    (workplace / "broken.yaml").write_text("seed: [1")
    assert "broken.yaml" in failing("broken.yaml")
    assert failing(photo)
    assert (
        "holds the model of a finished training"
        in [failing(stage("done")) for _ in [(workplace / "done" / "model").mkdir(parents=True)]][0]
    )


def test_configs_that_ship_are_known_by_name(fails):
    fields = UniWeTokTrainingConfig.__dataclass_fields__
    message = fails("train", "tokenizer", "--config", "general_uniwetok_stage1", "--set", "colour=red")
    assert "unknown field colour" in message and all(field in message for field in fields)


def test_configs_that_moved_say_where(fails):
    assert "--config emoji_mllm: the recipe of the embedded model is examples/emoji" in fails(
        "train", "mllm", "--config", "emoji_mllm"
    )
    Path("mine.yaml").write_text("base: emoji_mllm\n")
    message = fails("train", "mllm", "--config", "mine.yaml")
    assert "`base` emoji_mllm: there is no such file" in message and "emoji_mllm_lora is now small_lora" in message


def test_a_config_of_the_other_training(fails):
    message = fails("train", "mllm", "--config", "small_uniwetok")
    assert message.endswith("small_uniwetok.yaml is a config of `uniwetok train tokenizer`")
    message = fails("train", "tokenizer", "--config", "small_mllm", "--set", "seed=1")
    assert message.endswith("small_mllm.yaml is a config of `uniwetok train mllm`")


@pytest.mark.parametrize("what", ["tokenizer", "mllm"])
def test_help_explains_every_field(what, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", what, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("shipped configs: ") and "general_uniwetok_stage1" in line for line in lines)
    explained = [line for line in lines if line.startswith("  ") and "): " in line and not line.endswith(": ")]
    assert len(explained) > 10
    assert any(line.startswith("  output_dir (text, required): ") for line in explained)


def test_both_trainings_make_a_pipeline_that_draws(uniwetok, succeeds, fixtures, stage, workplace):
    """The whole way, from pictures to a drawing."""
    assert uniwetok("train", "tokenizer", "--config", stage("vision")).code == 0
    data = fixtures / "emoji"
    encode = ("encode-dataset", data, "codes", "--model", "vision/model", "--size", 32)
    assert uniwetok(*encode).code == 0
    language = {
        "output_dir": "run",
        "vision_model": "vision/model",
        "resolution": 32,
        "data": [{"path": "codes", "task": "captions", "columns": {"text": "label"}}],
        "max_train_steps": 1,
        "batch_size": 2,
    }
    (workplace / "mllm.yaml").write_text(yaml.safe_dump(language | LANGUAGE))
    result = uniwetok("train", "mllm", "--config", "mllm.yaml")
    assert (result.code, result.out[-1]) == (0, "run/pipeline")
    succeeds("generate", "heart", "--model", "run/pipeline", "--output", "heart.png")
    assert Image.open("heart.png").copy().size == (32, 32)

    # And on to an adapter: the switch alone, and with fields of the section.
    fields = {"output_dir": "adapter", "init_from": "run", "data": language["data"], "max_train_steps": 1}
    (workplace / "lora.yaml").write_text(yaml.safe_dump(fields | {"batch_size": 2}))
    for folder, options in (("first", ["--lora"]), ("second", ["--lora", "--set", "lora.r=2"])):
        result = uniwetok("train", "mllm", "--config", "lora.yaml", "--set", f"output_dir={folder}", *options)
        assert (result.code, result.out[-1:]) == (0, [f"{folder}/adapter"]), result.err
    ranks = [json.loads(Path(name, "adapter", "adapter_config.json").read_text())["r"] for name in ("first", "second")]
    assert ranks == [16, 2]
    succeeds("generate", "heart", "--model", "run/pipeline", "--lora", "second/adapter:0.5", "--output", "heart.png")


LANGUAGE = {
    "vocab_size": 260,
    "num_size_tokens": 8,
    "num_inference_steps": 1,
    "text_model": {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 16,
    },
    "head": {"hidden_size": 16, "num_hidden_layers": 1, "num_modulation_layers": 1, "head_dim": 16},
}
