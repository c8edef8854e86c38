"""Damaged WebDataset archives: the rows that are hit are named and left out, all others are there, at every door."""

import errno
import gzip
import io
import json
import os
import re
import tarfile

import datasets
import numpy as np
import pytest
from full_disk import files_limited
from PIL import Image
from tiny_encoded import build_vision

from uniwetok_hf.data import archives
from uniwetok_hf.data.archives import ERROR_COLUMN, is_empty
from uniwetok_hf.data.encoded import open_encoded
from uniwetok_hf.data.encoded_parts import EncodingSettings
from uniwetok_hf.data.encoding import encode_dataset
from uniwetok_hf.data.sources import PictureSource, open_rows, open_source
from uniwetok_hf.evaluation.rows import PictureRows
from uniwetok_hf.files import WriteError
from uniwetok_hf.training.picture_batches import Bucket, PictureBatches


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(index: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def members(indexes) -> list[tuple[str, bytes]]:
    return [pair for i in indexes for pair in ((f"{i}.png", picture(i)), (f"{i}.txt", f"noise {i}".encode()))]


def tar(files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def cut(place: str) -> bytes:
    """Three rows, cut off in the last one."""
    files = members([3, 4, 5])
    whole = tar(files)
    header = whole.index(b"5.png")
    at = {"picture": header + 1500, "header": header + 100, "caption": whole.index(b"5.txt") + 514, "end": None}[place]
    if at is None:  # between two members
        at = whole.index(b"5.png")
    return whole[:at]


DAMAGE = {
    "cut in a picture": (lambda: cut("picture"), {3, 4}, "5.png in 1.tar is damaged: unexpected end of data"),
    "cut in a header": (lambda: cut("header"), {3, 4}, "1.tar ends too early"),
    "cut in a caption": (lambda: cut("caption"), {3, 4}, "5.txt in 1.tar is damaged"),
    "cut between members": (lambda: cut("end"), {3, 4}, "1.tar ends too early"),
    "Latin-1": (
        lambda: tar([*members([3, 4]), ("5.png", picture(5)), ("5.txt", "café".encode("latin-1"))]),
        {3, 4},
        "5.txt in 1.tar: UnicodeDecodeError",
    ),
    "broken JSON": (
        lambda: tar([*members([3]), ("4.png", picture(4)), ("4.json", b"{"), *members([5])]),
        {3, 5},
        "4.json in 1.tar: JSONDecodeError",
    ),
    "no archive": (lambda: b"no such thing" * 100, set(), "1.tar is damaged"),
    "nothing": (lambda: b"", set(), None),
    "no members": (lambda: tar([]), set(), None),
}


@pytest.fixture(params=DAMAGE)
def damaged(request, tmp_path):
    """A folder of two archives, the second one damaged; its rows that are whole, and what is said of the others."""
    make, whole, message = DAMAGE[request.param]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(tar(members([0, 1, 2])))
    (tmp_path / "shards" / "1.tar").write_bytes(make())
    return tmp_path / "shards", {0, 1, 2} | whole, message


pytestmark = pytest.mark.filterwarnings("ignore:1 archives hold nothing")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("what", ["", "*.tar"])
def test_whole_rows_come_and_others_say_why(damaged, streaming, what):
    folder, whole, message = damaged
    rows = list(open_rows(PictureSource(str(folder / what), streaming=streaming)))
    good = [row for row in rows if row[ERROR_COLUMN] is None]
    assert {int(row["__key__"]) for row in good} == whole
    assert all(row["txt"] == f"noise {row['__key__']}" and row["png"]["bytes"] for row in good)
    reasons = [row[ERROR_COLUMN] for row in rows if row[ERROR_COLUMN]]
    assert len(reasons) == (message is not None) and all(message in reason for reason in reasons)


@pytest.mark.parametrize("streaming", [False, True])
def test_encoding_skips_and_names_them(damaged, streaming, tmp_path):
    folder, whole, message = damaged
    rows = open_rows(PictureSource(str(folder), streaming=streaming))
    encoding = encode_dataset(rows, tmp_path / "codes", build_vision(), EncodingSettings(sizes=((32, 32),)))
    assert set(open_encoded(tmp_path / "codes")["txt"]) == {f"noise {index}" for index in whole}
    assert ERROR_COLUMN not in open_encoded(tmp_path / "codes").features
    assert encoding.num_skipped == (message is not None)
    if message:
        assert message in (tmp_path / "codes" / "skipped.jsonl").read_text().replace("\\u00e9", "é")


def test_evaluation_and_training_skip_and_name_them(damaged):
    folder, whole, message = damaged
    source = PictureSource(str(folder))
    rows = PictureRows(open_source(source))
    assert {row["txt"] for row in rows} == {f"noise {index}" for index in whole}
    reasons = rows.all_skipped()
    assert len(reasons) == (message is not None) and all(message in reason for reason in reasons)
    batch = next(iter(PictureBatches([source], [Bucket(32, 32)], 6, seed=0)))
    assert len(batch.pixel_values) == 6 and len(batch.skipped) <= 1


def test_an_empty_first_archive_is_skipped_and_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar([]))
    (tmp_path / "1.tar").write_bytes(tar(members([0, 1])))
    for streaming in (False, True):
        with pytest.warns(UserWarning, match="1 archives hold nothing: .*0.tar"):
            rows = open_rows(PictureSource(f"{tmp_path}/*.tar", streaming=streaming))
        assert [row["txt"] for row in rows] == ["noise 0", "noise 1"]


def json_rows(fields) -> bytes:
    """An archive of pictures, each with its fields as JSON."""
    texts = [field if isinstance(field, bytes) else json.dumps(field).encode() for field in fields]
    return tar([pair for i, text in enumerate(texts) for pair in ((f"{i}.png", picture(i)), (f"{i}.json", text))])


@pytest.mark.parametrize("streaming", [False, True])
def test_json_of_any_kind_becomes_what_the_first_rows_have(tmp_path, streaming):
    """What they don't tell, or have of several kinds, is text."""
    fields = [
        {"tags": [], "note": None, "box": {}, "names": [], "size": 1, "score": 1, "mixed": 1, "at": [{"n": None}]},
        {"tags": None, "note": "b", "box": {}, "names": ["a"], "size": 2.0, "score": 0.5, "mixed": "c", "at": []},
        {"note": {"d": 1}},
    ]
    (tmp_path / "0.tar").write_bytes(json_rows([[fields[0]], [fields[1]], [fields[2], None], None]))
    rows = list(open_rows(PictureSource(f"{tmp_path}/*.tar", streaming=streaming)))
    (first,), (second,), (third, nothing), none = [row["json"] for row in rows]
    expected = {"tags": "[]", "note": None, "box": "{}", "names": [], "size": 1.0, "score": 1.0, "mixed": "1"}
    assert first == expected | {"at": [{"n": None}]}
    assert second == fields[1] | {"box": "{}"}
    assert third == dict.fromkeys(first) | {"note": '{"d": 1}'} and nothing is none is None


@pytest.mark.parametrize("streaming", [False, True])
def test_later_json_that_does_not_fit_is_a_row_that_is_skipped_and_named(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(archives, "NUM_INFERRED", 2)
    first = {"width": 1, "score": 0.5, "is_big": True, "tags": None, "at": {"x": [1]}}
    later = {
        '{"width": 2.0, "score": 3, "tags": ["a"], "at": {"x": [4.0]}}': None,
        '{"width": 1.5}': "width is 1.5, where the first rows have whole numbers",
        '{"width": "large"}': "width is 'large', where the first rows have whole numbers",
        '{"width": true}': "width is True, where the first rows have whole numbers",
        '{"width": 99999999999999999999}': "width is 99999999999999999999, where the first rows have whole numbers",
        '{"width": NaN}': "width is nan, where the first rows have whole numbers",
        '{"score": "high"}': "score is 'high', where the first rows have numbers",
        '{"is_big": 1}': "is_big is 1, where the first rows have true or false",
        '{"tags": "\\ud83d"}': "tags is '\\ud83d', where the first rows have text",
        '{"at": {"x": [1, 2.5]}}': "at.x[1] is 2.5, where the first rows have whole numbers",
        '{"at": {"x": "ab"}}': "at.x is 'ab', where the first rows have lists",
        '{"at": 7}': "at is 7, where the first rows have objects",
        "[1]": "it is [1], where the first rows have objects",
    }
    (tmp_path / "web-3.tar").write_bytes(json_rows([first, first, *(text.encode() for text in later)]))
    dataset = open_rows(PictureSource(f"{tmp_path}/*.tar", streaming=streaming))
    reasons = [why and f"{i}.json in web-3.tar: {why}" for i, why in enumerate([None, None, *later.values()])]
    rows = list(dataset)
    assert [row[ERROR_COLUMN] for row in rows] == reasons
    assert rows[2]["json"] == {"width": 2, "score": 3.0, "is_big": None, "tags": '["a"]', "at": {"x": [4]}}
    settings = EncodingSettings(sizes=((32, 32),))
    encoding = encode_dataset(dataset, tmp_path / "codes", build_vision(), settings, max_skipped_share=1.0)
    assert (encoding.num_rows, encoding.num_skipped) == (3, len(later) - 1)
    assert all(json.dumps(why)[1:-1] in (tmp_path / "codes" / "skipped.jsonl").read_text() for why in reasons if why)


def test_fields_that_no_first_row_has_are_left_out_with_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "NUM_INFERRED", 1)
    monkeypatch.setattr(archives, "_named", set())
    more = [("1.json", b'{"a": 2, "b": {"c": 1}}'), ("1.txt", b"one"), ("2.json", b'{"a": 3, "b": 4}')]
    (tmp_path / "0.tar").write_bytes(tar([("0.json", b'{"a": 1}'), *more]))
    dataset = open_rows(PictureSource(f"{tmp_path}/*.tar", streaming=True))
    with pytest.warns(UserWarning, match=r"0\.tar has fields that none of the first 1 rows has.*: json\.b, txt\."):
        assert [row["json"] for row in dataset] == [{"a": 1}, {"a": 2}, {"a": 3}]
    list(dataset)  # no second warning


def test_a_member_whose_name_is_no_unicode_is_a_row_that_is_skipped_and_named(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for one in ("0.png", name):
            info = tarfile.TarInfo(one)
            info.size = len(picture(0))
            archive.addfile(info, io.BytesIO(picture(0)))
    (tmp_path / "0.tar").write_bytes(content.getvalue())
    good, bad = open_rows(PictureSource(f"{tmp_path}/*.tar"))
    assert good[ERROR_COLUMN] is None and bad[ERROR_COLUMN].startswith("caf\\udce9.__key__ in 0.tar: it is 'caf")


def test_a_full_cache_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar(members(range(8))))
    with files_limited(4096), pytest.raises(WriteError, match=r"cache can't be written: File too large"):
        open_rows(PictureSource(str(tmp_path / "0.tar")))


def test_archives_without_a_whole_row_are_an_error(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="no archive holds a row that can be read: all of them are empty"):
        open_rows(PictureSource(f"{tmp_path}/*.tar"))
    (tmp_path / "0.tar").write_bytes(tar(members([0]))[:700])
    with pytest.raises(ValueError, match="no archive holds a row that can be read: 0.png in 0.tar is damaged"):
        open_rows(PictureSource(f"{tmp_path}/*.tar"))


def test_a_compressed_archive_that_is_cut_off(tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar(members(range(6))))[:-5000])
    rows = list(open_rows(PictureSource(str(tmp_path / "0.tar.gz"))))
    assert len(rows) > 2 and [bool(row[ERROR_COLUMN]) for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT, errno.EMFILE])
