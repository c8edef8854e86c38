"""Batches of pictures: what comes when, that a resume changes nothing, and that a broken file costs one picture."""

import io
import itertools
import json
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image

from uniwetok_hf.data.sources import PictureSource
from uniwetok_hf.training import picture_batches
from uniwetok_hf.training.picture_batches import (
    Bucket,
    PictureBatches,
    bucket_batch_sizes,
    crop_box,
    validation_pictures,
)


SMALL = [Bucket(8, 8)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Whatever `datasets` prepares stays in this test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (grey,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def source(folder, greys=range(10), broken=(), kind="saved", **fields) -> PictureSource:
    """Pictures of one grey each, in files of the given kind; the bytes of those in `broken` end early."""
    contents = [encoded(grey)[:-25] if grey in broken else encoded(grey) for grey in greys]
    names = [f"{grey:03d}.png" for grey in greys]
    path = folder / kind
    if kind in ("saved", "parquet"):
        cells = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
        rows = Dataset.from_dict({"image": cells}, features=Features({"image": datasets.Image()}))
        if kind == "saved":
            rows.save_to_disk(path)
        else:
            path.mkdir()
            for part in range(2):
                rows.shard(2, part, contiguous=True).to_parquet(path / f"{part}.parquet", batch_size=3)
    elif kind == "folder":
        path.mkdir()
        for name, content in zip(names, contents, strict=True):
            (path / name).write_bytes(content)
    else:
        path.mkdir()
        for part in range(2):
            with tarfile.open(path / f"{part}.tar", "w") as archive:
                for name, content in list(zip(names, contents, strict=True))[part::2]:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return PictureSource(str(path), **fields)


def batches_of(sources, buckets=SMALL, batch_size=4, seed=0, **options) -> PictureBatches:
    sources = sources if isinstance(sources, list) else [sources]
    return PictureBatches(sources, buckets, batch_size, seed, **options)


def take(batches, count: int) -> list:
    return list(itertools.islice(iter(batches), count))


def greys_of(found) -> list[int]:
    return [round((float(picture[0, 0, 0]) + 1) * 127.5) for batch in found for picture in batch.pixel_values]


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pixel_values, other.pixel_values)
        assert one[1:] == other[1:]


def test_batches_are_pixels_between_minus_one_and_one(tmp_path):
    batch = take(batches_of(source(tmp_path, greys=[0, 255]), batch_size=6), 1)[0]
    assert batch.pixel_values.shape == (6, 3, 8, 8) and batch.pixel_values.dtype == torch.float32
    assert set(batch.pixel_values.flatten().tolist()) == {-1.0, 1.0}
    assert (batch.numbers, batch.skipped, batch.bucket) == (list(range(6)), [], 0)


@pytest.mark.parametrize("kind", ["saved", "folder", "parquet", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_comes_whole_and_resumes(kind, streaming, tmp_path):
    where = source(tmp_path, greys=range(12), kind=kind, streaming=streaming)

    def batches():
        return batches_of(where, batch_size=3, block_size=6)

    straight = take(batches(), 10)
    assert sorted(greys_of(straight[:4])) == sorted(greys_of(straight[4:8])) == list(range(12))
    assert greys_of(straight[:4]) != greys_of(straight[4:8]) != sorted(greys_of(straight[4:8]))
    for step in (1, 3, 7):  # in the middle of a block, and in the second epoch
        first, second = batches(), batches()
        take(first, step)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert_same(take(second, 10 - step), straight[step:])


def test_any_step_of_a_mixture_can_be_resumed_with_any_number_of_threads(tmp_path):
    sources = [
        source(tmp_path, range(0, 40), broken=[7, 30], weight=2),
        source(tmp_path, range(100, 112), broken=[105], kind="tar", streaming=True),
        source(tmp_path, range(200, 210), kind="parquet", streaming=True),
    ]

    def batches(num_threads):
        buckets = [Bucket(8, 8), Bucket(4, 8), Bucket(12, 8)]
        return batches_of(sources, buckets, crop_probability=0.5, num_threads=num_threads, block_size=7)

    straight = take(batches(1), 24)
    assert {batch.bucket for batch in straight} == {0, 1, 2}
    assert {grey // 100 for grey in greys_of(straight)} == {0, 1, 2}
    assert len([name for batch in straight for name in batch.skipped]) > 3
    for step in (1, 6, 17):
        first, second = batches(3), batches(2)
        take(first, step)
        second.load_state_dict(first.state_dict())
        assert_same(take(second, 24 - step), straight[step:])


def test_an_iterator_goes_on_behind_what_was_handed_out(tmp_path):
    """And not behind what was read ahead."""
    sources = [source(tmp_path), source(tmp_path, kind="tar", streaming=True)]
    straight = take(batches_of(sources, block_size=4), 6)
    batches = batches_of(sources, block_size=4)
    assert_same(take(batches, 2) + take(batches, 3) + take(batches, 1), straight)
    assert batches.state_dict()["step"] == 6 and batches.state_dict()["number"] == 24


def test_two_processes_read_what_one_reads(tmp_path):
    where = [source(tmp_path, range(20), broken=[3, 4]), source(tmp_path, range(100, 107), kind="folder")]
    buckets = [Bucket(8, 8), Bucket(8, 4)]
    whole = take(batches_of(where, buckets, multiple=2), 8)
    halves = [take(batches_of(where, buckets, process_index=i, num_processes=2), 8) for i in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one.pixel_values, torch.cat([first.pixel_values, second.pixel_values]))
        assert one.numbers == first.numbers + second.numbers
        assert one.skipped == first.skipped + second.skipped
    assert any(batch.skipped for batch in whole)


def test_a_stream_that_fits_a_block_comes_epoch_by_epoch(tmp_path):
    where = source(tmp_path, range(6), kind="tar", streaming=True)
    found = greys_of(take(batches_of(where, batch_size=3), 6))
    epochs = [found[i : i + 6] for i in (0, 6, 12)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("kind", ["saved", "parquet", "tar"])
def test_processes_share_a_stream(kind, tmp_path):
    where = source(tmp_path, range(12), kind=kind, streaming=True)
    shares = [
        greys_of(take(batches_of(where, batch_size=2, process_index=i, num_processes=2, block_size=6), 6))
        for i in (0, 1)
    ]
    assert sorted(shares[0] + shares[1]) == list(range(12))


def test_a_stream_with_fewer_pictures_than_processes_is_refused(tmp_path):
    where = source(tmp_path, range(2), kind="tar", streaming=True)
    assert len(take(batches_of(where, batch_size=2, process_index=0, num_processes=2), 1)) == 1
    for index in range(3):
        with pytest.raises(
            ValueError, match=r"2 files can't be divided among 3 processes; streaming needs 3, 6, \.\.\."
        ):
            batches_of(where, batch_size=3, process_index=index, num_processes=3)


def test_other_numbers_of_processes_begin_the_epoch_of_a_stream_again(tmp_path):
    where = source(tmp_path, range(12), kind="tar", streaming=True)
    first = batches_of(where, batch_size=8, block_size=4)
    take(first, 2)
    second = batches_of(where, batch_size=8, process_index=1, num_processes=2, block_size=2)
    with pytest.warns(UserWarning, match="by 2 processes now and were by 1"):
        second.load_state_dict(first.state_dict())
    batches = take(second, 3)
    assert [batch.numbers[0] for batch in batches] == [20, 28, 36]
    found = greys_of(batches)
    assert len(set(found[:6])) == len(set(found[6:])) == 6  # a half of the pictures, the same or the other, each epoch


def test_files_of_a_stream_come_in_another_order_each_epoch(tmp_path):
    where = source(tmp_path, range(6), kind="tar", streaming=True)  # even ones in one file, odd ones in the other
    found = greys_of(take(batches_of(where, batch_size=3, block_size=3), 24))
    files = [tuple(grey % 2 for grey in found[i : i + 6]) for i in range(0, 72, 6)]
    assert set(files) == {(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0)}


def test_rows_resume_on_any_number_of_processes(tmp_path):
    where = source(tmp_path)
    straight = take(batches_of(where), 3)
    halves = []
    for index in (0, 1):
        first = batches_of(where)
        take(first, 2)
        halves.append(batches_of(where, process_index=index, num_processes=2))
        halves[-1].load_state_dict(first.state_dict())
    joined = torch.cat([take(half, 1)[0].pixel_values for half in halves])
    assert torch.equal(joined, straight[2].pixel_values)


def test_a_state_of_other_sources_is_refused(tmp_path):
    rows, stream = source(tmp_path), source(tmp_path, kind="tar", streaming=True)
    state = batches_of([rows, stream]).state_dict()
    for others in ([rows], [stream, rows], [rows, rows]):
        with pytest.raises(ValueError, match="`state` is that of 2 sources of which 1 are streamed"):
            batches_of(others).load_state_dict(state)


def test_sources_come_as_often_as_they_weigh(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_batches, "Mixture", partial(picture_batches.Mixture, cycle=40))
    where = [source(tmp_path, [0], weight=3), source(tmp_path, [100], kind="folder", weight=1)]
    shares = Counter(greys_of(take(batches_of(where, batch_size=20), 4)))
    assert shares == {0: 60, 100: 20}


def test_buckets_come_as_often_as_they_weigh_and_hold_as_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_batches, "Mixture", partial(picture_batches.Mixture, cycle=20))
    buckets = [Bucket(8, 8, weight=2), Bucket(4, 8), Bucket(16, 8)]
    found = take(batches_of(source(tmp_path), buckets, batch_size=6), 20)
    assert Counter(batch.bucket for batch in found) == {0: 10, 1: 5, 2: 5}
    shapes = {batch.bucket: batch.pixel_values.shape for batch in found}
    assert shapes == {0: (6, 3, 8, 8), 1: (12, 3, 4, 8), 2: (3, 3, 16, 8)}
    assert [number for batch in found for number in batch.numbers] == list(range(10 * 6 + 5 * 12 + 5 * 3))
    assert sorted(greys_of(found)[:10]) == list(range(10))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "multiple", "expected"),
    [
        ([(128, 128), (64, 64), (96, 128), (256, 256)], 16, 1, [16, 64, 21, 4]),
        ([(128, 128), (64, 64), (96, 128), (256, 256)], 16, 8, [16, 64, 16, 8]),
        ([(256, 256), (1024, 1024)], 4, 2, [4, 2]),
        ([(32, 32)], 1, 1, [1]),
    ],
)
def test_batch_sizes_of_buckets(sizes, batch_size, multiple, expected):
    assert bucket_batch_sizes([Bucket(*size) for size in sizes], batch_size, multiple) == expected


def picture_of_places(size) -> Image.Image:
    """Red says how far to the right a pixel is, green how far down."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([3 * x, 3 * y, 0 * x], axis=-1).astype(np.uint8))


def boxes_of(found, size) -> list[tuple[float, ...]]:
    """The part (left, top, width, height) of [`picture_of_places`] that each shows, and whether it is mirrored."""
    boxes = []
    for picture in torch.cat([batch.pixel_values for batch in found]):
        red, green = ((picture[:2] + 1) * 127.5 / 3).numpy()
        height, width = red.shape
        steps = (red[1, -2] - red[1, 1]) / (width - 3), (green[-2, 1] - green[1, 1]) / (height - 3)
        centre = red.mean() + 0.5, green.mean() + 0.5
        box = abs(steps[0]) * width, abs(steps[1]) * height
        boxes.append((centre[0] - box[0] / 2, centre[1] - box[1] / 2, *box, steps[0] < 0))
    return boxes


@pytest.fixture
def places(tmp_path):
    (tmp_path / "places").mkdir()
    picture_of_places((80, 60)).save(tmp_path / "places" / "one.png")
    return PictureSource(str(tmp_path / "places"))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (24, 8)])
def test_crops_keep_their_shape_and_lie_anywhere(places, height, width):
    options = {"crop_probability": 0.5, "crop_scale": (0.5, 0.75), "seed": 3}
    found = boxes_of(take(batches_of(places, [Bucket(height, width)], 64, **options), 2), (80, 60))
    scales = []
    for left, top, box_width, box_height, _ in found:
        assert box_width / box_height == pytest.approx(width / height, rel=0.08)
        assert left > -0.6 and top > -0.6 and left + box_width < 80.6 and top + box_height < 60.6
        scales.append(box_width / width / min(80 / width, 60 / height))
    whole = [scale for scale in scales if scale > 0.9]
    assert all(scale == pytest.approx(1, abs=0.03) for scale in whole) and 40 <= len(whole) <= 88
    parts = [scale for scale in scales if scale <= 0.9]
    assert 0.46 < min(parts) < 0.56 and 0.69 < max(parts) < 0.79
    assert 40 <= sum(mirrored for *_, mirrored in found) <= 88
    part_lefts = [left / (80 - w) for left, _, w, _, _ in found if w < 70]
    assert min(part_lefts) < 0.15 and max(part_lefts) > 0.85
    part_tops = [top / (60 - h) for _, top, w, h, _ in found if w < 70 and h < 50]
    assert np.corrcoef(part_lefts, [top for _, top, w, _, _ in found if w < 70])[0, 1] < 0.5
    assert min(part_tops) < 0.15 and max(part_tops) > 0.85


def test_without_crops_and_flips_the_largest_part_is_taken(places):
    found = boxes_of(take(batches_of(places, [Bucket(16, 16)], 32, flip=False, crop_probability=0), 1), (80, 60))
    for left, top, width, height, mirrored in found:
        assert (top, width, height) == pytest.approx((0, 60, 60), abs=0.7) and not mirrored
    assert max(box[0] for box in found) - min(box[0] for box in found) > 10


def test_a_source_may_have_crops_of_its_own(places):
    """Small crops of one source, the whole pictures of the other."""
    photographs = replace(places, crop_probability=1.0, crop_scale=[0.3, 0.4])
    options = {"crop_probability": 0.0, "flip": False}
    batches = batches_of([places, photographs], [Bucket(16, 16)], 64, **options)
    [batch] = take(batches, 1)
    widths = [width for _, _, width, _, _ in boxes_of([batch], (80, 60))]
    whole = [batches.source_of_sample[number][0] == 0 for number in batch.numbers]
    assert 20 < sum(whole) < 44
    for width, is_whole in zip(widths, whole, strict=True):
        assert (width == pytest.approx(60, abs=0.7)) if is_whole else (16 < width < 26)


def test_crops_belong_to_the_seed(places):
    one, same, other = (take(batches_of(places, seed=seed), 1)[0].pixel_values for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_crop_boxes_never_leave_the_picture():
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        width, height, out_width, out_height = torch.randint(1, 500, (4,), generator=generator).tolist()
        scale, left, top = torch.rand(3, generator=generator).tolist()
        box = crop_box((width, height), out_height, out_width, max(scale, 1e-3), left, top)
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    assert crop_box((300, 100), 1, 1) == (100, 0, 200, 100)


@pytest.mark.parametrize(("kind", "streaming"), [("saved", False), ("folder", False), ("tar", True)])
def test_unreadable_pictures_are_named_and_replaced(kind, streaming, tmp_path):
    where = source(tmp_path, range(10), broken=[2, 5], kind=kind, streaming=streaming)
    found = take(batches_of(where, batch_size=5, block_size=10), 4)
    assert [len(batch.numbers) for batch in found] == [5] * 4
    assert set(greys_of(found[:2])) == set(range(10)) - {2, 5}
    skipped = [name for batch in found[:2] for name in batch.skipped]
    assert {name.split(":")[0] for name in skipped} == (
        {str(tmp_path / "folder" / f"00{grey}.png") for grey in (2, 5)}
        if kind == "folder"
        else {f"00{grey}.png of {where.path} (train)" for grey in (2, 5)}
    )
    assert all("damaged or truncated" in name for name in skipped)


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_without_a_path_are_named_by_their_row(streaming, tmp_path):
    cells = [encoded(grey)[:-25] if grey == 3 else encoded(grey) for grey in range(5)]
    Dataset.from_dict({"image": cells}).to_parquet(tmp_path / "five.parquet")
    where = PictureSource(str(tmp_path / "five.parquet"), streaming=streaming)
    batch = take(batches_of(where, batch_size=5), 1)[0]
    assert batch.skipped[0].startswith(f"row 3 of {where.path} (train): damaged")


def test_the_next_picture_of_the_order_replaces_an_unreadable_one(tmp_path):
    good = source(tmp_path / "good", range(10))
    bad = source(tmp_path / "bad", range(10), broken=[4])
    order, found = (greys_of(take(batches_of(where, batch_size=10), 1)) for where in (good, bad))
    place = order.index(4)
    assert place < 9 and found == order[:place] + [order[place + 1]] + order[place + 1 :]


def test_no_picture_at_all_is_an_error(tmp_path, monkeypatch):
    where = source(tmp_path, range(5), broken=range(5))
    with pytest.raises(ValueError, match=f"`path` {where.path}: 5 pictures in a row .* the last one: 00"):
        take(batches_of(where), 1)
    stream = source(tmp_path, range(5), broken=range(5), kind="tar", streaming=True)
    with pytest.raises(ValueError, match="`path` .*: 3 pictures in a row"):
        take(batches_of(stream, block_size=3), 1)
    monkeypatch.setattr(picture_batches, "MAX_FAILURES", 3)
    with pytest.raises(ValueError, match="`path` .*: 3 pictures in a row"):
        take(batches_of(where), 1)


def test_nothing_else_than_reading_errors_is_swallowed(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("a bug")

    batches = batches_of(source(tmp_path))
    monkeypatch.setattr(picture_batches, "crop_box", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        take(batches, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "num_processes": 2}, "`batch_size` must be a multiple of 2"),
        ({"batch_size": 4, "multiple": 8}, "`batch_size` must be a multiple of 8"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"num_processes": 2, "multiple": 3, "batch_size": 6}, "`multiple` must be a multiple of the 2 processes"),
        ({"buckets": []}, "`buckets`"),
        ({"buckets": [Bucket(8, 0)]}, "`buckets`"),
        ({"buckets": [Bucket(8, 8, weight=0)]}, "`weight`"),
        ({"sources": []}, "`sources` is empty"),
        ({"crop_probability": 1.5}, "`crop_probability`"),
        ({"crop_scale": (0.8, 0.5)}, "`crop_scale`"),
        ({"crop_scale": (0.0, 0.5)}, "`crop_scale`"),
        ({"crop_scale": (0.5,)}, "`crop_scale`"),
        ({"sources": [PictureSource("pictures", crop_probability=-1.0)]}, "`crop_probability`"),
        ({"num_threads": 0}, "`num_threads`"),
    ],
)
def test_wrong_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        batches_of(**{"sources": source(tmp_path), **options})


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_pictures_are_the_first_and_their_middle(streaming, tmp_path, places):
    where = source(tmp_path, range(10, 20), broken=[11], streaming=streaming)
    with pytest.warns(UserWarning, match="1 pictures were left out: 011.png of"):
        found = validation_pictures(where, 4, 8, limit=3)
    assert found.shape == (3, 3, 4, 8) and found.dtype == torch.uint8
    assert [round(float(picture.float().mean())) for picture in found] == [10, 12, 13]
    middle = validation_pictures(places, 16, 16, limit=5)
    assert len(middle) == 1
    batch = picture_batches.PictureBatch(middle / 127.5 - 1, [0], [], 0, 0)
    assert boxes_of([batch], (80, 60))[0] == pytest.approx((10, 0, 60, 60, False), abs=0.7)


def test_validation_without_a_readable_picture_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not one picture of train can be read"), pytest.warns(UserWarning):
        validation_pictures(source(tmp_path, range(3), broken=range(3)), 8, 8, limit=2)
