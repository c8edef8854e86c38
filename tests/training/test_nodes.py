"""Two nodes, each with its own `torchrun`, on one machine: one of them is killed, both are started again, and the end
is that of a run that nothing interrupted."""

import time
from pathlib import Path

import pytest
from launched import Nodes
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


def start(trainer: str, config: Path, places: list[Path], environment: dict) -> Nodes:
    return Nodes(places, "uniwetok_hf", "train", trainer, "--config", str(config), **environment)


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
    ],
    ids=["tokenizer-own-disks", "tokenizer-shared-disk", "mllm-shared-disk"],
)
def test_a_node_is_killed(trainer, killed, own_disks, environment, fields, tmp_path):
    """With disks of their own, each node has checkpoints of its own, and only the first one has log and result."""

    def places(name: str) -> list[Path]:
        (tmp_path / name).mkdir()
        return [tmp_path / name / (str(rank) if own_disks else "shared") for rank in range(2)]

    config = write(tmp_path, fields, output_dir="run")
    whole = places("whole")
    with start(trainer, config, whole, environment) as nodes:
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]

    nodes_of = places("killed")
    runs = [place / "run" for place in nodes_of]
    with start(trainer, config, nodes_of, environment) as nodes:
        wait_for_step(runs[0], nodes, KILLED_AFTER)
        nodes.kill(killed)
        codes = nodes.wait()
        assert codes[1 - killed] == 1 and codes[killed] < 0
        assert "another process of the training has ended" in nodes.printed(1 - killed)
    assert not (runs[0] / WEIGHTS[trainer]).exists()
    steps = [[path.name for path in list_checkpoints(run)] for run in runs]
    assert steps[0] and steps[1]
    with start(trainer, config, nodes_of, environment) as nodes:
        assert nodes.wait() == [0, 0], nodes.printed(0)[-3000:]
        assert f"Resuming from step {int(max(set(steps[0]) & set(steps[1]))[-6:])}" in nodes.printed(0)
    assert log_lines(runs[0]) == log_lines(whole[0] / "run")
    assert_same_weights(runs[0] / WEIGHTS[trainer], whole[0] / "run" / WEIGHTS[trainer])
    assert own_disks == (not (runs[1] / "log.jsonl").exists())
    assert own_disks == (not (runs[1] / WEIGHTS[trainer]).exists())
