"""benchmarks/gpu.py, which checks and times on a GPU: the whole of it on the CPU at tiny sizes, and what it does about
parts that fail, lack something or have no time."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    return gpu


@pytest.fixture
def run(gpu, monkeypatch, tmp_path):
    """Runs the script with these parts instead of its own: exit code and what it reports."""

    def run(*parts, minutes: float = 60) -> tuple[int, dict]:
        monkeypatch.setattr(gpu, "PARTS", parts)
        code = gpu.main(["--tiny", "--device", "cpu", "--minutes", str(minutes), "--output", str(tmp_path)])
        return code, json.loads((tmp_path / "gpu.json").read_text())

    return run


def peak_part(gpu):
    """A quick part of the script's own."""
    return next(part for part in gpu.PARTS if part.name == "peak")


def row_of(report: dict, what: str) -> dict:
    return next(row for row in report["rows"] if row["what"] == what)


@pytest.mark.slow
def test_all_parts_on_the_cpu(gpu, tmp_path):
    command = [sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--minutes", "30", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads((tmp_path / "gpu.json").read_text())
    wrong = [row for row in report["rows"] if row.get("passed") is False]
    assert done.returncode == 0 and not wrong, (wrong, report["parts"], done.stderr[-2000:])
    assert {part["name"]: part["status"] for part in report["parts"]} == {part.name: "done" for part in gpu.PARTS}

    parts_of_checks = {row["part"] for row in report["rows"] if row.get("passed")}
    assert parts_of_checks == {part.name for part in gpu.PARTS if part.function.__module__ == "gpu_checks"} - {"syncs"}
    timed = {row["part"] for row in report["rows"] if row.get("pictures_per_second", 0) > 0}
    assert timed == {part.name for part in gpu.PARTS} - parts_of_checks - {"syncs", "peak"}
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"## {part.name}\n" in table for part in gpu.PARTS)
    assert {path.stem for path in tmp_path.glob("*.png")} == timed


def test_failing_rows_and_parts_are_reported_and_the_rest_goes_on(gpu, run):
    def rows(bench):
        def use_up_memory():
            raise torch.OutOfMemoryError("of a card")

        bench.row("divided", lambda: {"value": 1 / 0})
        bench.row("large", use_up_memory)
        bench.row("wrong", lambda: {"passed": False, "difference": 0.5})
        bench.row("right", lambda: {"passed": True})

    def broken(bench):
        raise RuntimeError("first line\nlast line")

    code, report = run(gpu.Part("rows", rows, 1), gpu.Part("broken", broken, 1), peak_part(gpu))
    assert code == 1
    assert [part["status"] for part in report["parts"]] == ["failed", "failed", "done"]
    assert row_of(report, "divided")["error"].startswith("ZeroDivisionError: division by zero (test_gpu_script.py:")
    assert row_of(report, "large") == {"part": "rows", "what": "large", "note": "out of memory"}
    assert row_of(report, "right")["passed"]
    assert report["parts"][1]["error"].startswith("RuntimeError: last line (test_gpu_script.py:")
    assert report["rows"][-1]["tflops"] > 0


def test_a_golden_vector_that_differs_fails(gpu, run, monkeypatch, fixtures, tmp_path):
    """Of another tokenizer: a check of the script that can't fail would be none."""
    (tmp_path / "golden").mkdir()
    for name, of in (("tokenizer_uniwetok", "t2i_4x"), ("tokenizer_bitdance", "tokenizer_bitdance")):
        folder = tmp_path / "golden" / name
        folder.mkdir()
        for file in ("ae.safetensors", "ae_config.json"):
            (folder / file).write_bytes((fixtures / "golden" / of / file).read_bytes())
        golden = (fixtures / "golden" / name / "golden.safetensors").read_bytes()
        (folder / "golden.safetensors").write_bytes(golden)
    monkeypatch.setattr(gpu.checks, "GOLDEN", tmp_path / "golden")
    code, report = run(gpu.PARTS[0])
    assert code == 1 and report["parts"][0]["status"] == "failed"
    verdicts = {row["what"]: row["passed"] for row in report["rows"]}
    assert not verdicts["tokenizer_uniwetok, float32"] and verdicts["tokenizer_bitdance, float32"]
    assert row_of(report, "quantizer, float32")["error"].startswith("FileNotFoundError")


def test_what_is_missing_is_named_first(gpu, run, capsys):
    code, report = run(gpu.Part("other", lambda bench: None, 1, ("no_such_package",)), peak_part(gpu))
    assert code == 0
    assert [part["status"] for part in report["parts"]] == ["not run: lacks no_such_package", "done"]
    assert "no_such_package (pip install no_such_package)" in report["lacking"]
    assert "no_such_package (pip install no_such_package)" in capsys.readouterr().out.splitlines()[1]


def test_time_is_kept(gpu, run):
    code, report = run(peak_part(gpu), minutes=0)
    assert code == 0 and report["parts"][0]["status"] == "not run: no time left" and report["rows"] == []

    def part(bench):
        bench.part_end = time.monotonic()
        bench.row("late", lambda: {"value": 1})

    _, report = run(gpu.Part("late", part, 1))
    assert row_of(report, "late")["note"] == "not run: no time left"
    with pytest.raises(gpu.OutOfTime), gpu.time_limit(0.05):
        time.sleep(5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_one_line_says_what_to_do():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py can't start: there is no CUDA device; on a CPU: --tiny --device cpu\n"


def test_real_sizes_are_the_papers(gpu):
    """On the meta device; they run on a card only."""
    from gpu_bench import count_flops

    device = gpu.Device("meta")
    bench = gpu.Bench(device, gpu.Report({}, []), tiny=False, deadline=time.monotonic() + 600)
    model = gpu.timings.build_tokenizer(bench, torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 265_729_664 + 355_896_451
    with torch.no_grad():
        for function, inputs in gpu.timings.tokenizer_calls(bench, model, 256, 2).values():
            assert count_flops(functools.partial(function, *inputs)) > 2 * 1.6e11

    mllm = gpu.timings.build_language_model(bench, bench.sizes.language["8 B"], torch.bfloat16, patch_size=4)
    assert mllm.dtype == torch.bfloat16 and {parameter.device.type for parameter in mllm.parameters()} == {"meta"}
    text = sum(parameter.numel() for parameter in mllm.model.language_model.parameters()) + mllm.lm_head.weight.numel()
    assert text == 8_190_735_360  # Qwen3-8B
