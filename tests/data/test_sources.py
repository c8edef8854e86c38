"""Every kind of source, made here from tiny files: all open the same way, undecoded, and say what is wrong."""

import io
import tarfile
from pathlib import Path

import datasets
import fsspec
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image

from uniwetok_hf.data.images import ImageReadError
from uniwetok_hf.data.places import find_place
from uniwetok_hf.data.sources import PictureSource, cell_name, open_rows, open_source, read_cell


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Whatever `datasets` prepares stays in this test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(grey: int, suffix: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (grey,) * 3).save(buffer, suffix)
    return buffer.getvalue()


def picture_rows(greys, **more) -> Dataset:
    rows = {"image": [{"bytes": encoded(grey), "path": None} for grey in greys], "grey": list(greys)}
    return Dataset.from_dict(rows, features=Features({"image": datasets.Image(), "grey": Value("int32")}), **more)


def write_pictures(folder: Path, greys) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for grey in greys:
        (folder / f"{grey:03d}.png").write_bytes(encoded(grey))


def write_tar(path: Path, greys, suffix: str = "jpg") -> None:
    with tarfile.open(path, "w") as archive:
        for grey in greys:
            for ending, content in ((suffix, encoded(grey)), ("txt", f"grey {grey}".encode())):
                member = tarfile.TarInfo(f"{grey:03d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def greys_of(source: PictureSource) -> list[int]:
    rows = list(open_source(source))
    cells = [row[source.image_column] for row in rows]
    assert not any(isinstance(cell, Image.Image) for cell in cells)
    return [read_cell(cell, "picture").getpixel((0, 0))[0] for cell in cells]


def saved(folder):
    picture_rows([1, 2, 3]).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_dict(folder):
    DatasetDict(train=picture_rows([1, 2, 3]), test=picture_rows([9])).save_to_disk(folder / "saved")
    return folder / "saved"


def built(folder):
    """As `uniwetok data` builds it: pictures, and something else beside them."""
    DatasetDict(train=picture_rows([1, 2, 3])).save_to_disk(folder / "set" / "pictures")
    Dataset.from_dict({"source": ["a"]}).save_to_disk(folder / "set" / "edits")
    return folder / "set"


def pictures(folder):
    write_pictures(folder / "photos", [1, 2, 3])
    return folder / "photos"


def awkward_pictures(folder):
    """Names that `datasets` alone would take for patterns and splits."""
    write_pictures(folder / "photos [1]", [1, 2])
    (folder / "photos [1]" / "crash test 3.png").write_bytes(encoded(3))
    return folder / "photos [1]"


def described_pictures(folder):
    """With captions in a Parquet file beside them."""
    (folder / "photos").mkdir()
    names = ["photo 1.png", "photo 2 test.png", "photo 3.png"]  # sorted behind it
    for grey, name in enumerate(names, start=1):
        (folder / "photos" / name).write_bytes(encoded(grey))
    Dataset.from_dict({"file_name": names, "text": ["a", "b", "c"]}).to_parquet(folder / "photos" / "metadata.parquet")
    return folder / "photos"


def classes(folder):
    write_pictures(folder / "photos" / "cats", [1, 2])
    write_pictures(folder / "photos" / "dogs", [3])
    return folder / "photos"


def split_pictures(folder):
    write_pictures(folder / "photos" / "train" / "cats", [1, 2])
    write_pictures(folder / "photos" / "train" / "dogs", [3])
    write_pictures(folder / "photos" / "val", [9])
    return folder / "photos"


def picture_glob(folder):
    write_pictures(folder / "photos", [1, 2, 3])
    return folder / "photos" / "*.png"


def parquet(folder):
    picture_rows([1, 2, 3]).to_parquet(folder / "pictures.parquet")
    return folder / "pictures.parquet"


def awkward_parquet(folder):
    picture_rows([1, 2, 3]).to_parquet(folder / "pictures [1].parquet")
    return folder / "pictures [1].parquet"


def parquet_folder(folder):
    (folder / "parts").mkdir()
    picture_rows([1, 2]).to_parquet(folder / "parts" / "train-00000-of-00002.parquet")
    picture_rows([3]).to_parquet(folder / "parts" / "train-00001-of-00002.parquet")
    picture_rows([9]).to_parquet(folder / "parts" / "test-00000-of-00001.parquet")
    return folder / "parts"


def parquet_glob(folder):
    return parquet_folder(folder) / "train-*.parquet"


def tar(folder):
    write_tar(folder / "shard.tar", [1, 2, 3])
    return folder / "shard.tar"


def tar_folder(folder):
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "00000.tar", [1, 2], "png")
    write_tar(folder / "shards" / "00001.tar", [3], "png")
    return folder / "shards"


