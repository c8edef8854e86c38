"""`uniwetok reconstruct`, end to end."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import pixels

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokModel
from uniwetok_hf.cli import picture_sizes
from uniwetok_hf.data.images import read_image
from uniwetok_hf.evaluation.metrics import psnr, ssim


GAP = 8


def halves(path, width):
    both = pixels(path)
    assert both.shape[1] == 2 * width + GAP
    assert (both[:, width : width + GAP] == 255).all()
    return both[:, :width], both[:, width + GAP :]


def reconstruct_by_hand(folder, path, seed, subfolder="", **processor_options):
    model = UniWeTokModel.from_pretrained(folder, subfolder=subfolder, dtype=torch.float32).eval()
    processor = UniWeTokImageProcessor(stride=model.config.stride, **processor_options)
    inputs = processor(read_image(path))
    with torch.no_grad():
        sample = model(inputs["pixel_values"], generator=torch.Generator().manual_seed(seed)).sample
    return processor.postprocess(sample, inputs["original_sizes"], inputs["content_sizes"])[0]


def test_reconstruct_on_each_kind_of_checkpoint(succeeds, photo, pipeline_folder, vision_folder):
    for folder, subfolder in ((pipeline_folder, "mllm"), (vision_folder, "")):
        lines = succeeds("reconstruct", photo, "--model", folder, "--seed", "3")
        expected = reconstruct_by_hand(folder, photo, 3, subfolder)
        assert (pixels("photo-reconstruction.png") == np.asarray(expected)).all()
        left, right = halves("photo-side-by-side.png", 100)
        assert (left == pixels(photo)).all() and (right == np.asarray(expected)).all()
        original = Image.open(photo).copy()
        figures = f"PSNR {psnr(expected, original):.2f} dB, SSIM {ssim(expected, original):.3f}"
        assert lines == [
            f"photo.png: 100x70 pixels, 12 tokens, 24 bytes, {figures}",
            "  photo-reconstruction.png",
            "  photo-side-by-side.png",
        ]


def test_seed_is_that_of_the_decoder_noise(succeeds, photo, vision_folder):
    for seed, name in ((0, "first.png"), (0, "again.png"), (1, "other.png")):
        succeeds("reconstruct", photo, "--model", vision_folder, "--seed", seed, "--output", name)
    assert (pixels("first.png") == pixels("again.png")).all()
    assert (pixels("first.png") != pixels("other.png")).any()
    assert pixels("first-side-by-side.png").shape == (70, 208, 3)


def test_many_pictures_of_many_sizes_are_as_alone(succeeds, make_picture, vision_folder):
    sizes = {"a.png": (1, 1), "b.png": (33, 97), "c.png": (64, 32), "d.jpg": (5, 200)}
    for seed, (name, size) in enumerate(sizes.items()):
        make_picture(name, *size, seed=seed)
    lines = succeeds("reconstruct", *sizes, "--model", vision_folder, "--output", "all")
    assert [line.split(",")[0] for line in lines if not line.startswith(" ")] == [
        f"{name}: {width}x{height} pixels" for name, (width, height) in sizes.items()
    ]
    assert "SSIM" not in lines[0]  # 1 pixel is less than its window
    for name, (width, height) in sizes.items():
        succeeds("reconstruct", name, "--model", vision_folder, "--output", "alone")
        written = f"{name[0]}-reconstruction.png"
        assert (pixels(f"all/{written}") == pixels(f"alone/{written}")).all()
        assert pixels(f"all/{written}").shape == (height, width, 3)


@pytest.mark.parametrize(
    ("options", "processor_options", "note"),
    [
        (["--fit", "resize"], {"fit": "resize"}, "96x64"),
        (["--longest-edge", "64"], {"size": {"longest_edge": 64}}, "64x45"),
        (["--size", "64", "--fit", "pad"], {"size": {"height": 64, "width": 64}}, "64x45"),
    ],
)
def test_sizes(succeeds, photo, vision_folder, options, processor_options, note):
    (line, *_) = succeeds("reconstruct", photo, "--model", vision_folder, *options)
    expected = reconstruct_by_hand(vision_folder, photo, 0, **processor_options)
    assert (pixels("photo-reconstruction.png") == np.asarray(expected)).all()
    assert pixels("photo-reconstruction.png").shape == (70, 100, 3)
    assert re.search(rf"\(at the model's {note}: PSNR ", line)


def test_crop_is_compared_with_what_was_cropped(succeeds, photo, vision_folder):
    (line, *_) = succeeds("reconstruct", photo, "--model", vision_folder, "--fit", "crop")
    assert line.startswith("photo.png: 96x64 pixels, 6 tokens, 12 bytes, PSNR ") and "at the model's" not in line
    left, right = halves("photo-side-by-side.png", 96)
    assert (left == pixels(photo)[3:67, 2:98]).all()
    assert (right == pixels("photo-reconstruction.png")).all()


def save_odd_picture(kind, name):
    """A picture in an unusual format, and what it looks like as RGB [H, W, 3]."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    if kind == "16 bit":
        deep = rng.integers(0, 2**16, (40, 30), dtype=np.uint16)
        Image.fromarray(deep).save(name)
        return np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if kind == "CMYK":
        picture.convert("CMYK").save(name)
    elif kind == "palette":
        picture = picture.quantize(16)
        picture.save(name)
        colours = np.asarray(picture.convert("RGB"))
    elif kind == "alpha":
        picture.putalpha(Image.fromarray(np.where(np.arange(40)[:, None] < 20, 255, np.zeros((1, 30), np.uint8))))
        picture.save(name)
        colours = np.where(np.arange(40)[:, None, None] < 20, colours, 255)
    elif kind == "animated":
        frames = [picture.quantize(64), Image.new("P", (30, 40), 1)]
        frames[0].save(name, save_all=True, append_images=frames[1:])
        colours = np.asarray(frames[0].convert("RGB"))
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        picture.save(name, exif=exif)
        colours = np.rot90(colours, k=-1)
    return colours


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("16 bit", "deep.png"),
        ("CMYK", "print.tif"),
        ("palette", "palette.png"),
        ("alpha", "alpha.png"),
        ("animated", "moving.gif"),
        ("rotated", "rotated.png"),
    ],
)
def test_odd_pictures_are_read_rightly(succeeds, vision_folder, kind, name):
    expected = save_odd_picture(kind, name)
    succeeds("reconstruct", name, "--model", vision_folder, "--output", "result.png")
    left, _ = halves("result-side-by-side.png", expected.shape[1])
    assert (left == expected).all()


