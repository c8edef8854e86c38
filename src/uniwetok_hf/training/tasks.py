# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Tasks of the language model: rows of encoded datasets as conversations (docs/data-formats.md).

A sample is a conversation and the codes of its pictures, in order. The model learns to generate the pictures and the
text of the assistant's turns; everything else is input only. Which row a sample is, which of its captions and crops is
taken, and whether its text is left out are functions of the seed and the sample's running number alone (`samples`).

A task of one's own is a class derived from [`EncodedTask`], named by its place in the config, `task: FILE.py:NAME`
(docs/new-task.md).
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.encoded import Encoding, cell_codes, check_code_size, is_begun, open_encoded, read_encoding
from ..data.places import is_place, load_place
from ..data.samples import TASK, EpochOrder, Mixture, sample_generator, stream_seed
from ..data.skipped import SkippedItems
from ..data.sources import EMBEDDED_PICTURES
from .config import KEEP, setting


# What the columns of a format hold.
PICTURE, PICTURES, TEXT, TEXTS, ANYTHING = "a picture", "a list of pictures", "text", "text or a list of texts", "any"
IMAGE_ITEM = {"type": "image"}
MAX_FAILURES = 1000  # more rows after each other that can't be used are an error
# Tokens of the prompt format: text that contains them would be taken for a picture or for the end of a turn.
MARKUP = r"<\|(im_start|im_end|endoftext|vision_start|vision_end|image_pad|res_\d+|query_\d+)\|>"


@dataclass
class TaskSource:
    """One encoded dataset and the task that is trained on it."""

    path: str = setting(help="folder that `uniwetok encode-dataset` made", on_resume=KEEP)
    task: str = setting(
        help="captions, questions, edits, conversations, or the place of your own task class, FILE.py:NAME, looked "
        "up beside the YAML file",
        on_resume=KEEP,
    )
    weight: float = setting(1.0, "how often it is sampled, relative to the others", on_resume=KEEP)
    columns: dict = setting(
        {}, "for columns with other names than those of docs/data-formats.md, `name there: name here`", on_resume=KEEP
    )
    options: dict = setting({}, "arguments of your own task class, by name", on_resume=KEEP)


@dataclass
class Sample:
    """`messages` of a conversation, without the pictures themselves; `pictures`, one {codes, height, width} each, in
    order; the `task`; `origin`, the dataset and row, for error messages."""

    messages: list[dict]
    pictures: list[dict]
    task: str = ""
    origin: str = ""

    @property
    def items(self) -> list[dict]:
        """Texts and pictures of all messages."""
        return [item for message in self.messages for item in message["content"]]

    @property
    def length(self) -> float:
        """About how many tokens it is long; only for putting samples of a kind together."""
        words = sum(len(item.get("text", "")) for item in self.items)
        return words / 4 + sum(picture["height"] * picture["width"] for picture in self.pictures)

    def codes(self, num_bits: int) -> list[torch.Tensor]:
        """Codes of the pictures, [bits, h, w] each, which [`check_codes`] has passed."""
        return [cell_codes([picture], 0, num_bits) for picture in self.pictures]

    def check_codes(self, num_bits: int) -> None:
        """
        Raises:
            ValueError: when stored codes are not of their size.
        """
        try:
            for picture in self.pictures:
                check_code_size(picture, num_bits)
        except ValueError as error:
            raise ValueError(f"{self.origin}: {error}") from None


def text_item(words: str) -> dict:
    """A text among the items of a message's `content`."""
    return {"type": "text", "text": words}


def generation_sample(prompt: str | None, picture: dict) -> Sample:
    """The assistant generates `picture` from `prompt`; without a prompt there is no user turn."""
    messages = [{"role": "assistant", "content": [IMAGE_ITEM]}]
    if prompt is not None:
        messages.insert(0, {"role": "user", "content": [text_item(prompt)]})
    return Sample(messages, [picture])


def editing_sample(source: dict, instruction: str | None, target: dict, description: str | None = None) -> Sample:
    """The assistant generates `target` from `source` and `instruction`, after the text of `description` if there is
    one. Without an instruction it generates `target` unconditionally."""
    if instruction is None:
        return generation_sample(None, target)
    messages = [
        {"role": "user", "content": [IMAGE_ITEM, text_item(instruction)]},
        {"role": "assistant", "content": [IMAGE_ITEM]},
    ]
    if description is not None:
        messages[-1]["content"].insert(0, text_item(description))
    return Sample(messages, [source, target])


