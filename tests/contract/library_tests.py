# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""transformers' own common tests, which every model of the library has to pass, for our classes.

They are in transformers' source distribution, not in its wheel, and they are not ours to commit:
`python tests/contract/library_tests.py` (part of `make test-all`) fetches those of the installed version into
`.cache/`. Without them the tests that use them are skipped.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path
from types import ModuleType


VERSION = importlib.metadata.version("transformers")
FOLDER = Path(__file__).parents[2] / ".cache" / f"transformers-{VERSION}-tests"
PACKAGE = "transformers_tests"
PICTURE = Path(__file__).parents[2] / "src" / "uniwetok_hf" / "embedded" / "pictures" / "noto-pizza.png"

# What the common tests import of their neighbours, which the source distribution leaves out: base classes with further
# tests, some values for a config, and where a picture of the Hub lies on this machine (here: another picture).
NEIGHBOURS = {
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {
        "config_common_kwargs": {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda address: str(PICTURE)},
}


def fetch() -> None:
    """Unpacks the test modules of the installed transformers into `FOLDER`, if they are not there yet.

    pip finds the source distribution, as it is set up on this machine. It wants the metadata of what it fetches, which
    the setuptools beside torch can make: without isolation nothing else is fetched.
    """
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
        source = ["--no-binary", "transformers", f"transformers=={VERSION}", "--dest", temporary]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *source], check=True)
        [archive] = Path(temporary).glob("*.tar.gz")
        unpacked = Path(temporary) / "tests"
        unpacked.mkdir()
        (unpacked / "__init__.py").touch()
        with tarfile.open(archive) as members:
            for member in members:
                if name := re.fullmatch(r"[^/]+/tests/(\w+\.py)", member.name):
                    (unpacked / name[1]).write_bytes(members.extractfile(member).read())
        unpacked.rename(FOLDER)


def library_tests(name: str) -> ModuleType:
    """One of the fetched modules.

    Raises:
        pytest.skip.Exception: when they are not fetched; the importing test module is skipped.
    """
    if not FOLDER.is_dir():
        import pytest  # not needed to fetch

        reason = "transformers' own tests are not here: python tests/contract/library_tests.py fetches them"
        pytest.skip(reason, allow_module_level=True)
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = [str(FOLDER)]
        for module, contents in NEIGHBOURS.items():
            parent = module.rpartition(".")[0]
            for missing in {parent, module} - {"", *sys.modules}:
                sys.modules[missing] = ModuleType(missing)
            vars(sys.modules[module]).update(contents)
    return importlib.import_module(f"{PACKAGE}.{name}")


def skipped(reason: str):
    """Takes the place of a test that is not for us."""
    return unittest.skip(reason)(lambda self: None)


if __name__ == "__main__":
    fetch()
