"""A training that can't be started again says so in `status.json`, by which scheduler scripts go."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_encoded import class_training, language_training
from tiny_training import VISION, train_file, write

from uniwetok_hf.signals import Stopped
from uniwetok_hf.training import train_class_to_image, train_mllm, train_uniwetok
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.stage import StageTrainer


TRAININGS = {"tokenizer": train_uniwetok, "mllm": train_mllm, "class-to-image": train_class_to_image}
HOLD_LOCK = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text(encoding="utf-8"))


@pytest.fixture(params=list(TRAININGS))
def preempted(request, fixtures, tmp_path):
    """A training that was stopped: its module, config and data."""
    folder = tmp_path / "start"
    if request.param == "tokenizer":
        data = tmp_path / "pictures"
        data.symlink_to(fixtures / "emoji")
        fields = {**VISION, "data": [{"path": str(data)}], "ema_decay": 0.5}
    else:
        fields = language_training(folder) if request.param == "mllm" else class_training(folder)
        data = Path(fields["data"][0]["path"])
    module = TRAININGS[request.param]
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), max_train_steps=2)
    stop = threading.Event()
    stop.set()
    [trainer] = [value for value in vars(module).values() if is_trainer(value, module)]
    [config] = [value for name, value in vars(module).items() if name.endswith("TrainingConfig")]
    with pytest.raises(Stopped):
        trainer(read_config(config, path), stop).train()
    assert status(tmp_path / "run")["status"] == "preempted"
    return module, path, data


def is_trainer(value, module) -> bool:
    return isinstance(value, type) and issubclass(value, StageTrainer) and value.__module__ == module.__name__


def test_a_start_that_fails_is_noted(preempted, tmp_path):
    module, path, data = preempted
    before = status(tmp_path / "run")
    data.rename(data.with_name("unmounted"))
    with pytest.raises(ValueError):
        train_file(module, path)
    found = status(tmp_path / "run")
    assert found == before | {"status": "failed", "error": found["error"]} and str(data) in found["error"]
    data.with_name("unmounted").rename(data)
    train_file(module, path)
    assert status(tmp_path / "run")["status"] == "finished"
    with pytest.raises(ValueError):
        train_file(module, path, max_train_steps=0)
    assert status(tmp_path / "run")["status"] == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_a_run_that_is_at_work_stays_running(preempted, tmp_path):
    module, path, data = preempted
    data.rename(data.with_name("unmounted"))
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "run" / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "\n"
        with pytest.raises(ValueError):
            train_file(module, path)
        assert status(tmp_path / "run")["status"] == "preempted"
        other.communicate("\n")


def test_a_damaged_status_hides_no_error(fixtures, tmp_path):
    path = write(tmp_path, {**VISION, "data": [{"path": "absent"}]}, output_dir=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    for content in ("", "{}", "[1]"):
        (tmp_path / "run" / "status.json").write_text(content)
        with pytest.raises(ValueError, match="absent"):
            train_file(train_uniwetok, path)
        assert (tmp_path / "run" / "status.json").read_text() == content


def test_a_first_start_that_fails_leaves_nothing(fixtures, tmp_path):
    path = write(tmp_path, {**VISION, "data": [{"path": "absent"}]}, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="absent"):
        train_file(train_uniwetok, path)
    assert not (tmp_path / "run").exists()
