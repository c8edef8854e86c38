"""Folders that are replaced as a whole, and names that are never looked up on the Hub."""

import threading

import pytest

from uniwetok_hf.files import WriteError, is_local_name, save_whole, weight_variant, whole_file


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    final = tmp_path / "result"

    def save(folder, name):
        folder.mkdir()
        (folder / name).write_text(name)

    assert save_whole(lambda folder: save(folder, "first"), final) == final
    save_whole(lambda folder: save(folder, "second"), final)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "result", "second"]


def test_an_older_folder_stays_when_saving_fails(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "first").touch()

    def save(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_whole(save, tmp_path / "result")
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["first"]


def write(**files):
    """A `save` of these files."""

    def save(folder):
        folder.mkdir(parents=True)
        for name, text in files.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return save


def files(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_symbolic_link_stays_and_its_folder_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "model"
    link.symlink_to("../disk/real")
    for text in ("first", "second", "third"):
        assert save_whole(write(a=text), link) == link
        assert link.is_symlink() and files(tmp_path / "disk" / "real") == {"a": text}
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    dangling = tmp_path / "run" / "new"
    dangling.symlink_to(tmp_path / "disk" / "later")
    save_whole(write(a="there"), dangling)
    assert dangling.is_symlink() and files(tmp_path / "disk" / "later") == {"a": "there"}
    chain = tmp_path / "chain"
    chain.symlink_to(link)
    save_whole(write(a="fourth"), chain)
    assert chain.is_symlink() and link.is_symlink() and files(tmp_path / "disk" / "real") == {"a": "fourth"}


def test_files_of_the_user_stay(tmp_path):
    save_whole(write(config_json="1", model_safetensors="1", parts__a="1"), tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "parts" / "notes.txt").write_text("mine too")
    (tmp_path / "model" / "plots" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "plots" / "deep" / "loss.png").write_text("png")
    (tmp_path / "model" / "link").symlink_to("notes.txt")
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_text("of a larger save")
    (tmp_path / "model" / "model.safetensors.index.json").write_text("of a larger save")
    save_whole(write(config_json="2", model_safetensors="2", parts__a="2"), tmp_path / "model")
    assert files(tmp_path / "model") == {
        "config.json": "2",
        "model.safetensors": "2",
        "parts/a": "2",
        "notes.txt": "mine",
        "link": "mine",
        "parts/notes.txt": "mine too",
        "plots/deep/loss.png": "png",
    }
    assert (tmp_path / "model" / "link").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_that_only_look_like_ours_stay(tmp_path):
    for name in (".model.tmp", ".model.old", ".model.mine.tmp", ".models.0123abcd.old", "model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text(name)
    (tmp_path / ".model.0123abcd.tmp").mkdir()  # of a killed process
    save_whole(write(a="1"), tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".model.tmp", ".model.old", ".model.mine.tmp", ".models.0123abcd.old", "model.old", "model"]
    )


def test_killed_between_the_two_renames(tmp_path):
    save_whole(write(a="1"), tmp_path / "model")
    (tmp_path / "model" / "notes").write_text("mine")
    (tmp_path / "model").rename(tmp_path / ".model.0123abcd.old")
    save_whole(write(a="2"), tmp_path / "model")
    assert files(tmp_path) == {"model/a": "2", "model/notes": "mine"}


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "model").write_text("precious")
    with pytest.raises(FileExistsError, match="model is a file"):
        save_whole(write(a="1"), tmp_path / "model")
    assert files(tmp_path) == {"model": "precious"}


def test_threads_may_save_to_one_place(tmp_path):
    saves = [threading.Thread(target=save_whole, args=(write(a=str(n)), tmp_path / "model")) for n in range(8)]
    for thread in saves:
        thread.start()
    for thread in saves:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() in "01234567"


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


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with whole_file(path) as temporary:
            temporary.write_text(text)
    with pytest.raises(ValueError), whole_file(path) as temporary:
        temporary.write_text("third")
        raise ValueError
    with (
        pytest.raises(WriteError, match=r"a\.txt can't be written: No space left"),
        whole_file(path, True) as temporary,
    ):
        temporary.write_text("third")
        raise OSError(28, "No space left on device")
    assert files(tmp_path) == {"a.txt": "second"}


def test_processes_with_one_pid_do_not_share_a_temporary_file(tmp_path):
    """As in containers, where each is number 1."""
    with whole_file(tmp_path / "a.txt", True) as first, whole_file(tmp_path / "a.txt", True) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert files(tmp_path) == {"a.txt": "first"}


def test_a_save_inside_of_a_save_that_was_killed_is_removed(tmp_path):
    (tmp_path / "..result.0123abcd.tmp.4567cdef.tmp").mkdir()
    save_whole(write(a="first"), tmp_path / "result")
    assert files(tmp_path) == {"result/a": "first"} and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_could_not_be_read_meanwhile_is_named(tmp_path):
    missing = tmp_path / "template.json"
    for path in (tmp_path / "result", tmp_path / "new" / "result"):
        with pytest.raises(WriteError) as raised:
            save_whole(lambda folder: missing.read_text(), path)
        assert str(raised.value) == f"{path} can't be written: No such file or directory ({missing})"
    with pytest.raises(WriteError) as raised:
        save_whole(lambda folder: (folder / "sub" / "a").write_text("a"), tmp_path / "result")
    assert str(raised.value) == f"{tmp_path / 'result'} can't be written: No such file or directory"


@pytest.mark.parametrize(
    "name, variant",
    [
        ("model.safetensors", ""),
        ("model-00001-of-00002.safetensors", ""),
        ("model.safetensors.index.json", ""),
        ("model.fp16.safetensors", "fp16"),
        ("model.non_ema-00001-of-00002.safetensors", "non_ema"),
        ("model.safetensors.index.fp16.json", "fp16"),
        ("adapter_model.safetensors", None),
        ("model_index.json", None),
    ],
)
def test_variants_of_weight_files(name, variant):
    assert weight_variant(name) == variant


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_file_that_a_symbolic_link_points_to_is_replaced(tmp_path, is_shared):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
    with whole_file(tmp_path / "link", is_shared) as temporary:
        assert temporary.parent == tmp_path / "disk"
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "file").read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 3
