import json
import os
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image
from tiny_encoded import contents, failing

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokModel
from uniwetok_hf.data import encoding_workers
from uniwetok_hf.data.encoded import cell_codes, encoder_fingerprint, open_encoded, part_path, read_encoding
from uniwetok_hf.data.encoding import EncodingSettings, encode_dataset, encoded_features, find_picture_columns


SETTINGS = {"sizes": ((16, 16),), "num_variants": 2, "rows_per_part": 4, "batch_size": 3, "source": "here"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def pictures():
    """Ten rows, the fifth of which has no picture."""
    colours = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(colour).resize((20, 20)) for colour in colours]
    images[4] = None
    features = Features({"text": Value("string"), "image": datasets.Image()})
    return Dataset.from_dict({"text": list("abcdefghij"), "image": images}, features=features)


@pytest.fixture
def encode(make_model, pictures, tmp_path):
    """`encode(name="codes", dataset=pictures, **settings)` encodes to the folder `name`."""

    def run(name="codes", dataset=pictures, model=None, num_processes=1, rank=0, world_size=1, **settings):
        settings = EncodingSettings(**SETTINGS | settings)
        model = model or make_model()
        return encode_dataset(dataset, tmp_path / name, model, settings, "cpu", num_processes, rank, world_size)

    return run


def test_a_dataset_becomes_codes(encode, make_model, pictures, tmp_path):
    encoding = encode()
    assert encoding == read_encoding(tmp_path / "codes")
    dataset = open_encoded(tmp_path / "codes")
    assert dataset["text"][:] == list("abcdfghij")
    processor = UniWeTokImageProcessor(stride=4, fit="crop", size={"height": 16, "width": 16})
    kept = [row["image"] for row in pictures if row["image"] is not None]
    with torch.no_grad():
        expected = make_model().encode(processor(kept)["pixel_values"]).codes
    for row, codes in zip(dataset, expected, strict=True):
        assert torch.equal(cell_codes(row["image"], 0, 16), codes)


def test_description(encode, make_model, tmp_path):
    encoding = encode()
    assert encoding.fingerprint == encoder_fingerprint(make_model())
    assert (encoding.num_bits, encoding.stride, encoding.picture_columns) == (16, 4, ["image"])
    assert (encoding.num_rows, encoding.num_parts, encoding.num_variants, encoding.num_skipped) == (9, 3, 2, 1)
    parts = sum(part_path(tmp_path / "codes", index).stat().st_size for index in range(3))
    assert encoding.bytes["codes"] == 32.0
    assert (encoding.bytes["pictures"], encoding.bytes["jpeg_pictures"], encoding.bytes["parts"]) == (9, 1, parts)
    assert encoding.bytes["jpeg"] > 100
    assert encoding.bytes["source"] > 100
    assert encoding.pictures_per_second > 0
    assert encoding.settings["source"] == "here"
    assert encoding.model == ""  # it was never saved
    assert not (tmp_path / "codes" / "encoding.partial.json").exists()


def test_rows_left_out_are_listed(encode, tmp_path):
    encode()
    lines = (tmp_path / "codes" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": 4, "column": "image", "error": "row 4: there is no picture in this row", "part": "part-00001.parquet"}
    ]


def test_an_interrupted_encoding_goes_on_to_the_same_bytes(encode, make_model, tmp_path):
    encode("whole")
    with pytest.raises(RuntimeError, match="killed"):
        encode(model=failing(make_model(), after=4))  # three batches a part
    folder = tmp_path / "codes"
    assert [path.name for path in sorted(folder.iterdir())] == ["encoding.partial.json", "part-00000.parquet"]
    with pytest.raises(ValueError, match="unfinished"):
        read_encoding(folder)
    first = part_path(folder, 0).stat().st_mtime_ns
    encode()
    assert part_path(folder, 0).stat().st_mtime_ns == first  # not made again
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [True, False])
def test_a_part_that_was_cut_off_is_made_again(encode, tmp_path, finished):
    folder = tmp_path / "codes"
    encode()
    whole = contents(folder)
    if not finished:
        (folder / "encoding.json").rename(folder / "kept")
        state = json.loads((folder / "kept").read_text())["settings"]
        (folder / "encoding.partial.json").write_text(json.dumps(state))
        (folder / "kept").unlink()
    part_path(folder, 1).write_bytes(whole["part-00001.parquet"][:-5])
    assert encode().num_rows == 9
    assert contents(folder) == whole


def test_while_a_part_is_made_again_the_folder_is_unfinished(encode, make_model, tmp_path):
    encode()
    part_path(tmp_path / "codes", 1).unlink()
    with pytest.raises(RuntimeError, match="killed"):
        encode(model=failing(make_model(), after=0))
    with pytest.raises(ValueError, match="unfinished"):
        read_encoding(tmp_path / "codes")


