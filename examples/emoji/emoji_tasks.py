# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Tasks of the language model on the emoji set: generation, editing, questions, and conversations of these, with words
put together from the set's labels. The pictures are encoded as any others; edits stay a table of picture ids.

    data:
      - {path: data/emoji_codes/train, task: emoji_tasks.py:EmojiGeneration}
      - {path: data/emoji_codes/train, task: emoji_tasks.py:EmojiEditing, options: {edits: data/emoji/edits/train}}
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from uniwetok_hf.training.tasks import (
    ANYTHING,
    IMAGE_ITEM,
    PICTURE,
    EncodedRow,
    EncodedTask,
    Sample,
    TaskSource,
    editing_sample,
    generation_sample,
    pick,
    text_item,
)


# The first is the set's own caption; repeated ones are the more likely.
CAPTION = "a {style} emoji of {what}"
STYLED_PROMPTS = (CAPTION,) * 3 + ("{what}, {style} style", "draw {what} in {style} style", "{style} {what}")
PLAIN_PROMPTS = ("{what}", "{what}", "an emoji of {what}", "draw {what}")
ARTICLE_PROBABILITY = 0.2
# A keyword that this many concepts share at most can stand for one of them.
RARE_KEYWORD = 3
# How often fixed phrases stand in the texts for the text vocabulary, where words of labels stand twice.
PHRASE_COUNT = 20
QUESTIONS = {
    "name": ("what is this?", "what is it?", "name it"),
    "style": ("which style is this?", "what style is it drawn in?"),
    "group": ("which group does it belong to?", "what kind of emoji is this?"),
    "tone": ("which skin tone is this?", "what is the skin tone?"),
    "caption": ("describe the picture", "describe it"),
}
CLAIMS = {"name": "is this {}?", "style": "is it drawn in {} style?", "tone": "does it have {}?"}
QUESTION_KINDS = ("name", "style", "tone", "group", "caption", "claim")
QUESTIONS_PER_PICTURE = 3
# Instructions that change nothing, and how often an edit has one of them: edits must keep what they do not name.
KEEP_INSTRUCTIONS = ("keep it as it is", "draw the same again", "copy the picture")
KEEP_PROBABILITY = 0.12


def chance(probability: float, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator).item() < probability


def root_weights(groups: Iterable[Iterable[list]]) -> torch.Tensor:
    """The root of the number of items in all lists of each group: what groups of very different sizes are sampled by,
    so that the largest do not outweigh the rest."""
    return torch.tensor([float(sum(map(len, lists))) for lists in groups]).sqrt()


def with_article(what: str) -> str:
    """ "an apple" for "apple"."""
    return f"{'an' if what[0].lower() in 'aeiou' else 'a'} {what}"


def prompt_of(row: EncodedRow, generator: torch.Generator, rare: frozenset[str] = frozenset()) -> str:
    """One of the ways to ask for a picture: by its label, with an article or without, or by keywords: one of those
    that are `rare`, or two; sometimes without the style."""
    what = row["label"]
    if row["keywords"] and chance(0.15, generator):
        telling = [keyword for keyword in row["keywords"] if keyword in rare]
        chosen = torch.randperm(len(row["keywords"]), generator=generator)[:2].tolist()
        what = " ".join(row["keywords"][i] for i in chosen)
        if telling and chance(0.5, generator):
            what = pick(telling, generator)
    elif row["tone"] and chance(0.2, generator):
        what = f"{row['name']} with {row['tone']}"
    elif chance(ARTICLE_PROBABILITY, generator):
        what = with_article(what)
    prompts = PLAIN_PROMPTS if chance(0.1, generator) else STYLED_PROMPTS
    return pick(prompts, generator).format(style=row["style"], what=what)


def caption_of(row: EncodedRow) -> str:
    """The set's own caption, the most frequent prompt."""
    return CAPTION.format(style=row["style"], what=row["label"])


def words_of(texts: Iterable[str]) -> list[str]:
    """All words of `texts`, without repetitions, in alphabetical order."""
    return sorted({word for text in texts for word in re.findall(r"[^\W\d_]+", text)})


