import io

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image

from uniwetok_hf.data import encoded_parts
from uniwetok_hf.data.encoded import cell_codes
from uniwetok_hf.data.encoded_parts import (
    EncodingSettings,
    PartEncoder,
    nearest_size,
    random_crop,
    read_summary,
)
from uniwetok_hf.data.encoding import encoded_features
from uniwetok_hf.modeling.image_processing_uniwetok import UniWeTokImageProcessor


# The tiny model has 16 bits a token of 4 x 4 pixels.
def make_picture(seed=0, width=16, height=16):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_dataset(features=None, **columns):
    kinds = {"image": datasets.Image(), "target": datasets.Image(), "images": List(datasets.Image())}
    features = {name: kinds.get(name, Value("string")) for name in columns} | (features or {})
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture
def encode(tiny_model, tmp_path):
    """`encode(dataset, columns, first_row=0, model=..., **settings)`: the rows of one part, and its counts."""

    def run(dataset, columns=("image",), first_row=0, model=tiny_model, **settings):
        settings = {"sizes": ((16, 16),)} | settings if "longest_edge" not in settings else settings
        settings = EncodingSettings(columns=columns, **settings)
        encoder = PartEncoder(model, settings, encoded_features(dataset.features, columns))
        path = tmp_path / "part-00000.parquet"
        encoder.write_part(dataset.with_format("arrow")[:], first_row, path)
        assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left
        return pyarrow.parquet.read_table(path).to_pylist(), read_summary(path)

    return run


def grid(cell):
    return [(variant["height"], variant["width"]) for variant in cell]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "`sizes` or `longest_edge` must be given"),
        ({"sizes": ((8, 8),), "longest_edge": 8}, "not both"),
        ({"longest_edge": 8, "num_variants": 0}, "`num_variants` must be 1 or more, got 0"),
        ({"longest_edge": 8, "batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"longest_edge": 8, "rows_per_part": 0}, "`rows_per_part` must be 1 or more"),
        ({"longest_edge": 8, "patch_size": 0}, "`patch_size` must be 1 or more"),
        ({"longest_edge": 8, "seed": -1}, "`seed` must be 0 or more, got -1"),
        ({"longest_edge": 8, "fit": "pad"}, "`fit` must be one of crop, resize, got 'pad'"),
        ({"longest_edge": 8, "crop_scale": 0.0}, "`crop_scale` must be above 0 and at most 1"),
        ({"longest_edge": 8, "crop_scale": 1.1}, "`crop_scale` must be above 0 and at most 1"),
        ({"longest_edge": 8, "num_variants": 2, "crop_scale": 1.0}, "`num_variants`: .* the same"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EncodingSettings(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"longest_edge": 100}, r"`longest_edge`: .* multiples of 32 pixels .* such as 96 and 128, got 100"),
        ({"sizes": ((64, 64), (64, 80))}, r"`sizes`: .* such as 64 and 96, got 80"),
        ({"sizes": ((8, 32),)}, r"such as 32 and 64, got 8"),
        ({"longest_edge": 96, "patch_size": 2}, r"multiples of 64 pixels .*2 x 2 tokens.* such as 64 and 128, got 96"),
        ({"sizes": ((64, 64), (32, 32))}, "`sizes`: two of them have the same proportions"),
    ],
)
def test_sizes_must_fit_the_tokens(fields, message):
    with pytest.raises(ValueError, match=message):
        EncodingSettings(**fields).check_stride(32)


def test_sizes_that_fit():
    EncodingSettings(sizes=((64, 128), (64, 64)), patch_size=2).check_stride(32)


def test_codes_are_those_of_the_model_bit_for_bit(encode, tiny_model):
    pictures = [make_picture(seed, 23, 17) for seed in range(5)]
    rows, _ = encode(make_dataset(image=pictures, text=list("abcde")), batch_size=2)
    processor = UniWeTokImageProcessor(stride=4, fit="crop", size={"height": 16, "width": 16})
    with torch.no_grad():
        expected = tiny_model.encode(processor(pictures)["pixel_values"]).codes
    assert [row["text"] for row in rows] == list("abcde")
    for row, codes in zip(rows, expected, strict=True):
        assert torch.equal(cell_codes(row["image"], 0, 16), codes)


def test_other_columns_keep_their_types(encode):
    kinds = {"text": List(Value("string")), "year": Value("int16"), "style": datasets.ClassLabel(names=["a", "b"])}
    columns = {"text": [["x", "y"], []], "year": [1999, None], "style": [1, 0]}
    dataset = make_dataset(kinds, image=[make_picture(), make_picture()], **columns)
    rows, _ = encode(dataset)
    assert {name: [row[name] for row in rows] for name in columns} == columns
    assert list(rows[0]) == list(dataset.features)
    assert encoded_features(dataset.features, ["image"])["style"].names == ["a", "b"]


