"""benchmarks/training.py measures the trainers as they are."""

import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training.py"
pytestmark = pytest.mark.slow


def rows(*arguments: str) -> list[list[str]]:
    """Cells of the lines of its tables, without the heads."""
    command = [sys.executable, str(SCRIPT), "--steps", "1", "--threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1].rstrip("%").isdecimal()]


def test_kinds_of_operations():
    for kind, ms in [(row[1], float(row[2])) for row in rows("--profile")]:
        assert ms > 0, kind


def test_parts_of_steps():
    *others, language_model = rows()
    assert all(float(cell) > 0 for cell in language_model[2:])
    tokenizers = [row for row in others if " pictures" in row[0]]
    assert len(tokenizers) == 2 and all(float(cell) > 0 for row in tokenizers for cell in row[2:])
