"""A run whose checkpoint is damaged ends, when it is resumed or exported, with one line that names the checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from mutations import damaged_bytes, damaged_json, damaged_tensors
from tiny_training import VISION, save_checkpoint, write

from uniwetok_hf.cli.main import main
from uniwetok_hf.training.checkpoints import check_checkpoint, list_checkpoints, load_checkpoint
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig


pytestmark = pytest.mark.filterwarnings("ignore")  # of a short average


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(fixtures, tmp_path_factory) -> Path:
    """The config of a run that was killed after a checkpoint of its step 1; the run is beside it."""
    folder = tmp_path_factory.mktemp("stopped")
    fields = {**VISION, "data": [{"path": str(fixtures / "emoji")}], "buckets": [{"height": 16, "width": 16}]}
    fields |= {"batch_size": 2, "max_train_steps": 2, "checkpointing_steps": 1, "lr_warmup_steps": 0}
    path = write(folder, fields, output_dir=str(folder / "run"))
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path))
    train_step = trainer.train_step

    def until(batch, step):
        if step == 1:
            raise Killed
        train_step(batch, step)

    trainer.train_step = until
    with pytest.raises(Killed):
        trainer.train()
    return path


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    """The config of a copy of that run."""
    shutil.copytree(stopped.parent / "run", tmp_path / "run")
    text = stopped.read_text().replace(str(stopped.parent / "run"), str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


def checkpoint_of(config: Path) -> Path:
    (found,) = list_checkpoints(config.parent / "run")
    return found


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Another content of a file, and its size in the manifest: what a check of sizes can't see."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = len(content)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def error_of(capsys, *argv) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "uniwetok: " in line or "Traceback" in line]
    assert len(lines) == 1 and "uniwetok: error: " in lines[0], lines
    return lines[0]


def test_mutated_manifests(stopped, tmp_path):
    """Also by the check that comes before any model is built."""
    whole = checkpoint_of(stopped)
    broken = tmp_path / whole.name
    shutil.copytree(whole, broken)
    for name, content in damaged_json((whole / "manifest.json").read_bytes()).items():
        (broken / "manifest.json").write_bytes(content)
        try:
            manifest = check_checkpoint(broken)
        except ValueError as error:
            assert str(broken) in str(error) and "manifest" in str(error) or "is broken" in str(error), name
        else:
            assert type(manifest["step"]) is int and isinstance(manifest["files"], dict), name
            assert isinstance(manifest.get("settings"), dict | None), name


@pytest.mark.parametrize("name", ["settings is text", "files is a list", "nested too deeply", "step is null"])
def test_a_damaged_manifest_ends_the_command(copied, capsys, name):
    path = checkpoint_of(copied) / "manifest.json"
    path.write_bytes(damaged_json(path.read_bytes())[name])
    assert "has no readable manifest.json. Remove that folder" in error_of(
        capsys, "train", "tokenizer", "--config", copied
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An Accelerator with a linear layer, and the folder of a run with its checkpoint."""
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = tmp_path_factory.mktemp("small")
    save_checkpoint(accelerator, folder, 1, {"position": 3}, keep=1)
    return accelerator, folder


# Without the random states: Accelerate goes on without them, and our numbers belong to the samples.
FILES = ["model.safetensors", "optimizer.bin", "data-0.json"]


@pytest.mark.parametrize("name", FILES)
def test_mutated_files(small, tmp_path, name):
    """Loaded, or refused by the name of the checkpoint: of flipped values of weights nothing can know."""
    accelerator, folder = small
    shutil.copytree(folder, tmp_path / "run")
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    whole = (checkpoint / name).read_bytes()
    cases = damaged_bytes(whole, flips=10)
    cases |= damaged_tensors(whole) if name.endswith(".safetensors") else {}
    cases |= damaged_json(whole) if name.endswith(".json") else {}
    failed = 0
    for content in cases.values():
        put(checkpoint, name, content)
        try:
            load_checkpoint(accelerator, tmp_path / "run")
        except ValueError as error:
            failed += 1
            assert str(checkpoint) in str(error) and "Remove that folder" in str(error)
    assert failed > 4
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"is broken: {name} is missing"):
        load_checkpoint(accelerator, tmp_path / "run")


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", b"zeros"),
        ("optimizer.bin", bytes(100)),
        ("data-0.json", b"{}"),
        ("data-0.json", b'{"batches": 3, "rows": 5}'),
        ("custom_checkpoint_0.pkl", b"nothing"),
    ],
)
def test_a_resume_ends_with_one_line(copied, capsys, name, content):
    checkpoint = checkpoint_of(copied)
    put(checkpoint, name, content)
    before = sorted(copied.parent.rglob("*.safetensors"))
    line = error_of(capsys, "train", "tokenizer", "--config", copied)
    assert f"The checkpoint {checkpoint} is broken: " in line
    assert sorted(copied.parent.rglob("*.safetensors")) == before


def test_a_damaged_log_costs_its_damaged_lines(copied, capsys):
    log = copied.parent / "run" / "log.jsonl"
    log.write_bytes(b'\xff\xfe\n[1]\n{"loss": 1}\nnull\n' + log.read_bytes() + b'{"st')
    assert main(["train", "tokenizer", "--config", str(copied)]) == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


EXPORTS = {
    "architecture/export.json": damaged_json,
    "architecture/training.json": damaged_json,
    "architecture/config.json": damaged_json,
    "architecture/preprocessor_config.json": damaged_json,
}
# Not the empty object, nor a `config.json` without a field: models of the published size take minutes to build.
FEW = ["empty", "cut off", "a list", "nested too deeply", "Latin-1"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.endswith("/config.json") else []) for name in EXPORTS]
)
def test_exports_of_a_damaged_architecture(copied, capsys, tmp_path, name):
    """A folder that loads, or one line, and nothing is left of what was begun."""
    path, out = copied.parent / "run" / name, tmp_path / "out"
    whole = path.read_bytes()
    cases = {
        case: content for case, content in EXPORTS[name](whole).items() if not case.endswith(("huge", "empty object"))
    }
    others = [case for case in cases if case not in FEW and not (name.endswith("/config.json") and "without" in case)]
    for case in [*(case for case in FEW if case in cases), *others[:: max(len(others) // 5, 1)]]:
        path.write_bytes(cases[case])
        capsys.readouterr()
        code = main(["export", str(copied.parent / "run"), str(out)])
        lines = capsys.readouterr().err.splitlines()
        if code == 0:
            shutil.rmtree(out)
            continue
        assert len(lines) == 1 and lines[0].startswith("uniwetok: error: ") and "architecture" in lines[0], case
        assert not [left for left in tmp_path.iterdir() if "out" in left.name], case
    path.unlink()
    assert "architecture" in error_of(capsys, "export", copied.parent / "run", out) and not out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "custom_checkpoint_0.pkl"])
def test_exports_of_damaged_weights(copied, capsys, tmp_path, name):
    checkpoint = checkpoint_of(copied)
    whole = (checkpoint / name).read_bytes()
    cases = damaged_bytes(whole, flips=0) | (damaged_tensors(whole) if name.endswith("safetensors") else {})
    for case in cases:
        put(checkpoint, name, cases[case])
        capsys.readouterr()
        code = main(["export", str(checkpoint), str(tmp_path / "out")])
        lines = capsys.readouterr().err.splitlines()
        if code:
            assert len(lines) == 1 and "uniwetok: error: " in lines[0] and "heckpoint" in lines[0], (case, lines)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
