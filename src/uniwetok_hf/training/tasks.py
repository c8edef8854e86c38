# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the language model practises: rows of encoded datasets as conversations (docs/data-formats.md).

A sample is a conversation and the codes of the pictures in it, in order. Pictures in the assistant's turns are drawn,
its text is said, everything else is only read. Which row a sample is, which of its captions and crops is taken, and
whether its text is left out are functions of the seed and the sample's running number alone (`samples`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.encoded import ENCODING_FILE, Encoding, cell_codes, open_encoded, part_path, read_encoding
from ..data.samples import TASK, EpochOrder, Mixture, sample_generator, stream_seed
from .config import setting


# What the columns of a format hold.
PICTURE, PICTURES, TEXT, TEXTS, ANYTHING = "a picture", "a list of pictures", "text", "text or a list of texts", "any"
IMAGE_ITEM = {"type": "image"}
# Instructions that change nothing.
COPIES = ("keep it as it is", "draw the same again", "copy the picture")
MOST_TURNED_OVER = 0.5  # of the bits of a picture to copy: pure noise
# What the prompt format is written with: text that holds it would be taken for a picture or for the end of a turn.
MARKUP = r"<\|(im_start|im_end|endoftext|vision_start|vision_end|image_pad|res_\d+|query_\d+)\|>"


@dataclass
class TaskSource:
    """One encoded dataset and what is practised on it."""

    path: str = setting(help="folder that `uniwetok encode-dataset` made")
    task: str = setting(
        help="captions, questions, edits, copies, conversations, emoji_drawing, emoji_editing, "
        "emoji_described_editing, emoji_describing, emoji_conversations"
    )
    weight: float = setting(1.0, "how often it is practised, relative to the others")
    columns: dict = setting({}, "for columns that are not called as in docs/data-formats.md, `name there: name here`")
    edits: str | None = setting(
        None, "emoji tasks that edit: a split of the edits of `uniwetok data emoji`, DATA/edits/train"
    )


@dataclass
class Sample:
    """`messages` of a conversation, without the pictures themselves; `pictures`, one {codes, height, width} each, in
    order; the `task`; `origin`, the dataset and row, for error messages."""

    messages: list[dict]
    pictures: list[dict]
    task: str = ""
    origin: str = ""

    @property
    def length(self) -> float:
        """About how many tokens it is long; only for putting samples of a kind together."""
        words = sum(len(item.get("text", "")) for message in self.messages for item in message["content"])
        return words / 4 + sum(picture["height"] * picture["width"] for picture in self.pictures)

    def codes(self, num_bits: int) -> list[torch.Tensor]:
        """Codes of the pictures, [bits, h, w] each.

        Raises:
            ValueError: when stored codes are not of their size.
        """
        try:
            return [cell_codes([picture], 0, num_bits) for picture in self.pictures]
        except ValueError as error:
            raise ValueError(f"{self.origin}: {error}") from None


def text_item(words: str) -> dict:
    return {"type": "text", "text": words}


def drawing(prompt: str | None, picture: dict) -> Sample:
    """The assistant draws `picture` when told `prompt`; without a prompt the turn of the user is missing."""
    messages = [{"role": "assistant", "content": [IMAGE_ITEM]}]
    if prompt is not None:
        messages.insert(0, {"role": "user", "content": [text_item(prompt)]})
    return Sample(messages, [picture])


def editing(source: dict, instruction: str | None, target: dict, description: str | None = None) -> Sample:
    """The assistant draws `target` when shown `source` and told `instruction`, and says before that what it will be
    where there is a `description`; without an instruction it draws unasked."""
    if instruction is None:
        return drawing(None, target)
    messages = [
        {"role": "user", "content": [IMAGE_ITEM, text_item(instruction)]},
        {"role": "assistant", "content": [IMAGE_ITEM]},
    ]
    if description is not None:
        messages[-1]["content"].insert(0, text_item(description))
    return Sample(messages, [source, target])


def describing(picture: dict, question: str, answer: str) -> Sample:
    """The assistant answers a question about `picture`."""
    messages = [
        {"role": "user", "content": [IMAGE_ITEM, text_item(question)]},
        {"role": "assistant", "content": [text_item(answer)]},
    ]
    return Sample(messages, [picture])


