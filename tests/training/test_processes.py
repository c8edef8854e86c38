"""Two processes (gloo, CPU) on half batches compute what one computes on whole ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import VISION, all_losses, log_lines, write


def run(script: str, *arguments, processes: int) -> None:
    """Runs a script of this folder on so many processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def tokenizer_runs(fixtures, tmp_path_factory):
    """Three steps with every loss on one and on two processes: gradients, and the folder of the run."""
    folder = tmp_path_factory.mktemp("processes")
    fields = {**VISION, "data": [{"path": str(fixtures / "emoji")}], **all_losses(folder), "max_train_steps": 3}
    # Where gradients nearly cancel, rounding decides which way Adam goes, by the learning rate; the entropy of latents
    # around 0 is 400 times as steep. So the steps are small.
    fields |= {"max_grad_norm": None, "learning_rate": 1e-6}
    runs = {}
    for processes in (1, 2):
        path = write(folder / str(processes), fields, output_dir=str(folder / str(processes) / "run"))
        run("dump_gradients.py", path, path.with_name("gradients.pt"), processes=processes)
        runs[processes] = torch.load(path.with_name("gradients.pt"), weights_only=True), path.parent / "run"
    return runs


def test_the_tokenizer_gets_the_same_gradients(tokenizer_runs):
    one, two = tokenizer_runs[1][0], tokenizer_runs[2][0]
    assert len(one) == len(two) == 5  # three steps of the model, two of the discriminator
    for alone, shared in zip(one, two, strict=True):
        for first, second in zip(alone, shared, strict=True):
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_gets_the_same_losses_and_weights(tokenizer_runs):
    one, two = (tokenizer_runs[processes][1] for processes in (1, 2))
    for alone, shared in zip(log_lines(one), log_lines(two), strict=True):
        assert alone == pytest.approx(shared, abs=1e-5, rel=1e-5)
    for name in ("model/model.safetensors", "losses/discriminator.safetensors", "losses/lecam.safetensors"):
        first, second = load_file(one / name), load_file(two / name)
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], atol=1e-5, rtol=1e-5)
