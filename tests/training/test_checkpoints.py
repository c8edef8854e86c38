"""Checkpoints appear whole, the last ones are kept, broken ones are refused by name."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from tiny_training import save_checkpoint

from uniwetok_hf.files import save_whole
from uniwetok_hf.training.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    make_output_folder,
)


@pytest.fixture
def run():
    """An Accelerator with a model and its optimizer, one step in."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return accelerator, model, optimizer


def test_what_was_saved_comes_back(run, tmp_path):
    accelerator, model, optimizer = run
    weights = model.weight.detach().clone()
    moment = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    path = save_checkpoint(accelerator, tmp_path, 7, {"position": 3}, keep=2)
    assert path == tmp_path / "checkpoints" / "step-000007"
    optimizer.step()
    assert not torch.equal(model.weight, weights)
    assert load_checkpoint(accelerator, tmp_path) == (7, {"position": 3})
    assert torch.equal(model.weight, weights)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment)


def test_nothing_there_starts_from_the_beginning(run, tmp_path):
    assert load_checkpoint(run[0], tmp_path) == (0, None)


def test_only_the_last_ones_are_kept(run, tmp_path):
    for step in (9, 10, 100, 1000000):
        save_checkpoint(run[0], tmp_path, step, {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000100", "step-1000000"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000100", "step-1000000"]


def test_what_a_person_puts_beside_the_checkpoints_is_neither_read_nor_removed(run, tmp_path):
    folder = save_checkpoint(run[0], tmp_path, 1, {}, keep=1).parent
    (tmp_path / "elsewhere").mkdir()
    for name in (
        "step-000009-good",
        "step-best",
        "step-",
        "step-9",
        "step-0000099",
        "step-\u0663",
        ".step-000009-mine",
    ):
        shutil.copytree(folder / "step-000001", folder / name)
    for name in ("step-000009.tar.gz", "step-000009", "best.txt"):
        (folder / name).write_text("mine")
    (folder / "step-000050").symlink_to(tmp_path / "elsewhere")
    (folder / "step-000051").symlink_to(tmp_path / "gone")
    others = sorted(path.name for path in folder.iterdir() if path.name != "step-000001")
    for step in (2, 3):
        assert load_checkpoint(run[0], tmp_path)[0] == step - 1
        save_checkpoint(run[0], tmp_path, step, {}, keep=1)
        assert sorted(path.name for path in folder.iterdir()) == sorted([*others, f"step-{step:06d}"])
    assert (folder / "step-000009").read_text() == "mine" and (tmp_path / "elsewhere").is_dir()


def test_a_checkpoint_that_was_moved_and_linked_is_one(run, tmp_path):
    """Of a link only the link is ever removed."""
    path = save_checkpoint(run[0], tmp_path, 2, {"position": 3}, keep=2)
    save_checkpoint(run[0], tmp_path, 1, {}, keep=2)
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    files = {file: file.read_bytes() for file in moved.iterdir()}
    assert load_checkpoint(run[0], tmp_path) == (2, {"position": 3})
    assert save_checkpoint(run[0], tmp_path, 2, {"position": 4}, keep=2) == path and not path.is_symlink()
    assert load_checkpoint(run[0], tmp_path) == (2, {"position": 4})
    shutil.rmtree(path)
    path.symlink_to(moved)
    save_checkpoint(run[0], tmp_path, 3, {}, keep=1)
    assert [left.name for left in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    (tmp_path / "checkpoints" / "step-000004").symlink_to(tmp_path / "gone")  # a disk that is gone
    save_checkpoint(run[0], tmp_path, 4, {"position": 5}, keep=1)
    assert load_checkpoint(run[0], tmp_path) == (4, {"position": 5})
    assert files == {file: file.read_bytes() for file in moved.iterdir()}


def test_a_half_written_checkpoint_is_none(run, tmp_path):
    save_checkpoint(run[0], tmp_path, 1, {}, keep=2)
    half = tmp_path / "checkpoints" / ".step-000002.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert load_checkpoint(run[0], tmp_path)[0] == 1
    assert not half.exists()


def test_a_save_that_dies_leaves_the_one_before(run, tmp_path, monkeypatch):
    accelerator = run[0]
    save_checkpoint(accelerator, tmp_path, 1, {}, keep=1)

    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "save_state", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, tmp_path, 2, {}, keep=1)
    assert load_checkpoint(accelerator, tmp_path)[0] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "data-0.json"])
def test_a_truncated_file_is_refused_by_name(run, tmp_path, name):
    save_checkpoint(run[0], tmp_path, 1, {}, keep=2)
    file = save_checkpoint(run[0], tmp_path, 2, {"a": 1}, keep=2) / name
    file.write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    with pytest.raises(ValueError, match=f"step-000002 is broken: {name} has {size} of {size + 1} bytes"):
        load_checkpoint(run[0], tmp_path)


def test_a_missing_file_or_manifest_is_refused(run, tmp_path):
    path = save_checkpoint(run[0], tmp_path, 2, {}, keep=2)
    manifest = (path / "manifest.json").read_text()
    assert json.loads(manifest)["step"] == 2
    (path / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match="step-000002 is broken: optimizer.bin is missing"):
        load_checkpoint(run[0], tmp_path)
    (path / "manifest.json").write_text(manifest[:20])
    with pytest.raises(ValueError, match="step-000002 has no readable manifest.json"):
        load_checkpoint(run[0], tmp_path)


@pytest.mark.parametrize("streams", [None, 1, 3])
def test_a_checkpoint_with_other_streams_is_refused(run, tmp_path, streams):
    """Those of commit 84bac22 have no version."""
    path = save_checkpoint(run[0], tmp_path, 2, {}, keep=2)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.pop("streams") == 2
    manifest |= {} if streams is None else {"streams": streams}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="step-000002 is of another version of uniwetok-hf.*commit 84bac22"):
        load_checkpoint(run[0], tmp_path)


def test_folders_appear_whole(tmp_path):
    def fail(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_whole(fail, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    for content in ("old", "new"):
        save_whole(lambda folder, c=content: (folder.mkdir(), (folder / "file").write_text(c)), tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_finished_run_is_not_replaced(tmp_path):
    assert make_output_folder(tmp_path / "run", "model").is_dir()
    make_output_folder(tmp_path / "run", "model")
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(ValueError, match="`output_dir` .* holds the model of a finished training"):
        make_output_folder(tmp_path / "run", "model")
