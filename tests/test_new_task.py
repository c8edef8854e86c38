"""docs/new-task.md, as a reader would follow it: the files, and what the commands make of them."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from tiny_encoded import build_vision, encode, shapes

from uniwetok_hf.cli.main import main
from uniwetok_hf.data.encoded import open_encoded
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.tasks import open_task
from uniwetok_hf.training.train_mllm import MLLMTrainingConfig


PAGE = (Path(__file__).parent.parent / "docs" / "new-task.md").read_text(encoding="utf-8")


@pytest.fixture
def commands(tmp_path, monkeypatch) -> list[list[str]]:
    """The commands of the page, in a folder with its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in re.findall(r'```\w+ title="(.*?)"\n(.*?)```', PAGE, re.S):
        Path(name).write_text(text, encoding="utf-8")
    return [
        shlex.split(line)[1:] for language, code in blocks(PAGE) if language == "bash" for line in code.splitlines()
    ]


def test_the_task_of_the_page(commands, tmp_path):
    texts, images = zip(*shapes(2), strict=True)
    codes = encode({"image": list(images), "text": list(texts)}, tmp_path / "codes", build_vision())
    (source,) = read_config(MLLMTrainingConfig, "both_ways.yaml").data
    source.path = codes
    task = open_task(source)
    samples = [task.sample(0, torch.Generator().manual_seed(seed)) for seed in range(200)]
    kinds = {tuple((m["role"], tuple(i["type"] for i in m["content"])) for m in s.messages) for s in samples}
    assert kinds == {
        (("user", ("text",)), ("assistant", ("image",))),
        (("user", ("image", "text")), ("assistant", ("text",))),
    }
    described = sum(sample.messages[-1]["content"][0]["type"] == "text" for sample in samples)
    assert 40 < described < 80 and set(task.texts()) == {*texts, "describe the picture"}
    source.options = {"describe": 2}
    with pytest.raises(ValueError, match="`describe` must be from 0 to 1"):
        open_task(source)


def test_text_then_a_picture(commands):
    """The data of the page, and the task on them."""
    assert main(commands[2]) == 0
    assert open_encoded("runs/square_codes")["count"][:] == [1, 2, 3, 4]
    config = read_config(MLLMTrainingConfig, "counting.yaml")
    assert config.describe_first and config.prompts == []
    task = open_task(config.data[0])
    sample = task.sample(2, torch.Generator())
    assert [[item.get("text", "IMAGE") for item in message["content"]] for message in sample.messages] == [
        ["IMAGE", "count the squares and add one"],
        ["squares: 3", "IMAGE"],
    ]
    before, after = sample.codes(task.encoding.num_bits)
    assert torch.equal(after, task.sample(3, torch.Generator()).codes(task.encoding.num_bits)[0])
    assert not torch.equal(before, after)
    assert [message["role"] for message in task.sample(2, torch.Generator(), True).messages] == ["assistant"]


@pytest.mark.slow
def test_the_trainings_of_the_page(commands):
    encode_pictures, train_both_ways, encode_squares, train_counting, edit = commands
    assert main(encode_pictures) == main(encode_squares) == 0
    for command in (train_both_ways, train_counting):
        assert main([*command, "--set", "max_train_steps=2", "--set", "prompts=[]"]) == 0
    assert Path("runs/both_ways/pipeline").is_dir()
    import_module("my_data").squares(2).save("squares.png")
    assert main(edit) == 0
