"""What `run.sh` names is there: scripts with help, configs that can be read and follow each other."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import emoji_data
import emoji_tasks
import pytest
from train_siglip import SiglipTrainingConfig

from uniwetok_hf.training.config import find_config, read_config
from uniwetok_hf.training.settings_class_to_image import ClassToImageTrainingConfig
from uniwetok_hf.training.train_mllm import MLLMTrainingConfig
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainingConfig


RECIPE = Path(__file__).parent.parent
SCRIPT = (RECIPE / "run.sh").read_text(encoding="utf-8")
SCRIPTS = ["emoji_data", "faces_and_text", "photographs", "train_siglip", "evaluate_emoji", "evaluate_concepts"]


def test_the_script_is_bash_and_names_what_is_there():
    assert subprocess.run(["bash", "-n", str(RECIPE / "run.sh")]).returncode == 0
    named = re.findall(r"\$here/(\w+\.\w+)", SCRIPT)
    assert len(named) == 7 and all((RECIPE / name).is_file() for name in named)


def test_stages_follow_each_other():
    teacher, judge = (read_config(SiglipTrainingConfig, RECIPE / f"emoji_{name}.yaml") for name in ("siglip", "judge"))
    assert teacher.seed != judge.seed and judge.image_size == 128
    stages = [read_config(UniWeTokTrainingConfig, RECIPE / f"emoji_uniwetok_stage{n}.yaml") for n in (1, 2, 3)]
    assert [stage.init_from for stage in stages] == [None, stages[0].output_dir, stages[1].output_dir]
    assert [stage.model != {} for stage in stages] == [True, False, False]
    assert {stage.distillation.teacher for stage in stages} == {f"{teacher.output_dir}/model"}
    decoder = read_config(UniWeTokTrainingConfig, RECIPE / "emoji_uniwetok_decoder.yaml")
    assert decoder.init_from == stages[2].output_dir and decoder.trainable == ["decoder"]
    assert f"tokenizer={decoder.output_dir}/model" in SCRIPT


def test_the_language_model_follows_the_tokenizer():
    pretrain, finetune = (
        read_config(MLLMTrainingConfig, RECIPE / f"emoji_mllm_{name}.yaml") for name in ("pretrain", "finetune")
    )
    tokenizer = read_config(UniWeTokTrainingConfig, RECIPE / "emoji_uniwetok_decoder.yaml")
    assert pretrain.vision_model == tokenizer.output_dir and finetune.init_from == pretrain.output_dir
    assert finetune.vision_model is None and finetune.text_model == finetune.head == {}
    assert f"--model {finetune.output_dir}/pipeline" in SCRIPT
    for config in (pretrain, finetune):
        for source in config.data + config.validation_data:
            assert hasattr(emoji_tasks, source.task.rsplit(":", 1)[1])
            assert source.path in [f"data/emoji_codes/{name}" for name in ("train", "validation")]
            assert source.path in SCRIPT or f"{Path(source.path).parent}/$split" in SCRIPT


def test_the_class_to_image_config_changes_the_data_of_the_small_one():
    config = read_config(ClassToImageTrainingConfig, RECIPE / "emoji_class_to_image.yaml")
    (source,) = config.data
    assert (source.path, source.label_column) == ("runs/emoji_food", "name")
    assert hasattr(emoji_data, "food") and config.vision_model == "uniwetok-emoji"
    small = read_config(ClassToImageTrainingConfig, find_config("small_class_to_image"))
    assert (config.max_train_steps, config.model) == (small.max_train_steps, small.model)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(RECIPE / f"{name}.py"), run_name="__main__")
    assert f"usage: {name}.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["emoji_data.py", "out", "--styles", "noto", "x"], "emoji_data.py: `styles` is"),
        (["faces_and_text.py", "out", "--count", "0"], "faces_and_text.py: `count` is 0"),
        (
            ["train_siglip.py", "--config", str(RECIPE / "emoji_siglip.yaml"), "--set", "colour=1"],
            "unknown field colour",
        ),
        (["train_siglip.py", "--config", "nowhere.yaml"], "train_siglip.py: .*nowhere.yaml"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=message) as error:
        runpy.run_path(str(RECIPE / arguments[0]), run_name="__main__")
    assert "\n" not in str(error.value)