@pytest.mark.parametrize(
    "width, height, expected",
    [(16, 16, (4, 4)), (40, 18, (2, 5)), (19, 40, (5, 2)), (9, 8, (2, 2)), (200, 100, (2, 5))],
)
def test_with_a_longest_edge_proportions_are_kept_and_nothing_is_enlarged(encode, width, height, expected):
    rows, _ = encode(make_dataset(image=[make_picture(0, width, height)]), longest_edge=20)
    assert grid(rows[0]["image"]) == [expected]


def test_sides_are_multiples_of_patches(encode):
    rows, _ = encode(make_dataset(image=[make_picture(0, 64, 30)]), longest_edge=32, patch_size=2)
    assert grid(rows[0]["image"]) == [(2, 8)]  # 32 x 15 pixels, cut to whole patches of 8 x 8


def test_a_picture_goes_to_the_size_of_its_proportions(encode):
    pictures = [make_picture(0, 64, 16), make_picture(0, 10, 9), make_picture(0, 9, 30)]
    rows, _ = encode(make_dataset(image=pictures), sizes=((8, 8), (8, 16), (16, 8)))
    assert [grid(row["image"]) for row in rows] == [[(2, 4)], [(2, 2)], [(4, 2)]]


def test_nearest_size_compares_ratios():
    # 1.5 is as far from 1 as from 2.25, so neither a difference of ratios nor one of their inverses decides alone.
    assert nearest_size(Image.new("RGB", (149, 100)), [(4, 4), (4, 9)]) == (4, 4)
    assert nearest_size(Image.new("RGB", (151, 100)), [(4, 4), (4, 9)]) == (4, 9)


def test_fit_resize_keeps_all_of_a_picture(encode):
    picture = make_picture(0, 18, 15)
    rows, _ = encode(make_dataset(image=[picture]), fit="resize", longest_edge=20)
    resized, _ = encode(make_dataset(image=[picture.resize((20, 16), Image.Resampling.BICUBIC)]), longest_edge=20)
    assert rows == resized
    assert grid(rows[0]["image"]) == [(4, 5)]


def test_crops_keep_proportions_and_stay_inside():
    picture = make_picture(0, 40, 20)
    smallest = random_crop(picture, 0.5, False, [0.0, 0.0, 0.0, 0.0])
    assert smallest.size == (20, 10)
    assert np.array_equal(np.asarray(smallest), np.asarray(picture)[:10, :20])
    corner = random_crop(picture, 0.5, False, [0.0, 0.999, 0.999, 0.0])
    assert np.array_equal(np.asarray(corner), np.asarray(picture)[10:, 20:])
    assert random_crop(picture, 0.5, False, [0.999, 0.999, 0.999, 0.0]).size == (40, 20)


def test_crops_of_another_shape_lie_anywhere():
    picture, pixels = make_picture(0, 40, 20), np.asarray(make_picture(0, 40, 20))
    for left, top, place in (
        (0.0, 0.0, np.s_[:20, :20]),
        (0.999, 0.0, np.s_[:20, 20:]),
        (0.5, 0.999, np.s_[:20, 10:30]),
    ):
        largest = random_crop(picture, 0.8, False, [0.9999999, left, top, 0.0], (16, 16))
        assert np.array_equal(np.asarray(largest), pixels[place])
    smallest = random_crop(picture, 0.5, False, [0.0, 0.999, 0.999, 0.0], (64, 32))
    assert np.array_equal(np.asarray(smallest), pixels[10:, 35:])


def test_what_is_cut_off_for_a_size_is_left_to_chance(encode):
    """A wide picture whose middle is of one colour: crops that keep to it would all be alike."""
    pixels = np.asarray(make_picture(1, 96, 16)).copy()
    pixels[:, 24:72] = 128
    rows, _ = encode(make_dataset(image=[Image.fromarray(pixels)]), num_variants=16, crop_scale=0.8)
    first, *crops = (codes["codes"] for codes in rows[0]["image"])
    assert {crop == first for crop in crops} == {True, False}


def test_half_of_the_crops_are_mirrored_on_request():
    picture = make_picture(0, 8, 8)
    mirrored = random_crop(picture, 1.0, True, [0.0, 0.0, 0.0, 0.49])
    assert np.array_equal(np.asarray(mirrored), np.asarray(picture)[:, ::-1])
    for flip, coin in ((True, 0.5), (False, 0.0)):
        same = random_crop(picture, 1.0, flip, [0.0, 0.0, 0.0, coin])
        assert np.array_equal(np.asarray(same), np.asarray(picture))


