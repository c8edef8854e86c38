"""The command run in this process, on tiny checkpoints, in an empty folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TINY_VISION, build_tiny_class_pipeline, build_tiny_pipeline

from uniwetok_hf import UniWeTokConfig, UniWeTokModel, UniWeTokPipeline
from uniwetok_hf.cli.main import main


@dataclass
class Result:
    """What a command left: exit code and the lines that it printed."""

    code: int
    out: list[str]
    err: list[str]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> Path:
    """The current folder, empty at first."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    """A saved tiny pipeline; 64 x 64 pixels, 16 bits."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-pipeline"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory) -> Path:
    """A saved tiny class-to-image pipeline; 128 x 128 pixels of five classes."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-classes"
    build_tiny_class_pipeline(2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(pipeline_folder) -> UniWeTokPipeline:
    """That of `pipeline_folder`, as the commands load it."""
    pipeline = UniWeTokPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def make_vision_folder(tmp_path_factory) -> Callable[..., Path]:
    """`make_vision_folder(**fields)`: a saved tiny image tokenizer."""

    def make(**fields) -> Path:
        folder = tmp_path_factory.mktemp("checkpoints") / "tiny-vision"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            UniWeTokModel(UniWeTokConfig(**TINY_VISION | fields)).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def vision_folder(make_vision_folder) -> Path:
    """Stride 32 and 16 bits, like the pipeline's."""
    return make_vision_folder()


@pytest.fixture
def uniwetok(capsys) -> Callable[..., Result]:
    """`uniwetok("describe", path, ...)` runs the command."""

    def run(*argv) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Result(code, captured.out.splitlines(), captured.err.splitlines())

    return run


@pytest.fixture
def succeeds(uniwetok) -> Callable[..., list[str]]:
    """Like `uniwetok`, for commands that must succeed without a word on stderr; the lines of stdout."""

    def run(*argv) -> list[str]:
        result = uniwetok(*argv)
        assert (result.code, result.err) == (0, [])
        return result.out

    return run


@pytest.fixture
def fails(uniwetok) -> Callable[..., str]:
    """Like `uniwetok`, for commands that must fail with one line on stderr; what that line says."""

    def run(*argv) -> str:
        result = uniwetok(*argv)
        assert result.code == 1
        assert len(result.err) == 1, result.err
        assert result.err[0].startswith("uniwetok: error: ")
        return result.err[0].removeprefix("uniwetok: error: ")

    return run


@pytest.fixture
def make_picture(workplace) -> Callable[..., Path]:
    """`make_picture(name, width, height)`: saves a colourful picture in the current folder and returns its path."""

    def make(name: str = "photo.png", width: int = 100, height: int = 70, seed: int = 0) -> Path:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(workplace / name)
        return Path(name)

    return make


@pytest.fixture
def photo(make_picture) -> Path:
    """A picture of 100 x 70 pixels."""
    return make_picture()
