import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uniwetok_hf.modeling.codes_uniwetok import (
    CODES_VERSION,
    CodesFileError,
    binarize,
    codes_to_tokens,
    load_codes,
    pack_codes,
    save_codes,
    tokens_to_codes,
    unpack_codes,
)


SIZES = [(2, 3), (1, 1), (4, 2), (2, 3), (1, 7)]


def random_codes(*shape, seed=0):
    return binarize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def pictures():
    return [random_codes(16, *size, seed=index) for index, size in enumerate(SIZES)]


@pytest.fixture
def edit_metadata(tmp_path, tiny_config, pictures):
    """`edit_metadata(remove=(), **changes)`: a file of codes whose metadata was changed by hand."""

    def edit(remove=(), **changes):
        path = save_codes(tmp_path / "edited.safetensors", pictures, tiny_config)
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["uniwetok"]) | changes
        metadata = {name: value for name, value in metadata.items() if name not in remove}
        save_file(load_file(path), path, metadata={"uniwetok": json.dumps(metadata)})
        return path

    return edit


# --- signs


def test_binarize_is_the_sign_and_keeps_the_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        codes = binarize(torch.tensor([-2.0, -1e-7, 0.0, 1e-7, 3.0], dtype=dtype))
        assert codes.tolist() == [-1, -1, -1, 1, 1]
        assert codes.dtype == dtype


def test_binarize_has_no_gradient():
    assert not binarize(torch.ones(3, requires_grad=True)).requires_grad


# --- packing