def pick(options, generator: torch.Generator):
    """One of `options`."""
    return options[torch.randint(len(options), (), generator=generator).item()]


def turn_over(pictures: list[dict], probability: float, generator: torch.Generator) -> list[dict]:
    """Pictures, each {codes, height, width} with packed bits, with the same bits turned over in all of them, each with
    `probability`: what an edit keeps and what it changes stays true bit by bit, but the source alone tells what is to
    be drawn. Where sizes differ all stays as it is."""
    if len({(picture["height"], picture["width"]) for picture in pictures}) > 1:
        return pictures
    num_bits = 8 * len(pictures[0]["codes"])
    mask = np.packbits((torch.rand(num_bits, generator=generator) < probability).numpy())
    turned = [np.frombuffer(picture["codes"], np.uint8) ^ mask for picture in pictures]
    return [picture | {"codes": codes.tobytes()} for picture, codes in zip(pictures, turned, strict=True)]


class Row:
    """One row of an encoded dataset; what it holds is checked when it is asked for. All of its pictures are of one
    variant, drawn from `generator`, so that an edit stays an edit."""

    def __init__(self, values: dict, columns: dict[str, str], origin: str, generator: torch.Generator):
        self.values, self.columns, self.origin = values, columns, origin
        self.generator, self._variant = generator, None

    def __getitem__(self, column: str):
        return self.values[self.columns[column]]

    def fail(self, column: str, problem: str):
        raise ValueError(f"{self.origin}, column `{self.columns[column]}`: {problem}")

    def text(self, column: str) -> str:
        return self.check_text(column, self[column])

    def one_text(self, column: str) -> str:
        """A text, or one of a list of them."""
        value = self[column]
        if isinstance(value, list):
            if not value:
                self.fail(column, "must be text or a list of texts, got an empty list.")
            value = pick(value, self.generator)
        return self.check_text(column, value)

    def check_text(self, column: str, words) -> str:
        if not isinstance(words, str) or not words.strip():
            self.fail(column, f"must be text that is not empty, got {words!r}.")
        if found := re.search(MARKUP, words):
            self.fail(column, f"must not hold {found[0]}, which the prompt format is written with.")
        return words

    def picture(self, column: str) -> dict:
        return self._choose(column, self[column])

    def pictures(self, column: str) -> list[dict]:
        return [self._choose(column, cell) for cell in self[column] or []]

    def _choose(self, column: str, cell: list[dict] | None) -> dict:
        if not cell:
            self.fail(column, "must be a picture, got none.")
        if self._variant is None:
            self._variant = torch.randint(len(cell), (), generator=self.generator).item()
        return cell[self._variant]