class ConceptTask(EncodedTask):
    """Samples concepts by the root of the number of their pictures, of a concept a style, and of that a picture:
    people come in up to 25 styles and skin tones, an apple in 5 styles. So people are a third of what is learnt."""

    columns = {"image": PICTURE, **dict.fromkeys(("concept", "label", "name", "style", "tone", "keywords"), ANYTHING)}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        places: dict[str, dict[str, list[int]]] = {}
        concepts, styles, keywords = (self.column(name) for name in ("concept", "style", "keywords"))
        for place, (concept, style) in enumerate(zip(concepts, styles, strict=True)):
            places.setdefault(concept, {}).setdefault(style, []).append(place)
        self.places = [list(found.values()) for found in places.values()]
        self.weights = root_weights(self.places)
        known = dict(zip(concepts, keywords, strict=True))
        counts = Counter(keyword for found in known.values() for keyword in found)
        self.rare = frozenset(keyword for keyword, count in counts.items() if count <= RARE_KEYWORD)

    def column(self, name: str) -> list:
        return list(self.rows[self.names[name]])

    def choose(self, generator: torch.Generator) -> int:
        """The number of a row."""
        concept = torch.multinomial(self.weights, 1, generator=generator).item()
        return pick(pick(self.places[concept], generator), generator)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any picture, chosen with `generator` and not by `index`."""
        return super().sample(self.choose(generator), generator, without_text)

    def texts(self) -> Iterator[str]:
        """The words of the labels, at the start of a text and after a space, and the keywords: each as often as the
        others, so that each can become one entry of the vocabulary, whatever its group."""
        words = words_of(self.column("name") + self.column("tone"))
        for word in words * 2:
            yield word
            yield f" {word}"
        for keyword in sorted({keyword for found in self.column("keywords") for keyword in found}):
            yield f" {keyword}"
        for style in sorted(set(self.column("style"))):
            yield from [style, f" {style}"] * PHRASE_COUNT


class EmojiGeneration(ConceptTask):
    """Text-to-image."""

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        # Never a crop, which the prompt does not name.
        return generation_sample(None if without_text else prompt_of(row, row.generator, self.rare), row["image"][0])

    def texts(self) -> Iterator[str]:
        yield from super().texts()
        yield from (STYLED_PROMPTS + PLAIN_PROMPTS) * PHRASE_COUNT


class EmojiQuestions(ConceptTask):
    """Three questions about a picture, one after the other, among them what it shows; false claims take the `values`
    of other rows."""

    columns = {**ConceptTask.columns, "group": ANYTHING}

    def __init__(self, source: TaskSource, encode_options: str):
        super().__init__(source, encode_options)
        self.values = {column: sorted(set(self.column(column)) - {""}) for column in CLAIMS}

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        generator = row.generator
        others = [kind for kind in QUESTION_KINDS if kind != "name" and (kind != "tone" or row["tone"])]
        order = torch.randperm(len(others), generator=generator)[: QUESTIONS_PER_PICTURE - 1].tolist()
        kinds = [others[i] for i in order]
        kinds.insert(torch.randint(QUESTIONS_PER_PICTURE, (), generator=generator).item(), "name")
        messages = []
        for kind in kinds:
            question, answer = self.question_about(row, generator, kind)
            shown = [] if messages else [IMAGE_ITEM]
            messages.append({"role": "user", "content": [*shown, text_item(question)]})
            messages.append({"role": "assistant", "content": [text_item(answer)]})
        return Sample(messages, [row.picture("image")])

    def question_about(self, row: EncodedRow, generator: torch.Generator, kind: str | None = None) -> tuple[str, str]:
        """A question of a `kind`, by default any, and its answer."""
        kind = kind or pick(QUESTION_KINDS, generator)
        if kind == "claim":
            column = pick([column for column in CLAIMS if row[column]], generator)
            claimed = row[column] if chance(0.5, generator) else pick(self.values[column], generator)
            return CLAIMS[column].format(claimed), "yes" if claimed == row[column] else "no"
        if kind == "tone" and not row["tone"]:
            kind = "name"
        answer = caption_of(row) if kind == "caption" else row[kind]
        return pick(QUESTIONS[kind], generator), answer

    def texts(self) -> Iterator[str]:
        yield from super().texts()
        for phrases in (*QUESTIONS.values(), CLAIMS.values(), sorted(set(self.column("group"))), ("yes", "no")):
            yield from tuple(phrases) * PHRASE_COUNT


@dataclass
class RowEdit:
    """An edit of row `source` to row `target`."""

    source: int
    instruction: str
    target: int
    kind: str


class EditTable:
    """The edits of a split between the pictures of an encoded dataset. Kinds are sampled by the root of their number
    of edits (changes of skin tone alone are a third of all), of a kind concepts uniformly, of a concept its edits.

    Args:
        edits: folder of a split of the edits that `emoji_data.py` makes.
        ids: of the encoded rows.
        concepts: of the encoded rows.
        path: of the encoded dataset, for error messages.

    Raises:
        ValueError: when there is no such table, or none of its edits is between two of the rows.
    """

    def __init__(self, edits: str, ids: list[str], concepts: list[str], path: str):
        from datasets import load_from_disk

        try:
            table = load_from_disk(edits).select_columns(["source", "instruction", "target", "kind"]).to_list()
        except (OSError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`edits` {edits} is no split of edits, such as data/emoji/edits/train ({error})."
            ) from None
        index_of = {name: index for index, name in enumerate(ids)}
        self.instructions = sorted({edit["instruction"] for edit in table})
        kinds: dict[str, dict[str, list[RowEdit]]] = {}
        self.of_source: dict[int, list[RowEdit]] = {}
        for edit in table:
            if edit["source"] in index_of and edit["target"] in index_of:
                edit = RowEdit(**edit | {side: index_of[edit[side]] for side in ("source", "target")})
                kinds.setdefault(edit.kind, {}).setdefault(concepts[edit.source], []).append(edit)
                self.of_source.setdefault(edit.source, []).append(edit)
        if not kinds:
            raise ValueError(f"`edits` {edits}: none of them is between two pictures of {path}.")
        self.kinds = [list(by_concept.values()) for by_concept in kinds.values()]
        self.weights = root_weights(self.kinds)

    def sample(self, generator: torch.Generator) -> RowEdit:
        """Any edit."""
        kind = torch.multinomial(self.weights, 1, generator=generator).item()
        return pick(pick(self.kinds[kind], generator), generator)

    def texts(self) -> Iterator[str]:
        """All instructions, without repetitions."""
        yield from self.instructions


class EmojiEditing(EncodedTask):
    """Edits of the table, and now and then a picture that is to be kept as it is.

    Args:
        edits: a split of the edits of `emoji_data.py`, data/emoji/edits/train.
        describe_probability: how often the assistant says the caption of the result first.
    """

    columns = {"image": PICTURE, **dict.fromkeys(("id", "concept", "label", "style"), ANYTHING)}

    def __init__(self, source: TaskSource, encode_options: str, edits: str, describe_probability: float = 0.0):
        super().__init__(source, encode_options)
        ids, concepts = (list(self.rows[self.names[name]]) for name in ("id", "concept"))
        self.edits = EditTable(edits, ids, concepts, self.path)
        self.describe_probability = describe_probability

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any of the edits, chosen with `generator` and not by `index`, or its source kept as it is."""
        edit = self.edits.sample(generator)
        if chance(KEEP_PROBABILITY, generator):
            edit = RowEdit(edit.source, pick(KEEP_INSTRUCTIONS, generator), edit.source, "keep")
        origin = f"{self.path}, edit of row {edit.source} to row {edit.target}"
        source, target = (self.rows[place] for place in (edit.source, edit.target))
        description = None
        if edit.kind != "keep" and chance(self.describe_probability, generator):
            description = caption_of(EncodedRow(target, self.names, origin, generator))
        column = self.names["image"]
        instruction = None if without_text else edit.instruction
        sample = editing_sample(source[column][0], instruction, target[column][0], description)
        sample.task, sample.origin = self.name, origin
        return sample

    def texts(self) -> Iterator[str]:
        yield from self.edits.texts()
        yield from KEEP_INSTRUCTIONS * PHRASE_COUNT


