"""The engine `ray` against the built-in one, on a Ray of two workers on this machine."""

import io
import os
import signal
import tarfile
import threading
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from tiny_encoded import contents, pictures

from uniwetok_hf.data.encoded import open_encoded
from uniwetok_hf.data.encoded_parts import EncodingSettings
from uniwetok_hf.data.encoding import encode_dataset
from uniwetok_hf.data.encoding_ray import share_of_gpu
from uniwetok_hf.data.ray_connection import connected
from uniwetok_hf.data.sources import PictureSource, open_rows
from uniwetok_hf.signals import Stopped


FEATURES = Features({"text": Value("string"), "image": datasets.Image()})
TEXTS = list("abcdefghijkl")
FILES = "parquet", "folder", "webdataset"


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with connected(2) as module:
        yield module


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_dict({"text": TEXTS, "image": pictures(12, size=(20, 20))}, features=FEATURES)


@pytest.fixture
def encode(make_model, rows, tmp_path):
    """`encode(name="codes", dataset=rows, engine="ray", **options)` to the folder `name`, on two actors."""

    def run(name="codes", dataset=rows, engine="ray", num_processes=2, rank=0, world_size=1, stop=None, **settings):
        settings = EncodingSettings(sizes=((16, 16),), rows_per_part=3, batch_size=2, num_variants=2, **settings)
        model, machine = make_model(), (rank, world_size)
        num_processes = num_processes if engine == "ray" else 1
        arguments = (dataset, tmp_path / name, model, settings, "cpu", num_processes, *machine)
        return encode_dataset(*arguments, stop=stop, engine=engine)

    return run


@pytest.fixture
def save(rows, tmp_path):
    """`save(kind)`: the rows in files of a kind, and the path to open them by; with `fsspec` before it a pattern."""

    def write(name):
        *start, kind = name.split()
        folder = tmp_path / kind
        folder.mkdir()
        parts = [rows.shard(3, number) for number in range(3)]
        for number, part in enumerate(parts):
            if kind == "parquet":
                part.to_parquet(folder / f"{number}.parquet")
            elif kind == "folder":
                for row in part:
                    row["image"].save(folder / f"{row['text']}.png")
            else:
                with tarfile.open(folder / f"{number}.tar", "w") as archive:
                    for row in part:
                        stream = io.BytesIO()
                        row["image"].save(stream, "PNG")
                        for suffix, content in (("png", stream.getvalue()), ("txt", row["text"].encode())):
                            entry = tarfile.TarInfo(f"{row['text']}.{suffix}")
                            entry.size = len(content)
                            archive.addfile(entry, io.BytesIO(content))
        suffix = {"parquet": "parquet", "folder": "png", "webdataset": "tar"}[kind]
        return f"file://{folder}/*.{suffix}" if start else str(folder)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FILES, *(f"fsspec {kind}" for kind in FILES)])
def test_the_files_of_the_built_in_engine(ray, encode, save, tmp_path, kind):
    dataset = open_rows(PictureSource(save(kind)))
    encode("local", dataset, "local")
    description = encode("ray", dataset)
    assert description.num_rows == 12
    assert 0 < description.pictures_per_second < 10_000
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "webdataset", "fsspec parquet", "fsspec webdataset"])
def test_shards_of_a_stream(ray, encode, save, tmp_path, kind):
    """As two machines encode them."""
    dataset = open_rows(PictureSource(save(kind), streaming=True))
    for rank in range(2):
        encode("local", dataset, "local", rank=rank, world_size=2)
    assert encode("ray", dataset).parts_of_shards == [2, 2, 2]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


OWN = """
from datasets import Features, Image, IterableDataset

def load(files):
    for file in files:
        yield {"image": {"path": file, "bytes": None}}

def stream(split):
    features = Features({"image": Image(decode=False)})
    return IterableDataset.from_generator(load, features=features, gen_kwargs={"files": FILES})
"""


