"""Trainings whose disk is full, or whose folder is gone, in the middle: the last good checkpoint stays, and one line
says what happened."""

import contextlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from full_disk import files_limited
from tiny_encoded import class_training, language_training
from tiny_training import VISION, assert_same_weights, write

from uniwetok_hf.cli.main import main
from uniwetok_hf.training.checkpoints import list_checkpoints
from uniwetok_hf.training.run import SkippedSamples
from uniwetok_hf.training.status import RunStatus
from uniwetok_hf.training.trackers import JsonLinesTracker
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainer
from uniwetok_hf.training.train_mllm import MLLMTrainer
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer


TRAINERS = {"tokenizer": UniWeTokTrainer, "mllm": MLLMTrainer, "class-to-image": ClassToImageTrainer}


@pytest.fixture(scope="module")
def configs(fixtures, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("start")
    vision = {**VISION, "data": [{"path": str(fixtures / "emoji")}], "max_train_steps": 4, "ema_decay": 0.5}
    classes = class_training(folder / "classes")
    return {"tokenizer": vision, "mllm": language_training(folder), "class-to-image": classes}


def at_step(monkeypatch, kind: str, step: int, happens) -> None:
    """Calls `happens()` in a step (from 0)."""
    trainer = TRAINERS[kind]
    train_step = trainer.train_step

    def with_fault(self, batch, current):
        if current == step:
            happens()
        return train_step(self, batch, current)

    monkeypatch.setattr(trainer, "train_step", with_fault)


def train(capsys, kind: str, path: Path) -> tuple[int, list[str]]:
    """Exit code, and the lines that the command printed on stderr."""
    capsys.readouterr()
    code = main(["train", kind, "--config", str(path)])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, [line for line in error.splitlines() if line.startswith("uniwetok")]


def rests(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("size", [0, 5_000, 100_000])
def test_a_full_disk(kind, size, configs, tmp_path, monkeypatch, capsys):
    """Of several sizes, so that other files are the first that don't fit. With room again the run goes on."""
    run = tmp_path / "run"
    path = write(tmp_path, configs[kind], output_dir=str(run), checkpointing_steps=2, logging_steps=100)
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        at_step(patch, kind, 2, lambda: stack.enter_context(files_limited(size)))
        code, lines = train(capsys, kind, path)
    assert code == 1 and len(lines) == 1
    assert str(run) in lines[0] and "can't be written: " in lines[0]
    assert [found.name for found in list_checkpoints(run)] == ["step-000002"] and not rests(run)
    assert train(capsys, kind, path) == (0, [])
    whole = write(tmp_path / "whole", configs[kind], output_dir=str(tmp_path / "whole" / "run"))
    assert train(capsys, kind, whole) == (0, [])
    weights = {
        "tokenizer": "model/model.safetensors",
        "mllm": "pipeline/mllm/model.safetensors",
        "class-to-image": "pipeline/transformer/model.safetensors",
    }[kind]
    assert_same_weights(run / weights, tmp_path / "whole" / "run" / weights)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_folder_that_is_gone_is_not_made_anew(kind, configs, tmp_path, monkeypatch, capsys):
    """As when a network disk is lost: beside it nothing must be written."""
    run = tmp_path / "run"
    path = write(tmp_path, configs[kind], output_dir=str(run), checkpointing_steps=2, logging_steps=100)
    at_step(monkeypatch, kind, 3, lambda: run.rename(tmp_path / "elsewhere"))
    code, lines = train(capsys, kind, path)
    assert code == 1 and len(lines) == 1 and str(run) in lines[0] and not run.exists()
    assert [found.name for found in list_checkpoints(tmp_path / "elsewhere")] == ["step-000002"]


def test_a_log_that_cannot_be_written(configs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    path = write(tmp_path, configs["tokenizer"], output_dir=str(run), checkpointing_steps=1, logging_steps=1)

    def block():
        (run / "log.jsonl").unlink()
        os.symlink("/dev/full", run / "log.jsonl")

    at_step(monkeypatch, "tokenizer", 2, block)
    code, lines = train(capsys, "tokenizer", path)
    assert (code, lines) == (1, [f"uniwetok: error: {run}/log.jsonl can't be written: No space left on device"])
    assert [found.name for found in list_checkpoints(run)] == ["step-000001", "step-000002"]


def test_checkpoints_that_cannot_be_made(configs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    path = write(tmp_path, configs["tokenizer"], output_dir=str(run), checkpointing_steps=2, logging_steps=100)

    def block():
        shutil.move(run / "checkpoints", tmp_path / "kept")
        (run / "checkpoints").touch()

    at_step(monkeypatch, "tokenizer", 2, block)
    code, lines = train(capsys, "tokenizer", path)
    assert code == 1 and lines == [f"uniwetok: error: {run}/checkpoints/step-000004 can't be written: Not a directory"]


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_run_that_begins_anew_lists_its_own_skipped_samples(kind, configs, tmp_path, capsys):
    """One that was killed before its first checkpoint left a list."""
    run = tmp_path / "run"
    path = write(tmp_path, configs[kind], output_dir=str(run), max_train_steps=1)
    run.mkdir()
    (run / "skipped-0.txt").write_text("row 3\n")
    assert train(capsys, kind, path) == (0, [])
    assert (run / "skipped-0.txt").read_text() == ""


@pytest.mark.parametrize("name", ["status.json", "config.json", "log.jsonl", "skipped-0.txt"])
def test_small_files_of_a_run(name, tmp_path):
    tracker, skipped = JsonLinesTracker(tmp_path, {"seed": 1}), SkippedSamples(tmp_path, 0, 1.0)
    writes = {
        "status.json": RunStatus(SimpleNamespace(is_main_process=True), tmp_path, 3).write,
        "config.json": tracker.store_init_configuration,
        "log.jsonl": lambda _: tracker.rewind(1),
        "skipped-0.txt": lambda _: skipped.note(["row 3"], 4),
    }
    (tmp_path / name).write_text(before := '{"step": 1}\n{"step": 2}\n')
    with files_limited(0), pytest.raises(OSError, match=f"{tmp_path}/{name} can't be written: File too large"):
        writes[name]("running")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == before


def test_a_finished_run_is_none_that_failed(tmp_path):
    status = RunStatus(SimpleNamespace(is_main_process=True), tmp_path, 3)
    status.saved(3)
    warning = "is finished, but .*status.json can't be written: File"
    with files_limited(0), pytest.warns(UserWarning, match=warning), status.of_block():
        pass