def tar_glob(folder):
    return tar_folder(folder) / "*.tar"


KINDS = [saved, saved_dict, built, pictures, awkward_pictures, described_pictures, classes, split_pictures]
KINDS += [picture_glob, parquet, awkward_parquet]
KINDS += [parquet_folder, parquet_glob, tar, tar_folder, tar_glob]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_every_kind_gives_its_undecoded_pictures(make, streaming, tmp_path):
    source = PictureSource(str(make(tmp_path)), streaming=streaming)
    assert sorted(greys_of(source)) == [1, 2, 3]
    assert isinstance(open_source(source), datasets.IterableDataset if streaming else Dataset)


@pytest.mark.parametrize(("make", "split"), [(saved_dict, "test"), (split_pictures, "val"), (parquet_folder, "test")])
@pytest.mark.parametrize("streaming", [False, True])
def test_another_split(make, split, streaming, tmp_path):
    assert greys_of(PictureSource(str(make(tmp_path)), split=split, streaming=streaming)) == [9]


def test_other_columns_stay(tmp_path):
    assert list(open_source(PictureSource(str(saved(tmp_path))))["grey"]) == [1, 2, 3]
    row = open_source(PictureSource(str(tar(tmp_path)), streaming=True)).take(1)
    assert next(iter(row))["txt"] == "grey 1"


def test_relative_paths_and_changed_files(tmp_path, monkeypatch):
    pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert greys_of(PictureSource("photos")) == [1, 2, 3]
    write_pictures(tmp_path / "photos", [4])
    assert greys_of(PictureSource("photos")) == [1, 2, 3, 4]  # not what was prepared before


@pytest.mark.parametrize("kind", ["bytes", "paths", "struct"])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_bytes_and_paths(kind, streaming, tmp_path):
    write_pictures(tmp_path / "photos", [1, 2])
    paths = sorted(str(path) for path in (tmp_path / "photos").iterdir())
    cells = {
        "bytes": [encoded(1), encoded(2)],
        "paths": paths,
        "struct": [{"bytes": None, "path": path} for path in paths],
    }[kind]
    Dataset.from_dict({"jpeg": cells}).to_parquet(tmp_path / "pictures.parquet")
    source = PictureSource(str(tmp_path / "pictures.parquet"), image_column="jpeg", streaming=streaming)
    assert greys_of(source) == [1, 2]


def test_the_only_picture_column_is_found_and_two_are_refused(tmp_path):
    renamed = picture_rows([1, 2]).rename_column("image", "photo")
    renamed.to_parquet(tmp_path / "one.parquet")
    for streaming in (False, True):
        assert greys_of(PictureSource(str(tmp_path / "one.parquet"), streaming=streaming)) == [1, 2]
    both = renamed.add_column("mask", [{"bytes": encoded(0), "path": None}] * 2, feature=datasets.Image())
    both.to_parquet(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"`image_column` 'image' is not in .*of which photo, mask hold pictures"):
        open_source(PictureSource(str(tmp_path / "two.parquet")))
    assert greys_of(PictureSource(str(tmp_path / "two.parquet"), image_column="mask")) == [0, 0]


def test_broken_files_open_and_fail_alone(tmp_path):
    folder = pictures(tmp_path)
    (folder / "002.png").write_bytes(encoded(2)[:-25])
    (folder / "004.png").write_bytes(b"")
    rows = list(open_source(PictureSource(str(folder))))
    (folder / "003.png").unlink()
    names = [str(folder / f"{grey:03d}.png") for grey in (1, 2, 3, 4)]
    assert [cell_name(row["image"], PictureSource("x"), 0) for row in rows] == names
    assert read_cell(rows[0]["image"], "one").size == (6, 4)
    for index, why in ((1, "damaged or truncated"), (2, "no such file"), (3, "the file is empty")):
        with pytest.raises(ImageReadError, match=f"^the name: {why}"):
            read_cell(rows[index]["image"], "the name")


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_empty_cells_are_unreadable_pictures(cell):
    with pytest.raises(ImageReadError, match="row 3 of here .train.: there is no picture in this row"):
        read_cell(cell, cell_name(cell, PictureSource("here"), 3))