def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch, number):
    """It would cost all rows that come after it."""
    (tmp_path / "0.tar").write_bytes(tar(members([0, 1, 2])))
    rows = iter(open_rows(PictureSource(f"{tmp_path}/*.tar", streaming=True)))
    next(rows)

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tarfile.TarFile, "next", fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        list(rows)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        is_empty(tmp_path / "0.tar")


def test_an_archive_that_was_mended_is_read_again(tmp_path):
    for count, content in ((2, cut("header")), (3, tar(members([3, 4, 5])))):
        (tmp_path / "0.tar").write_bytes(content)
        rows = list(open_rows(PictureSource(str(tmp_path / "0.tar"))))
        assert sum(row[ERROR_COLUMN] is None for row in rows) == count


def test_a_stream_that_is_damaged_resumes_exactly(tmp_path):
    for index, content in enumerate((tar(members([0, 1, 2])), cut("picture"))):
        (tmp_path / f"{index}.tar").write_bytes(content)
    source = PictureSource(f"{tmp_path}/*.tar", streaming=True)

    def batches():
        return PictureBatches([source], [Bucket(32, 32)], 2, seed=0, block_size=2)

    straight = [batch for _, batch in zip(range(9), iter(batches()))]
    assert sum(len(batch.skipped) for batch in straight) > 1
    for stop in (1, 4):
        first, second = batches(), batches()
        for _ in zip(range(stop), iter(first)):
            pass
        second.load_state_dict(first.state_dict())
        for one, other in zip(straight[stop:], iter(second)):
            assert (one.pixel_values == other.pixel_values).all() and one.skipped == other.skipped


