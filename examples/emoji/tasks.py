# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the language model practises on the emoji set of `uniwetok data emoji`: drawing, editing, answering questions,
and conversations in which these follow each other, with words put together from the set's labels. The pictures are
encoded as any others; edits stay a table of their ids."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from uniwetok_hf.data.encoded import Encoding
from uniwetok_hf.training.tasks import (
    ANYTHING,
    COPIES,
    IMAGE_ITEM,
    PICTURE,
    EncodedTask,
    Row,
    Sample,
    TaskSource,
    describing,
    drawing,
    editing,
    pick,
    text_item,
    turn_over,
)


# The first is the set's own caption; repeated ones are the more likely.
CAPTION = "a {style} emoji of {what}"
STYLED_PROMPTS = (CAPTION,) * 3 + ("{what}, {style} style", "draw {what} in {style} style")
PLAIN_PROMPTS = ("{what}", "an emoji of {what}", "draw {what}")
QUESTIONS = {
    "name": ("what is this?", "what is it?", "name it"),
    "style": ("which style is this?", "what style is it drawn in?"),
    "group": ("which group does it belong to?", "what kind of emoji is this?"),
    "tone": ("which skin tone is this?", "what is the skin tone?"),
    "caption": ("describe the picture", "describe it"),
}
CLAIMS = {"name": "is this {}?", "style": "is it drawn in {} style?", "tone": "does it have {}?"}
QUESTION_KINDS = ("name", "name", "style", "style", "style", "tone", "tone", "tone", "group", "caption", "claim")
# Edits that leave things where they were: the same crop of both pictures is such an edit, too.
EDITS_IN_PLACE = ("tone", "gender", "hair", "colour", "clock", "style", "copy")
# Some edits change nothing: what is to be learnt for all others is to keep what is not spoken of.
COPY_CHANCE, CROP_CHANCE, PATCHWORK_CHANCE = 0.12, 0.6, 0.25
# Edits that change no shapes: the same bits of source and target may be turned over.
FAITHFUL_EDITS = ("tone", "gender", "colour", "clock", "copy")
TURN_OVER_CHANCE, MOST_TURNED_OVER_IN_EDITS = 0.5, 0.3
# How often a result is described before it is drawn, where the label fits: also of crops, whose source tells the part,
# but not of patchwork and turned-over bits, nor where nothing changes.
DESCRIBE_CHANCE = 0.6


def chance(probability: float, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator).item() < probability


def drawing_prompt(row: Row, generator: torch.Generator) -> str:
    """One of the ways to ask for a picture: by its label, sometimes without the style or by two of its keywords."""
    what = row["label"]
    if row["keywords"] and chance(0.12, generator):
        chosen = torch.randperm(len(row["keywords"]), generator=generator)[:2].tolist()
        what = " ".join(row["keywords"][i] for i in chosen)
    elif row["tone"] and chance(0.2, generator):
        what = f"{row['name']} with {row['tone']}"
    prompts = PLAIN_PROMPTS if chance(0.1, generator) else STYLED_PROMPTS
    return pick(prompts, generator).format(style=row["style"], what=what)


def caption(row: Row) -> str:
    """What the picture is, in the words of most prompts."""
    return CAPTION.format(style=row["style"], what=row["label"])


def pick_variant(count: int, crop_chance: float, generator: torch.Generator) -> int:
    """One of the crops with `crop_chance`, else the plain picture."""
    if count == 1 or not chance(crop_chance, generator):
        return 0
    return torch.randint(1, count, (), generator=generator).item()


def patchwork(ours: list[dict], others: list[dict], generator: torch.Generator) -> list[dict]:
    """Pictures `ours`, each {codes, height, width} with packed bits, with a band of rows or columns, on one side,
    taken from `others`: the same band in all of them, so that what is told of every place stays true. Where sizes
    differ, or there is one row (column) only, all stays as it is."""
    height, width = ours[0]["height"], ours[0]["width"]
    axis = int(chance(0.5, generator))
    length = (height, width)[axis]
    if length == 1 or any((cell["height"], cell["width"]) != (height, width) for cell in ours + others):
        return ours
    line = torch.randint(1, length, (), generator=generator).item()
    band = [slice(None), slice(None)]
    band[axis] = slice(line) if chance(0.5, generator) else slice(line, None)
    mixed = []
    for our, other in zip(ours, others, strict=True):
        grids = [np.frombuffer(cell["codes"], np.uint8).reshape(height, width, -1) for cell in (our, other)]
        grid = grids[0].copy()  # [h, w, bits / 8]
        grid[tuple(band)] = grids[1][tuple(band)]
        mixed.append(our | {"codes": grid.tobytes()})
    return mixed


