"""benchmarks/faults.py, which tries faults on the package: a little of it, and what it does with a wrong trial."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "faults.py"
# One of each part; those of many users at once take longest, and tests/pipelines/test_threads.py has them.
KINDS = ["kills, SIGKILL, tokenizer", "inputs, codes", "inputs, texts", "disk, encode"]


def run(*arguments, code: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code] if code else [sys.executable, SCRIPT]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)


def rows(done: subprocess.CompletedProcess) -> dict[str, list[int]]:
    """Kind -> tried, right, wrong."""
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    return {name: [int(cell) for cell in cells[:3]] for name, *cells in lines}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_small_share_is_right():
    done = run("--share", 0.02, "--only", *KINDS)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = rows(done)
    assert set(found) == set(KINDS) and all(tried == right > 0 for tried, right, _ in found.values())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_larger_share_is_right():
    done = run("--share", 0.05, "--seed", 1)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert {name.split(", ")[0] for name in rows(done)} == {"kills", "inputs", "disk", "users"}


def test_wrong_ones_are_named_and_can_be_repeated():
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import faults
from faults_trials import Kind, Wrong

def try_one(number, folder):
    if number == 20003:
        raise Wrong("no line")
    if number == 20004:
        raise KeyError("x")

faults.preload = lambda: None
faults.find_kinds = lambda *_: [Kind("inputs", "odd", range(8), try_one)]
raise SystemExit(faults.main(sys.argv[1:]))
"""
    done = run("--seed", 2, code=code)
    assert done.returncode == 1 and rows(done) == {"inputs, odd": [8, 6, 2]}, done.stderr
    assert "- inputs, odd: no line\n  python benchmarks/faults.py --only 'inputs, odd' --number 20003" in done.stdout
    assert "- inputs, odd: KeyError: 'x'" in done.stdout
    assert run("--only", "inputs, odd", "--number", 20003, code=code).returncode == 1
    assert run("--only", "inputs, odd", "--number", 20005, code=code).returncode == 0
    assert run("--seed", 2, "--share", 0.25, code=code).returncode == 0
    assert "there is no kind 'inputs, even'" in run("--only", "inputs, even", code=code).stderr