def test_a_finished_encoding_is_left_alone(encode, make_model, tmp_path):
    encoding = encode()
    assert encode(model=failing(make_model(), after=0)) == encoding


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"num_variants": 3}, {"sizes": ((16, 8),)}, {"rows_per_part": 5}, {"source": "there"}]
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(encode, make_model, change, finished):
    if finished:
        encode()
    else:
        with pytest.raises(RuntimeError):
            encode(model=failing(make_model(), after=0))
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`: .* was begun with"):
        encode(**change)


@pytest.mark.parametrize("name", ["same_crops", "mirrored"])
def test_a_folder_that_is_older_than_a_setting_has_its_default(encode, tmp_path, name):
    encoding = encode()
    path = tmp_path / "codes" / "encoding.json"
    values = json.loads(path.read_text())
    del values["settings"][name]
    path.write_text(json.dumps(values))
    assert encode().num_rows == encoding.num_rows
    with pytest.raises(ValueError, match=f"`{name}`: .* was begun with False, and can't go on with True"):
        encode(**{name: True})


def test_mirrored_encodings_are_counted(encode):
    assert encode(num_variants=1, mirrored=True).num_variants == 2


@pytest.mark.parametrize("num_variants", [1, 2])
@pytest.mark.parametrize("name", ["streams", "crops"])
def test_crops_of_another_version_are_not_mixed_in(encode, tmp_path, num_variants, name):
    """Earlier versions recorded none. What they finished is left alone."""
    encode(num_variants=num_variants)
    description = tmp_path / "codes" / "encoding.json"
    values = json.loads(description.read_text())
    assert values["settings"].pop(name) == 2
    description.write_text(json.dumps(values))
    before = contents(tmp_path / "codes")
    assert encode(num_variants=num_variants).settings == values["settings"]
    part_path(tmp_path / "codes", 0).unlink()
    if num_variants == 1:  # nothing random is in it
        encode(num_variants=1)
        assert contents(tmp_path / "codes") == before
    else:
        with pytest.raises(ValueError, match="codes was begun by an earlier version, whose random crops are others"):
            encode(num_variants=2)


def test_another_model_precision_or_dataset_is_refused(encode, make_model, pictures):
    encode()
    with pytest.raises(ValueError, match="`fingerprint`: .* was begun with .* These are of image tokenizers: "):
        encode(model=make_model(seed=1))
    with pytest.raises(ValueError, match="`rank` must be from 0 to `world_size` - 1, got 2 of 2"):
        encode(rank=2, world_size=2)
    with pytest.raises(ValueError, match="`dtype`: .* was begun with 'float32', and can't go on with 'bfloat16'"):
        encode(model=make_model().bfloat16())
    with pytest.raises(ValueError, match="`source_rows`: .* was begun with 10, and can't go on with 9"):
        encode(dataset=pictures.select(range(9)))


def test_a_model_is_known_by_its_weights_not_its_name(encode, make_model, tmp_path):
    encode()
    make_model().save_pretrained(tmp_path / "saved")
    part_path(tmp_path / "codes", 0).unlink()
    assert encode(model=UniWeTokModel.from_pretrained(tmp_path / "saved")).model == "saved"


def test_parts_without_settings_are_refused(encode, tmp_path):
    encode()
    (tmp_path / "codes" / "encoding.json").unlink()
    with pytest.raises(ValueError, match="holds parts, but not the settings"):
        encode()


def test_a_stream_gives_the_same_parts(encode, make_model, pictures, tmp_path):
    encode("whole")
    stream = pictures.to_iterable_dataset(num_shards=3)
    with pytest.raises(RuntimeError, match="killed"):
        encode(dataset=stream, model=failing(make_model(), after=4))
    encoding = encode(dataset=stream)
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")
    assert (encoding.num_parts, encoding.num_rows) == (3, 9)


def test_a_stream_of_lists_of_pictures(encode, pictures, tmp_path):
    images = [row["image"] for row in pictures if row["image"] is not None]
    features = Features({"images": List(datasets.Image()), "words": List(Value("string"))})
    rows = {"images": [images[:2], [], images[2:3]], "words": [["a"], [], ["b", "c"]]}
    dataset = Dataset.from_dict(rows, features=features)
    encode("whole", dataset=dataset)
    encode(dataset=dataset.to_iterable_dataset())
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_a_stream_that_ends_with_a_part(encode, pictures):
    assert encode(dataset=pictures.to_iterable_dataset(), rows_per_part=5).num_parts == 2


def test_machines_share_the_parts_and_the_last_finishes(encode, tmp_path):
    encode("whole")
    assert encode(rank=1, world_size=2) is None
    folder = tmp_path / "codes"
    assert [path.name for path in sorted(folder.glob("*.parquet"))] == ["part-00001.parquet"]
    assert encode(rank=0, world_size=2).num_rows == 9
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(encode, tmp_path):
    encode("whole")
    assert encode(num_processes=2).pictures_per_second > 0
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_errors_of_a_process_arrive(encode, make_model):
    model = make_model()
    with torch.no_grad():
        model.encoder.conv_in.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        encode(model=model, num_processes=2)


@pytest.mark.slow
def test_a_process_that_is_killed_is_one_line(encode, monkeypatch):
    submit, waits = encoding_workers._Pool.submit, []

    def kill(pool, *part):
        pool.running.add(pool.executor.submit(os._exit, 9))  # as a process without memory ends: without a word
        if waits:  # it is found out while the next rows are handed out
            time.sleep(1)
            submit(pool, *part)

    monkeypatch.setattr(encoding_workers._Pool, "submit", kill)
    for waits in ([], [True]):
        with pytest.raises(OSError, match=r"was killed \(out of memory\?\); the same command goes on"):
            encode(f"codes {len(waits)}", num_processes=2)


SCRIPT = """
import sys
from datasets import load_from_disk
from uniwetok_hf import UniWeTokModel
from uniwetok_hf.data.encoding import EncodingSettings, encode_dataset

if __name__ == "__main__":
    data, model, out, processes = sys.argv[1:]
    settings = EncodingSettings(sizes=((16, 16),), num_variants=20, rows_per_part=4, batch_size=1)
    encode_dataset(load_from_disk(data), out, UniWeTokModel.from_pretrained(model), settings, "cpu", int(processes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_after_sigkill_it_goes_on_to_the_same_bytes(make_model, pictures, tmp_path, num_processes):
    """Killed when the first part is there; no process is left behind to go on writing."""
    many = datasets.concatenate_datasets([pictures] * 4)
    many.save_to_disk(tmp_path / "data")
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    names = [str(tmp_path / name) for name in ("data", "model", "codes")]
    command = [sys.executable, str(tmp_path / "script.py"), *names, str(num_processes)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    first, deadline = part_path(tmp_path / "codes", 0), time.monotonic() + 600
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    found = len(list((tmp_path / "codes").glob("part-*.parquet")))
    assert 0 < found < 10
    time.sleep(2)
    assert len(list((tmp_path / "codes").glob("part-*.parquet"))) == found
    settings = EncodingSettings(sizes=((16, 16),), num_variants=20, rows_per_part=4, batch_size=1)
    for name in ("codes", "whole"):
        encode_dataset(many, tmp_path / name, make_model(), settings)
    ours, whole = contents(tmp_path / "codes"), contents(tmp_path / "whole")
    assert {name: content for name, content in ours.items() if not name.startswith(".")} == whole


FEATURES = Features(
    {
        "text": Value("string"),
        "image": datasets.Image(),
        "images": List(datasets.Image(decode=False)),
        "file": Value("binary"),
        "stored": {"bytes": Value("binary"), "path": Value("string")},
        "number": Value("int32"),
        "words": List(Value("string")),
    }
)


def test_columns_of_pictures_are_found():
    assert find_picture_columns(FEATURES, None) == ("image", "images")
    assert find_picture_columns(FEATURES, ["file", "stored", "image"]) == ("file", "stored", "image")
    paths = Features({"image": Value("string"), "text": Value("string")})
    assert find_picture_columns(paths, None) == ("image",)


@pytest.mark.parametrize(
    "features, wanted, message",
    [
        (FEATURES, ["picture"], "`columns`: there is no column picture; the columns are text, image, images"),
        (FEATURES, ["number"], r"`columns`: the column number holds no pictures, but Value\('int32'\)"),
        (FEATURES, ["words"], r"`columns`: the column words holds no pictures"),
        (Features({"rows": List(List(datasets.Image()))}), ["rows"], "`columns`: the column rows holds no pictures"),
        (FEATURES, ["image", "image"], "`columns`: a column is named twice in image, image"),
        (Features({"text": Value("string")}), None, "`columns`: no column is typed as pictures; the columns are text"),
        (None, None, "`dataset`: its columns are not known"),
    ],
)
def test_bad_columns_are_refused(features, wanted, message):
    with pytest.raises(ValueError, match=message):
        find_picture_columns(features, wanted)


def test_features_of_the_parts():
    features = encoded_features(FEATURES, ["image", "file"])
    assert list(features) == ["text", "image", "file", "stored", "number", "words"]
    assert features["image"] == features["file"]
    assert encoded_features(FEATURES, ["images"])["images"] == List(features["image"])
    assert features["words"] == FEATURES["words"]


def test_no_rows(encode, pictures):
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        encode(dataset=pictures.select([]))


def test_sizes_are_checked_before_anything_is_written(encode, tmp_path):
    with pytest.raises(ValueError, match="`sizes`: sides must be multiples of 4 pixels"):
        encode(sizes=((18, 16),))
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("name", ["unfinished", "skipped.jsonl"])
def test_a_folder_with_files_of_others_is_refused(encode, tmp_path, name):
    """They would be deleted or replaced at the end."""
    (tmp_path / "codes").mkdir()
    if name == "unfinished":
        (tmp_path / "codes" / name).mkdir()
    else:
        (tmp_path / "codes" / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"`folder` .* holds {name}, but not the settings of an encoding"):
        encode()
    assert [path.name for path in (tmp_path / "codes").iterdir()] == [name]
