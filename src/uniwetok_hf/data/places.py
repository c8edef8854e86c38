# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A user's own class or function, named by its place, `tasks.py:MyTask`, in a YAML file or on the command line.

The file is looked up beside the YAML file first, then in the current folder. While it is imported, its folder is on
`sys.path`, so that it can import files beside it.
"""

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path


PLACE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_place(text: str) -> bool:
    """Whether `text` is a place, `FILE.py:NAME`."""
    return PLACE.fullmatch(text) is not None


def find_place(place: str, beside: str | os.PathLike | None = None) -> str:
    """The place with the absolute path of its file, which is valid anywhere; `beside` is a folder to look in first.

    Raises:
        ValueError: when `place` has not the form `FILE.py:NAME`, or there is no such file.
    """
    match = PLACE.fullmatch(place)
    if match is None:
        raise ValueError(f"{place!r} is not a place: write `FILE.py:NAME`, such as tasks.py:MyTask.")
    folders = [Path(beside), Path()] if beside is not None else [Path()]
    for folder in folders:  # an absolute path stays what it is
        if (path := folder / Path(match["file"]).expanduser()).is_file():
            return f"{path.resolve()}:{match['name']}"
    looked = " or ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    raise ValueError(f"`{place}`: there is no file {match['file']} in {looked}.")


def load_place(place: str, beside: str | os.PathLike | None = None):
    """The class or function `NAME` of `FILE.py`. A file is imported once per process.

    Raises:
        ValueError: when there is no such file, it can't be imported, or it defines no such name.
    """
    path, name = find_place(place, beside).rsplit(":", 1)
    module = _run(Path(path))
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise ValueError(f"`{place}`: {path} defines no {name}; it defines {', '.join(own) or 'nothing'}.")
    return getattr(module, name)


def loaded_modules() -> list:
    """The modules of all places that were loaded. Other processes can't import them by their names."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return [sys.modules[name] for name, file in files.items() if file and name == _module_name(Path(file))]


def _module_name(path: Path) -> str:
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def _run(path: Path):
    module_name = _module_name(path)
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up here
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"{path} can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
