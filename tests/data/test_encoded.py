import json

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Features, List, Value
from full_disk import files_limited

from uniwetok_hf.data.encoded import (
    cell_codes,
    encoder_fingerprint,
    is_begun,
    open_encoded,
    part_path,
    read_encoding,
)
from uniwetok_hf.files import WriteError
from uniwetok_hf.modeling.codes_uniwetok import pack_codes


FEATURES = Features(
    {
        "text": Value("string"),
        "image": List({"codes": Value("binary"), "height": Value("int32"), "width": Value("int32")}),
        "words": List(Value("string")),
    }
)
ENCODING = {
    "format": 1,
    "model": "tiny",
    "fingerprint": "0" * 64,
    "num_bits": 16,
    "stride": 4,
    "picture_columns": ["image"],
    "num_variants": 2,
    "num_rows": 5,
    "num_parts": 3,
    "num_skipped": 0,
    "bytes": {},
    "pictures_per_second": None,
    "settings": {},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def make_rows(start, count):
    def cell(number):
        return [{"codes": bytes([number, variant]) * 6, "height": 2, "width": 3} for variant in range(2)]

    return [{"text": f"row {n}", "image": cell(n), "words": ["a"] * n} for n in range(start, start + count)]


def write_part(folder, index, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, FEATURES.arrow_schema), part_path(folder, index))


@pytest.fixture
def folder(tmp_path):
    """Two parts with rows and one between them that lost all of its rows."""
    folder = tmp_path / "codes"
    folder.mkdir()
    for index, rows in enumerate((make_rows(0, 3), [], make_rows(3, 2))):
        write_part(folder, index, rows)
    (folder / "encoding.json").write_text(json.dumps(ENCODING))
    return folder


def test_all_parts_are_one_dataset_in_order(folder):
    dataset = open_encoded(folder)
    assert dataset.features == FEATURES
    assert dataset.to_list() == make_rows(0, 5)


def test_it_is_memory_mapped(folder, cache):
    files = [file["filename"] for file in open_encoded(folder).cache_files]
    assert files and all(file.startswith(str(cache)) and file.endswith(".arrow") for file in files)


def test_a_part_that_was_made_anew_is_read_anew(folder):
    open_encoded(folder)
    write_part(folder, 2, make_rows(7, 2))
    assert open_encoded(folder)["text"][-1] == "row 8"


def test_rows_are_counted(folder):
    write_part(folder, 2, make_rows(3, 1))
    with pytest.raises(ValueError, match=r"`folder` .* holds 4 rows, its encoding.json says 5"):
        open_encoded(folder)


def test_a_missing_part_is_named(folder):
    part_path(folder, 1).unlink()
    with pytest.raises(ValueError, match=r"lacks part-00001.parquet, the first of 1 missing of 3 parts"):
        open_encoded(folder)


@pytest.mark.parametrize("damage", [lambda part: part[:1], lambda part: part[:-1], lambda part: bytes(len(part))])
def test_a_damaged_part_is_named(folder, damage):
    part = folder / "part-00001.parquet"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(ValueError, match=r"part-00001\.parquet is damaged \(Parquet .*\)\. Remove it"):
        open_encoded(folder)


def test_a_full_cache_is_named(folder):
    with files_limited(256), pytest.raises(WriteError, match=r"cache can't be written: File too large"):
        open_encoded(folder)


def test_description(folder):
    encoding = read_encoding(folder)
    assert (encoding.model, encoding.num_bits, encoding.stride, encoding.num_variants) == ("tiny", 16, 4, 2)
    assert encoding.picture_columns == ["image"]


def test_parts_of_other_programs_are_no_encoding(tmp_path):
    (tmp_path / "part-00000-5f0c-4a.c000.snappy.parquet").touch()  # of Spark
    assert not is_begun(tmp_path)
    for name in ("part-00000.parquet", "part-00003-00001.parquet"):
        (tmp_path / name).touch()
        assert is_begun(tmp_path)
        (tmp_path / name).unlink()


def test_an_unfinished_folder_is_refused(folder):
    (folder / "encoding.json").unlink()
    with pytest.raises(ValueError, match="unfinished"):
        open_encoded(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no encoded dataset"):
        read_encoding(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text, message",
    [
        (json.dumps(ENCODING)[:-30], "is damaged"),
        (json.dumps([1]), "is damaged"),
        (json.dumps(ENCODING | {"format": 2}), "format 2.* reads 1"),
        (json.dumps({k: v for k, v in ENCODING.items() if k != "num_bits"}), "lacks num_bits"),
    ],
)
def test_bad_descriptions_are_refused(folder, text, message):
    (folder / "encoding.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_encoding(folder)


def test_what_a_later_version_adds_is_ignored(folder):
    (folder / "encoding.json").write_text(json.dumps(ENCODING | {"news": 1}))
    assert read_encoding(folder).num_rows == 5


def test_codes_of_a_cell():
    codes = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (2, 16, 2, 3))).float()
    packed = pack_codes(codes).numpy()
    cell = [{"codes": variant.tobytes(), "height": 2, "width": 3} for variant in packed]
    for variant in range(2):
        unpacked = cell_codes(cell, variant, 16)
        assert unpacked.dtype == torch.float32
        assert torch.equal(unpacked, codes[variant])


@pytest.mark.parametrize("variant", [-1, 2])
def test_a_variant_that_is_not_there(variant):
    with pytest.raises(ValueError, match=f"`variant` must be 0 to 1, got {variant}"):
        cell_codes(make_rows(0, 1)[0]["image"], variant, 16)


def test_codes_of_other_bits():
    with pytest.raises(ValueError, match=r"`num_bits`: 2x3 tokens of 128 bits are 96 bytes, `cell` holds 12"):
        cell_codes(make_rows(0, 1)[0]["image"], 0, 128)


def test_fingerprint_knows_the_encoder_alone(make_model):
    model = make_model()
    fingerprint = encoder_fingerprint(model)
    assert len(fingerprint) == 64
    with torch.no_grad():
        model.decoder.conv_in.weight += 1
    assert encoder_fingerprint(model) == fingerprint
    with torch.no_grad():
        model.encoder.down_blocks[0].blocks[0].conv1.weight[0, 0, 0, 0] += 0.1
    assert encoder_fingerprint(model) != fingerprint


def test_fingerprint_of_any_precision_and_layout(make_model):
    fingerprint = encoder_fingerprint(make_model())
    assert encoder_fingerprint(make_model().bfloat16()) == fingerprint
    assert encoder_fingerprint(make_model().to(memory_format=torch.channels_last)) == fingerprint