class EmojiDrawing(EncodedTask):
    """Concepts take turns by the root of their number of pictures: people come in up to 18 styles and skin tones, an
    apple in 3 styles."""

    columns = {"image": PICTURE, **dict.fromkeys(("concept", "label", "name", "style", "tone", "keywords"), ANYTHING)}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        self.places: dict[str, list[int]] = {}
        for place, concept in enumerate(self.rows[self.names["concept"]]):
            self.places.setdefault(concept, []).append(place)
        self.chances = torch.tensor([float(len(places)) for places in self.places.values()]).sqrt()

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any picture; it is drawn from `generator`, not taken by `index`."""
        concept = torch.multinomial(self.chances, 1, generator=generator).item()
        return super().sample(pick(list(self.places.values())[concept], generator), generator, without_text)

    def converse(self, row: Row, without_text: bool) -> Sample:
        # No crop: the prompt would have to tell.
        return drawing(None if without_text else drawing_prompt(row, row.generator), row["image"][0])

    def texts(self) -> Iterator[str]:
        for row in self.rows.select_columns([self.names[name] for name in ("label", "style", "keywords")]):
            yield row[self.names["label"]]
            yield " ".join([row[self.names["style"]], *row[self.names["keywords"]]])
        yield from (STYLED_PROMPTS + PLAIN_PROMPTS) * 100


class EmojiQuestions(EncodedTask):
    """Base of tasks that ask about pictures: `values` of a column are what wrong claims are made of."""

    columns = {"image": PICTURE, **dict.fromkeys(("label", "name", "style", "group", "tone"), ANYTHING)}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        self.values = {column: sorted(set(self.rows[self.names[column]]) - {""}) for column in CLAIMS}

    def question_about(self, row: Row, generator: torch.Generator) -> tuple[str, str]:
        """A question and its answer."""
        kind = pick(QUESTION_KINDS, generator)
        if kind == "claim":
            column = pick([column for column in CLAIMS if row[column]], generator)
            claimed = row[column] if chance(0.5, generator) else pick(self.values[column], generator)
            return CLAIMS[column].format(claimed), "yes" if claimed == row[column] else "no"
        if kind == "tone" and not row["tone"]:
            kind = "name"
        answer = caption(row) if kind == "caption" else row[kind]
        return pick(QUESTIONS[kind], generator), answer

    def texts(self) -> Iterator[str]:
        columns = [name for name in self.columns if name not in ("image", "id", "keywords")]
        for row in self.rows.select_columns([self.names[name] for name in columns]):
            yield from row.values()
        for questions in (*QUESTIONS.values(), CLAIMS.values(), ("yes", "no")):
            yield from tuple(questions) * 100


class EmojiDescribing(EmojiQuestions):
    def converse(self, row: Row, without_text: bool) -> Sample:
        variant = pick_variant(self.encoding.num_variants, 0.5, row.generator)
        return describing(row["image"][variant], *self.question_about(row, row.generator))


@dataclass
class Edit:
    """A change of row `source` to row `target`."""

    source: int
    instruction: str
    target: int
    kind: str


class EditTable:
    """The edits of a split between the pictures of an encoded dataset. Kinds take turns by the root of their number:
    changes of skin tone alone are half of all.

    Raises:
        ValueError: when there is no such table, or nothing in it is of these pictures.
    """

    def __init__(self, source: TaskSource, ids: list[str], encoding: Encoding):
        from datasets import load_from_disk

        if source.edits is None:
            raise ValueError(f"`edits` of {source.path}: {source.task} needs a split of edits, DATA/edits/train.")
        try:
            edits = load_from_disk(source.edits)
            edits = edits.select_columns(["source", "instruction", "target", "kind"]).to_list()
        except (OSError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`edits` {source.edits} is no split of `uniwetok data emoji`'s edits, DATA/edits/train ({error})."
            ) from None
        index_of = {name: index for index, name in enumerate(ids)}
        self.kinds: dict[str, list[Edit]] = {}
        self.of_words: dict[str, list[Edit]] = {}
        self.of_source: dict[int, list[Edit]] = {}
        for edit in edits:
            if edit["source"] in index_of and edit["target"] in index_of:
                edit |= {side: index_of[edit[side]] for side in ("source", "target")}
                edit = Edit(**edit)
                self.kinds.setdefault(edit.kind, []).append(edit)
                self.of_words.setdefault(edit.instruction, []).append(edit)
                self.of_source.setdefault(edit.source, []).append(edit)
        if not self.kinds:
            raise ValueError(f"`edits` {source.edits}: none of them is between two pictures of {source.path}.")
        self.chances = torch.tensor([float(len(found)) for found in self.kinds.values()]).sqrt()
        # Crops of two rows are comparable only when they are the same ones.
        self.num_variants = encoding.num_variants if encoding.settings.get("same_crops") else 1

    def draw(self, generator: torch.Generator) -> Edit:
        """Any edit."""
        kind = torch.multinomial(self.chances, 1, generator=generator).item()
        return pick(list(self.kinds.values())[kind], generator)

    def variant_for(self, edit: Edit, generator: torch.Generator) -> int:
        """Which variant of both pictures to show. Crops teach that an edit keeps the picture it is given: whole
        pictures are so few that the model learns them by heart."""
        return pick_variant(self.num_variants, CROP_CHANCE, generator) if edit.kind in EDITS_IN_PLACE else 0

    def texts(self) -> Iterator[str]:
        for edits in self.kinds.values():
            yield from (edit.instruction for edit in edits)


class EmojiEditing(EncodedTask):
    describe_chance = 0.0
    columns = {"image": PICTURE, "id": ANYTHING, "label": ANYTHING, "style": ANYTHING}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        self.edits = EditTable(source, self.rows[self.names["id"]], self.encoding)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any of the edits, drawn from `generator`; now and then a copy of row `index`. Where there are crops, some
        are patchwork of two that are told the same: pictures that no one can know by heart."""
        edit = self.edits.draw(generator)
        if chance(COPY_CHANCE, generator):
            edit = Edit(index, pick(COPIES, generator), index, "copy")
        # Without words nothing tells of a crop: guidance is measured against whole pictures.
        variant = 0 if without_text else self.edits.variant_for(edit, generator)
        cells, origin = self.cells(edit, variant), f"{self.path}, edit of row {edit.source} to row {edit.target}"
        # As with crops: a validation, which has none, is of the pictures themselves.
        is_varied = False
        may_be_varied = self.edits.num_variants > 1 and edit.kind in EDITS_IN_PLACE and not without_text
        if may_be_varied and chance(PATCHWORK_CHANCE, generator):
            if edit.kind == "copy":
                place = torch.randint(len(self), (), generator=generator).item()
                other = Edit(place, edit.instruction, place, "copy")
            else:
                other = pick(self.edits.of_words[edit.instruction], generator)
            cells, is_varied = patchwork(cells, self.cells(other, variant), generator), True
            origin += f", part of it of row {other.source} to row {other.target}"
        if may_be_varied and edit.kind in FAITHFUL_EDITS and chance(TURN_OVER_CHANCE, generator):
            share = MOST_TURNED_OVER_IN_EDITS * torch.rand((), generator=generator).item()
            cells, is_varied = turn_over(cells, share, generator), True
            origin += f", {share:.0%} of the bits turned over"
        description = None
        if edit.kind != "copy" and not is_varied and chance(self.describe_chance, generator):
            description = caption(Row(self.rows[edit.target], self.names, origin, generator))
        sample = editing(cells[0], None if without_text else edit.instruction, cells[1], description)
        sample.task, sample.origin = self.name, origin
        return sample

    def cells(self, edit: Edit, variant: int) -> list[dict]:
        """Source and target."""
        return [self.rows[place][self.names["image"]][variant] for place in (edit.source, edit.target)]

    def texts(self) -> Iterator[str]:
        yield from self.edits.texts()
        yield from COPIES * 100


