# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the language model practises on the emoji set of `uniwetok data emoji`: drawing, editing and describing, with
words put together from the set's labels. The pictures are encoded as any others; edits stay a table of their ids."""

from collections.abc import Iterator

import torch

from .tasks import ANYTHING, PICTURE, EncodedTask, Row, Sample, TaskSource, describing, drawing, editing, pick


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


def drawing_prompt(row: Row, generator: torch.Generator) -> str:
    """One of the ways to ask for a picture: by its label, or sometimes by two of its keywords."""
    if row["keywords"] and torch.rand((), generator=generator) < 0.15:
        chosen = torch.randperm(len(row["keywords"]), generator=generator)[:2].tolist()
        return KEYWORD_PROMPT.format(style=row["style"], keywords=" ".join(row["keywords"][i] for i in chosen))
    return pick(DRAWING_PROMPTS, generator).format(style=row["style"], label=row["label"])


def question_about(row: Row, generator: torch.Generator) -> tuple[str, str]:
    """A question and its answer."""
    kind = pick(QUESTION_KINDS, generator)
    if kind == "tone" and not row["tone"]:
        kind = "label"
    return pick(QUESTIONS[kind], generator), row[kind]


class EmojiDrawing(EncodedTask):
    columns = {"image": PICTURE, "label": ANYTHING, "style": ANYTHING, "keywords": ANYTHING}

    def converse(self, row: Row, without_text: bool) -> Sample:
        return drawing(None if without_text else drawing_prompt(row, row.generator), row.picture("image"))

    def texts(self) -> Iterator[str]:
        for row in self.rows.select_columns([self.names[name] for name in ("label", "style", "keywords")]):
            yield row[self.names["label"]]
            yield " ".join([row[self.names["style"]], *row[self.names["keywords"]]])
        yield from DRAWING_PROMPTS * 100


class EmojiDescribing(EncodedTask):
    columns = {"image": PICTURE, **dict.fromkeys(QUESTIONS, ANYTHING)}

    def converse(self, row: Row, without_text: bool) -> Sample:
        return describing(row.picture("image"), *question_about(row, row.generator))

    def texts(self) -> Iterator[str]:
        for row in self.rows.select_columns([self.names[name] for name in QUESTIONS]):
            yield from row.values()
        for questions in QUESTIONS.values():
            yield from questions * 100


class EmojiEditing(EncodedTask):
    """The table of edits tells the pictures by id. Kinds of edits take turns by the root of their number: changes of
    skin tone alone are half of all."""

    columns = {"image": PICTURE, "id": ANYTHING}

    def __init__(self, source: TaskSource, encode_options: str):
        from datasets import load_from_disk

        super().__init__(source, encode_options)
        if source.edits is None:
            raise ValueError(f"`edits` of {source.path}: {source.task} needs a split of edits, DATA/edits/train.")
        try:
            edits = load_from_disk(source.edits)
            edits = edits.select_columns(["source", "instruction", "target", "kind"]).to_list()
        except (OSError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`edits` {source.edits} is no split of `uniwetok data emoji`'s edits, DATA/edits/train ({error})."
            ) from None
        index_of = {name: index for index, name in enumerate(self.rows[self.names["id"]])}
        self.kinds: dict[str, list[tuple[int, str, int]]] = {}
        for edit in edits:
            if edit["source"] in index_of and edit["target"] in index_of:
                places = index_of[edit["source"]], edit["instruction"], index_of[edit["target"]]
                self.kinds.setdefault(edit["kind"], []).append(places)
        if not self.kinds:
            raise ValueError(f"`edits` {source.edits}: none of them is between two pictures of {source.path}.")

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any of the edits; they are drawn from `generator`, not taken by `index`."""
        kinds = list(self.kinds)
        chances = torch.tensor([float(len(self.kinds[kind])) for kind in kinds]).sqrt()
        kind = kinds[torch.multinomial(chances, 1, generator=generator).item()]
        source, instruction, target = pick(self.kinds[kind], generator)
        # The pictures are of two rows, whose crops differ: only the plain variant keeps the rest as it was.
        cells = [self.rows[place][self.names["image"]][0] for place in (source, target)]
        sample = editing(cells[0], None if without_text else instruction, cells[1])
        sample.task, sample.origin = self.name, f"{self.path}, edit of row {source} to row {target}"
        return sample

    def texts(self) -> Iterator[str]:
        for edits in self.kinds.values():
            yield from (instruction for _, instruction, _ in edits)


EMOJI_TASKS = {
    "emoji_drawing": EmojiDrawing,
    "emoji_editing": EmojiEditing,
    "emoji_describing": EmojiDescribing,
}