@pytest.mark.slow
def test_a_function_of_ones_own(ray, encode, save, tmp_path):
    files = [str(file) for file in sorted(Path(save("folder")).iterdir())]
    (tmp_path / "own.py").write_text(f"FILES = {files}\n{OWN}")
    dataset = open_rows(PictureSource(f"{tmp_path / 'own.py'}:stream"))
    for rank in range(2):
        encode("local", dataset, "local", rank=rank, world_size=2)
    encode("ray", dataset)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_stream_of_one_shard(ray, encode, rows, tmp_path):
    dataset = rows.to_iterable_dataset()
    encode("local", dataset, "local")
    assert encode("ray", dataset).num_parts == 4
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.fixture
def deadly(rows, tmp_path):
    """`deadly(times)`: a stream of four shards of three rows. At the second row of the last part of shard 2 it kills
    the process that reads it, so many times; the file `deaths` has their ids."""
    deaths = tmp_path / "deaths"

    def stream(times):
        def load(starts):
            for start in starts:
                for row in rows.select(range(start, start + 3)).cast_column("image", datasets.Image(decode=False)):
                    if row["text"] == TEXTS[7] and os.getpid() != ours:
                        before = deaths.read_text().split() if deaths.exists() else []
                        if len(before) < times:
                            deaths.write_text(" ".join([*before, str(os.getpid())]))
                            os.kill(os.getpid(), signal.SIGKILL)
                    yield row

        ours = os.getpid()
        return IterableDataset.from_generator(load, features=FEATURES, gen_kwargs={"starts": [0, 3, 6, 9]})

    return stream


@pytest.mark.slow
def test_after_a_killed_worker_each_row_is_there_once(ray, encode, deadly, tmp_path):
    for rank in range(2):
        encode("local", deadly(0), "local", rank=rank, world_size=2)
    assert encode("ray", deadly(2)).num_rows == 12
    assert len(set((tmp_path / "deaths").read_text().split())) == 2
    assert open_encoded(tmp_path / "ray")["text"][:] == TEXTS
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_what_ends_every_actor_ends(ray, encode, deadly, tmp_path):
    with pytest.raises(ValueError, match="`dataset`: shard 2 ended 5 actors of Ray"):
        encode(dataset=deadly(100))
    assert len((tmp_path / "deaths").read_text().split()) == 5
    assert encode(dataset=deadly(0)).num_rows == 12


@pytest.mark.slow
def test_errors_of_an_actor_arrive(ray, encode, rows):
    def load(numbers):
        for number in numbers:
            yield {"text": str(1 / number), "image": None}

    stream = IterableDataset.from_generator(load, features=FEATURES, gen_kwargs={"numbers": [1, 0]})
    with pytest.raises(ValueError, match="`dataset`: reading the rows from 0 of shard 1 on raised ZeroDivisionError"):
        encode(dataset=stream)
    bad = Dataset.from_dict({"text": TEXTS, "image": [None] * 12}, features=FEATURES)
    with pytest.raises(ValueError, match="`max_skipped_share`=0.01: 12 of 12 samples can't be used"):
        encode("bad", bad)


@pytest.mark.slow
def test_it_stops_and_goes_on(ray, encode, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        encode(stop=stop)
    assert not (tmp_path / "codes" / "encoding.json").exists()
    assert encode(engine="local").num_rows == 12  # by the other engine


@pytest.mark.slow
def test_a_gpu_that_ray_has_not(ray, make_model, rows, tmp_path):
    settings = EncodingSettings(sizes=((16, 16),))
    with pytest.raises(ValueError, match="`device`: none of Ray's machines has a GPU"):
        encode_dataset(rows, tmp_path / "codes", make_model(), settings, "cuda", engine="ray")


def test_engines_and_devices_that_do_not_fit(encode, make_model, rows, tmp_path):
    with pytest.raises(ValueError, match="`engine` must be one of local, ray, got 'dask'"):
        encode(engine="dask")
    with pytest.raises(ValueError, match="`world_size` must be 1 with the engine ray"):
        encode(world_size=2)
    with pytest.raises(ValueError, match="`device` must be cpu, or cuda, whose number Ray chooses, got 'cuda:1'"):
        encode_dataset(rows, tmp_path / "c", make_model(), EncodingSettings(sizes=((16, 16),)), "cuda:1", engine="ray")


@pytest.mark.parametrize("num_gpus, num_processes, share", [(1, 1, 1), (4, 2, 1), (3, 4, 0.5), (2, 8, 0.25)])
def test_actors_share_gpus(num_gpus, num_processes, share):
    assert share_of_gpu(num_gpus, num_processes) == share


def test_an_empty_source(encode, rows):
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        encode(dataset=rows.select([]))