class EmojiDescribedEditing(EmojiEditing):
    """The same edits; of most of them the assistant says first what the result will be."""

    def __init__(self, source: TaskSource, encode_options: str, edits: str, describe_probability: float = 0.6):
        super().__init__(source, encode_options, edits, describe_probability)


class EmojiConversations(EmojiQuestions):
    """A picture is given or generated, then edited once or twice; in between there are questions about the last one.

    Args:
        edits: a split of the edits of `emoji_data.py`, data/emoji/edits/train.
    """

    columns = {**EmojiQuestions.columns, "id": ANYTHING}

    def __init__(self, source: TaskSource, encode_options: str, edits: str):
        super().__init__(source, encode_options)
        self.edits = EditTable(edits, self.column("id"), self.column("concept"), self.path)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Any conversation; its edits are chosen with `generator`, not by `index`."""
        edit = self.edits.sample(generator)
        first = edit.source
        origin = f"{self.path}, conversation about row {first}"
        messages, places = [], [first, edit.target]

        def say(*items: dict) -> None:
            messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": list(items)})

        def row(place: int) -> EncodedRow:
            return EncodedRow(self.rows[place], self.names, origin, generator)

        def ask(place: int, *shown: dict) -> None:
            question, answer = self.question_about(row(place), generator)
            say(*shown, text_item(question))
            say(text_item(answer))

        if chance(0.5, generator):
            say(text_item(prompt_of(row(first), generator, self.rare)))
            say(IMAGE_ITEM)
            if chance(0.5, generator):
                ask(first)
            say(text_item(edit.instruction))
        elif chance(0.5, generator):
            ask(first, IMAGE_ITEM)
            say(text_item(edit.instruction))
        else:
            say(IMAGE_ITEM, text_item(edit.instruction))
        say(IMAGE_ITEM)
        if chance(0.5, generator):
            ask(edit.target)
        if chance(0.3, generator) and edit.target in self.edits.of_source:
            edit = pick(self.edits.of_source[edit.target], generator)
            say(text_item(edit.instruction))
            say(IMAGE_ITEM)
            places.append(edit.target)
            if chance(0.5, generator):
                ask(edit.target)
        cells = [self.rows[place][self.names["image"]][0] for place in places]
        return Sample(messages, cells, self.name, origin)

    def texts(self) -> Iterator[str]:
        yield from super().texts()
        yield from self.edits.texts()
