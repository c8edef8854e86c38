"""Folders that are replaced as a whole, and names that are never looked up on the Hub."""

import pytest

from uniwetok_hf.files import is_local_name, save_whole


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    final = tmp_path / "result"

    def save(folder, name):
        folder.mkdir()
        (folder / name).write_text(name)

    assert save_whole(lambda folder: save(folder, "first"), final) == final
    save_whole(lambda folder: save(folder, "second"), final)
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "second"]


def test_an_older_folder_stays_when_saving_fails(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "first").touch()

    def save(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_whole(save, tmp_path / "result")
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("name", "is_local"),
    [
        ("org/name", False),
        ("imagenet", False),
        ("database/name", False),
        ("data/pictures", True),
        ("runs/mllm", True),
        ("runs", True),
        ("./org/name", True),
        ("~/name", True),
        ("/name", True),
        ("a/b/c", True),
    ],
)
def test_names_that_are_never_looked_up_on_the_hub(name, is_local):
    assert is_local_name(name) is is_local
