"""Checkpoints that ship inside the package: pipeline folders, stored in bfloat16."""

from pathlib import Path


FOLDER = Path(__file__).parent
DEFAULT = "uniwetok-emoji"
# What the web page suggests: prompts, an edit, and a turn of a conversation.
EXAMPLES = {
    "uniwetok-emoji": {
        "prompts": [
            "a fluent flat emoji of blue heart",
            "a fluent emoji of woman running: light skin tone",
            "a twemoji emoji of flag: Poland",
        ],
        "edit": "make the skin tone dark",
        "turn": "draw blue heart in fluent style",
    }
}


def embedded_names() -> list[str]:
    """Names of the embedded checkpoints."""
    return sorted(folder.name for folder in FOLDER.iterdir() if (folder / "model_index.json").exists())


def embedded_path(name: str = DEFAULT) -> Path:
    """Folder of an embedded checkpoint, for `from_pretrained`. On a CPU load it with `dtype=torch.float32`: bfloat16
    is how it is stored, but slow to compute with.

    Raises:
        ValueError: for a name that is not embedded; the message lists those that are.
    """
    if name not in embedded_names():
        known = ", ".join(embedded_names()) or "(none is installed)"
        raise ValueError(f"`name` must be one of {known}, got {name!r}.")
    return FOLDER / name
