import io
from operator import length_hint

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from uniwetok_hf.data.images import ImageReadError
from uniwetok_hf.evaluation.processes import Processes
from uniwetok_hf.evaluation.rows import (
    PictureRows,
    batched,
    choose_rows,
    describe_choice,
    fill_template,
    picture_of,
    template_columns,
)


@pytest.fixture
def dataset():
    return Dataset.from_dict({"number": list(range(20)), "text": [f"row {i}" for i in range(20)]})


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_choice_follows_the_seed(dataset):
    first, again, other = (choose_rows(dataset, ["number"], 5, seed)["number"][:] for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 5 and first == sorted(first) and first != list(range(5))
    assert choose_rows(dataset, [], 99) is dataset and choose_rows(dataset, [], None) is dataset


def test_of_a_stream_the_first_are_taken(dataset):
    stream = dataset.to_iterable_dataset()
    assert [row["number"] for row in choose_rows(stream, ["text"], 3)] == [0, 1, 2]
    assert len(list(choose_rows(stream, ["text"]))) == 20


def test_the_choice_is_told(dataset):
    stream = dataset.to_iterable_dataset()
    assert describe_choice(dataset, 5, 1) == "5, chosen with seed 1"
    assert describe_choice(stream, 5, 1) == "the first 5"
    assert {describe_choice(rows, count, 1) for rows, count in ((dataset, None), (dataset, 20), (stream, None))} == {
        "all"
    }


def test_values_of_a_column_are_those_of_all_rows():
    labels = ClassLabel(names=["cat", "dog", "owl"])
    features = Features({"image": ImageFeature(), "label": labels, "style": Value("string")})
    columns = {"image": [{"bytes": png(), "path": None}] * 4, "label": [1, 0, -1, 1], "style": ["b", "a", None, "b"]}
    dataset = Dataset.from_dict(columns, features=features)
    rows = PictureRows(dataset, columns=["label"], count=1)
    assert rows.values_of("label") == ["cat", "dog"] and rows.values_of("style") == ["a", "b"]
    assert PictureRows(dataset.to_iterable_dataset(), count=1).values_of("label") is None


def test_missing_columns_are_told(dataset):
    for rows in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(ValueError, match="no column label, style; they have number, text"):
            choose_rows(rows, ["number", "label", "style"])


def test_unreadable_pictures_are_left_out_and_told():
    cells = [
        {"bytes": png(), "path": None},
        {"bytes": b"no picture", "path": None},
        {"bytes": png("blue"), "path": None},
    ]
    dataset = Dataset.from_dict({"image": cells, "n": [0, 1, 2]}).cast_column("image", ImageFeature(decode=False))
    rows = PictureRows(dataset, ["image"], ["n"])
    found = list(rows)
    assert [row["n"] for row in found] == [0, 2] and found[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert list(rows.skipped) == [1] and len(rows.all_skipped()) == 1 and "row 1" in rows.all_skipped()[0]
    assert length_hint(rows) == 3 and length_hint(PictureRows(dataset, count=2)) == 2
    with pytest.raises(ValueError, match="no column label; they have image, n"):
        PictureRows(dataset, ["image"], ["label"])


def test_lists_of_pictures_without_those_that_can_not_be_read():
    lists = [[{"bytes": png("blue"), "path": None}, {"bytes": b"no picture", "path": None}], None, []]
    column = List(ImageFeature(decode=False))
    dataset = Dataset.from_dict(
        {"n": [0, 1, 2], "others": lists}, features=Features({"n": Value("int64"), "others": column})
    )
    rows = PictureRows(dataset, [], ["n"], picture_lists=["others", "more"])
    found = list(rows)
    assert [row["n"] for row in found] == [0, 1, 2] and all(row["more"] is None for row in found)
    assert found[0]["others"][0].getpixel((0, 0)) == (0, 0, 255) and len(found[0]["others"]) == 1
    assert [row["others"] for row in found[1:]] == [None, []]
    (skipped,) = rows.all_skipped()
    assert skipped.startswith("others[1] of row 0: not a picture")


@pytest.mark.parametrize("index", [0, 1])
def test_too_many_are_too_many_of_all_rows(index):
    """12 of 2,000 rows, all in the batches of one of two processes, are few."""
    rows = [{"image": png(), "n": None if 1904 <= n < 1928 and n // 4 % 2 == index else n} for n in range(2000)]
    read = PictureRows(rows, columns=["n"])
    processes = type("Turn", (Processes,), {"gather": lambda self, value: [value]})(index, 2)
    assert sum(len(part) for _, part in read.batches(4, processes)) < 1000
    assert len(read.all_skipped(processes)) == 12


def test_rows_without_a_class_are_left_out():
    labels = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["cat", "dog"])})
    dataset = Dataset.from_dict({"image": [png()] * 3, "label": [1, -1, None]}, features=labels)
    rows = PictureRows(dataset, columns=["label"])
    assert [row["label"] for row in rows] == ["dog"] and list(rows.skipped) == [1, 2]
    assert [row["label"] for row in PictureRows(dataset)] == ["dog", None, None]


def test_class_labels_are_given_by_name():
    labels = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["cat", "dog"])})
    dataset = Dataset.from_dict({"image": [png(), png()], "label": [1, 0]}, features=labels)
    for rows in (dataset, dataset.to_iterable_dataset()):
        assert [row["label"] for row in PictureRows(rows)] == ["dog", "cat"]


def test_picture_of_any_cell(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for cell in (Image.new("RGB", (3, 2), "red"), {"bytes": None, "path": str(tmp_path / "a.png")}, png()):
        assert picture_of(cell).size == (3, 2) and picture_of(cell).mode == "RGB"
    assert picture_of(Image.new("RGBA", (1, 1))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageReadError):
        picture_of(None)


def test_batches():
    assert list(batched(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]] and list(batched([], 3)) == []


def test_templates():
    row = {"label": "cat", "texts": ["one", "two"], "n": 3}
    template = "a {label}, {n:02}: {texts}"
    assert fill_template(template, row) == "a cat, 03: one"
    assert template_columns(template) == ["label", "n", "texts"] and template_columns("no column") == []
    for wrong in ("{label", "a {}"):
        with pytest.raises(ValueError, match="no template"):
            template_columns(wrong)


def test_rows_of_any_kind():
    rows = [{"number": number, "text": ""} for number in range(20)]
    dataset = Dataset.from_list(rows)
    for same in (rows, iter(rows)):
        assert [row["number"] for row in choose_rows(same, ["text"], 5)] == choose_rows(dataset, [], 5)["number"][:]
    assert choose_rows([], ["text"], 5) == []
    with pytest.raises(ValueError, match="no column label; they have number, text"):
        choose_rows(rows, ["label"])
