# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What `faults.py` tries its faults on: tiny models, data, encodings and trainings, made on the spot."""

import functools
import io
import tarfile
from pathlib import Path

from faults_trials import command, in_child


ROOT = Path(__file__).resolve().parents[1]


class Materials:
    """A folder with all of it; each part is made in a child when it is first asked for."""

    steps = 5  # of a training

    def __init__(self, folder: Path):
        self.folder = folder

    def _made(self, name: str, job) -> Path:
        """`self.folder / name`, after `job` has made it."""
        path = self.folder / name
        if not path.exists():
            ended = in_child(job, self.folder / f"making-{path.name}", 300)
            if ended.code:
                raise RuntimeError(f"{name} can't be made: {ended.err}")
        return path

    @functools.cached_property
    def pictures(self) -> Path:
        """A folder of 24 PNGs of 40 x 48 pixels."""

        def make():
            from tiny_encoded import pictures

            (self.folder / "pictures").mkdir()
            for index, picture in enumerate(pictures(24, size=(48, 40))):
                picture.save(self.folder / "pictures" / f"{index:02}.png")

        return self._made("pictures", make)

    @functools.cached_property
    def archive(self) -> Path:
        """The pictures with captions as a WebDataset archive."""
        path = self.folder / "shard.tar"
        with tarfile.open(path, "w") as tar:
            for picture in sorted(self.pictures.iterdir())[:12]:
                contents = {".png": picture.read_bytes(), ".txt": f"picture {picture.stem}".encode()}
                for suffix, content in contents.items():
                    member = tarfile.TarInfo(picture.stem + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return path

    @functools.cached_property
    def pipeline(self) -> Path:
        """A folder of a tiny pipeline."""

        def make():
            from tiny_models import build_tiny_pipeline

            build_tiny_pipeline().save_pretrained(self.folder / "pipeline")

        return self._made("pipeline", make)

    @functools.cached_property
    def vision(self) -> Path:
        """A folder of the pipeline's image tokenizer."""

        def make():
            from tiny_models import build_tiny_pipeline

            build_tiny_pipeline().mllm.vision_model.save_pretrained(self.folder / "vision")

        return self._made("vision", make)

    @functools.cached_property
    def picture(self) -> Path:
        return sorted(self.pictures.iterdir())[0]

    @functools.cached_property
    def codes(self) -> Path:
        """Codes of two pictures, of the tokenizer in `vision`."""
        pictures = sorted(self.pictures.iterdir())[:2]
        output = self.folder / "codes" / "codes.safetensors"
        return self._made(
            "codes/codes.safetensors", command("encode", *pictures, "--model", self.vision, "--output", output)
        )

    @functools.cached_property
    def language(self) -> dict:
        """Fields of a training of the language model."""
        import yaml

        def make():
            from tiny_encoded import language_training

            fields = language_training(self.folder / "language")
            (self.folder / "language" / "fields.yaml").write_text(yaml.safe_dump(fields))

        return yaml.safe_load(self._made("language/fields.yaml", make).read_text())

    def fields(self, trainer: str) -> dict:
        """Fields of a training of `steps` steps, with a checkpoint after each."""
        from tiny_training import VISION

        often = {"max_train_steps": self.steps, "checkpointing_steps": 1, "logging_steps": 1, "validation_steps": 3}
        if trainer == "mllm":
            return {**self.language, **often, "checkpoints_total_limit": 2}
        data = {"data": [{"path": str(self.pictures)}], "validation_pictures": 2}
        return {**VISION, **data, **often, "checkpoints_total_limit": 2, "ema_decay": 0.5}

    def training(self, trainer: str, folder: Path, **more) -> Path:
        """The config of a training into `folder / "run"`."""
        from tiny_training import write

        return write(folder, self.fields(trainer), output_dir=str(folder / "run"), **more)

    @functools.cached_property
    def runs(self) -> dict[str, Path]:
        """Folders with a config and a run that has three checkpoints and no result."""
        made = {}
        for trainer in ("tokenizer", "mllm"):
            folder = self.folder / f"begun-{trainer}"
            config = self.training(trainer, folder, max_train_steps=3, checkpoints_total_limit=3)
            ended = in_child(command("train", trainer, "--config", config), folder)
            if ended.code:
                raise RuntimeError(f"the training of the materials: {ended.err}")
            import shutil

            shutil.rmtree(folder / "run" / {"tokenizer": "model", "mllm": "pipeline"}[trainer])
            made[trainer] = folder
        return made
