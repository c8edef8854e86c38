"""Runs of trackers that go on after a checkpoint, in trainings that are interrupted."""

import json
import shutil

import accelerate
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tiny_training import VISION, train_file, write

from uniwetok_hf.training import train_uniwetok
from uniwetok_hf.training.trackers import run_options


class Recorder(GeneralTracker):
    """What a tracker service is told. One that chooses its ids itself refuses to take the settings of a run again, as
    mlflow does when one of them has changed."""

    requires_logging_directory = False
    main_process_only = True
    started: list[dict] = []

    def __init__(self, project: str, **options):
        super().__init__()
        self.options, self.settings, self.steps = {"project": project, **options}, {}, []
        self.info = self  # of an active run of mlflow
        self.run_id = options.get("run_id", f"given-{len(self.started)}")

    def start(self):
        self.started.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        if "run_id" in self.options:
            raise ValueError("these settings were stored before")
        self.settings = values

    def log(self, values, step=None, **kwargs):
        self.steps.append(step)


@pytest.fixture
def recorder(monkeypatch):
    """`recorder(name)`: takes the place of the tracker of that name, whose package need not be there."""

    def replace(tracker: str) -> list[Recorder]:
        kind = type("Recorder", (Recorder,), {"name": tracker, "started": []})
        monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, tracker, kind)
        monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType(tracker)])
        return kind.started

    return replace


@pytest.fixture
def fields(fixtures, monkeypatch):
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return {**VISION, "data": [{"path": str(fixtures / "emoji")}], "max_train_steps": 4, "validation_steps": 100}


def interrupted(fields, folder, monkeypatch) -> None:
    """A run in `folder` whose last checkpoint is that of step 2, and whose log has step 3."""
    end_step = train_uniwetok.UniWeTokTrainer.end_step

    def until(self, done, metrics):
        end_step(self, done, metrics)
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_uniwetok.UniWeTokTrainer, "end_step", until)
        train_file(train_uniwetok, write(folder.parent, fields, output_dir=str(folder)))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("trackio", "comet_ml")]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", *SLOW])
def test_a_resumed_run_goes_on_in_its_run(tracker, recorder, fields, tmp_path, monkeypatch):
    """Also when its folder was moved; with settings that have changed."""
    started = recorder(tracker)
    fields["report_to"] = [tracker]
    interrupted(fields, tmp_path / "first", monkeypatch)
    shutil.move(tmp_path / "first", tmp_path / "moved")
    train_file(train_uniwetok, write(tmp_path, fields, output_dir=str(tmp_path / "moved"), logging_steps=2))
    train_file(train_uniwetok, write(tmp_path, fields, output_dir=str(tmp_path / "second")))
    first, resumed, second = (one.options for one in started)
    assert {options["project"] for options in (first, resumed, second)} == {"uniwetok"}
    assert [one.steps for one in started] == [[1, 2, 3], [4], [1, 2, 3, 4]]
    assert started[0].settings["batch_size"] == 4
    known = json.loads((tmp_path / "moved" / "trackers.json").read_text())
    own = {
        "wandb": {"name": "first", "id": known["id"], "resume": "allow"},
        "trackio": {"name": f"first-{known['id'][:8]}", "resume": "allow"},
        "comet_ml": {"experiment_key": known["id"]},
        "mlflow": {"run_id": "given-0"},
    }[tracker]
    assert resumed == {"project": "uniwetok", **own}
    key = {"wandb": "id", "trackio": "name", "comet_ml": "experiment_key"}.get(tracker)
    if key:
        assert first[key] == resumed[key] and second[key][-8:] != first[key][-8:]
    else:
        assert first == {"project": "uniwetok", "run_name": "first"} and "run_id" not in second


def test_a_tracker_that_is_not_installed_is_named(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match="`report_to` has wandb, which is not installed"):
        train_file(train_uniwetok, write(tmp_path, fields, output_dir=str(tmp_path / "run"), report_to=["wandb"]))


def test_what_was_logged_after_the_checkpoint_is_hidden():
    ids = {"id": "0123456789", "name": "run"}
    assert [run_options(ids, step)["tensorboard"] for step in (0, 2)] == [{}, {"purge_step": 3}]
    assert "aim" not in run_options(ids, 2) and run_options({**ids, "aim": "given"}, 2)["aim"] == {"run_hash": "given"}


def test_variables_of_wandb_count(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    assert run_options({"id": "0", "name": "run"}, 0)["wandb"]["id"] == "of-a-sweep"
