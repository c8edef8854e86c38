"""Commands whose disk is full: one line names the file and the reason, and what was there stays."""

import pytest
from full_disk import files_limited


def listing(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def codes(succeeds, photo, vision_folder):
    succeeds("encode", photo, "--model", vision_folder, "--output", "made.safetensors")
    return "made.safetensors"


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("name", ["encode", "decode", "reconstruct", "generate", "edit", "evaluate"])
def test_what_was_there_stays(name, is_there, size, fails, succeeds, codes, workplace, pipeline_folder, vision_folder):
    vision, pipeline = ("--model", vision_folder), ("--model", pipeline_folder)
    command, written = {
        "encode": (("encode", "photo.png", *vision, "--output", "out.safetensors"), "out.safetensors"),
        "decode": (("decode", codes, *vision, "--output", "out"), "out/made-decoded.png"),
        "reconstruct": (("reconstruct", "photo.png", *vision, "--output", "out"), "out/photo-reconstruction.png"),
        "generate": (("generate", "a cat", *pipeline, "--output", "out"), "out/a-cat-0.png"),
        "edit": (("edit", "photo.png", "a cat", *pipeline, "--output", "out"), "out/photo-a-cat-0.png"),
        "evaluate": (
            ("evaluate", "reconstruction", "--photographs", "--sizes", 32, *vision, "--output", "out"),
            "out/results.json",
        ),
    }[name]
    if is_there:
        succeeds(*command)
    before = listing(workplace)
    with files_limited(size):
        message = fails(*command)
    assert f"{written} can't be written: " in message and "File too large" in message
    assert listing(workplace) == before


@pytest.mark.parametrize("size", [0, 3_000, 20_000])
@pytest.mark.parametrize("of", ["tokenizer_uniwetok", "t2i_4x"])
def test_a_conversion(of, size, fails, workplace, fixtures):
    with files_limited(size):
        message = fails("convert", fixtures / "golden" / of, "deep/out")
    assert message.endswith("/deep/out can't be written: File too large")
    assert not listing(workplace) and not (workplace / "deep").exists()


def test_the_cache_of_a_data_set(fails, photo, workplace, vision_folder):
    """`datasets` copies the pictures of a folder into its cache."""
    command = ("evaluate", "reconstruction", workplace, "--split", "train", "--model", vision_folder)
    with files_limited(0):
        message = fails(*command)
    assert message.endswith("/datasets can't be written: File too large")