class EmojiDescribedEditing(EmojiEditing):
    """The same edits; of about half of them the assistant says first what it is going to draw."""

    describe_chance = DESCRIBE_CHANCE


class EmojiConversations(EmojiQuestions):
    """A picture is shown or drawn, then changed once or twice; in between there are questions about the last one."""

    columns = {**EmojiQuestions.columns, "id": ANYTHING, "keywords": ANYTHING}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        self.edits = EditTable(source, self.rows[self.names["id"]], self.encoding)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any conversation; its edits are drawn from `generator`, not taken by `index`."""
        edit = self.edits.draw(generator)
        first, variant = edit.source, 0
        origin = f"{self.path}, conversation about row {first}"
        messages, places = [], [first, edit.target]

        def say(*items: dict) -> None:
            messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": list(items)})

        def row(place: int) -> Row:
            return Row(self.rows[place], self.names, origin, generator)

        def ask(place: int, *shown: dict) -> None:
            question, answer = self.question_about(row(place), generator)
            say(*shown, text_item(question))
            say(text_item(answer))

        if chance(0.5, generator):
            say(text_item(drawing_prompt(row(first), generator)))
            say(IMAGE_ITEM)
            if chance(0.5, generator):
                ask(first)
            say(text_item(edit.instruction))
        else:
            variant = self.edits.variant_for(edit, generator)
            if chance(0.5, generator):
                ask(first, IMAGE_ITEM)
                say(text_item(edit.instruction))
            else:
                say(IMAGE_ITEM, text_item(edit.instruction))
        say(IMAGE_ITEM)
        if chance(0.5, generator):
            ask(edit.target)
        if chance(0.3, generator) and edit.target in self.edits.of_source:
            edit = pick(self.edits.of_source[edit.target], generator)
            variant = variant if edit.kind in EDITS_IN_PLACE else 0
            say(text_item(edit.instruction))
            say(IMAGE_ITEM)
            places.append(edit.target)
            if chance(0.5, generator):
                ask(edit.target)
        cells = [self.rows[place][self.names["image"]][variant] for place in places]
        return Sample(messages, cells, self.name, origin)

    def texts(self) -> Iterator[str]:
        yield from super().texts()
        yield from self.edits.texts()


EMOJI_TASKS = {
    "emoji_drawing": EmojiDrawing,
    "emoji_editing": EmojiEditing,
    "emoji_described_editing": EmojiDescribedEditing,
    "emoji_describing": EmojiDescribing,
    "emoji_conversations": EmojiConversations,
}
