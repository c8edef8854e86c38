import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image
from tiny_models import build_tiny_pipeline

from uniwetok_hf.cli.encode_dataset import machine
from uniwetok_hf.data.encoded import open_encoded, read_encoding
from uniwetok_hf.data.encoded_parts import PartEncoder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(seed):
    stream = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((100, 70)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": f"{seed}.png"}


def save_parquet(name, **columns):
    kinds = {"image": datasets.Image(), "source": datasets.Image(), "target": datasets.Image()}
    features = Features({column: kinds.get(column, Value("string")) for column in columns})
    Dataset.from_dict(columns, features=features).to_parquet(name)
    return name


@pytest.fixture
def captions(workplace):
    return save_parquet("captions.parquet", image=[png(0), png(1), png(2)], text=["a", "b", "c"])


def grid(cell):
    return [(variant["height"], variant["width"]) for variant in cell]


def test_a_parquet_file(captions, vision_folder, succeeds):
    lines = succeeds("encode-dataset", captions, "codes", "--size", 64, "--model", vision_folder)
    assert lines[0] == "3 rows with 3 pictures"
    assert lines[1].startswith("codes: 8 bytes per picture; stored before: ")
    assert "as JPEG of quality 90: " in lines[1]
    assert lines[1].endswith("measured on 1)")
    assert lines[2].endswith(" pictures per second")
    assert lines[3:] == ["columns beside the codes: text", "codes"]
    dataset = open_encoded("codes")
    assert dataset["text"][:] == ["a", "b", "c"]
    assert grid(dataset[0]["image"]) == [(2, 2)]
    assert read_encoding("codes").model == "tiny-vision"
    assert read_encoding("codes").settings["source"] == "captions.parquet train"


def test_a_function_of_ones_own(vision_folder, succeeds, fails, make_picture, workplace):
    """Its pictures may be paths, and what fails in it is one line."""
    make_picture("a.png", 64, 64)
    head = "from datasets import IterableDataset, Features, Value\n"
    (workplace / "own.py").write_text(
        f"{head}def load(split):\n    yield {{'image': 'a.png', 'text': split}}\n\n\ndef boom(split):\n"
        "    yield 1 / 0\n\n\ndef stream(split):\n    features = Features({'image': Value('string')})\n"
        "    return IterableDataset.from_generator(boom, features=features, gen_kwargs={'split': split})\n"
    )
    options = ("--size", 64, "--model", vision_folder)
    assert succeeds("encode-dataset", "own.py:load", "codes", *options)[0] == "1 rows with 1 pictures"
    assert open_encoded("codes")["text"][:] == ["train"]
    message = fails("encode-dataset", "own.py:boom", "other", *options)
    assert "`path`: `own.py:boom` ('train') raised ZeroDivisionError: division by zero" in message
    message = fails("encode-dataset", "own.py:stream", "other", *options)
    assert "`dataset`: reading the rows from 0 on raised ZeroDivisionError: division by zero" in message


def test_it_may_be_run_again(captions, vision_folder, succeeds):
    command = ("encode-dataset", captions, "codes", "--size", 64, "--model", vision_folder)
    *figures, folder = succeeds(*command)
    assert succeeds(*command) == [*figures, "it was complete already, nothing to do", folder]


def test_words_that_come_later_are_not_lost(vision_folder, succeeds, fails):
    """A folder of pictures whose metadata.jsonl is written after the first try."""
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(png(0)["bytes"])
    command = ("encode-dataset", "pictures", "codes", "--size", 64, "--model", vision_folder)
    assert any("none: no text to train on" in line for line in succeeds(*command))
    Path("pictures/metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    assert "captions or other columns beside the pictures are not what they were when codes" in fails(*command)


def test_edits_have_two_columns_of_pictures(vision_folder, succeeds):
    edits = save_parquet("edits.parquet", source=[png(0)], instruction=["none"], target=[png(0)])
    options = ("--longest-edge", 64, "--variants", 3, "--crop-scale", 0.9, "--flip", "--seed", 5, "--same-crops")
    options += ("--fit", "resize")
    lines = succeeds("encode-dataset", edits, "codes", *options, "--model", vision_folder)
    assert lines[0] == "1 rows with 2 pictures, 3 variants of each"
    (row,) = open_encoded("codes")
    assert row["source"] == row["target"]
    assert grid(row["source"]) == [(1, 2)] * 3
    settings = read_encoding("codes").settings
    assert (settings["seed"], settings["flip"], settings["crop_scale"], settings["fit"]) == (5, True, 0.9, "resize")
    assert settings["same_crops"] is True


def test_mirror_images_on_request(vision_folder, succeeds):
    pictures = save_parquet("classes.parquet", image=[png(0), png(1)], label=[0, 1])
    options = ("--size", 64, "--variants", 2, "--mirrored", "--model", vision_folder)
    assert succeeds("encode-dataset", pictures, "codes", *options)[0] == "2 rows with 2 pictures, 4 variants of each"
    assert all(len(row["image"]) == 4 for row in open_encoded("codes"))


def test_columns_are_chosen(vision_folder, succeeds):
    edits = save_parquet("edits.parquet", source=[png(0)], instruction=["none"], target=[png(1)])
    succeeds("encode-dataset", edits, "codes", "--columns", "target", "--size", "32x64", "--model", vision_folder)
    assert open_encoded("codes").column_names == ["instruction", "target"]


def test_other_kinds_of_sources(make_picture, vision_folder, succeeds, fixtures):
    make_picture("wide.png", 100, 40)
    make_picture("tall.png", 40, 100)
    lines = succeeds("encode-dataset", ".", "wide-tall", "--size", "32x64", "64x32", "--model", vision_folder)
    assert lines[0] == "2 rows with 2 pictures"
    assert sorted(grid(row["image"]) for row in open_encoded("wide-tall")) == [[(1, 2)], [(2, 1)]]
    emoji = fixtures / "emoji"
    for name, options in (("emoji", ()), ("stream", ("--streaming",))):
        options = ("--split", "validation", "--size", 32, "--rows-per-part", 4, *options)
        succeeds("encode-dataset", emoji, name, *options, "--model", vision_folder)
    assert open_encoded("emoji").to_list() == open_encoded("stream").to_list()


def test_tars_whose_rows_differ_can_be_streamed(vision_folder, succeeds):
    with tarfile.open("shard.tar", "w") as archive:
        for number in range(12):
            files = [("jpg", png(number)["bytes"])] + [("txt", f"text {number}".encode())] * (number != 10)
            for suffix, content in files[:: 1 if number % 2 else -1]:
                entry = tarfile.TarInfo(f"{number:03d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    options = ("--streaming", "--size", 32, "--rows-per-part", 5)
    succeeds("encode-dataset", "shard.tar", "codes", *options, "--model", vision_folder)
    texts = [f"text {number}" for number in range(12)]
    texts[10] = None
    assert open_encoded("codes")["txt"][:] == texts


def test_rows_left_out_are_told(vision_folder, uniwetok, workplace):
    broken = save_parquet("broken.parquet", image=[png(0), {"bytes": b"none", "path": "b.png"}], text=["a", "b"])
    result = uniwetok("encode-dataset", broken, "codes", "--size", 32, "--model", vision_folder)
    assert result.code == 0
    assert result.err == ["uniwetok: warning: 1 rows were skipped, see codes/skipped.jsonl"]
    assert json.loads((workplace / "codes" / "skipped.jsonl").read_text())["row"] == 1


def test_machines_of_a_cluster(captions, vision_folder, succeeds, monkeypatch):
    command = ("encode-dataset", captions, "codes", "--size", 32, "--rows-per-part", 2, "--model", vision_folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert succeeds(*command) == ["codes: the parts of machine 1 are done; the last of 2 machines finishes"]
    monkeypatch.setenv("RANK", "0")
    assert succeeds(*command)[0] == "3 rows with 3 pictures"


@pytest.mark.slow
def test_ray_gives_the_same_parts(captions, vision_folder, succeeds):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    command = ("--size", 32, "--rows-per-part", 2, "--variants", 2, "--model", vision_folder)
    lines = succeeds("encode-dataset", captions, "codes", *command, "--engine", "ray", "--num-processes", 2)
    assert lines[0] == "3 rows with 3 pictures, 2 variants of each"
    succeeds("encode-dataset", captions, "local", *command)
    for number in range(2):
        part = f"part-0000{number}.parquet"
        assert Path("codes", part).read_bytes() == Path("local", part).read_bytes()


def test_ray_that_is_not_installed(captions, vision_folder, fails, monkeypatch, workplace):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ("--size", 32, "--engine", "ray", "--model", vision_folder)
    assert 'pip install "uniwetok-hf[ray]"' in fails("encode-dataset", captions, "codes", *options)
    assert not (workplace / "codes").exists()


@pytest.mark.parametrize("rank, world_size", [("3", None), ("2", "2"), ("-1", "2"), ("", "2"), ("one", "2")])
def test_machines_that_the_environment_has_wrong(captions, vision_folder, fails, monkeypatch, rank, world_size):
    """Left over in a shell, RANK=3 alone would be a machine that has no part to make."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    error = fails("encode-dataset", captions, "codes", "--size", 32, "--model", vision_folder)
    assert f"RANK={rank} and WORLD_SIZE={world_size or 1} in the environment must be" in error


def test_patches_of_the_pipeline(captions, tmp_path, succeeds, fails):
    build_tiny_pipeline(patch_size=2).save_pretrained(tmp_path / "pipeline")
    command = ("encode-dataset", captions, "codes", "--model", tmp_path / "pipeline")
    assert "multiples of 64 pixels" in fails(*command, "--size", 96)
    succeeds(*command, "--size", 96, "--patch-size", 1)


def test_precision(captions, vision_folder, succeeds):
    succeeds("encode-dataset", captions, "codes", "--size", 32, "--dtype", "bfloat16", "--model", vision_folder)
    assert read_encoding("codes").settings["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "options, message",
    [
        (("--size", 40), "`sizes`: sides must be multiples of 32 pixels"),
        (("--longest-edge", 16), "`longest_edge`: sides must be multiples of 32"),
        (("--size", 32, "--columns", "pixels"), "`columns`: there is no column pixels; the columns are image, text"),
        (("--size", 32, "--split", "test"), "split"),
        (("--size", 32, "--variants", 2, "--crop-scale", 0), "`crop_scale` must be above 0"),
        (("--size", 32, "--device", "cuda:7"), "--device cuda:7 is not available"),
    ],
)
def test_bad_options(captions, vision_folder, fails, workplace, options, message):
    assert message in fails("encode-dataset", captions, "codes", *options, "--model", vision_folder)
    assert not (workplace / "codes").exists()


def test_bad_sources(vision_folder, fails):
    assert "nowhere.parquet" in fails(
        "encode-dataset", "nowhere.parquet", "codes", "--size", 32, "--model", vision_folder
    )


def test_other_options_are_refused(captions, vision_folder, succeeds, fails):
    command = ("encode-dataset", captions, "codes", "--model", vision_folder)
    succeeds(*command, "--size", 32)
    assert "`sizes`: codes was begun with [[32, 32]]" in fails(*command, "--size", 64)


@pytest.mark.parametrize("size", ["0", "64x", "x64", "64x64x64", "-64", "0x64"])
def test_sizes_that_can_not_be_read(uniwetok, captions, capsys, size):
    with pytest.raises(SystemExit) as exit:
        uniwetok("encode-dataset", captions, "codes", "--size", size)
    assert exit.value.code == 2


def test_a_size_or_a_longest_edge_is_needed(uniwetok, captions, capsys):
    for sizes in ((), ("--size", 32, "--longest-edge", 32)):
        with pytest.raises(SystemExit) as exit:
            uniwetok("encode-dataset", captions, "codes", *sizes)
        assert exit.value.code == 2


def test_help_shows_examples(uniwetok, capsys):
    with pytest.raises(SystemExit):
        uniwetok("encode-dataset", "--help")
    assert "uniwetok encode-dataset photos photo-codes --size 256" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_part(number, captions, vision_folder, uniwetok, succeeds, monkeypatch):
    command = ("encode-dataset", captions, "codes", "--size", 64, "--model", vision_folder, "--rows-per-part", 1)
    with monkeypatch.context() as patch:
        write_part = PartEncoder.write_part

        def stopped(*arguments):
            os.kill(os.getpid(), number)
            return write_part(*arguments)

        patch.setattr(PartEncoder, "write_part", stopped)
        result = uniwetok(*command)
    assert (result.code, len(list(Path("codes").glob("part-*.parquet")))) == (75, 1)
    assert (
        result.err[-1] == "uniwetok: stopped; the parts in codes are whole, and the same command continues from there"
    )
    assert succeeds(*command)[0] == "3 rows with 3 pictures"


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "64"}, (3, 64)),
        ({"SLURM_PROCID": "0"}, (0, 1)),  # of a script of sbatch
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1)),
        ({"SLURM_STEP_NUM_TASKS": "64"}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "64", "RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "64", "WORLD_SIZE": "2"}, (0, 2)),
    ],
)
def test_tasks_of_slurm_are_machines(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert machine() == expected
    if "WORLD_SIZE" not in environment:
        assert machine(reads_slurm=False) == (0, 1)  # with Ray, which finds its machines
