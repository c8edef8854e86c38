"""`uniwetok decode`, end to end."""

from pathlib import Path

import torch
from tiny_images import pixels

from uniwetok_hf import UniWeTokModel, save_codes


def test_decode_of_encode_is_reconstruct(succeeds, make_picture, pipeline_folder):
    names = [str(make_picture(f"{index}.png", 50 + 40 * index, 70, index)) for index in range(3)]
    model = ["--model", pipeline_folder]
    for options in ([], ["--longest-edge", "64"], ["--fit", "crop"]):
        lines = succeeds("encode", *names, *model, *options, "--output", "codes/all.safetensors")
        assert lines[-1] == "codes/all.safetensors"
        assert lines[1].startswith("1.png: 90x70 pixels, ") and lines[1].endswith(" bytes")
        assert succeeds("decode", "codes/all.safetensors", *model, "--seed", 5, "--output", "decoded") == [
            f"decoded/all-decoded-{index:03d}.png" for index in (1, 2, 3)
        ]
        succeeds("reconstruct", *names, *model, *options, "--seed", 5, "--output", "direct")
        for index in range(3):
            decoded = pixels(f"decoded/all-decoded-{index + 1:03d}.png")
            assert (decoded == pixels(f"direct/{index}-reconstruction.png")).all()


def test_one_picture_is_decoded_beside_its_codes_without_overwriting(succeeds, photo, vision_folder):
    before = photo.read_bytes()
    succeeds("encode", photo, "--model", vision_folder, "--output", "photo.safetensors")
    assert succeeds("decode", "photo.safetensors", "--model", vision_folder) == ["photo-decoded.png"]
    assert photo.read_bytes() == before
    assert succeeds("decode", "photo.safetensors", "--model", vision_folder, "--output", "x.bmp") == ["x.bmp"]


def test_codes_without_sizes_are_decoded_whole(succeeds, vision_folder):
    model = UniWeTokModel.from_pretrained(vision_folder)
    save_codes("bare.safetensors", torch.ones(1, 16, 2, 3), model.config)
    succeeds("decode", "bare.safetensors", "--model", vision_folder)
    assert pixels("bare-decoded.png").shape == (64, 96, 3)


def test_codes_of_another_model(fails, uniwetok, succeeds, photo, pipeline_folder, vision_folder, make_vision_folder):
    succeeds("encode", photo, "--model", vision_folder)
    other = make_vision_folder(num_bits=8)
    message = fails("decode", "codes.safetensors", "--model", other)
    assert message.startswith("codes.safetensors: These codes were made with num_bits=16, the model has num_bits=8")
    other = make_vision_folder(channel_multipliers=[1, 1, 1, 2])
    assert "stride=32, the model has stride=8" in fails("decode", "codes.safetensors", "--model", other)
    # One that fits but is another one gives nonsense: a word of warning.
    result = uniwetok("decode", "codes.safetensors", "--model", pipeline_folder)
    assert (result.code, result.err) == (
        0,
        ["uniwetok: warning: codes.safetensors was encoded by tiny-vision and is decoded by tiny-pipeline"],
    )


def test_files_that_are_no_codes(fails, succeeds, photo, pipeline_folder, vision_folder):
    weights = pipeline_folder / "mllm" / "model.safetensors"
    assert "holds no UniWeTok codes" in fails("decode", weights)
    assert "no file of codes, or it is cut off" in fails("decode", photo)
    assert "can't be read" in fails("decode", "missing.safetensors")
    succeeds("encode", photo, "--model", vision_folder, "--output", "cut.safetensors")
    cut = Path("cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-3])
    assert "cut off" in fails("decode", "cut.safetensors")