class TestEncodingOfOtherRows:
    def test_rows_of_a_stream_that_lack_a_picture(self, tmp_path):
        def rows():
            yield from ({"image": picture(index), "n": index} for index in range(3))
            yield {"image": {"path": "nowhere.png", "bytes": None}, "n": 4}
            yield {"n": 5}

        features = datasets.Features({"image": datasets.Image(decode=False), "n": datasets.Value("int64")})
        stream = datasets.IterableDataset.from_generator(rows, features=features)
        encoding = encode_dataset(stream, tmp_path / "codes", build_vision(), EncodingSettings(sizes=((32, 32),)))
        assert list(open_encoded(tmp_path / "codes")["n"]) == [0, 1, 2] and encoding.num_skipped == 2
        names = (tmp_path / "codes" / "skipped.jsonl").read_text()
        assert "nowhere.png: no such file" in names and "row 4: there is no picture in this row" in names

    def test_too_many_end_it_and_a_larger_share_goes_on(self, tmp_path):
        rows = datasets.Dataset.from_dict({"image": [picture(i) if i % 2 else b"broken" for i in range(40)]})
        settings = EncodingSettings(sizes=((32, 32),), rows_per_part=4)
        vision = build_vision()
        for _ in range(2):
            with pytest.raises(
                ValueError,
                match=r"`max_skipped_share`=0.01: 12 of 24 samples can't be used.*row 0, image.*\(part-00000.p",
            ):
                encode_dataset(rows, tmp_path / "codes", vision, settings)
        assert len(list((tmp_path / "codes").glob("part-*.parquet"))) == 6
        encoding = encode_dataset(rows, tmp_path / "codes", vision, settings, max_skipped_share=0.5)
        assert (encoding.num_rows, encoding.num_skipped) == (20, 20)

    def test_mended_rows_are_encoded_when_their_part_is_removed(self, tmp_path):
        settings = EncodingSettings(sizes=((32, 32),), rows_per_part=4)
        vision, folder = build_vision(), tmp_path / "codes"
        paths = [tmp_path / f"{index}.png" for index in range(12)]
        for index, path in enumerate(paths):
            path.write_bytes(b"broken" if index == 5 else picture(index))
        rows = datasets.Dataset.from_dict({"image": list(map(str, paths))}).cast_column("image", datasets.Image())
        assert encode_dataset(rows, folder, vision, settings).num_skipped == 1
        (left_out,) = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
        assert (left_out["row"], left_out["part"]) == (5, "part-00001.parquet")
        paths[5].write_bytes(picture(5))
        assert encode_dataset(rows, folder, vision, settings).num_skipped == 1  # what is there is not made again
        (folder / left_out["part"]).unlink()
        encoding = encode_dataset(rows, folder, vision, settings)
        assert (encoding.num_rows, encoding.num_skipped) == (12, 0)
        assert not (folder / "skipped.jsonl").exists()


def test_an_evaluation_ends_when_too_much_is_damaged():
    rows = [{"image": picture(i) if i > 11 else b"broken", "text": "a"} for i in range(30)]
    with pytest.raises(ValueError, match="`max_skipped_share`=0.01: 11 of 11 samples can't be used.*image of row 0"):
        list(PictureRows(rows))
    assert len(list(PictureRows(rows, max_skipped_share=1.0))) == 18
    rows = PictureRows([{"image": picture(0), "text": text} for text in ("a", None, "b")], columns=["text"])
    assert [row["text"] for row in rows] == ["a", "b"] and rows.all_skipped() == ["row 1 has no text"]


def test_a_readme_beside_archives_changes_nothing(tmp_path):
    """As in a copy of a dataset of the Hub."""
    (tmp_path / "0.tar").write_bytes(tar(members([0, 1, 2])))
    (tmp_path / "1.tar").write_bytes(cut("picture"))
    (tmp_path / "README.md").write_text("# Noise\n", encoding="utf-8")
    rows = list(open_rows(PictureSource(str(tmp_path))))
    assert [row[ERROR_COLUMN] is None for row in rows] == [True] * 5 + [False]
