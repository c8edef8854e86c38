import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from uniwetok_hf.conversion.shards import OutputTensor, parse_size, write_shards


def output_tensor(name, tensor, num_chunks=1):
    chunks = tensor.chunk(num_chunks) if tensor.ndim else [tensor]
    return OutputTensor(name, tuple(tensor.shape), tensor.dtype, lambda: iter(chunks))


@pytest.mark.parametrize(
    "size, num_bytes", [(1, 1), ("1000", 1000), ("5GB", 5 * 10**9), ("1.5 kb", 1500), ("20MB", 2 * 10**7)]
)
def test_parse_size(size, num_bytes):
    assert parse_size(size) == num_bytes


@pytest.mark.parametrize("size", ["", "GB", "5GiB", "-1", 0, None, "five"])
def test_parse_size_refuses(size):
    with pytest.raises(ValueError, match="max_shard_size"):
        parse_size(size)


def test_one_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(5, 3, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False, True]),  # 3 bytes: would move what follows off its alignment
        "b": torch.randn(7, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "strided": torch.randn(4, 6, generator=generator).T,
        "half": torch.randn(3, generator=generator).half(),
        "ids": torch.arange(3),
    }
    write_shards(tmp_path, [output_tensor(name, tensor, 3) for name, tensor in tensors.items()], 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "model.safetensors", "pt") as reader:
        assert reader.metadata() == {"format": "pt"}


def test_values_are_aligned(tmp_path):
    tensors = [output_tensor("flags", torch.tensor([True])), output_tensor("b", torch.ones(3))]
    write_shards(tmp_path, tensors, 100)
    contents = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"][0] % 4 == 0


def test_shards(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)} | {"large": torch.ones(100)}
    write_shards(tmp_path, [output_tensor(name, tensor) for name, tensor in tensors.items()], 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 40 + 400
    assert index["weight_map"] == {
        "t0": "model-00001-of-00004.safetensors",
        "t1": "model-00001-of-00004.safetensors",
        "t2": "model-00002-of-00004.safetensors",
        "t3": "model-00002-of-00004.safetensors",
        "t4": "model-00003-of-00004.safetensors",
        "large": "model-00004-of-00004.safetensors",
    }
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_too_few_values_are_noticed(tmp_path):
    short = OutputTensor("a", (4,), torch.float32, lambda: iter([torch.ones(3)]))
    with pytest.raises(RuntimeError, match="12 bytes of tensors, not 16"):
        write_shards(tmp_path, [short], 100)