def test_empty_bytes_never_fall_back_to_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "000.png").write_bytes(encoded(5))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageReadError, match="empty"):
        read_cell({"bytes": b"", "path": "000.png"}, "name")


def test_names_of_pictures_inside_of_files():
    source = PictureSource("shards.tar")
    assert cell_name({"bytes": b"x", "path": "000.jpg"}, source, 7) == "000.jpg of shards.tar (train)"
    assert cell_name({"bytes": b"x", "path": None}, source, 7) == "row 7 of shards.tar (train)"
    assert cell_name(b"x", source, 7) == "row 7 of shards.tar (train)"
    assert cell_name("a/b.jpg", source, 7) == "a/b.jpg"


def test_urls_are_read(tmp_path):
    write_pictures(tmp_path, [8])
    assert read_cell(f"file://{tmp_path}/008.png", "url").getpixel((0, 0)) == (8, 8, 8)
    with pytest.raises(ImageReadError, match="^url: no such file"):
        read_cell(f"file://{tmp_path}/009.png", "url")


def test_errors_of_a_client_cost_one_picture():
    class Failing(fsspec.AbstractFileSystem):
        protocol = "failing"

        def _open(self, path, *args, **kwargs):
            raise RuntimeError("429, Too Many\nRequests")  # as `aiohttp` raises errors of its own

    fsspec.register_implementation("failing", Failing, clobber=True)
    with pytest.raises(ImageReadError, match="^url: RuntimeError: 429, Too Many Requests$"):
        read_cell("failing://place/000.png", "url")


def empty_folder(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / "README.md").write_text("nothing")
    return folder / "empty"


def broken_parquet(folder):
    (folder / "pictures.parquet").write_bytes(b"no such thing")
    return folder / "pictures.parquet"


def broken_tar(folder):
    (folder / "pictures.tar").write_bytes(b"no such thing" * 100)
    return folder / "pictures.tar"


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (saved_dict, {"split": "dev"}, "`split` 'dev' is not in .*there is train, test"),
        (saved, {"split": "test"}, "`split` 'test' .*there is train"),
        (pictures, {"split": "test"}, "`split` 'test' .*there is train"),
        (split_pictures, {"split": "validation"}, "`split` 'validation' .*there is train, val"),
        (parquet, {"split": "test"}, "`split` 'test' .*there is train"),
        (tar_folder, {"split": "test", "streaming": True}, "`split` 'test' .*there is train"),
        (saved, {"image_column": "photo"}, "`image_column` 'photo' .*there is image, grey, of which image"),
        (parquet, {"image_column": "grey"}, "`image_column` 'grey' .*no pictures but Value"),
        (empty_folder, {}, "`path` .*no saved dataset, pictures, Parquet files or WebDataset tars"),
        (broken_parquet, {}, "`path` .*can't be opened"),
        (broken_tar, {"streaming": True}, "`path` .*can't be opened"),
        (lambda folder: folder / "nothing", {}, "`path` .*no such file or folder"),
        (lambda folder: folder / "nothing*.parquet", {}, "`path` .*no such file"),
        (lambda folder: folder / "nothing.tar", {}, "`path` .*no such file"),
        (lambda folder: folder / "nothing*", {}, "`path` .*must end in"),
        (lambda folder: "data/pictures", {}, "`path` data/pictures: there is no such file or folder"),
        (lambda folder: "nobody/nothing", {}, "`path` nobody/nothing: .*no such file or folder, and the Hub can't"),
    ],
)
def test_what_is_wrong_is_said(make, fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_source(PictureSource(str(make(tmp_path)), **fields))


def test_a_split_folder_of_pictures_hides_all_others(tmp_path):
    write_pictures(tmp_path / "photos" / "test", [9])
    write_pictures(tmp_path / "photos" / "cats", [1])
    with pytest.raises(ValueError, match="`split` 'train' .*there is test"):
        open_source(PictureSource(str(tmp_path / "photos")))


def write_rows(path: Path, greys) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tar":
        write_tar(path, greys, "png")
    else:
        picture_rows(greys).to_parquet(path)


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-photos", "faces"], {"train": [1, 2]}),
        (["test", "web-0", "val/0", "more/train/test-1", "more/train_3"], {"train": [2, 4, 5], "test": [1]}),
        (["test/0", "validation_1", "web", "train-00000-of-00002-0123abcd"], {"train": [3, 4], "validation": [2]}),
        (["data/train_sft-00000-of-00001", "data/test_sft-00000-of-00001"], {"train_sft": [1], "test_sft": [2]}),
    ],
)
def test_splits_are_folders_and_files_called_after_them(suffix, names, splits, tmp_path):
    for grey, name in enumerate(names, start=1):
        write_rows(tmp_path / "parts" / f"{name}.{suffix}", [grey])
    for split, greys in splits.items():
        assert sorted(greys_of(PictureSource(str(tmp_path / "parts"), split=split))) == greys


