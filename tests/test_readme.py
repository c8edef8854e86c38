"""Every block of the README runs, in order, in one place, as a reader would run them."""

import shlex
import shutil
from pathlib import Path

import pytest
from markdown_blocks import blocks
from PIL import Image

from uniwetok_hf.cli.main import build_parser, main
from uniwetok_hf.training.config import find_config


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)


@pytest.fixture(scope="module")
def workplace(fixtures, tmp_path_factory):
    """What the README takes for granted: a photograph and published weights."""
    folder = tmp_path_factory.mktemp("reader")
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save(folder / "photo.jpg")
    shutil.copytree(fixtures / "golden" / "t2i_4x", folder / "published" / "text-to-image")
    return folder


def test_python_blocks(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    names = {}
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert len(blocks) == 6
    for code in blocks:
        exec(compile(code, "README.md", "exec"), names)
    assert Image.open("reconstruction.png").copy().size == (100, 75)
    assert Image.open("heart.png").copy().size == Image.open("edited.png").copy().size == (128, 128)
    assert capsys.readouterr().out.strip()


COMMANDS = [
    line
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line.startswith("uniwetok ") and line != "uniwetok demo"  # the demo has tests of its own
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    if not Path("heart.png").exists():
        Image.new("RGB", (128, 128), "red").save("heart.png")
    if "decode" in command and not Path("photo.safetensors").exists():
        assert main(["encode", "photo.jpg", "--output", "photo.safetensors"]) == 0
    assert main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize(
    "command", [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
)
def test_commands_that_take_hours_can_be_parsed(command):
    program, *argv = shlex.split(command)
    args = build_parser().parse_args(argv)
    assert program == "uniwetok" and callable(args.run)
    for name in getattr(args, "config", []):
        assert find_config(name)