def answer_sample(picture: dict, question: str, answer: str) -> Sample:
    """The assistant answers a question about `picture`."""
    messages = [
        {"role": "user", "content": [IMAGE_ITEM, text_item(question)]},
        {"role": "assistant", "content": [text_item(answer)]},
    ]
    return Sample(messages, [picture])


def _check(sample: Sample, origin: str) -> None:
    """Checks the sample of a row, and makes plain text as content a text item."""
    if not isinstance(sample, Sample):
        raise ValueError(f"{origin}: `converse` must return a Sample, got {type(sample).__name__}.")
    shown = 0
    for message in sample.messages:
        role, items = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"{origin}: `role` must be system, user or assistant, got {role!r}.")
        if isinstance(items, str):
            items = message["content"] = [text_item(items)]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"{origin}: `content` must be text or a list of items, got {items!r}.")
        for item in items:
            if item.get("type") == "image":
                shown += 1
            elif item.get("type") != "text" or not isinstance(item.get("text"), str):
                raise ValueError(f"{origin}: an item of `content` must be an image or have text, got {item!r}.")
            elif found := re.search(MARKUP, item["text"]):
                raise ValueError(f"{origin}: text must not contain {found[0]}, a token of the prompt format.")
    if not any(message["role"] == "assistant" and message["content"] for message in sample.messages):
        raise ValueError(f"{origin}: there must be a turn of the assistant, which is what is learnt.")
    if not all(isinstance(picture, dict) and "codes" in picture for picture in sample.pictures):
        raise ValueError(f"{origin}: `pictures` must be a list of what `row.picture` and `row.pictures` return.")
    if shown != len(sample.pictures):
        raise ValueError(f"{origin}: the sample has {len(sample.pictures)} pictures, its messages have {shown}.")


def pick(options, generator: torch.Generator):
    """One of `options`, uniformly."""
    return options[torch.randint(len(options), (), generator=generator).item()]


class EncodedRow:
    """One row of an encoded dataset; a value is checked when it is read. All of its pictures are of one variant,
    chosen with `generator`, so that source and target of an edit have the same crop. A picture is a dict of `codes`
    (bytes of packed bits), `height` and `width` in tokens.

    Each method raises a ValueError that names the row and the column: such a row is left out."""

    def __init__(self, values: dict, columns: dict[str, str], origin: str, generator: torch.Generator):
        self.values, self.columns, self.origin = values, columns, origin
        self.generator, self._variant = generator, None

    def __getitem__(self, column: str):
        """The value of a column, as it is stored; of pictures a list of variants."""
        if column not in self.columns:
            raise ValueError(f"{self.origin}: column `{column}` is not among `columns`: {', '.join(self.columns)}.")
        return self.values[self.columns[column]]

    def fail(self, column: str, problem: str):
        """Says what is wrong with a value, as a ValueError."""
        raise ValueError(f"{self.origin}, column `{self.columns[column]}`: {problem}")

    def text(self, column: str) -> str:
        """A text that is not empty and has no token of the prompt format."""
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
        """`words`, checked as `text` is; `column` is named where they don't fit."""
        if not isinstance(words, str) or not words.strip():
            self.fail(column, f"must be text that is not empty, got {words!r}.")
        if found := re.search(MARKUP, words):
            self.fail(column, f"must not contain {found[0]}, a token of the prompt format.")
        return words

    def picture(self, column: str) -> dict:
        """The picture of a column, of the row's variant."""
        return self._choose(column, self[column])

    def pictures(self, column: str) -> list[dict]:
        """The pictures of a column that holds lists; none where it is empty."""
        return [self._choose(column, cell) for cell in self[column] or []]

    def _choose(self, column: str, cell: list[dict] | None) -> dict:
        if not cell:
            self.fail(column, "must be a picture, got none.")
        if self._variant is None:
            self._variant = torch.randint(len(cell), (), generator=self.generator).item()
        return cell[self._variant]