@pytest.mark.parametrize("command", ["reconstruct", "encode", "describe"])
def test_files_that_are_no_pictures(fails, make_picture, workplace, command):
    (workplace / "notes.png").write_text("no picture")
    (workplace / "empty.png").touch()
    make_picture("whole.png")
    (workplace / "cut.png").write_bytes((workplace / "whole.png").read_bytes()[:400])
    # The model is not there either: pictures are checked first.
    model = ["--model", "nowhere"]
    assert fails(command, "missing.png", *model) == "missing.png: no such file"
    assert fails(command, ".", *model) == ".: is a folder, not a picture"
    assert fails(command, "notes.png", *model) == "notes.png: not a picture that Pillow can read"
    assert fails(command, "empty.png", *model) == "empty.png: the file is empty"
    assert fails(command, "whole.png", "cut.png", *model).startswith("cut.png: damaged or truncated picture")


def test_sizes_that_the_model_cannot_do(fails, photo, make_picture, vision_folder):
    model = ["--model", vision_folder]
    assert fails("reconstruct", photo, "--size", "100", *model) == (
        "--size 100: sides must be multiples of the model's 32 pixels, such as 96 or 128"
    )
    assert fails("encode", photo, "--longest-edge", "20", *model).endswith("such as 32")
    make_picture("small.png", 20, 20)
    message = fails("reconstruct", "small.png", "--fit", "crop", *model)
    assert message.startswith("small.png: ") and "smaller than one stride" in message


def test_outputs_that_cannot_be(fails, photo, make_picture, vision_folder):
    model = ["--model", vision_folder]
    make_picture("other.png")
    assert "would overwrite" in fails("reconstruct", photo, "--output", "photo.png", *model)
    make_picture("other-side-by-side.png")
    assert "would overwrite" in fails("reconstruct", "other.png", "other-side-by-side.png", *model)
    assert "would overwrite" in fails("reconstruct", "other-side-by-side.png", "--output", "other.png", *model)
    assert "2 pictures" in fails("reconstruct", photo, "other.png", "--output", "one.png", *model)
    assert "ending .safetensors" in fails("encode", photo, "--output", "codes", *model)


def test_nothing_is_left_half_written(fails, succeeds, photo, workplace, vision_folder):
    succeeds("reconstruct", photo, "--model", vision_folder)
    assert sorted(path.name for path in workplace.iterdir()) == [
        "photo-reconstruction.png",
        "photo-side-by-side.png",
        "photo.png",
    ]


def test_large_pictures_are_warned_about(uniwetok, make_picture, vision_folder, monkeypatch):
    make_picture("wide.png", 96, 64)
    assert uniwetok("reconstruct", "wide.png", "--model", vision_folder).err == []
    monkeypatch.setattr(picture_sizes, "MUCH_MEMORY", 1e6)
    (warning,) = uniwetok("reconstruct", "wide.png", "--model", vision_folder).err
    assert warning.startswith("uniwetok: warning: wide.png: 96x64 pixels need about ")
    assert "--longest-edge" in warning


def test_too_large_pictures_are_one_line(fails, photo, vision_folder, monkeypatch):
    def exhaust(self, pixel_values):
        return torch.empty(2**60)  # what torch says when memory is out, without needing any

    monkeypatch.setattr(UniWeTokModel, "encode", exhaust)
    assert fails("reconstruct", photo, "--model", vision_folder) == (
        "photo.png: not enough memory for a picture of this size; try --longest-edge 1024"
    )