class EncodedTask:
    """A format of rows: `columns` it needs and `optional` ones, with what they hold, and how a row becomes a
    sample."""

    columns: dict[str, str]
    optional: dict[str, str] = {}

    def __init__(self, source: TaskSource, encode_options: str):
        self.name, self.path = source.task, source.path
        self.encoding = _read_encoding(source.path, encode_options)
        self.rows = open_encoded(source.path)
        known = self.columns | self.optional
        if unknown := sorted(set(source.columns) - set(known)):
            raise ValueError(
                f"`columns` of {self.path}: {self.name} have no {', '.join(unknown)}, but {', '.join(known)}."
            )
        self.names = {column: source.columns.get(column, column) for column in known}
        self.columns = {
            column: kind
            for column, kind in known.items()
            if column in self.columns or column in source.columns or column in self.rows.features
        }
        for column, kind in self.columns.items():
            self._check_column(self.names[column], kind)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Row `index` as a conversation; `without_text` leaves the user's turn out, where it asks for a picture.

        Raises:
            ValueError: when the row is not as its format says; the message names row and column.
        """
        origin = f"{self.path}, row {index}"
        sample = self.converse(Row(self.rows[index], self.names, origin, generator), without_text)
        sample.task, sample.origin = self.name, origin
        return sample

    def converse(self, row: Row, without_text: bool) -> Sample:
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """All words of it, to train a text vocabulary on."""
        for column, kind in self.columns.items():
            for value in self.rows[self.names[column]] if kind in (TEXT, TEXTS) else ():
                yield from [value] if isinstance(value, str) else value

    def _check_column(self, name: str, kind: str) -> None:
        """Checks what can be seen without reading row by row: names, types, empty texts."""
        from datasets import List, Value

        where = f"{self.path}, as rows of {self.name}"
        if name not in self.rows.features:
            raise ValueError(
                f"{where}: there is no column `{name}`; there are {', '.join(self.rows.features)}. `columns` of the "
                "source says which column is which; if words came after encoding (metadata.jsonl beside pictures), "
                "encode into a new folder."
            )
        if kind in (PICTURE, PICTURES) and name not in self.encoding.picture_columns:
            known = ", ".join(self.encoding.picture_columns)
            raise ValueError(f"{where}: column `{name}` must be {kind}; the columns with codes are {known}.")
        feature = self.rows.features[name]
        text = (Value("string"), Value("large_string"))
        if kind in (TEXT, TEXTS) and not (feature in text or (kind == TEXTS and feature in [List(t) for t in text])):
            raise ValueError(f"{where}: column `{name}` must be {kind}, it is typed {feature}.")
        if kind in (TEXT, TEXTS) and feature in text:
            self._check_texts(name)

    def _check_texts(self, name: str) -> None:
        """Finds a text that is missing, empty or holds markup before the training starts."""
        import pyarrow.compute as pc

        column = self.rows.data.column(name)
        is_blank = pc.or_(pc.equal(pc.binary_length(column), 0), pc.utf8_is_space(column))
        is_bad = pc.fill_null(pc.or_(is_blank, pc.match_substring_regex(column, MARKUP)), True)
        if (index := pc.index(is_bad, True).as_py()) >= 0:
            Row({name: column[index].as_py()}, {name: name}, f"{self.path}, row {index}", None).text(name)


class Captions(EncodedTask):
    """Pictures to be drawn from their captions."""

    columns = {"image": PICTURE, "text": TEXTS}

    def converse(self, row: Row, without_text: bool) -> Sample:
        return drawing(None if without_text else row.one_text("text"), row.picture("image"))


class Questions(EncodedTask):
    """Questions about pictures, to be answered."""

    columns = {"image": PICTURE, "question": TEXT, "answer": TEXT}

    def converse(self, row: Row, without_text: bool) -> Sample:
        return describing(row.picture("image"), row.text("question"), row.text("answer"))


class Edits(EncodedTask):
    """Pictures to be changed as they are told; where there is a `description`, the assistant says it first."""

    columns = {"source": PICTURE, "instruction": TEXT, "target": PICTURE}
    optional = {"description": TEXT}

    def converse(self, row: Row, without_text: bool) -> Sample:
        instruction = None if without_text else row.text("instruction")
        description = row.text("description") if "description" in self.columns else None
        return editing(row.picture("source"), instruction, row.picture("target"), description)


class Copies(EncodedTask):
    """Pictures to be drawn again as they are, each with a share of its bits turned over: what nobody can guess must be
    copied. Without words the picture itself is drawn."""

    columns = {"image": PICTURE}

    def converse(self, row: Row, without_text: bool) -> Sample:
        picture = row.picture("image")
        if without_text:
            return drawing(None, picture)
        share = MOST_TURNED_OVER * torch.rand((), generator=row.generator).item()
        (picture,) = turn_over([picture], share, row.generator)
        return editing(picture, pick(COPIES, row.generator), picture)

    def texts(self) -> Iterator[str]:
        yield from COPIES * 100


class Conversations(EncodedTask):
    """Anything else: turns with text and pictures in any order."""

    columns = {"messages": ANYTHING, "images": PICTURES}

    def converse(self, row: Row, without_text: bool) -> Sample:
        messages = [self._message(row, message) for message in row["messages"] or []]
        if not any(message["role"] == "assistant" for message in messages):
            row.fail("messages", "must have a turn of the assistant: nothing else is learnt.")
        pictures = row.pictures("images")
        shown = sum(item is IMAGE_ITEM for message in messages for item in message["content"])
        if shown != len(pictures):
            row.fail("images", f"has {len(pictures)} pictures, the messages have {shown}.")
        return Sample(messages, pictures)

    def _message(self, row: Row, message: dict) -> dict:
        if message["role"] not in ("system", "user", "assistant"):
            row.fail("messages", f"`role` must be system, user or assistant, got {message['role']!r}.")
        items = message["content"]
        items = [text_item(items)] if isinstance(items, str) else items
        if not items:
            row.fail("messages", f"a turn of the {message['role']} has no content.")
        content = []
        for item in items:
            if item.get("type") not in ("text", "image"):
                row.fail("messages", f"`type` must be text or image, got {item.get('type')!r}.")
            is_image = item["type"] == "image"
            content.append(IMAGE_ITEM if is_image else text_item(row.check_text("messages", item.get("text"))))
        return {"role": message["role"], "content": content}

    def texts(self) -> Iterator[str]:
        for messages in self.rows[self.names["messages"]]:
            for content in (message["content"] for message in messages or []):
                yield from [content] if isinstance(content, str) else (item.get("text") or "" for item in content)


FORMATS = {
    "captions": Captions,
    "questions": Questions,
    "edits": Edits,
    "copies": Copies,
    "conversations": Conversations,
}


def open_task(source: TaskSource, encode_options: str = "--size N --model TOKENIZER") -> EncodedTask:
    """The task of a source. `encode_options` go into the command that an error recommends.

    Raises:
        ValueError: when there is no such task, or `source.path` holds no encoded dataset with its columns.
    """
    if source.task not in FORMATS:
        raise ValueError(f"`task` of {source.path} must be one of {', '.join(FORMATS)}, got {source.task!r}.")
    return FORMATS[source.task](source, encode_options)


def _read_encoding(path: str, options: str) -> Encoding:
    if (Path(path) / ENCODING_FILE).exists() or part_path(path, 0).exists():
        return read_encoding(path)
    arguments = f"{path} {Path(path)}-codes" if Path(path).exists() else f"SOURCE {path}"
    raise ValueError(
        f"`path` {path} holds no encoded dataset. Training reads codes, not pictures; this makes them: "
        f"`uniwetok encode-dataset {arguments} {options}`."
    )


class TaskMixture:
    """The samples of a training, by running number.

    Args:
        sources: what is practised, and how often.
        seed: of all choices.
        text_dropout: how often the user's turn is left out of a drawing or an edit, for guidance (spec 3.3: 0.1).
        open_options: further arguments of [`open_task`].
    """

    def __init__(self, sources: Iterable[TaskSource], seed: int, text_dropout: float = 0.0, **open_options):
        sources = list(sources)
        self.seed, self.text_dropout = seed, text_dropout
        self.mixture = Mixture([source.weight for source in sources], seed)
        self.tasks = [open_task(source, **open_options) for source in sources]
        for task in self.tasks:
            if len(task) == 0:
                raise ValueError(f"`path` {task.path} has no rows.")
        self.orders = [EpochOrder(len(task), stream_seed(seed, index)) for index, task in enumerate(self.tasks)]

    def __getitem__(self, number: int) -> Sample:
        source, position = self.mixture[number]
        generator = sample_generator(self.seed, number, TASK)
        without_text = torch.rand((), generator=generator).item() < self.text_dropout
        return self.tasks[source].sample(self.orders[source][position], generator, without_text)

    def held_out(self, count: int) -> list[tuple[int, Sample]]:
        """`count` samples of each source, or as many as it has rows, always the same ones, with numbers from 0 on."""
        chosen = [
            (task, order[position])
            for task, order in zip(self.tasks, self.orders, strict=True)
            for position in range(min(count, len(task)))
        ]
        generators = [sample_generator(self.seed, number, TASK) for number in range(len(chosen))]
        return [(number, task.sample(row, generators[number])) for number, (task, row) in enumerate(chosen)]

    def texts(self) -> Iterator[str]:
        """All words of the tasks, to train a text vocabulary on."""
        for task in self.tasks:
            yield from task.texts()

    def check_encoder(self, fingerprint: str) -> None:
        """
        Raises:
            ValueError: when a source was encoded by another image tokenizer than the one of this fingerprint.
        """
        for task in self.tasks:
            if task.encoding.fingerprint != fingerprint:
                raise ValueError(
                    f"`path` {task.path} was encoded by {task.encoding.model} (fingerprint "
                    f"{task.encoding.fingerprint[:12]}), not by this model's image tokenizer ({fingerprint[:12]}): "
                    "its codes would mean nothing. Encode it anew with `uniwetok encode-dataset`."
                )