def test_variants_are_a_function_of_seed_row_and_number(encode):
    dataset = make_dataset(image=[make_picture(0, 32, 32)] * 3)
    rows, _ = encode(dataset, num_variants=4, crop_scale=0.3, flip=True)
    plain, _ = encode(dataset)
    fewer, _ = encode(dataset.select([2]), first_row=2, num_variants=3, crop_scale=0.3, flip=True)
    other, _ = encode(dataset, num_variants=4, crop_scale=0.3, flip=True, seed=2)
    assert all(row["image"][0] == plain[0]["image"][0] for row in rows + other)
    assert rows[2]["image"][:3] == fewer[0]["image"]
    crops = [variant["codes"] for row in rows + other for variant in row["image"][1:]]
    assert len(set(crops)) == len(crops) == 18


def test_mirror_images_follow_what_they_mirror(encode):
    """Codes of the mirrored picture, and of the mirrored crops."""
    picture = make_picture(0, 48, 32)
    mirror = Image.fromarray(np.asarray(picture)[:, ::-1])
    options = {"num_variants": 3, "crop_scale": 0.5}
    [row], _ = encode(make_dataset(image=[picture]), mirrored=True, **options)
    [plain], _ = encode(make_dataset(image=[picture]), **options)
    [alone], _ = encode(make_dataset(image=[mirror]))
    assert row["image"][::2] == plain["image"] and len(row["image"]) == 6
    assert row["image"][1] == alone["image"][0]
    assert len({variant["codes"] for variant in row["image"]}) == 6
    with pytest.raises(ValueError, match="`flip` and `mirrored` can't be given together"):
        encode(make_dataset(image=[picture]), mirrored=True, flip=True, **options)


def test_same_crops_in_all_rows(encode):
    dataset = make_dataset(image=[make_picture(0, 32, 32)] * 3)
    rows, _ = encode(dataset, num_variants=4, crop_scale=0.3, same_crops=True)
    assert rows[0] == rows[1] == rows[2]
    assert len({variant["codes"] for variant in rows[0]["image"]}) == 4
    assert encode(dataset.select([2]), first_row=2, num_variants=4, crop_scale=0.3, same_crops=True)[0] == rows[:1]


def test_variants_are_alike_in_all_columns(encode, tiny_model):
    """The target is the source with inverted colours: so it must be crop by crop, as the model sees it."""
    source = make_picture(0, 48, 48)
    inverted = Image.fromarray(255 - np.asarray(source))
    seen = []
    hook = tiny_model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    dataset = make_dataset(image=[source, source], target=[inverted, inverted])
    encode(dataset, ("image", "target"), num_variants=4, crop_scale=0.4, flip=True, batch_size=4, seed=2)
    hook.remove()
    assert len(seen) == 4
    for sources, targets in (seen[:2], seen[2:]):
        assert (sources + targets).abs().max() < 3 / 127.5  # resizing rounds to 8 bits, with other seeds off by 3
        assert (sources[0] - sources[1]).abs().max() > 0.3


def test_a_row_with_a_bad_picture_is_left_out_and_named(encode, tmp_path):
    good = {"bytes": _png(make_picture()), "path": "good.png"}
    bad = [
        {"bytes": good["bytes"][:-30], "path": "cut.png"},
        {"bytes": b"no picture", "path": None},
        {"bytes": None, "path": "/nowhere/lost.png"},
        None,
    ]
    columns = {"image": [good, *bad, good, good], "target": [good] * 6 + [bad[0]], "text": list("abcdefg")}
    rows, summary = encode(make_dataset(**columns), ("image", "target"), first_row=10)
    assert [row["text"] for row in rows] == ["a", "f"]
    assert [(entry["row"], entry["column"]) for entry in summary.skipped] == [
        (11, "image"),
        (12, "image"),
        (13, "image"),
        (14, "image"),
        (16, "target"),
    ]
    errors = [entry["error"] for entry in summary.skipped]
    names = ["cut.png", "row 12", "/nowhere/lost.png: no such file", "row 14", "cut.png"]
    assert all(error.startswith(name) for error, name in zip(errors, names, strict=True))
    assert (summary.num_rows, summary.pictures) == (7, 4)


def test_a_picture_smaller_than_a_token_is_left_out(encode):
    rows, summary = encode(make_dataset(image=[make_picture(0, 3, 9), make_picture(0, 9, 9)]), longest_edge=16)
    assert len(rows) == 1
    assert "smaller than one stride" in summary.skipped[0]["error"]