class EncodedTask:
    """Base of all tasks: how a row becomes a sample. `columns` are those that a row must have and `optional` those
    that it may have, with what they hold. Arguments after `encode_options` are `options` of the source."""

    columns: dict[str, str]
    optional: dict[str, str] = {}

    def __init__(self, source: TaskSource, encode_options: str):
        self._check_class()
        self.name, self.place = source.task, ""
        if is_place(source.task):
            self.name, self.place = type(self).__name__, f"`{Path(source.task).name}`, "
        self.path = source.path
        self.encoding = _read_encoding(source.path, encode_options)
        self.rows = open_encoded(source.path)
        known = self.columns | self.optional
        if unknown := sorted(set(source.columns) - set(known)):
            raise ValueError(
                f"`columns` of {self.path}: {self.name} have no {', '.join(unknown)}, but {', '.join(known)}."
            )
        self.columns = {
            column: kind
            for column, kind in known.items()
            if column in self.columns or column in source.columns or column in self.rows.features
        }
        self.names = {column: source.columns.get(column, column) for column in self.columns}
        for column, kind in self.columns.items():
            self._check_column(self.names[column], kind)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, generator: torch.Generator, without_text: bool = False) -> Sample:
        """Row `index` as a conversation; `without_text` leaves out the user's turn of a generation or an edit.

        Raises:
            ValueError: when the row is not as its format says, or `converse` fails; the message names the row.
        """
        origin = f"{self.place}{self.path}, row {index}"
        try:
            sample = self.converse(EncodedRow(self.rows[index], self.names, origin, generator), without_text)
            _check(sample, origin)
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith(origin):
                raise
            raise ValueError(f"{origin}: {type(error).__name__}: {error}") from error
        sample.task, sample.origin = self.name, origin
        return sample

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        """The sample of a row. With `without_text` it has to be what guidance compares with: the picture that is
        generated, without words or source; a task that generates none may ignore it."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """All text of the rows, to train a text tokenizer on. What is missing is left out here: it concerns its row
        alone, which is named when it is read."""
        for column, kind in self.columns.items():
            for value in self.rows[self.names[column]] if kind in (TEXT, TEXTS) else ():
                yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))

    def _check_class(self) -> None:
        """What a class of one's own must define."""
        kinds, name = (PICTURE, PICTURES, TEXT, TEXTS, ANYTHING), type(self).__name__
        columns = getattr(self, "columns", None)
        if not isinstance(columns, dict) or not {*columns.values(), *self.optional.values()} <= set(kinds):
            raise ValueError(
                f"`task` {name} must have `columns`, a dict from each column to PICTURE, PICTURES, TEXT, TEXTS or "
                f"ANYTHING; got {columns!r}."
            )
        if type(self).converse is EncodedTask.converse and type(self).sample is EncodedTask.sample:
            raise ValueError(f"`task` {name} must have a method `converse(self, row, without_text)`.")

    def _check_column(self, name: str, kind: str) -> None:
        """Checks names and types, without reading row by row."""
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

    def unfit_rows(self, max_length: int | None = None, process_index: int = 0, num_processes: int = 1) -> list[str]:
        """Reasons why rows will be left out, as far as they show without reading row by row: a text that is missing,
        empty or contains markup, or, in the library's own tasks, pictures of more than `max_length` tokens. Each
        process looks at its part of the rows."""
        import pyarrow.compute as pc

        first, end = (len(self) * index // num_processes for index in (process_index, process_index + 1))
        reasons = {}
        for column in (name for name, kind in self.columns.items() if kind in (TEXT, TEXTS)):
            texts = self.rows.data.column(self.names[column]).slice(first, end - first)
            if "string" not in str(texts.type) or "list" in str(texts.type):
                continue  # a list of texts
            is_blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
            is_bad = pc.fill_null(pc.or_(is_blank, pc.match_substring_regex(texts, MARKUP)), True)
            for index in pc.indices_nonzero(is_bad).to_pylist():
                name, place = self.names[column], f"{self.path}, row {first + index}"
                row = EncodedRow({name: texts[index].as_py()}, {column: name}, place, None)
                try:
                    row.text(column)
                except ValueError as error:
                    reasons.setdefault(index, str(error))
        if max_length is not None and type(self) in TASKS.values():
            lengths = self._picture_tokens(first, end)
            for index in (lengths > max_length).nonzero()[0].tolist():
                place = f"{self.path}, row {first + index}"
                reasons.setdefault(
                    index, f"{place} has pictures of {lengths[index]} tokens, `max_length` is {max_length}."
                )
        return [reasons[index] for index in sorted(reasons)]

    def _picture_tokens(self, first: int, end: int) -> np.ndarray:
        """Of each of these rows, the tokens of its pictures, of their first variants, [rows]. The codes are not
        read."""
        total = np.zeros(end - first, np.int64)
        for column, kind in self.columns.items():
            if kind not in (PICTURE, PICTURES):
                continue
            start = 0
            for cells in self.rows.data.column(self.names[column]).slice(first, end - first).chunks:
                tokens = _first_variants(cells) if kind == PICTURE else _sums(_first_variants(cells.values), cells)
                total[start : start + len(cells)] += tokens
                start += len(cells)
        return total


def _first_variants(cells) -> np.ndarray:
    """Of each list of variants in an Arrow array, the tokens of the first, 0 where there is none."""
    starts, is_there = cells.offsets.to_numpy()[:-1], cells.value_lengths().fill_null(0).to_numpy() > 0
    height, width = (cells.values.field(name).fill_null(0).to_numpy() for name in ("height", "width"))
    tokens = np.zeros(len(cells), np.int64)
    tokens[is_there] = (height.astype(np.int64) * width)[starts[is_there]]
    return tokens


def _sums(values: np.ndarray, lists) -> np.ndarray:
    """Sums of `values`, of all items of an Arrow array of lists, over each list."""
    ends = np.concatenate([[0], values.cumsum()])[lists.offsets.to_numpy()]
    return np.diff(ends)


class Captions(EncodedTask):
    """Text-to-image generation from captions."""

    columns = {"image": PICTURE, "text": TEXTS}

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        return generation_sample(None if without_text else row.one_text("text"), row.picture("image"))


class Questions(EncodedTask):
    """Answers to questions about pictures."""

    columns = {"image": PICTURE, "question": TEXT, "answer": TEXT}

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        return answer_sample(row.picture("image"), row.text("question"), row.text("answer"))


class Edits(EncodedTask):
    """Edits of pictures by instructions; the assistant says the `description`, if there is one, first."""

    columns = {"source": PICTURE, "instruction": TEXT, "target": PICTURE}
    optional = {"description": TEXT}

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        instruction = None if without_text else row.text("instruction")
        description = row.text("description") if "description" in self.columns else None
        return editing_sample(row.picture("source"), instruction, row.picture("target"), description)


class Conversations(EncodedTask):
    """Any other conversations: turns with text and pictures in any order."""

    columns = {"messages": ANYTHING, "images": PICTURES}

    def converse(self, row: EncodedRow, without_text: bool) -> Sample:
        messages = [self._message(row, message) for message in row["messages"] or []]
        if not any(message["role"] == "assistant" for message in messages):
            row.fail("messages", "must have a turn of the assistant, which is what is learnt.")
        pictures = row.pictures("images")
        shown = sum(item is IMAGE_ITEM for message in messages for item in message["content"])
        if shown != len(pictures):
            row.fail("images", f"has {len(pictures)} pictures, the messages have {shown}.")
        return Sample(messages, pictures)

    def _message(self, row: EncodedRow, message: dict) -> dict:
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
            for content in (message["content"] for message in messages or [] if message):
                items = [text_item(content)] if isinstance(content, str) else content or []
                yield from (item["text"] for item in items if item and isinstance(item.get("text"), str))


TASKS = {
    "captions": Captions,
    "questions": Questions,
    "edits": Edits,
    "conversations": Conversations,
}


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Errors of a class of one's own, other than `ValueError`, become one that names the class."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"`task` {task} raised {type(error).__name__}: {error}") from error


def open_task(source: TaskSource, encode_options: str = "--size N --model TOKENIZER") -> EncodedTask:
    """The task of a source. `encode_options` are part of the command that an error message recommends.

    Raises:
        ValueError: when there is no such task, `source.options` are not its arguments, or `source.path` holds no
            encoded dataset with its columns.
    """
    where = f"`task` of {source.path}"
    if is_place(source.task):
        try:
            task_class = load_place(source.task)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error.__cause__
        if not (isinstance(task_class, type) and issubclass(task_class, EncodedTask)):
            raise ValueError(f"{where}: {source.task} must be a class derived from EncodedTask, got {task_class!r}.")
    elif source.task in TASKS:
        task_class = TASKS[source.task]
    else:
        raise ValueError(
            f"{where} must be one of {', '.join(TASKS)}, or the place of a class, FILE.py:NAME; got {source.task!r}."
        )
    try:
        inspect.signature(task_class).bind(source, encode_options, **source.options)
    except TypeError as error:
        raise ValueError(f"`options` of {source.path}: {task_class.__name__} {error}.") from None
    with _naming(task_class.__name__):
        return task_class(source, encode_options, **source.options)


def _read_encoding(path: str, options: str) -> Encoding:
    if is_begun(path):
        return read_encoding(path)
    arguments = f"{path} {Path(path)}-codes" if Path(path).exists() else f"SOURCE {path}"
    if is_place(path) or path == EMBEDDED_PICTURES:
        arguments = f"{path} NEWFOLDER"
    raise ValueError(
        f"`path` {path} holds no encoded dataset. Training reads codes, not pictures; this makes them: "
        f"`uniwetok encode-dataset {arguments} {options}`."
    )


class TaskMixture:
    """The samples of a training, by running number.

    Args:
        sources: datasets, tasks and weights.
        seed: of all choices.
        text_dropout: probability of leaving out the user's turn of a generation or an edit, for classifier-free
            guidance (docs/method.md 3.5: 0.1).
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
        """The sample of this running number; see [`find`]."""
        return self.find(number)[0]

    def find(self, number: int, check: Callable[[Sample], object] = lambda sample: None) -> tuple[Sample, list[str]]:
        """The sample of a running number, and why rows before it were left out: a row that does not fit its task, or
        that `check` raises a `ValueError` for, is replaced by the next one of its source. Which one that is, is a
        function of the number and the data alone.

        Raises:
            ValueError: when `MAX_FAILURES` rows after each other, or all of a source, can't be used.
        """
        source, position = self.mixture[number]
        generator = sample_generator(self.seed, number, TASK)
        without_text = torch.rand((), dtype=torch.float32, generator=generator).item() < self.text_dropout
        state = generator.get_state()
        return self._find(source, position, check, lambda: generator.set_state(state), without_text)

    def held_out(
        self, count: int, check: Callable[[Sample], object] = lambda sample: None
    ) -> tuple[list[tuple[int, Sample]], list[str]]:
        """`count` samples of each source, or as many as can be used, always the same ones, with numbers from 0 on; and
        why rows were left out."""
        samples, skipped = [], []
        for task, order in zip(self.tasks, self.orders, strict=True):
            found = 0
            for position in range(len(task)):
                if found == count:
                    break
                generator = sample_generator(self.seed, len(samples), TASK)
                try:
                    sample = task.sample(order[position], generator)
                    check(sample)
                except ValueError as error:
                    skipped.append(str(error))
                else:
                    samples.append((len(samples), sample))
                    found += 1
        return samples, skipped

    def _find(self, source: int, position: int, check, new_generator, without_text: bool) -> tuple[Sample, list[str]]:
        task, order, skipped = self.tasks[source], self.orders[source], []
        for place in range(position, position + min(MAX_FAILURES, len(task))):
            try:
                sample = task.sample(order[place], new_generator(), without_text)
                check(sample)
                return sample, skipped
            except ValueError as error:
                skipped.append(str(error))
        raise ValueError(f"`path` {task.path}: {len(skipped)} rows after each other can't be used: {skipped[0]}")

    def check_rows(
        self, max_share: float, max_length: int | None = None, process_index: int = 0, num_processes: int = 1
    ) -> None:
        """Looks for rows that will be left out, as far as that shows at once; warns of them. Each process looks at its
        part of the rows, and all know what was found.

        Raises:
            ValueError: when they are more than a share of `max_share` of a source.
        """
        for task in self.tasks:
            reasons = task.unfit_rows(max_length, process_index, num_processes)
            if num_processes > 1:
                from accelerate.utils import gather_object

                reasons = [reason for part in gather_object([reasons]) for reason in part]
            SkippedItems(max_share).add(reasons, len(task))
            if len(reasons) == len(task):
                raise ValueError(f"`path` {task.path}: none of its rows can be used: {reasons[0]}")
            if reasons:
                warnings.warn(f"{len(reasons)} rows of {task.path} are left out: {reasons[0]}", stacklevel=2)

    def texts(self) -> Iterator[str]:
        """All text of the tasks, to train a text tokenizer on."""
        for task in self.tasks:
            with _naming(task.name):
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
                    "its codes mean nothing to it. Encode the data again with `uniwetok encode-dataset`."
                )