def test_a_readme_counts_when_it_is_that_of_a_dataset(tmp_path):
    for grey, name in enumerate(["train-photos", "faces"]):
        write_rows(tmp_path / f"{name}.parquet", [grey])
    (tmp_path / "README.md").write_text("# Photos\n")
    assert sorted(greys_of(PictureSource(str(tmp_path)))) == [0, 1]
    card = "configs:\n- config_name: default\n  data_files: [{split: train, path: faces.parquet}]"
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n# Photos\n")
    assert greys_of(PictureSource(str(tmp_path))) == [1]


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_files_with_the_word_of_a_split_in_their_names_are_told(suffix, tmp_path):
    for grey, name in enumerate(["web-0", "faces_test"]):
        write_rows(tmp_path / f"{name}.{suffix}", [grey])
    with pytest.warns(UserWarning, match=rf"1 files in .* are taken for `train`.*: faces_test\.{suffix}\. Files of"):
        assert sorted(greys_of(PictureSource(str(tmp_path)))) == [0, 1]


@pytest.mark.parametrize("kind", ["png", "parquet", "tar"])
def test_linked_folders_are_read_once(kind, tmp_path):
    for grey, folder in enumerate(["photos/cats", "elsewhere/dogs"]):
        if kind == "png":
            write_pictures(tmp_path / folder, [grey])
        else:
            write_rows(tmp_path / folder / f"0.{kind}", [grey])
    (tmp_path / "photos" / "dogs").symlink_to("../elsewhere/dogs")
    (tmp_path / "elsewhere" / "dogs" / "loop").symlink_to("..")
    assert sorted(greys_of(PictureSource(str(tmp_path / "photos")))) == [0, 1]


def test_pictures_that_are_left_out_are_told(tmp_path):
    folder = pictures(tmp_path)
    for name in ("004.avif", "005.AVIF", "006.qoi", "notes.txt"):
        (folder / name).write_bytes(b"not looked at")
    with pytest.warns(UserWarning, match=r"3 pictures in .*photos are left out: .* suffix \.avif, \.qoi\."):
        assert greys_of(PictureSource(str(folder))) == [1, 2, 3]


# --- a function of one's own ---


