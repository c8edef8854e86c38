# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the language model practises: drawing, editing and describing the pictures of a folder of `uniwetok data`.

A sample is a conversation and the pictures in it, by id. Every choice of words comes from a passed generator.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


DRAWING_PROMPTS = ("a {style} emoji of {label}",) * 3 + ("{label}, {style} style", "draw {label} in {style} style")
KEYWORD_PROMPT = "a {style} emoji of {keywords}"
QUESTIONS = {
    "label": ("what is this?", "describe the picture", "name it"),
    "style": ("which style is this?", "what style is it drawn in?"),
    "group": ("which group does it belong to?", "what kind of emoji is this?"),
    "tone": ("which skin tone is this?", "what is the skin tone?"),
}
# Half of the questions ask for the name, the others for the rest.
QUESTION_KINDS = ("label", "label", "label", "style", "group", "tone")


@dataclass
class Sample:
    """`messages` of a conversation, without the pictures themselves; `pictures`, their ids in order."""

    messages: list[dict]
    pictures: list[str]


def _text(words: str) -> dict:
    return {"type": "text", "text": words}


PICTURE = {"type": "image"}


def drawing(prompt: str | None, picture: str) -> Sample:
    """The assistant draws `picture` when told `prompt`; without a prompt the turn of the user is missing."""
    messages = [{"role": "assistant", "content": [PICTURE]}]
    if prompt is not None:
        messages.insert(0, {"role": "user", "content": [_text(prompt)]})
    return Sample(messages, [picture])


def editing(source: str, instruction: str, target: str) -> Sample:
    """The assistant draws `target` when shown `source` and told `instruction`."""
    messages = [
        {"role": "user", "content": [PICTURE, _text(instruction)]},
        {"role": "assistant", "content": [PICTURE]},
    ]
    return Sample(messages, [source, target])


def describing(picture: str, question: str, answer: str) -> Sample:
    """The assistant answers a question about `picture`."""
    messages = [
        {"role": "user", "content": [PICTURE, _text(question)]},
        {"role": "assistant", "content": [_text(answer)]},
    ]
    return Sample(messages, [picture])


def drawing_prompt(row: dict, generator: torch.Generator) -> str:
    """One of the ways to ask for a picture: by its label, or sometimes by two of its keywords."""
    if row["keywords"] and torch.rand((), generator=generator) < 0.15:
        chosen = torch.randperm(len(row["keywords"]), generator=generator)[:2].tolist()
        return KEYWORD_PROMPT.format(style=row["style"], keywords=" ".join(row["keywords"][i] for i in chosen))
    return _pick(DRAWING_PROMPTS, generator).format(style=row["style"], label=row["label"])


def question_about(row: dict, generator: torch.Generator) -> tuple[str, str]:
    """A question and its answer."""
    kind = _pick(QUESTION_KINDS, generator)
    if kind == "tone" and not row["tone"]:
        kind = "label"
    return _pick(QUESTIONS[kind], generator), row[kind]


class EmojiTasks:
    """Endless batches of samples; each batch is of one task, so that its rows are about equally long.

    Args:
        folder: made by `uniwetok data`.
        weights: how often each of "draw", "edit" and "describe" is practised.
        text_dropout: how often the user's turn is left out of a drawing or an edit, for guidance.
    """

    def __init__(self, folder: str | os.PathLike, weights: dict[str, float], text_dropout: float):
        from datasets import load_from_disk

        folder = Path(folder)
        if not (folder / "pictures").is_dir() or not (folder / "edits").is_dir():
            raise ValueError(
                f"`data`: {folder} holds no pictures and edits; `uniwetok data emoji {folder}` builds them."
            )
        self.pictures = load_from_disk(str(folder / "pictures"))["train"]
        self.rows = self.pictures.remove_columns("image").to_list()
        self.edits = load_from_disk(str(folder / "edits"))["train"].to_list()
        self.edit_kinds: dict[str, list[dict]] = {}
        for edit in self.edits:
            self.edit_kinds.setdefault(edit["kind"], []).append(edit)
        self.weights = weights
        self.text_dropout = text_dropout

    def texts(self) -> Iterator[str]:
        """All words of the tasks, to train a text vocabulary on."""
        for row in self.rows:
            yield row["label"]
            yield " ".join([row["style"], row["group"], *row["keywords"]])
        for edit in self.edits:
            yield edit["instruction"]
        yield from DRAWING_PROMPTS * 100
        for questions in QUESTIONS.values():
            yield from questions * 100

    def batch(self, size: int, generator: torch.Generator) -> list[Sample]:
        """`size` samples of one task."""
        names = list(self.weights)
        chances = torch.tensor([float(self.weights[name]) for name in names])
        make = getattr(self, f"_{names[torch.multinomial(chances, 1, generator=generator).item()]}")
        return [make(generator) for _ in range(size)]

    def _draw(self, generator: torch.Generator) -> Sample:
        row = _pick(self.rows, generator)
        prompt = drawing_prompt(row, generator)
        return drawing(None if torch.rand((), generator=generator) < self.text_dropout else prompt, row["id"])

    def _edit(self, generator: torch.Generator) -> Sample:
        # Kinds take turns by the root of their size: tone edits alone are half of all.
        kinds = list(self.edit_kinds)
        sizes = torch.tensor([len(self.edit_kinds[kind]) for kind in kinds]).sqrt()
        edit = _pick(self.edit_kinds[kinds[torch.multinomial(sizes, 1, generator=generator).item()]], generator)
        if torch.rand((), generator=generator) < self.text_dropout:
            return drawing(None, edit["target"])
        return editing(edit["source"], edit["instruction"], edit["target"])

    def _describe(self, generator: torch.Generator) -> Sample:
        row = _pick(self.rows, generator)
        return describing(row["id"], *question_about(row, generator))


def _pick(options, generator: torch.Generator):
    return options[torch.randint(len(options), (), generator=generator).item()]
