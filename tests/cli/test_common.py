"""Names of output files, and the device."""

from pathlib import Path

import pytest

from uniwetok_hf.cli.common import CommandError, one_line, output_paths, resolve_device, slug, unique


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a noto emoji of Red Apple", "a-noto-emoji-of-red-apple"),
        ("waving hand: dark skin tone!", "waving-hand-dark-skin-tone"),
        ("../../etc/passwd", "etc-passwd"),
        ("красное яблоко", "красное-яблоко"),
        ("?!", "picture"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


def test_slug_is_short_enough_for_a_file_name():
    assert len(slug("яблоко " * 100).encode()) <= 100
    assert len(slug("a" * 1000)) == 100


def test_unique_never_repeats():
    assert unique(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_output_paths(workplace):
    assert output_paths(None, ["a", "b"]) == [Path("a.png"), Path("b.png")]
    assert output_paths("out", ["a", "a"]) == [Path("out/a.png"), Path("out/a-2.png")]
    assert output_paths("out.v2", ["a"]) == [Path("out.v2/a.png")]
    assert output_paths("new.JPG", ["a"]) == [Path("new.JPG")]
    (workplace / "folder.png").mkdir()
    assert output_paths("folder.png", ["a"]) == [Path("folder.png/a.png")]


def test_output_paths_refuse(workplace):
    (workplace / "file").touch()
    with pytest.raises(CommandError, match="file is a file"):
        output_paths("file", ["a"])
    with pytest.raises(CommandError, match="2 pictures"):
        output_paths("new.png", ["a", "b"])
    with pytest.raises(CommandError, match="would overwrite"):
        output_paths("new.png", ["a"], inputs=["./new.png"])


def test_device():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(CommandError, match="--device toaster: "):
        resolve_device("toaster")
    with pytest.raises(CommandError, match="--device cuda:99 is not available; .* have cpu"):
        resolve_device("cuda:99")


def test_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line("long " * 1000)) == 400