@pytest.fixture
def own(tmp_path):
    """`own(code)`: the source of a function `load`."""

    def write(code: str, **fields) -> PictureSource:
        (tmp_path / "own.py").write_text(f"from PIL import Image\n{code}\n")
        return PictureSource(f"{tmp_path}/own.py:load", **fields)

    return write


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "code",
    [
        "def load(split):\n    yield {'image': Image.new('RGB', (6, 4), (7, 7, 7))}",
        "from datasets import Dataset\ndef load(split):\n"
        "    return Dataset.from_list([{'image': Image.new('RGB', (6, 4), (7, 7, 7))}])",
    ],
)
def test_functions_of_ones_own(own, code, streaming):
    assert greys_of(own(code, streaming=streaming)) == [7]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def load(split):\n    raise RuntimeError('boom')",
            "`path`: `own.py:load` ('train') raised RuntimeError: boom",
        ),
        ("def load(split):\n    yield {}['image']", "`own.py:load` ('train') raised KeyError: 'image'"),
        ("def load(split):\n    return len(None)", "`own.py:load` ('train') raised TypeError: object of type"),
        ("def load():\n    pass", "`own.py:load` ('train') must be a function of one argument, the split: too many"),
        ("load = 3", "`own.py:load` ('train') must be a function of one argument, the split: 3 is not a callable"),
        (
            "def load(split):\n    pass",
            "must return a datasets.Dataset or rows, dicts with the same keys; got None.",
        ),
        ("def load(split):\n    return [3]", "must return a datasets.Dataset or rows, .* got .3.\\."),
        (
            "def load(split):\n    return {'train': []}",
            "must return a datasets.Dataset or rows, .* got {'train': .*}\\.",
        ),
        ("def load(split):\n    return []", "`path`: `own.py:load` ('train') returned no rows."),
        (
            "def load(split):\n    return [{'x': 1}, {'x': 'a'}]",
            "the rows of `own.py:load` are no dicts with the same",
        ),
    ],
)
def test_what_is_wrong_with_a_function_is_said(own, code, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(").replace(")", "\\)")):
        open_source(own(code))


def test_a_file_that_is_nowhere_is_looked_for_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is no file own.py in {tmp_path}\\.$"):
        find_place("own.py:load", beside=tmp_path)


# --- Parquet files that are damaged ---


def parts(folder, count: int = 3) -> list[Path]:
    paths = [folder / f"part-{number}.parquet" for number in range(count)]
    for path in paths:
        picture_rows([1, 2]).to_parquet(path)
    return paths


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])
    return "is damaged"


def with_damaged_pages(path):
    content = bytearray(path.read_bytes())
    for place in range(40, 240):
        content[place] ^= 0xFF
    path.write_bytes(content)
    return "is damaged"


def with_other_columns(path):
    Dataset.from_dict({"photo": [b"x"]}).to_parquet(path)
    return "has the columns photo"


def with_other_types(path):
    rows = picture_rows([1])
    rows.remove_columns("image").add_column("image", [1.5]).to_parquet(path)
    return "`image` is of type double"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", [cut, with_damaged_pages, with_other_columns, with_other_types])
@pytest.mark.parametrize("place", ["", "*.parquet"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage, streaming, place):
    if damage is with_damaged_pages and streaming:
        pytest.skip("found when its turn comes")
    why = damage(parts(tmp_path)[1])
    with pytest.raises(ValueError, match=rf"part-1\.parquet.*{why}"):
        open_source(PictureSource(str(tmp_path / place), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_and_few_damaged_parquet_files_are_left_out(tmp_path, streaming):
    paths = parts(tmp_path, 101)
    paths[0].write_bytes(b"")
    cut(paths[7])
    with pytest.warns(UserWarning, match=r"2 Parquet .*part-0\.parquet is empty; .*part-7\.parquet is damaged"):
        rows = open_source(PictureSource(str(tmp_path), streaming=streaming))
    assert len(list(rows)) == 2 * 99


def test_no_parquet_file_is_left(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="all files are empty"):
        open_source(PictureSource(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", None])
@pytest.mark.parametrize("pattern", ["*.tar", "0.tar"])
def test_a_remote_archive_that_is_empty_is_named(tmp_path, content, pattern):
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    if content is not None:
        (tmp_path / "0.tar").write_bytes(content)
    write_tar(tmp_path / "1.tar", [1])
    with pytest.raises(ValueError, match=r"can't be opened: its first archive, .*0\.tar, is empty; leave it out\.$"):
        open_rows(PictureSource(f"file://{tmp_path}/{pattern}", streaming=True))


@pytest.mark.parametrize("name, line", [("metadata.csv", "0.png,caf\xe9"), ("metadata.jsonl", '{"text": "caf\xe9"}')])
def test_captions_that_are_no_utf8_are_named(tmp_path, name, line):
    write_pictures(tmp_path, [0])
    head = "file_name,text\n" if name.endswith("csv") else '{"file_name": "0.png", "text": "a"}\n'
    (tmp_path / name).write_text(head + line, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"^`path`: .*{name} must be text in UTF-8; line 2 is not: .*0xe9"):
        open_source(PictureSource(str(tmp_path)))
