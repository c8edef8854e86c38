import json

import datasets
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from tiny_encoded import contents, failing, pictures

from uniwetok_hf import UniWeTokConfig
from uniwetok_hf.data import encoding, encoding_pieces
from uniwetok_hf.data.encoded import open_encoded, read_encoding
from uniwetok_hf.data.encoded_parts import EncodingSettings, read_summary
from uniwetok_hf.data.encoding import encode_dataset
from uniwetok_hf.data.encoding_pieces import choose_rows_per_part


FEATURES = Features({"text": Value("string"), "image": datasets.Image()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of two rows."""
    for module in (encoding, encoding_pieces):
        monkeypatch.setattr(module, "PIECE_ROWS", 2)


@pytest.fixture(scope="module")
def rows():
    """Eleven rows, the fifth of which has no picture."""
    images = pictures(11, size=(20, 20))
    images[4] = None
    return Dataset.from_dict({"text": list("abcdefghijk"), "image": images}, features=FEATURES)


@pytest.fixture
def encode(make_model, rows, tmp_path):
    """`encode(name="codes", dataset=rows, model=..., rank=0, world_size=1, **settings)` to the folder `name`."""

    def run(name="codes", dataset=rows, model=None, num_processes=1, rank=0, world_size=1, **settings):
        settings = EncodingSettings(**{"sizes": ((16, 16),), "batch_size": 2, "rows_per_part": 5} | settings)
        model = model or make_model()
        return encode_dataset(dataset, tmp_path / name, model, settings, "cpu", num_processes, rank, world_size)

    return run


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def shards(rows):
    """A stream of shards of 4, 0, 1 and 6 rows, and a list of those that were read."""
    read = []

    def load(ranges):
        for start, end in ranges:
            read.append(start)
            yield from rows.select(range(start, end)).cast_column("image", datasets.Image(decode=False))

    ranges = [(0, 4), (4, 4), (4, 5), (5, 11)]
    stream = IterableDataset.from_generator(load, features=FEATURES, gen_kwargs={"ranges": ranges})
    return stream, read


@pytest.mark.parametrize(
    "settings, num_rows, expected",
    [
        ({"sizes": ((256, 256),)}, None, 90000),  # of 64 tokens, 1,024 bytes
        ({"sizes": ((64, 64), (256, 256))}, None, 90000),  # as if all were of the largest
        ({"longest_edge": 512}, None, 20000),
        ({"sizes": ((512, 512),), "num_variants": 2, "mirrored": True}, None, 6000),
        ({"sizes": ((1024, 1024),), "num_variants": 11, "mirrored": True}, None, 1000),
        ({"sizes": ((256, 256),), "columns": ("source", "target")}, None, 40000),
        ({"sizes": ((256, 256),)}, 30_000, 1000),
        ({"sizes": ((256, 256),)}, 1_000_000, 10000),
        ({"sizes": ((256, 256),)}, 100_000_000, 90000),
    ],
)
def test_rows_of_a_part(settings, num_rows, expected):
    settings = EncodingSettings(**{"columns": ("image",)} | settings)
    assert choose_rows_per_part(settings, UniWeTokConfig(num_bits=128), num_rows) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_large_parts_are_joined_of_pieces(encode, rows, tmp_path, monkeypatch, small_pieces, stream):
    """Rows, counts and what was left out are those of parts that are made at once."""
    encode("pieces", dataset=rows.to_iterable_dataset() if stream else rows)
    for module in (encoding, encoding_pieces):
        monkeypatch.setattr(module, "PIECE_ROWS", 1000)
    encode("whole")
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    assert names(pieces) == names(whole)
    assert open_encoded(pieces).to_list() == open_encoded(whole).to_list()
    for part in sorted(whole.glob("*.parquet")):
        assert read_summary(pieces / part.name) == read_summary(part)
    assert (pieces / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()


def test_a_run_that_is_killed_loses_a_piece(encode, make_model, tmp_path, small_pieces):
    folder = tmp_path / "codes"
    encode("whole", rows_per_part=9)
    with pytest.raises(RuntimeError, match="killed"):
        encode(model=failing(make_model(), after=3), rows_per_part=9)  # a batch each, but for the row left out
    pieces = [f"unfinished/part-00000-000{number}.parquet" for number in range(3)]
    assert names(folder) == ["encoding.partial.json", *pieces]
    with pytest.raises(ValueError, match="unfinished"):
        read_encoding(folder)
    times = [(folder / name).stat().st_mtime_ns for name in pieces]
    with pytest.raises(RuntimeError, match="killed"):
        encode(model=failing(make_model(), after=1), rows_per_part=9)
    assert [(folder / name).stat().st_mtime_ns for name in pieces] == times  # not made again
    assert len(names(folder)) == 5
    encode(rows_per_part=9)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_piece_that_was_cut_off_is_made_again(encode, make_model, tmp_path, small_pieces):
    encode("whole")
    with pytest.raises(RuntimeError, match="killed"):
        encode(model=failing(make_model(), after=3))
    piece = tmp_path / "codes" / "unfinished" / "part-00001-0000.parquet"
    piece.write_bytes(piece.read_bytes()[:-5])
    encode()
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_the_pieces(encode, tmp_path, small_pieces):
    encode("whole")
    encode(num_processes=2)
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_rows_of_a_part_that_are_not_given_are_those_of_the_folder(encode, tmp_path):
    encode(rows_per_part=4)
    assert encode(rows_per_part=None).num_parts == 3
    assert encode("new", rows_per_part=None).settings["rows_per_part"] == 1000


def test_a_machine_reads_its_own_shards_only(encode, shards, tmp_path):
    encode("whole")
    stream, read = shards
    assert encode(dataset=stream, rank=1, world_size=2) is None
    assert read == [4, 5]  # shard 1, which is empty, and shard 3
    description = encode(dataset=stream, rank=0, world_size=2)
    assert read == [4, 5, 0, 4]
    folder = tmp_path / "codes"
    parts = ["part-00000-00000", "part-00002-00000", "part-00003-00000", "part-00003-00001"]
    assert names(folder) == ["encoding.json", *(f"{part}.parquet" for part in parts), "skipped.jsonl"]
    assert description == read_encoding(folder)
    assert (description.num_parts, description.num_rows, description.parts_of_shards) == (4, 10, [1, 0, 1, 2])
    assert open_encoded(folder).to_list() == open_encoded(tmp_path / "whole").to_list()
    (left_out,) = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    assert left_out == {
        "row": 0,
        "shard": 2,
        "column": "image",
        "error": "row 0 of shard 2: there is no picture in this row",
        "part": "part-00002-00000.parquet",
    }


def test_random_crops_of_shards_do_not_depend_on_the_number_of_machines(encode, shards, tmp_path):
    stream, _ = shards
    for name, world_size in (("two", 2), ("three", 3)):
        for rank in range(world_size):
            encode(name, dataset=stream, rank=rank, world_size=world_size, num_variants=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "three")
    crops = [row["image"][1]["codes"] for row in open_encoded(tmp_path / "two")]
    assert len(set(crops)) == 10


def test_shards_are_finished_by_another_number_of_machines(encode, shards, make_model, tmp_path, small_pieces):
    """Shards that were read to their end are not read again."""
    stream, read = shards
    for rank in range(2):
        encode("whole", dataset=stream, rank=rank, world_size=2)
    with pytest.raises(RuntimeError, match="killed"):
        encode(dataset=stream, model=failing(make_model(), after=3), rank=1, world_size=2)
    assert encode(dataset=stream, rank=2, world_size=3) is None
    read.clear()
    assert encode(dataset=stream).num_rows == 10
    assert read == [0, 5]  # shard 1 had no row, shard 2 was the other's
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_a_damaged_part_of_a_shard_is_made_again(encode, shards, tmp_path):
    stream, _ = shards
    for rank in range(2):
        encode(dataset=stream, rank=rank, world_size=2)
    before = contents(tmp_path / "codes")
    (tmp_path / "codes" / "part-00003-00001.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="part-00003-00001.parquet is damaged"):
        open_encoded(tmp_path / "codes")
    assert encode(dataset=stream).num_rows == 10
    assert contents(tmp_path / "codes") == before


def test_one_machine_and_one_shard_after_the_other(encode, shards, tmp_path):
    """One machine writes the parts of a stream that it always wrote, also when others go on with it."""
    stream, _ = shards
    encode("whole")
    assert encode(dataset=stream, rank=1, world_size=2, name="apart") is None
    assert encode(dataset=stream).parts_of_shards is None
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")
    (tmp_path / "codes" / "part-00001.parquet").unlink()
    assert encode(dataset=stream, rank=1, world_size=2).num_parts == 3
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_too_few_shards_are_read_by_all_machines(encode, rows, tmp_path):
    encode("whole")
    stream = rows.to_iterable_dataset(num_shards=2)
    assert encode(dataset=stream, rank=1, world_size=3) is None
    assert encode(dataset=stream, rank=2, world_size=3) is None
    with pytest.warns(UserWarning, match="a stream of 2 shards is not divided between 3 machines; each reads all"):
        assert encode(dataset=stream, rank=0, world_size=3).num_rows == 10
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_more_shards_than_numbers_are_neighbours_together(encode, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "MOST_SHARDS", 2)
    encode("whole")
    for rank in range(2):
        description = encode(dataset=shards[0], rank=rank, world_size=2)
    assert description.parts_of_shards == [1, 2]
    assert open_encoded(tmp_path / "codes").to_list() == open_encoded(tmp_path / "whole").to_list()


def test_another_stream_is_refused(encode, shards, rows):
    encode(dataset=shards[0], rank=0, world_size=2)
    with pytest.raises(ValueError, match="`shards`: .* was begun with 4, and can't go on with 3"):
        encode(dataset=rows.to_iterable_dataset(num_shards=3), rank=1, world_size=2)


def test_files_of_parquet_are_shards(encode, rows, tmp_path):
    for number in range(3):
        rows.shard(3, number).to_parquet(tmp_path / f"{number}.parquet", batch_size=2)  # row groups
    files = str(tmp_path / "[0-9].parquet")
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert encode(dataset=stream, rank=0, world_size=2) is None
    assert len(encode(dataset=stream, rank=1, world_size=2).parts_of_shards) == 3
    assert open_encoded(tmp_path / "codes")["text"][:] == list("abcdfghijk")


def test_a_row_that_is_not_of_its_type_is_named(encode, rows):
    """As in a stream whose reader found its columns in the first rows alone."""

    def load():
        for number, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
            yield row | {"tags": [] if number < 7 else ["a"]}

    features = Features(FEATURES | {"tags": datasets.List(Value("null"))})
    stream = IterableDataset.from_generator(load, features=features)
    with pytest.raises(ValueError, match=r"^`dataset`: row 7: the column tags is not of its type, list<.*null>: .+$"):
        encode(dataset=stream)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_of_more_or_fewer_files_is_refused(encode, rows, tmp_path, monkeypatch, world_size):
    """Also where its shards are not encoded apart, or several are one."""
    monkeypatch.setattr(encoding, "MOST_SHARDS", 2)
    encode(dataset=rows.to_iterable_dataset(num_shards=3), world_size=world_size)
    other = rows.to_iterable_dataset(num_shards=4)
    with pytest.raises(ValueError, match="`source_shards`: .* begun with 3, and can't go on with 4; .* or removed"):
        encode(dataset=other, world_size=world_size)
    for name in ("encoding.json", "encoding.partial.json"):  # of an earlier version
        if (path := tmp_path / "codes" / name).exists():
            state = json.loads(path.read_text())
            del state.get("settings", state)["source_shards"]
            path.write_text(json.dumps(state))
    encode(dataset=other, world_size=world_size)
