"""Checkpoints that ship inside the package: pipeline folders, stored in bfloat16."""

from pathlib import Path


def embedded_path(name: str) -> Path:
    """Folder of an embedded checkpoint, for `from_pretrained`. On a CPU load it with `dtype=torch.float32`: bfloat16
    is how it is stored, but slow to compute with.

    Raises:
        ValueError: for a name that is not embedded; the message lists those that are.
    """
    here = Path(__file__).parent
    names = sorted(folder.name for folder in here.iterdir() if (folder / "model_index.json").exists())
    if name not in names:
        raise ValueError(f"`name` must be one of {', '.join(names) or '(none is installed)'}, got {name!r}.")
    return here / name
