"""benchmarks/encoding_plan.py and encoding_speed.py, and what docs/large-data.md says of the first."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_blocks import blocks
from tiny_encoded import pictures


ROOT = Path(__file__).parent.parent


def run(*words: str) -> str:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.slow
def test_the_plan_of_the_page():
    text = (ROOT / "docs" / "large-data.md").read_text(encoding="utf-8")
    (command,) = (code for _, code in blocks(text) if "encoding_plan.py" in code)
    plan = run(*shlex.split(command)[1:])
    assert plan in text
    assert "| time | 0.87 hours on 64 GPUs, 55.6 GPU hours |" in plan  # 100 million / 500 / 64 / 3,600


@pytest.mark.slow
def test_speed(tmp_path):
    for number, picture in enumerate(pictures(8)):
        picture.save(tmp_path / f"{number}.png")
    table = run("benchmarks/encoding_speed.py", str(tmp_path), "--rows", "8", "--processes", "1", "--size", "32")
    (line,) = (line for line in table.splitlines() if line.startswith("| local"))
    assert line.startswith("| local | 1 | ")
    assert "8 pictures at 32 x 32" in table
