"""Two nodes, each with its own `torchrun`, on one machine: one of them is killed, both are started again, and the end
is that of a run that nothing interrupted."""

import json
import time
from pathlib import Path

import pytest
from launched import FSDP2, Nodes
from tiny_encoded import language_training
from tiny_training import VISION, assert_same_weights, log_lines, write

from uniwetok_hf.training.checkpoints import list_checkpoints


# By trainer: the file of weights that its run ends with, and variables of the environment that spread the weights.
WEIGHTS = {"tokenizer": "model/model.safetensors", "mllm": "pipeline/mllm/model.safetensors"}
COPIES: dict[str, str] = {}
STEPS, KILLED_AFTER = 40, 5


@pytest.fixture
def fields(request, fixtures, tmp_path):
    """Settings of the trainer named by the test, with a checkpoint every fourth step."""
    if request.getfixturevalue("trainer") == "mllm":
        given = language_training(tmp_path / "language")
    else:
        given = {**VISION, "data": [{"path": str(fixtures / "emoji")}]}
    return given | {"max_train_steps": STEPS, "checkpointing_steps": 4, "validation_steps": 1000, "ema_decay": 0.5}


def start(trainer: str, config: Path, places: list[Path], **options) -> Nodes:
    return Nodes(places, "uniwetok_hf", "train", trainer, "--config", str(config), **options)


def wait_for_step(run: Path, nodes: Nodes, step: int) -> None:
    """Until the log has a line of this step."""
    end = time.monotonic() + 300
    while time.monotonic() < end and nodes.launchers[0].poll() is None:
        if (run / "log.jsonl").exists() and any(line["step"] >= step for line in log_lines(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"the training did not come to step {step}: {nodes.printed(0)[-3000:]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer, killed, own_disks, environment",
    [
        ("tokenizer", 1, True, COPIES),
        ("tokenizer", 0, False, COPIES),
        ("mllm", 1, False, COPIES),
        ("mllm", 0, False, FSDP2),
    ],
    ids=["tokenizer-own-disks", "tokenizer-shared-disk", "mllm-shared-disk", "mllm-shards"],
)
def test_a_node_is_killed(trainer, killed, own_disks, environment, fields, tmp_path):
    """With disks of their own, each node has checkpoints of its own, and only the first one has log and result."""

    def places(name: str) -> list[Path]:
        (tmp_path / name).mkdir()
        return [tmp_path / name / (str(rank) if own_disks else "shared") for rank in range(2)]

    config = write(tmp_path, fields, output_dir="run")
    whole = places("whole")
    with start(trainer, config, whole, **environment) as nodes:
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]

    nodes_of = places("killed")
    runs = [place / "run" for place in nodes_of]
    with start(trainer, config, nodes_of, **environment) as nodes:
        wait_for_step(runs[0], nodes, KILLED_AFTER)
        while not list_checkpoints(runs[0]) and nodes.launchers[0].poll() is None:  # shards are written meanwhile
            time.sleep(0.02)
        nodes.kill(killed)
        codes = nodes.wait()
        assert codes[1 - killed] == 1 and codes[killed] < 0
        assert "another process of the training has ended" in nodes.printed(1 - killed)
    assert not (runs[0] / WEIGHTS[trainer]).exists()
    steps = [[path.name for path in list_checkpoints(run)] for run in runs]
    assert steps[0] and steps[1]
    with start(trainer, config, nodes_of, **environment) as nodes:
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]
        assert f"Resuming from step {int(max(set(steps[0]) & set(steps[1]))[-6:])}" in nodes.printed(0)
    assert log_lines(runs[0]) == log_lines(whole[0] / "run")
    assert_same_weights(runs[0] / WEIGHTS[trainer], whole[0] / "run" / WEIGHTS[trainer])
    assert own_disks == (not (runs[1] / "log.jsonl").exists())
    assert own_disks == (not (runs[1] / WEIGHTS[trainer]).exists())


@pytest.fixture
def trainer():
    return "tokenizer"


@pytest.mark.slow
@pytest.mark.parametrize("meets_by", ["static", "c10d"])
def test_a_process_is_killed_and_restarted(meets_by, trainer, fields, tmp_path):
    """By the `torchrun` of its node, while that of the other one restarts what has lost it. With c10d the latter may
    count no restart, as it is told to meet again before its process fails."""
    config, places = write(tmp_path, fields, output_dir=str(tmp_path / "run")), [tmp_path / "0", tmp_path / "1"]
    with start(trainer, config, places, restarts=2, meets_by=meets_by) as nodes:
        wait_for_step(tmp_path / "run", nodes, KILLED_AFTER)
        for process in nodes.workers(1):
            process.kill()
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]
        assert any("Resuming from step" in nodes.printed(rank) for rank in range(2))
    assert [line["step"] for line in log_lines(tmp_path / "run")] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_signal_to_one_node_stops_both(trainer, fields, tmp_path):
    """And the same command goes on from there."""
    config, places = write(tmp_path, fields, output_dir=str(tmp_path / "run")), [tmp_path / "0", tmp_path / "1"]
    with start(trainer, config, places) as nodes:
        wait_for_step(tmp_path / "run", nodes, KILLED_AFTER)
        nodes.launchers[1].terminate()
        assert all(nodes.wait())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "preempted" and status["step"] >= KILLED_AFTER
    assert list_checkpoints(tmp_path / "run")[-1].name == f"step-{status['step']:06d}"
    with start(trainer, config, places) as nodes:
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]
        assert f"Resuming from step {status['step']} " in nodes.printed(0)
