import pickle

import pytest
import torch
from safetensors.torch import save_file

from uniwetok_hf.conversion import tensors as tensors_module
from uniwetok_hf.conversion.tensors import (
    ConversionError,
    TensorInfo,
    open_tensors,
    published_tensors,
    read_json,
    row_chunks,
)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(6, 3, generator=generator).bfloat16(),
        "b": torch.arange(4),
        "scalar": torch.tensor(1.5),
    }


def write(file, tensors, suffix):
    if suffix == ".safetensors":
        save_file(tensors, file)
    elif suffix == "legacy.pt":
        torch.save({"state_dict": tensors, "epoch": 3}, file, _use_new_zipfile_serialization=False)
    elif suffix == "bare.pt":
        torch.save(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", "legacy.pt", "bare.pt"])
def test_reads_rows(tmp_path, tensors, suffix, monkeypatch):
    monkeypatch.setattr(tensors_module, "REOPEN_AFTER_BYTES", 8)  # so that the file is opened anew between reads
    file = tmp_path / f"weights{suffix}"
    write(file, tensors, suffix)
    source = open_tensors(file, "weights")
    assert source.tensors == {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for _ in range(2):
        assert torch.equal(source.read("a", 2, 5), tensors["a"][2:5])
        assert torch.equal(source.read("b", 0, 4), tensors["b"])
        assert torch.equal(source.read("scalar", 0, 1), tensors["scalar"])


def test_shards(tmp_path, tensors):
    save_file({"a": tensors["a"]}, tmp_path / "one.safetensors")
    save_file({"b": tensors["b"]}, tmp_path / "two.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    source = open_tensors(index, "m.safetensors.index.json")
    assert list(source.tensors) == ["a", "b"]
    assert torch.equal(source.read("b", 1, 3), tensors["b"][1:3])
    assert torch.equal(source.read("a", 0, 6), tensors["a"])

    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(
        ConversionError, match=r"m\.safetensors\.index\.json names two\.safetensors, which is not there"
    ):
        open_tensors(index, "m.safetensors.index.json")
    save_file({"a": tensors["a"]}, tmp_path / "two.safetensors")
    with pytest.raises(ConversionError, match=r"two\.safetensors and one\.safetensors both hold a"):
        open_tensors(index, "m.safetensors.index.json")
    for bad in ("{}", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}'):
        index.write_text(bad)
        with pytest.raises(ConversionError, match="weight_map"):
            open_tensors(index, "m")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", "legacy.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_truncated(tmp_path, tensors, suffix, keep):
    file = tmp_path / f"weights{suffix}"
    write(file, tensors, suffix)
    contents = file.read_bytes()
    file.write_bytes(contents[: int(keep * len(contents))])
    with pytest.raises(ConversionError, match=f"{file.name} is (truncated|damaged)"):
        open_tensors(file, file.name)


class Intruder:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_does_not_run(tmp_path, tensors, zipped):
    target = tmp_path / "intruded"
    file = tmp_path / "bad.ckpt"
    contents = {"state_dict": tensors, "callbacks": Intruder(target)}
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=r"bad\.ckpt is damaged, or holds objects that are no tensors"):
        open_tensors(file, file.name)
    file.write_bytes(pickle.dumps(contents, protocol=2))
    with pytest.raises(ConversionError, match=r"bad\.ckpt is damaged, or holds objects that are no tensors"):
        open_tensors(file, file.name)
    assert not target.exists()


@pytest.mark.parametrize("contents", [{"epoch": 3}, [torch.ones(2)], {"state_dict": {"a": 1}}, torch.ones(2)])
def test_pickle_without_state_dict(tmp_path, contents):
    torch.save(contents, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"x\.pt holds no state dict"):
        open_tensors(tmp_path / "x.pt", "x.pt")


@pytest.mark.parametrize("contents, message", [("{", "cut off"), ("[]", "a JSON object"), ("\udcff", "cut off")])
def test_read_json(tmp_path, contents, message):
    (tmp_path / "c.json").write_bytes(contents.encode(errors="surrogateescape"))
    with pytest.raises(ConversionError, match=f"c.json .*{message}"):
        read_json(tmp_path / "c.json")


def test_moving_averages_win():
    stored = [
        "encoder.conv_in.weight",
        "decoder.conv_in.bias",  # was frozen: no average
        "loss.discriminator.main.0.weight",
        "distill.proj.weight",
        "model_ema.encoderconv_inweight",
        "model_ema.lossdiscriminatormain0weight",
        "model_ema.distillprojweight",
        "model_ema.decay",
        "model_ema.num_updates",
    ]
    expected = {
        "encoder.conv_in.weight": "model_ema.encoderconv_inweight",
        "decoder.conv_in.bias": "decoder.conv_in.bias",
        "distill.proj.weight": "model_ema.distillprojweight",
    }
    assert published_tensors(stored) == expected
    del expected["distill.proj.weight"]
    assert published_tensors(stored, ["distill."]) == expected


def test_average_of_nothing_stays():
    assert published_tensors(["a.b", "model_ema.ac"]) == {"a.b": "a.b", "model_ema.ac": "model_ema.ac"}


def test_row_chunks():
    info = TensorInfo((10, 4), torch.float32)
    assert list(row_chunks(info, 2, 9, 48)) == [(2, 5), (5, 8), (8, 9)]
    assert list(row_chunks(info, 0, 2, 1)) == [(0, 1), (1, 2)]
    assert list(row_chunks(TensorInfo((), torch.float32), 0, 1, 48)) == [(0, 1)]
    assert list(row_chunks(TensorInfo((3, 0), torch.float32), 0, 3, 48)) == [(0, 3)]
