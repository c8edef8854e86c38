# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are there as a whole or not at all, what is said when a disk is full or a JSON file is
damaged, and names that can only be those of files."""

import contextlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


LOCAL_FOLDERS = ("data/", "runs/")  # where commands, configs and docs put data sets and trainings


# Weight files as transformers and diffusers name them, with the variant between dots or at the end of an index.
WEIGHT_FILES = re.compile(
    r"model(\.(?P<variant>[^.]+?))?(-\d+-of-\d+)?\.safetensors(\.index(\.(?P<index_variant>[^.]+))?\.json)?"
)
_saving = threading.RLock()


def save_whole(save: Callable[[Path], object], final: Path) -> Path:
    """Calls `save(folder)` with a temporary folder beside `final`, which replaces `final` when `save` returns. If that
    is a symbolic link, the folder that it points to is replaced. Of an older folder only what `save` wrote too is
    replaced, and weight files; other files in it stay.

    Raises:
        FileExistsError: when `final` is a file.
        OSError: naming `final`, which is as before, when it can't be written.
    """
    target = Path(os.path.realpath(final))
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{final} is a file; a folder of that name is to be written.")
    with _saving, writing(final):  # threads that save to one place come one after the other
        _clear_leftovers(target)
        name = f".{target.name}.{uuid.uuid4().hex[:8]}"
        temporary, old = target.with_name(f"{name}.tmp"), target.with_name(f"{name}.old")
        try:
            save(temporary)
            if target.is_dir():
                _keep_other_files(target, temporary)
                target.rename(old)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return final


class WriteError(OSError):
    """A file or folder that can't be written, and why, in one line."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """A block that writes `path`. Each library has errors of its own for a full disk or a folder that is gone.

    Raises:
        WriteError: naming `path` and the reason, for any of these errors.
    """
    try:
        yield
    except (WriteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # that of torch.distributed.checkpoint is no `Exception`
        if (reason := write_failure(error)) is None:
            raise
        raise WriteError(f"{path} can't be written: {reason}{_other_file(error, Path(path))}") from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, is_shared: bool = False) -> Iterator[Path]:
    """A block that writes a temporary file beside `path`, whose name it gets. The file replaces `path` when the block
    ends well, and vanishes when it does not. What a killed process leaves of it is overwritten the next time, unless
    `is_shared`: other processes may write the same path, and each has a name of its own. If `path` is a symbolic link,
    the file that it points to is replaced.

    Raises:
        WriteError: naming `path` and the reason, when it can't be written.
    """
    target = Path(os.path.realpath(path))
    # No pid: the only process of each container is number 1.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp" if is_shared else f".{target.name}.tmp")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def one_line(error: object) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def write_failure(error: BaseException) -> str | None:
    """Why something could not be written, when `error` is what one of the libraries that write here says of a full
    disk, a folder that is gone and so on; None for errors of another kind."""
    text = one_line(error)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else text
    kind = type(error).__name__
    # `tokenizers` raises bare exceptions.
    if kind in ("SafetensorError", "CheckpointException", "Exception") and (
        found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", text)
    ):
        return os.strerror(int(found[1] or found[2]))
    if isinstance(error, RuntimeError) or kind == "CheckpointException":  # of torch.save, which does not say why
        if found := re.search(r"Parent directory (.*) does not exist", text):
            return f"the folder {found[1]} does not exist"
        if re.search(r"inline_container|PytorchStreamWriter|iostream error", text):
            return "not all of it could be written; is the disk full?"
    return None


def _other_file(error: BaseException, path: Path) -> str:
    """The file of an error in brackets, where it has nothing to do with `path`: one that was to be read meanwhile."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike) or path.name in str(name) or str(path).startswith(str(name)):
        return ""
    return f" ({name})"


def _clear_leftovers(target: Path) -> None:
    """Deletes what a killed process left of a save; where it was killed between the two renames, the older folder is
    put back first. (A save inside of a save, as of a pipeline at the end of a training, leaves a name of both.)"""
    if not target.parent.is_dir():
        return
    pattern = re.compile(rf"\.+{re.escape(target.name)}(\.[0-9a-f]{{8}}\.(tmp|old))+")
    for leftover in sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name)):
        if leftover.suffix == ".old" and not target.exists():
            leftover.rename(target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def weight_variant(name: str) -> str | None:
    """The variant of a weight file by its name ("fp16"), "" for one of none; None when it is another file."""
    found = WEIGHT_FILES.fullmatch(name)
    return found and (found["variant"] or found["index_variant"] or "")


def _keep_other_files(old: Path, new: Path) -> None:
    """Copies what is in the folder `old`, but not in `new`, to `new`, unless it is a weight file. Weights of another
    variant than those in `new` stay."""
    written = {weight_variant(path.name) for path in new.iterdir()} - {None}
    for path in old.iterdir():
        kept, variant = new / path.name, weight_variant(path.name)
        is_replaced = variant is not None and (variant in written or not written)
        if path.is_dir() and not path.is_symlink() and kept.is_dir():
            _keep_other_files(path, kept)
        elif kept.exists() or kept.is_symlink() or is_replaced:
            continue
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, kept, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, kept)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name of the file if the file system can, or a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def read_json(path: str | os.PathLike) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: naming the file, when it holds none.
        OSError: when it can't be read.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object, found {type(values).__name__}.")
    return values


def is_local_name(name: str | os.PathLike) -> bool:
    """Whether `name` can't be a repository on the Hub, which has at most one "/". Names in `LOCAL_FOLDERS` count as
    local too, so that a missing `data/pictures` is never taken from an account called "data"."""
    path = Path(name)
    is_outside_hub = path.is_absolute() or len(path.parts) > 2 or str(name).startswith((".", "~"))
    return is_outside_hub or f"{path.as_posix()}/".startswith(LOCAL_FOLDERS)