@pytest.mark.parametrize("bits", [8, 16, 24, 128])
def test_packing_there_and_back(bits, device):
    codes = random_codes(3, bits, 2, 5).to(device)
    packed = pack_codes(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, 2, 5, bits // 8)
    unpacked = unpack_codes(packed)
    assert torch.equal(unpacked, codes)
    assert unpacked.is_contiguous()


@pytest.mark.parametrize("bits", [8, 24, 128])
def test_bit_j_of_byte_k_is_channel_8k_plus_j(bits):
    for channel in range(bits):
        codes = -torch.ones(1, bits, 1, 1)
        codes[0, channel] = 1
        expected = [0] * (bits // 8)
        expected[channel // 8] = 1 << channel % 8
        assert pack_codes(codes)[0, 0, 0].tolist() == expected


def test_every_byte_unpacks_to_its_bits():
    unpacked = unpack_codes(torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1))
    assert unpacked.shape == (1, 8, 16, 16)
    for byte in range(256):
        expected = [1.0 if byte & 1 << bit else -1.0 for bit in range(8)]
        assert unpacked[0, :, byte // 16, byte % 16].tolist() == expected


def test_packing_keeps_pictures_and_positions_apart():
    codes = -torch.ones(2, 16, 3, 4)
    codes[1, 9, 2, 1] = 1
    packed = pack_codes(codes)
    assert packed[1, 2, 1].tolist() == [0, 2]
    assert packed.sum() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_unpacking_to_another_dtype(dtype):
    codes = random_codes(1, 16, 2, 2)
    unpacked = unpack_codes(pack_codes(codes), dtype=dtype)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked.float(), codes)
    assert torch.equal(pack_codes(unpacked), pack_codes(codes))


@pytest.mark.parametrize("shape", [(8, 2, 2), (1, 12, 2, 2), (1, 1, 8, 2, 2)])
def test_packing_refuses(shape):
    with pytest.raises(ValueError, match="`codes` must be"):
        pack_codes(torch.ones(shape))


@pytest.mark.parametrize("packed", [torch.zeros(1, 2, 2, 1), torch.zeros(2, 2, 1, dtype=torch.uint8)])
def test_unpacking_refuses(packed):
    with pytest.raises(ValueError, match="`packed` must be uint8"):
        unpack_codes(packed)


# --- files


def test_list_of_mixed_sizes_there_and_back(tmp_path, tiny_config, pictures):
    original_sizes = [(8 + index, 12 - index) for index in range(len(pictures))]
    content_sizes = [(4 * height, 4 * width - 1) for height, width in SIZES]
    path = save_codes(tmp_path / "codes.safetensors", pictures, tiny_config, original_sizes, content_sizes)
    assert path == tmp_path / "codes.safetensors"

    loaded = load_codes(path)
    assert len(loaded.codes) == len(pictures)
    for read, saved in zip(loaded.codes, pictures, strict=True):
        assert read.dtype == torch.float32
        assert torch.equal(read, saved)
    assert loaded.original_sizes == original_sizes
    assert loaded.content_sizes == content_sizes
    assert loaded.metadata["num_pictures"] == 5
    assert loaded.metadata["architecture"] == "hybrid"
    loaded.check_fits(tiny_config)


def test_batch_there_and_back(tmp_path, tiny_config):
    codes = random_codes(3, 16, 2, 5)
    loaded = load_codes(save_codes(str(tmp_path / "codes.safetensors"), codes, tiny_config))
    assert torch.equal(torch.stack(loaded.codes), codes)
    assert loaded.original_sizes is None and loaded.content_sizes is None


def test_many_pictures_keep_their_order(tmp_path, tiny_config):
    codes = random_codes(120, 16, 1, 1)
    loaded = load_codes(save_codes(tmp_path / "codes.safetensors", codes, tiny_config))
    assert torch.equal(torch.stack(loaded.codes), codes)


def test_a_token_takes_its_bits_on_disk(tmp_path, make_config):
    codes = random_codes(1, 128, 64, 64)
    path = save_codes(tmp_path / "codes.safetensors", codes, make_config(num_bits=128))
    assert path.stat().st_size - 64 * 64 * 16 < 1024


def test_model_that_made_them_is_named(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "some-model")
    model = type(tiny_model).from_pretrained(tmp_path / "some-model")
    loaded = load_codes(save_codes(tmp_path / "codes.safetensors", random_codes(1, 16, 1, 1), model.config))
    assert loaded.metadata["model"].endswith("some-model")


@pytest.mark.parametrize(
    "field, fields",
    [("num_bits", {"num_bits": 8}), ("num_bits", {"num_bits": 32}), ("stride", {"channel_multipliers": [1, 2]})],
)
def test_codes_of_another_model_are_refused(tmp_path, tiny_config, make_config, pictures, field, fields):
    loaded = load_codes(save_codes(tmp_path / "codes.safetensors", pictures, tiny_config))
    with pytest.raises(CodesFileError, match=f"{field}=.* the model has {field}="):
        loaded.check_fits(make_config(**fields))


def test_other_files_are_refused(tmp_path, fixtures):
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0 no safetensors at all" * 20)
    (tmp_path / "empty").touch()
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata={"uniwetok": '{"format": "other"}'})
    save_file({"weight": torch.zeros(2)}, tmp_path / "broken.safetensors", metadata={"uniwetok": "{"})
    for path in (*sorted(tmp_path.iterdir()), fixtures / "golden" / "quantizer.safetensors"):
        with pytest.raises(CodesFileError, match=path.name):
            load_codes(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(CodesFileError, match=path.name):
            load_codes(path)


def test_truncated_files_are_refused(tmp_path, tiny_config, pictures):
    whole = save_codes(tmp_path / "codes.safetensors", pictures, tiny_config).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(CodesFileError, match="cut"):
            load_codes(cut)
    cut.write_bytes(whole)
    assert len(load_codes(cut).codes) == 5


def test_newer_version_is_refused(edit_metadata):
    with pytest.raises(CodesFileError, match=f"version {CODES_VERSION + 1}.*update uniwetok-hf"):
        load_codes(edit_metadata(version=CODES_VERSION + 1))
    assert len(load_codes(edit_metadata(version=CODES_VERSION)).codes) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"remove": ["version"]},
        {"remove": ["num_bits"]},
        {"remove": ["stride"]},
        {"remove": ["original_sizes"]},
        {"num_bits": 24},
        {"num_pictures": 7},
    ],
    ids=str,
)
def test_metadata_that_contradicts_the_codes_is_refused(edit_metadata, make_config, changes):
    with pytest.raises(CodesFileError):
        load_codes(edit_metadata(**changes)).check_fits(make_config(num_bits=changes.get("num_bits", 16)))


