"""The installed command: what it imports before and after the command line is parsed."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny_pipeline


SOURCE = Path(__file__).parents[1] / "src"
SLOW_IMPORTS = ("torch", "transformers", "diffusers", "huggingface_hub", "numpy", "PIL", "tqdm")
# Prints what was imported, and the seconds of this process, which do not depend on what else the machine does.
RUN = f"""
import sys, time
sys.path.insert(0, {str(SOURCE)!r})
import uniwetok_entry
try:
    uniwetok_entry.main()
finally:
    imported = [name for name in {SLOW_IMPORTS} if name in sys.modules]
    print(imported, time.process_time(), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        (0, ["--help"]),
        (0, ["--version"]),
        (0, ["demo", "--help"]),
        (0, ["train", "--help"]),
        (0, ["evaluate", "reconstruction", "--help"]),
        (2, ["paint"]),
        (2, ["generate", "a", "--seeds", "3"]),
        (2, ["data", "emoji"]),
    ],
)
def test_the_parser_answers_at_once(code, argv):
    result = subprocess.run([sys.executable, "-c", RUN, *argv], capture_output=True, text=True)
    *error, imported, seconds = result.stderr.splitlines()
    assert result.returncode == code
    assert (result.stdout if code == 0 else "\n".join(error)) != ""
    assert imported == "[]"
    assert float(seconds) < 0.5


def test_the_package_is_whole_when_a_command_runs(tmp_path):
    """And a command imports only what it uses."""
    build_tiny_pipeline().mllm.vision_model.save_pretrained(tmp_path / "vision")
    code = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from PIL import Image
Image.new("RGB", (64, 64)).save("black.png")

def run(*argv):
    sys.argv = ["uniwetok", *argv, "--model", "vision"]
    assert uniwetok_entry.main() == 0
    others = ("diffusers", "datasets", "peft", "evaluate", "gradio", "skimage")
    print(argv[0], *(name for name in others if name in sys.modules))

import uniwetok_entry
run("encode", "black.png")
run("decode", "codes.safetensors")
run("reconstruct", "black.png")

import uniwetok_hf
from transformers import AutoModel
assert uniwetok_hf is sys.modules["uniwetok_hf"]
assert uniwetok_hf.cli.main is sys.modules["uniwetok_hf.cli.main"]
assert type(AutoModel.from_pretrained("vision")) is uniwetok_hf.UniWeTokModel
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if "." not in line]
    assert commands == ["encode", "decode", "reconstruct skimage"]
