"""benchmarks/speed.py: what its processes do, at tiny size, and its table; and the table of benchmarks/start.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "speed.py"


@pytest.fixture
def jobs(monkeypatch):
    """The module of the processes, with a small language model and few steps."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import speed_jobs

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(speed_jobs, "TEXT", speed_jobs.TEXT | sizes | {"head_dim": 32, "intermediate_size": 128})
    monkeypatch.setattr(
        speed_jobs, "HEAD", speed_jobs.HEAD | {"condition_size": 64, "hidden_size": 64, "head_dim": 32}
    )
    monkeypatch.setattr(speed_jobs, "NUM_TOKENS", 16)
    monkeypatch.setattr(speed_jobs, "STEPS", 4)
    return speed_jobs


@pytest.fixture
def generated(jobs):
    """Codes of every job of the language model, without gradients as in the processes."""

    @torch.no_grad()
    def generate(option: str | None) -> dict[str, torch.Tensor]:
        return {name: job(0) for name, job in jobs.language_model(None, option).items()}

    return generate


def test_language_model_jobs(generated):
    codes = generated(None)
    assert list(codes) == [f"16 tokens, P = {p}, {n} at once" for p in (1, 4, 16) for n in (1, 4)]
    for name, found in codes.items():
        assert found.shape == (int(name.split()[-3]), 128, 4, 4), name
        assert set(found.unique().tolist()) == {-1.0, 1.0}, name


def test_options_of_the_language_model(generated, jobs):
    codes = generated(None)
    for name, found in generated("packed").items():
        assert torch.equal(found, codes[name]), name
    for option in ("bfloat16", "int8", "half-the-steps"):
        for name, found in generated(option).items():
            assert found.shape == codes[name].shape and not torch.equal(found, codes[name]), (option, name)


def test_int8_weights(generated):
    pytest.importorskip("torchao", reason="the option int8-weights needs torchao")
    for name, found in generated("int8-weights").items():
        assert set(found.unique().tolist()) == {-1.0, 1.0}, name


def test_weights_are_counted_as_often_as_they_are_read(jobs):
    linear = torch.nn.Linear(16, 8)
    found = jobs.counted(lambda seed: [linear(torch.ones(2, 16)) for _ in range(3)])
    assert found == {"flop": 3 * 2 * 2 * 16 * 8, "bytes": 3 * 4 * (16 * 8 + 8)}


@pytest.mark.slow
def test_table():
    command = [sys.executable, str(SCRIPT), "--kinds", "small", "--rounds", "1", "--threads", "1"]
    command += ["--other-python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    first, _, head, _, *rows = done.stdout.splitlines()
    assert first.startswith("a matrix product: ")
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    found = [dict(zip(columns, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]
    seconds = {row["work"]: float(row["s"]) for row in found}
    assert list(seconds)[:3] == ["a picture", "an edit", "an answer"]
    assert seconds["`uniwetok generate` from nothing"] > seconds["of it torch, transformers and diffusers"] > 0
    for row in found:
        assert float(row["times as fast"]) == pytest.approx(float(row["other, s"]) / float(row["s"]), rel=0.02)


@pytest.mark.slow
def test_the_table_of_cold_starts():
    command = [sys.executable, SCRIPT.with_name("start.py"), "--rounds", "1"]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[2:]
    seconds = [float(line.split("|")[2]) for line in table]
    assert len(seconds) == 4 and seconds[2] < seconds[0] < seconds[3]  # help needs none of the libraries