def test_a_part_may_lose_all_rows(encode):
    rows, summary = encode(make_dataset(image=[None, None], text=["a", "b"]))
    assert (rows, len(summary.skipped), summary.pictures) == ([], 2, 0)


def test_lists_of_pictures(encode):
    pictures = [make_picture(seed) for seed in range(3)]
    dataset = make_dataset(images=[pictures[:2], [], [pictures[2]]], image=pictures)
    rows, summary = encode(dataset, ("images", "image"), num_variants=2)
    assert [len(row["images"]) for row in rows] == [2, 0, 1]
    assert rows[2]["images"] == [rows[2]["image"]]  # the same picture, cropped alike
    assert rows[0]["images"][0] == rows[0]["image"]
    assert summary.pictures == 6


def test_pictures_of_columns_that_are_not_encoded_are_dropped(encode):
    dataset = make_dataset(image=[make_picture()], target=[make_picture()], images=[[make_picture()]], text=["a"])
    rows, _ = encode(dataset, ("target",))
    assert list(rows[0]) == ["target", "text"]


def test_files_without_types(encode, tmp_path):
    make_picture().save(tmp_path.parent / "one.png")
    path = str(tmp_path.parent / "one.png")
    content = _png(make_picture())
    kinds = {"image": Value("binary"), "target": Value("string")}
    rows, summary = encode(make_dataset(kinds, image=[content], target=[path]), ("image", "target"))
    assert rows[0]["image"] == rows[0]["target"]
    assert summary.source_bytes == len(content) + (tmp_path.parent / "one.png").stat().st_size


def test_counts(encode, monkeypatch):
    pictures = [make_picture(seed, 32, 32) for seed in range(40)]
    _, summary = encode(make_dataset(image=pictures), first_row=30, num_variants=2, crop_scale=0.5)
    assert (summary.first_row, summary.num_rows, summary.pictures) == (30, 40, 40)
    assert summary.codes_bytes == 40 * 16 * 2  # 4 x 4 tokens of 16 bits, of one variant
    assert summary.source_bytes == sum(len(_png(picture)) for picture in pictures)
    assert summary.jpeg_pictures == 2  # rows 32 and 64
    processor = UniWeTokImageProcessor(stride=4, fit="crop", size={"height": 16, "width": 16}, do_rescale=False)
    sizes = []
    for number in (2, 34):
        pixels = processor(pictures[number])["pixel_values"][0].permute(1, 2, 0).numpy().astype(np.uint8)
        sizes.append(len(_file(Image.fromarray(pixels), "JPEG", quality=90)))
    assert summary.jpeg_bytes == sum(sizes)


def test_encodings_are_reported(tiny_model, tmp_path):
    dataset, counts = make_dataset(image=[make_picture()] * 5), []
    settings = EncodingSettings(sizes=((16, 16),), columns=("image",), num_variants=2, batch_size=4)
    encoder = PartEncoder(tiny_model, settings, encoded_features(dataset.features, ["image"]))
    encoder.on_pictures = counts.append
    encoder.write_part(dataset.with_format("arrow")[:], 0, tmp_path / "part.parquet")
    assert counts == [4, 4, 2]


def test_pictures_of_many_sizes_do_not_pile_up(encode, tiny_model, monkeypatch):
    monkeypatch.setattr(encoded_parts, "MOST_WAITING", 3)
    batches = []
    hook = tiny_model.encoder.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].shape))
    pictures = [make_picture(0, side, 16) for side in (8, 12, 12, 16, 8)]
    rows, _ = encode(make_dataset(image=pictures), longest_edge=16)
    hook.remove()
    assert [(shape[0], shape[3]) for shape in batches] == [(2, 12), (2, 8), (1, 16)]
    assert [row["image"][0]["width"] for row in rows] == [2, 3, 3, 4, 2]


def test_latents_that_overflow_are_told(encode, make_model):
    model = make_model()
    with torch.no_grad():
        model.encoder.conv_in.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"`model`: its latents are not finite in torch.float32"):
        encode(make_dataset(image=[make_picture()]), model=model)


def test_other_precisions(encode, make_model):
    rows, _ = encode(make_dataset(image=[make_picture()]), model=make_model().bfloat16())
    assert len(rows[0]["image"][0]["codes"]) == 32


def test_a_file_that_was_cut_off_has_no_counts(encode, tmp_path):
    encode(make_dataset(image=[make_picture()]))
    path = tmp_path / "part-00000.parquet"
    content = path.read_bytes()
    for length in (0, 10, len(content) - 1):
        path.write_bytes(content[:length])
        assert read_summary(path) is None
    assert read_summary(tmp_path / "nowhere") is None
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)  # of somebody else
    assert read_summary(path) is None


def _file(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _png(picture):
    return _file(picture, "PNG")
