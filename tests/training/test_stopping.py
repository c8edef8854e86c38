"""Trainings that are stopped: signals to real processes, alone and two of them, and processes that die."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import VISION, assert_same_weights, log_lines, train_file, write

from uniwetok_hf.signals import EXIT_CODE
from uniwetok_hf.training import train_uniwetok
from uniwetok_hf.training.checkpoints import list_checkpoints


def start(config: Path, *arguments: str, cwd: Path | None = None, **environment) -> subprocess.Popen:
    """`uniwetok train tokenizer` as a process."""
    command = [sys.executable, *arguments, "-m", "uniwetok_hf", "train", "tokenizer", "--config", str(config)]
    default = {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": cwd}
    return subprocess.Popen(command, env=os.environ | default | environment, **options)


def start_two(config: Path, own_disks: bool = False) -> list[subprocess.Popen]:
    """Two processes that train together, started by hand; each in a folder of its own, 0 and 1, as if on two nodes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if own_disks:
        environment |= {"LOCAL_WORLD_SIZE": "1"}
        folders = [config.parent / str(rank) for rank in range(2)]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return [start(config, **environment, RANK=str(n), LOCAL_RANK="0", cwd=folders[n]) for n in range(2)]
    return [start(config, **environment, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def wait_for_steps(run: Path, process: subprocess.Popen, after: int = 0) -> None:
    """Until a line of the log is of a later step than `after`."""
    log = run / "log.jsonl"
    for _ in range(1200):
        if log.exists() and any(line["step"] > after for line in log_lines(run)):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the training did not start: {process.communicate()[1][-3000:]}")


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code, and the only line on stderr that the command printed."""
    with process:  # closes its pipes
        error = process.communicate(timeout=120)[1]
    assert "Traceback" not in error
    [line] = [line for line in error.splitlines() if line.startswith("uniwetok: ")]
    return process.returncode, line


@pytest.fixture
def fields(fixtures, tmp_path):
    """More steps than there is time for; no checkpoint but those of a stop."""
    fields = {**VISION, "data": [{"path": str(fixtures / "emoji")}], "max_train_steps": 5000}
    fields |= {"checkpointing_steps": 100000, "validation_steps": 100000, "lr_scheduler": "constant"}
    return fields | {"output_dir": str(tmp_path / "run"), "process_timeout_minutes": 0.5, "ema_decay": 0.5}


def test_sigterm_keeps_the_step_and_says_so(fields, tmp_path, monkeypatch):
    """In this process, so that the step is known; then the run goes on to the same bits as one that never stopped."""
    fields |= {"max_train_steps": 4}
    step = train_uniwetok.UniWeTokTrainer.train_step
    before = signal.getsignal(signal.SIGTERM)

    def terminated(self, batch, current):
        if current == 1:
            for _ in range(2):  # schedulers repeat it
                os.kill(os.getpid(), signal.SIGTERM)
            assert status(tmp_path / "run")["status"] == "running"
        return step(self, batch, current)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 2;"):
        patch.setattr(train_uniwetok.UniWeTokTrainer, "train_step", terminated)
        train_file(train_uniwetok, write(tmp_path, fields))
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-000002"]
    assert {"status": "preempted", "step": 2, "max_train_steps": 4}.items() <= status(tmp_path / "run").items()
    resumed = train_file(train_uniwetok, write(tmp_path, fields))
    assert {"status": "finished", "step": 4}.items() <= status(tmp_path / "run").items()
    whole = train_file(train_uniwetok, write(tmp_path / "whole", fields, output_dir=str(tmp_path / "whole" / "run")))
    assert_same_weights(resumed / "model.safetensors", whole / "model.safetensors")


def test_a_failure_is_in_the_status(fields, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("a bad\nrow")

    monkeypatch.setattr(train_uniwetok.UniWeTokTrainer, "train_step", fail)
    with pytest.raises(ValueError, match="bad"):
        train_file(train_uniwetok, write(tmp_path, fields))
    assert {"status": "failed", "step": 0, "error": "a bad row"}.items() <= status(tmp_path / "run").items()


def test_a_folder_that_another_process_has_locked(fields, tmp_path):
    fields |= {"max_train_steps": 2}
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text('{"status": "running", "host": "node3", "pid": 4711}')
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{hold}; input()", str(run / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="run is in use by another training, process 4711 on node3"):
            train_file(train_uniwetok, write(tmp_path, fields))
        assert status(run)["pid"] == 4711 and not (run / "log.jsonl").exists()
        holder.kill()  # the system takes the lock back
    assert train_file(train_uniwetok, write(tmp_path, fields)).is_dir()
    assert status(run)["status"] == "finished"


@pytest.mark.slow
def test_a_second_command_leaves_the_first_alone(fields, tmp_path):
    config, run = write(tmp_path, fields), tmp_path / "run"
    first = start(config)
    wait_for_steps(run, first)
    code, line = end(start(config))
    assert code == 1 and line.endswith(
        f"is in use by another training, process {first.pid} on {socket.gethostname()}."
    )
    wait_for_steps(run, first, after=log_lines(run)[-1]["step"])
    for process in start_two(config):  # both say so, though only the first asks for the lock
        code, line = end(process)
        assert code == 1 and "is in use by another training" in line
    first.terminate()
    assert check_stopped(first, run) > 0


@pytest.mark.slow
def test_the_command_exits_with_75(fields, tmp_path):
    process = start(write(tmp_path, fields))
    wait_for_steps(tmp_path / "run", process)
    assert status(tmp_path / "run")["pid"] == process.pid
    process.terminate()
    assert check_stopped(process, tmp_path / "run") >= 1


def check_stopped(process: subprocess.Popen, run: Path) -> int:
    """The step after which a process stopped; there is its checkpoint and nothing half-written."""
    code, line = end(process)
    assert code == EXIT_CODE == 75, line
    step = status(run)["step"]
    assert line == f"uniwetok: stopped after step {step}; the same command continues from there"
    assert status(run)["status"] == "preempted"
    assert list_checkpoints(run)[-1].name == f"step-{step:06d}"
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", ".old"))]
    return step


def test_two_processes_stop_after_the_same_step(fields, tmp_path):
    """A signal to one of them is enough."""
    config, run = write(tmp_path, fields), tmp_path / "run"
    two = start_two(config)
    wait_for_steps(run, two[0])
    two[1].send_signal(signal.SIGTERM)
    assert len({check_stopped(process, run) for process in two}) == 1


@pytest.mark.slow
def test_two_processes_resume_and_stop_again(fields, tmp_path):
    config, run = write(tmp_path, fields), tmp_path / "run"
    last = 0
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        two = start_two(config)
        wait_for_steps(run, two[0], after=last)
        for process in two:
            process.send_signal(signal_number)
        [step] = {check_stopped(process, run) for process in two}
        assert step > last
        last = step


@pytest.mark.slow
def test_one_that_dies_ends_the_other(fields, tmp_path):
    config, run = write(tmp_path, fields | {"checkpointing_steps": 2}), tmp_path / "run"
    two = start_two(config)
    wait_for_steps(run, two[0], after=2)
    two[1].kill()
    code, line = end(two[0])
    two[1].communicate()
    assert code == 1
    assert line.startswith("uniwetok: error: process 0: another process of the training has ended")
    last = status(run)["step"]
    assert status(run)["status"] == "failed" and last >= 2
    assert list_checkpoints(run)[-1].name == f"step-{last:06d}"


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_others(fields, tmp_path):
    two = start_two(write(tmp_path, fields, process_timeout_minutes=0.1))
    wait_for_steps(tmp_path / "run", two[0])
    two[1].send_signal(signal.SIGSTOP)
    before = time.monotonic()
    code, line = end(two[0])
    assert code == 1 and "did not answer within `process_timeout_minutes`" in line
    assert time.monotonic() - before < 60
    two[1].kill()
    two[1].communicate()


@pytest.mark.slow
def test_torchrun_passes_the_signal_on(fields, tmp_path):
    arguments = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    launcher = start(write(tmp_path, fields), *arguments)
    wait_for_steps(tmp_path / "run", launcher)
    launcher.terminate()
    launcher.communicate(timeout=120)
    assert status(tmp_path / "run")["status"] == "preempted"
    assert list_checkpoints(tmp_path / "run")[-1].name == f"step-{status(tmp_path / 'run')['step']:06d}"


@pytest.mark.slow
def test_torchrun_restarts_from_the_checkpoint(fields, tmp_path):
    arguments = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    config = write(tmp_path, fields, checkpointing_steps=2, max_train_steps=60)
    launcher = start(config, *arguments)
    wait_for_steps(tmp_path / "run", launcher, after=3)
    os.kill(status(tmp_path / "run")["pid"], signal.SIGKILL)
    output, error = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, error[-3000:]
    assert "Resuming from step" in output and status(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_nodes_with_disks_of_their_own(fields, tmp_path):
    """Each keeps its part; a checkpoint that only one of them has is passed over."""
    config = write(tmp_path, fields, output_dir="run")
    runs = [tmp_path / str(rank) / "run" for rank in range(2)]
    two = start_two(config, own_disks=True)
    wait_for_steps(runs[0], two[0])
    two[0].terminate()
    assert [end(process)[0] for process in two] == [75, 75]
    [first], [second] = (list_checkpoints(run) for run in runs)
    assert first.name == second.name
    for rank, path in enumerate((first, second)):
        names = json.loads((path / "manifest.json").read_text())["files"]
        assert {"model.safetensors", "optimizer.bin", f"data-{rank}.json", f"random_states_{rank}.pkl"} <= set(names)
        assert f"data-{1 - rank}.json" not in names
    (first.parent / "step-900000").mkdir()  # the other node was killed before its own
    two = start_two(config, own_disks=True)
    wait_for_steps(runs[0], two[0], after=int(first.name.split("-")[1]))
    (first.parent / "step-900000").rmdir()
    two[0].terminate()
    assert [end(process)[0] for process in two] == [75, 75]
    assert len({list_checkpoints(run)[-1].name for run in runs}) == 1
