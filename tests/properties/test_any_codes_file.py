"""A file of codes comes back as it was saved, or, when it was altered, as one clear error."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_json, damaged_tensors, flip_bit
from safetensors import safe_open
from safetensors.torch import load, save

from uniwetok_hf import UniWeTokConfig, load_codes, save_codes
from uniwetok_hf.modeling.codes_uniwetok import CodesFileError


SHAPES = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 7)), max_size=4)
SIDES = st.integers(1, 2**31 - 1)


def config_of(bits: int) -> UniWeTokConfig:
    return UniWeTokConfig(num_bits=bits, base_channels=32, num_attention_heads=1, num_hidden_layers=1)


def random_codes(bits: int, shapes: list, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 2, (bits, *shape), generator=generator).float() * 2 - 1 for shape in shapes]


@given(st.integers(1, 24), SHAPES, st.integers(0, 2**32), st.data())
def test_codes_of_any_shape_there_and_back(tmp_path_factory, num_bytes, shapes, seed, data):
    codes = random_codes(8 * num_bytes, shapes, seed)
    sizes = [
        data.draw(st.none() | st.lists(st.tuples(SIDES, SIDES), min_size=len(codes), max_size=len(codes)))
        for _ in range(2)
    ]
    path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    loaded = load_codes(save_codes(path, codes, config_of(8 * num_bytes), *sizes))
    assert len(loaded.codes) == len(codes)
    assert all(torch.equal(found, saved) for found, saved in zip(loaded.codes, codes, strict=True))
    assert [loaded.original_sizes, loaded.content_sizes] == sizes
    loaded.check_fits(config_of(8 * num_bytes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of three pictures."""
    codes = random_codes(16, [(2, 3), (1, 1), (3, 2)], 0)
    sizes = [(64, 96), (32, 32), (96, 64)]
    return save_codes(tmp_path_factory.mktemp("whole") / "codes.safetensors", codes, config_of(16), sizes, sizes)


def check_altered(content: bytes, whole, folder) -> None:
    """An altered file is refused, or says what the whole one says."""
    path = folder / "altered.safetensors"
    path.write_bytes(content)
    try:
        loaded = load_codes(path)
    except CodesFileError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return
    expected = load_codes(whole)
    assert all(torch.equal(found, saved) for found, saved in zip(loaded.codes, expected.codes, strict=True))
    assert loaded.original_sizes == expected.original_sizes and loaded.content_sizes == expected.content_sizes


def check_flips(places: list[float], kept: float, whole, folder) -> None:
    content = whole.read_bytes()
    for place in places:
        content = flip_bit(content, int(place * 8 * len(content)))
    check_altered(content[: int(kept * len(content))] if kept < 0.5 else content, whole, folder)


PLACES = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)


@settings(max_examples=150)
@given(PLACES, st.floats(0, 1))
def test_altered_bits(tmp_path_factory, whole, places, kept):
    check_flips(places, kept, whole, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=5000)
@given(PLACES, st.floats(0, 1))
def test_many_altered_bits(tmp_path_factory, whole, places, kept):
    check_flips(places, kept, whole, tmp_path_factory.getbasetemp())


def test_every_bit_of_the_codes_is_watched(tmp_path, whole):
    """No flipped bit of a code is taken for another code."""
    content = whole.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "flipped.safetensors"
    for place in range(8 * begin, 8 * len(content)):
        path.write_bytes(flip_bit(content, place))
        with pytest.raises(CodesFileError, match="checksum does not fit"):
            load_codes(path)


def without_checksum(content: bytes, change=lambda text: text) -> bytes:
    """The file as earlier versions wrote it, with other metadata."""
    return save(load(content), {"uniwetok": change(metadata_of(content))})


def metadata_of(content: bytes) -> str:
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["uniwetok"])
    del said["checksum"]
    return json.dumps(said)


def test_files_of_earlier_versions_are_read(tmp_path, whole):
    (tmp_path / "old.safetensors").write_bytes(without_checksum(whole.read_bytes()))
    with safe_open(tmp_path / "old.safetensors", "pt") as file:
        assert "checksum" not in file.metadata()["uniwetok"]
    found = load_codes(tmp_path / "old.safetensors").codes
    assert all(map(torch.equal, found, load_codes(whole).codes))


def test_mutated_files(tmp_path, whole):
    content = whole.read_bytes()
    for changed in (damaged_bytes(content) | damaged_tensors(content)).values():
        check_altered(changed, whole, tmp_path)


def test_mutated_metadata(tmp_path, whole):
    """Of files without a checksum: what the metadata says is of its type and belongs to the codes."""
    config, path = config_of(16), tmp_path / "altered.safetensors"
    for name, changed in damaged_json(metadata_of(whole.read_bytes()).encode()).items():
        text = changed.decode(errors="ignore")
        path.write_bytes(without_checksum(whole.read_bytes(), lambda _, text=text: text))
        try:
            loaded = load_codes(path)
            loaded.check_fits(config)
        except CodesFileError as error:
            assert len(str(error)) < 1000, name
            continue
        for sizes in (loaded.original_sizes, loaded.content_sizes):
            assert sizes is None or [len(size) for size in sizes] == [2, 2, 2], name
        assert isinstance(loaded.metadata.get("model"), str | None), name