def test_wrong_codes_and_sizes_are_refused_and_nothing_is_written(tmp_path, tiny_config, pictures):
    path = tmp_path / "codes.safetensors"
    with pytest.raises(ValueError, match=r"`codes\[1\]` has 24 bits, `config.num_bits` is 16"):
        save_codes(path, [pictures[0], random_codes(24, 2, 2)], tiny_config)
    with pytest.raises(ValueError, match="`original_sizes` must hold one size per picture: 5 pictures, 1 sizes"):
        save_codes(path, pictures, tiny_config, original_sizes=[(8, 8)])
    with pytest.raises(ValueError, match="`content_sizes` must hold one size per picture: 5 pictures, 6 sizes"):
        save_codes(path, pictures, tiny_config, content_sizes=[(8, 8)] * 6)
    assert list(tmp_path.iterdir()) == []


def test_failed_save_keeps_the_old_file(tmp_path, tiny_config, pictures):
    path = save_codes(tmp_path / "codes.safetensors", pictures, tiny_config)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_codes(path, [random_codes(8, 1, 1)], tiny_config)
    assert path.read_bytes() == before
    with path.open("rb") as reader:  # who reads while another writes sees the old file whole
        save_codes(path, pictures[:1], tiny_config)
        assert reader.read() == before
    assert len(load_codes(path).codes) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stays_behind_when_the_path_is_a_folder(tmp_path, tiny_config, pictures):
    (tmp_path / "folder").mkdir()
    with pytest.raises((OSError, ValueError)):
        save_codes(tmp_path / "folder", pictures, tiny_config)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_saving_in_a_missing_folder(tmp_path, tiny_config, pictures):
    with pytest.raises((OSError, ValueError), match="missing"):
        save_codes(tmp_path / "missing" / "codes.safetensors", pictures, tiny_config)


# --- with the model


@torch.no_grad()
def test_file_decodes_like_the_codes(tmp_path, tiny_model, make_pictures):
    pixel_values = [make_pictures(3, 8, 12), make_pictures(3, 4, 8, seed=1)]
    codes = tiny_model.encode(pixel_values).codes
    loaded = load_codes(save_codes(tmp_path / "codes.safetensors", codes, tiny_model.config))
    loaded.check_fits(tiny_model.config)
    generators = [[torch.Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    expected = tiny_model.decode(codes, generator=generators[0]).sample
    samples = tiny_model.decode([picture.to(tiny_model.device) for picture in loaded.codes], generators[1]).sample
    for sample, wanted in zip(samples, expected, strict=True):
        assert torch.equal(sample, wanted)


def test_order_of_tokens_is_patch_by_patch_and_row_by_row_inside():
    codes = torch.arange(16.0).view(1, 1, 2, 8)
    assert codes_to_tokens(codes, 1)[0, :, 0].tolist() == list(range(16))
    assert codes_to_tokens(codes, 2)[0, :, 0].tolist() == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    square = torch.arange(64.0).view(1, 1, 8, 8)
    tokens = codes_to_tokens(square, 4)[0, :, 0].tolist()
    assert tokens[:8] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert tokens[16:18] == [4, 5]
    assert tokens[32:34] == [32, 33]


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_tokens_to_codes_is_the_inverse(patch_size):
    codes = torch.randn(3, 8, 2 * patch_size, 3 * patch_size, generator=torch.Generator().manual_seed(0))
    tokens = codes_to_tokens(codes, patch_size)
    assert tokens.shape == (3, 6 * patch_size**2, 8)
    assert torch.equal(tokens_to_codes(tokens, 2 * patch_size, 3 * patch_size, patch_size), codes)


def test_saving_leaves_other_files_alone_and_follows_a_link(tmp_path, tiny_config, pictures):
    (tmp_path / "disk").mkdir()
    (tmp_path / "codes.safetensors.tmp").write_text("mine")
    (tmp_path / "codes.safetensors").symlink_to(tmp_path / "disk" / "codes")
    save_codes(tmp_path / "codes.safetensors", pictures, tiny_config)
    assert (tmp_path / "codes.safetensors").is_symlink() and (tmp_path / "codes.safetensors.tmp").read_text() == "mine"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["codes"]
    assert len(load_codes(tmp_path / "codes.safetensors").codes) == len(pictures)
