"""`uniwetok sample-classes`, and what it is of: many pictures, on any number of processes, in bounded memory."""

import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import build_tiny_class_pipeline

from uniwetok_hf import UniWeTokClassToImagePipeline
from uniwetok_hf.data.samples import stream_seed
from uniwetok_hf.evaluation.class_sampling import sample_classes
from uniwetok_hf.signals import Stopped


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return build_tiny_class_pipeline(2)


@pytest.fixture(scope="module")
def alone(pipe, tmp_path_factory) -> Path:
    """Twelve pictures by one process, in batches of five."""
    return sample_classes(pipe, tmp_path_factory.mktemp("alone"), 12, 5)


def pictures(path) -> np.ndarray:
    with np.load(path) as archive:
        assert archive.files == ["arr_0"]
        return archive["arr_0"]


def test_pictures_are_those_of_the_pipeline(pipe, alone):
    found = pictures(alone)
    assert found.shape == (12, 128, 128, 3) and found.dtype == np.uint8
    labels = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]  # every part of the file has all classes
    generators = [torch.Generator().manual_seed(stream_seed(0, number)) for number in range(5, 10)]
    for image, wanted in zip(found[5:10], pipe(labels[5:10], generator=generators).images, strict=True):
        assert (image == np.asarray(wanted)).all()
    assert not (alone.parent / "parts").exists()
    settings = json.loads((alone.parent / "settings.json").read_text())
    assert (settings["num_images"], settings["num_inference_steps"], settings["guidance_scale"]) == (12, 2, 2.0)


def test_any_number_of_processes(pipe, alone, tmp_path):
    for number in (2, 0):
        assert sample_classes(pipe, tmp_path, 12, 5, process_index=number, num_processes=3) is None
    result = sample_classes(pipe, tmp_path, 12, 5, process_index=1, num_processes=3)
    assert result.read_bytes() == alone.read_bytes()
    assert sample_classes(pipe, tmp_path, 12, 5, process_index=2, num_processes=3) == result  # nothing left to do


def test_an_interrupted_run_goes_on(pipe, alone, tmp_path):
    stop, seen = threading.Event(), []

    def after(count):
        seen.append(count)
        stop.set()

    with pytest.raises(Stopped, match="stopped before picture 5"):
        sample_classes(pipe, tmp_path, 12, 5, on_images=after, stop=stop)
    first = (tmp_path / "parts" / "000000.npy").stat().st_mtime_ns
    (tmp_path / "parts" / ".000001.npy.tmp").write_bytes(b"half")
    again = []
    result = sample_classes(pipe, tmp_path, 12, 5, on_images=lambda count: again.append((count, first)))
    assert result.read_bytes() == alone.read_bytes() and [count for count, _ in again] == [5, 5, 2]


@pytest.mark.parametrize(
    ("more", "named"),
    [({"batch_size": 6}, "batch_size"), ({"seed": 1}, "seed"), ({"guidance_scale": 3.0}, "guidance_scale")],
)
def test_other_settings_need_another_folder(pipe, alone, more, named):
    before = alone.read_bytes()
    with pytest.raises(ValueError, match=f"`{named}`: .* was begun with .* and can't go on with"):
        sample_classes(pipe, alone.parent, 12, **{"batch_size": 5} | more)
    with pytest.raises(ValueError, match="`weights`"):
        sample_classes(build_tiny_class_pipeline(2, seed=1), alone.parent, 12, 5)
    assert alone.read_bytes() == before


@pytest.mark.parametrize("name", ["samples.npz", "parts/000000.npy"])
def test_pictures_of_others_are_not_taken_for_its_own(pipe, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"of another model")
    with pytest.raises(ValueError, match=f"holds {name.split('/')[0]}, but no settings.json .* name another folder"):
        sample_classes(pipe, tmp_path, 12, 5)
    assert path.read_bytes() == b"of another model" and not (tmp_path / "settings.json").exists()


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch):
    """Joining reads one part at a time."""
    from uniwetok_hf.evaluation import class_sampling

    (tmp_path / "parts").mkdir()
    for index in range(8):
        np.save(tmp_path / "parts" / f"{index:06d}.npy", np.full((50, 64, 64, 3), index, np.uint8))
    tracemalloc.start()
    result = class_sampling._finish(tmp_path, 400, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 50 * 64 * 64 * 3 and result.stat().st_size > 8 * 50 * 64 * 64 * 3
    assert (pictures(result)[:, 0, 0, 0] == np.repeat(np.arange(8), 50)).all()


def test_the_command(succeeds, fails, class_folder, workplace, pipe):
    options = ["--num-images", 7, "--batch-size", 4, "--seed", 3, "--steps", 1, "--guidance-scale", 1.0]
    assert succeeds("sample-classes", class_folder, "out", *options) == ["out/samples.npz"]
    loaded = UniWeTokClassToImagePipeline.from_pretrained(class_folder, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    wanted = sample_classes(loaded, workplace / "other", 7, 4, seed=3, num_inference_steps=1, guidance_scale=1.0)
    assert Path("out/samples.npz").read_bytes() == wanted.read_bytes()
    assert succeeds("sample-classes", class_folder, "out", *options) == ["out/samples.npz"]
    message = fails("sample-classes", class_folder, "out", *options[:-1], 2.0)
    assert "`guidance_scale`: out was begun with 1.0, and can't go on with 2.0" in message


@pytest.mark.slow
def test_two_processes_make_the_pictures_of_one(class_folder, workplace):
    options = ["--num-images", "40", "--batch-size", "8", "--steps", "2"]
    command = [sys.executable, "-m", "uniwetok_hf", "sample-classes", str(class_folder)]

    def start(folder, **environment):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        return subprocess.Popen([*command, folder, *options], env=environment, stdout=subprocess.DEVNULL)

    assert start("one").wait() == 0
    both = [start("two", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert Path("two/samples.npz").read_bytes() == Path("one/samples.npz").read_bytes()
    shutil.rmtree("two")
