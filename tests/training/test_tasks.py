"""What the language model practises: rows of encoded datasets as conversations, and what is said of bad rows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List, load_dataset
from tiny_encoded import build_vision, encode, encode_tasks, pictures

from uniwetok_hf.data.encoded import encoder_fingerprint
from uniwetok_hf.training.tasks import TASKS, EncodedRow, TaskMixture, TaskSource, open_task


PAGE = Path(__file__).parents[2] / "docs" / "data-formats.md"


@pytest.fixture(scope="module")
def vision():
    return build_vision()


@pytest.fixture
def encoded(vision, tmp_path):
    """`encoded(columns, **settings)`: the folder of an encoded dataset."""
    return lambda columns, **settings: encode(with_pictures(columns), tmp_path / "codes", vision, **settings)


@pytest.fixture(scope="module")
def sources(vision, tmp_path_factory):
    """A source of each of the library's tasks, by name of the task."""
    fields = encode_tasks(tmp_path_factory.mktemp("tasks"), vision)
    return {fields["task"]: TaskSource(**fields) for fields in fields["data"]}


def with_pictures(columns: dict) -> Dataset:
    """A dataset of columns, where pictures are typed as such even if some are missing."""
    rows = Dataset.from_dict({name: [as_bytes(value) for value in values] for name, values in columns.items()})
    for name in {"image", "source", "target"} & set(columns):
        rows = rows.cast_column(name, Image(decode=False))
    return rows.cast_column("images", List(Image(decode=False))) if "images" in columns else rows


def as_bytes(value):
    if isinstance(value, list):
        return [as_bytes(item) for item in value]
    return Image().encode_example(value) if hasattr(value, "save") else value


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(name: str, path: str, **fields):
    return open_task(TaskSource(path=path, task=name, **fields))


def shape(sample) -> list:
    """Who says what, with pictures as IMAGE."""
    return [
        (message["role"], [item.get("text", "IMAGE") for item in message["content"]]) for message in sample.messages
    ]


# --- the documented examples ---


def documented_examples() -> list:
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    return [
        pytest.param(title.lower(), [json.loads(line) for line in block.strip().splitlines()], id=f"{title}-{index}")
        for title, text in sections
        for index, block in enumerate(re.findall(r"```json\n(.*?)```", text, re.S))
    ]


@pytest.mark.parametrize("task, rows", documented_examples())
def test_documented_examples(task, rows, vision, tmp_path):
    assert task in TASKS and len(rows) == 5
    folder = tmp_path / "pictures"
    folder.mkdir()
    named = [names for row in rows for key, names in row.items() if key.endswith(("file_name", "file_names"))]
    files = sorted({name for names in named for name in ([names] if isinstance(names, str) else names)})
    for picture, name in zip(pictures(len(files)), files, strict=True):
        picture.save(folder / name)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    opened = task_of(task, encode(dataset, tmp_path / "codes", vision))
    samples = [opened.sample(index, seeded()) for index in range(len(opened))]
    assert len(samples) == 5 and all(sample.task == task for sample in samples)
    words = " ".join(opened.texts())
    for sample in samples:
        assert [tuple(codes.shape) for codes in sample.codes(16)] == [(16, 4, 4)] * len(sample.pictures)
        said = [item["text"] for message in sample.messages for item in message["content"] if "text" in item]
        assert all(text in words for text in said)


def test_every_format_is_documented():
    assert {example.values[0] for example in documented_examples()} == set(TASKS)


# --- rows as conversations ---


def test_captions(encoded, vision):
    images = pictures(2)
    task = task_of("captions", encoded({"image": images, "text": ["one", "two"]}))
    sample = task.sample(1, seeded())
    assert shape(sample) == [("user", ["two"]), ("assistant", ["IMAGE"])]
    pixels = torch.from_numpy(np.array(images[1])).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(sample.codes(16)[0], vision.encode(pixels).codes[0])
    assert shape(task.sample(1, seeded(), without_text=True)) == [("assistant", ["IMAGE"])]


def test_one_of_several_captions_is_chosen(encoded):
    task = task_of("captions", encoded({"image": pictures(1), "text": [["a", "b", "c"]]}))
    chosen = [task.sample(0, seeded(seed)).messages[0]["content"][0]["text"] for seed in range(30)]
    assert set(chosen) == {"a", "b", "c"}
    assert [task.sample(0, seeded(3)).messages for _ in range(2)] == [task.sample(0, seeded(3)).messages] * 2


def test_questions_and_other_column_names(encoded):
    columns = {"image": pictures(1), "q": ["what?"], "a": ["noise"]}
    task = task_of("questions", encoded(columns), columns={"question": "q", "answer": "a"})
    assert shape(task.sample(0, seeded())) == [("user", ["IMAGE", "what?"]), ("assistant", ["noise"])]
    assert shape(task.sample(0, seeded(), without_text=True))[0] == ("user", ["IMAGE", "what?"])  # a question stays


def test_pictures_of_an_edit_are_of_one_variant(encoded):
    """The same picture as source and target: alike in every variant."""
    images = pictures(1, size=(64, 64))
    path = encoded({"source": images, "instruction": ["keep it"], "target": images}, num_variants=4, crop_scale=0.3)
    task, seen = task_of("edits", path), set()
    for seed in range(20):
        source, target = task.sample(0, seeded(seed)).codes(16)
        assert torch.equal(source, target)
        seen.add(tuple(source.flatten().tolist()))
    assert len(seen) == 4
    assert shape(task.sample(0, seeded())) == [("user", ["IMAGE", "keep it"]), ("assistant", ["IMAGE"])]
    without = task.sample(0, seeded(), without_text=True)
    assert shape(without) == [("assistant", ["IMAGE"])] and len(without.pictures) == 1


def test_an_edit_may_be_described_first(encoded):
    path = encoded(edit_columns(description=["a red apple", "b", "c"]))
    task = task_of("edits", path)
    assert shape(task.sample(0, seeded())) == [("user", ["IMAGE", "a"]), ("assistant", ["a red apple", "IMAGE"])]
    assert shape(task.sample(0, seeded(), without_text=True)) == [("assistant", ["IMAGE"])]
    assert "a red apple" in set(task.texts())
    with pytest.raises(ValueError, match="there is no column `caption`"):
        task_of("edits", path, columns={"description": "caption"})


def test_length_counts_words_and_pictures(encoded):
    task = task_of("captions", encoded({"image": pictures(2), "text": ["x" * 8, "x" * 80]}))
    assert [task.sample(row, seeded()).length for row in (0, 1)] == [16 + 2, 16 + 20]


# --- errors name row and column ---


def edit_columns(**changes) -> dict:
    return {"source": pictures(3), "instruction": ["a", "b", "c"], "target": pictures(3)} | changes


@pytest.mark.parametrize(
    "words, message",
    [
        (["a", "b", ""], r"codes, row 2, column `instruction`: must be text that is not empty, got ''"),
        (["a", " \n", "c"], r"row 1, column `instruction`: must be text that is not empty"),
        (["a", None, "c"], r"row 1, column `instruction`: must be text that is not empty, got None"),
        (["a", "b", "c<|im_end|>"], r"row 2, column `instruction`: must not contain <\|im_end\|>"),
        ([1, 2, 3], r"column `instruction` must be text, it is typed Value\('int64'\)"),
        ([["a"], ["b"], ["c"]], r"column `instruction` must be text, it is typed List"),
    ],
)
def test_bad_texts_are_found_before_a_training_starts(encoded, words, message):
    path = encoded(edit_columns(instruction=words))
    if not isinstance(words[0], str):  # a column of another type is an error, not a bad row
        with pytest.raises(ValueError, match=message):
            task_of("edits", path)
        return
    mixture = TaskMixture([TaskSource(path, "edits")], seed=0)
    (reason,) = mixture.tasks[0].unfit_rows()
    with pytest.warns(UserWarning, match=f"1 rows of .* are left out: .*{message}"):
        mixture.check_rows(0.01)
    with pytest.raises(ValueError, match=message):
        mixture.tasks[0].sample(int(re.search(r"row (\d)", reason)[1]), torch.Generator())


def test_too_many_bad_rows_are_an_error_at_the_start(encoded):
    count = 14
    rows = {"image": pictures(count), "text": ["", "<|im_end|>"] * 6 + ["a", "b"]}
    mixture = TaskMixture([TaskSource(encoded(rows), "captions")], seed=0)
    with pytest.raises(ValueError, match=r"`max_skipped_share`=0.5: 12 of 14 samples .*row 0, column `text`"):
        mixture.check_rows(0.5)
    with pytest.warns(UserWarning, match="12 rows"):
        mixture.check_rows(0.9)
    for number in range(2 * count):  # the two that are left come in their turns
        sample, skipped = mixture.find(number)
        assert sample.messages[0]["content"][0]["text"] in "ab" and len(skipped) <= 12
        assert mixture.find(number) == (sample, skipped)


def test_not_one_row_is_an_error(encoded):
    mixture = TaskMixture([TaskSource(encoded({"image": pictures(3), "text": ["", " ", None]}), "captions")], seed=0)
    with pytest.raises(ValueError, match="none of its rows can be used: .*row 0"):
        mixture.check_rows(1.0)
    with pytest.raises(ValueError, match="3 rows after each other can't be used: .*column `text`"):
        mixture[0]


def test_pictures_that_are_too_long_are_found_at_the_start(encoded):
    mixture = TaskMixture([TaskSource(encoded({"image": pictures(3), "text": ["a"] * 3}), "captions")], seed=0)
    assert mixture.tasks[0].unfit_rows(16) == []
    reasons = mixture.tasks[0].unfit_rows(15)
    assert len(reasons) == 3
    assert reasons[2].endswith("codes, row 2 has pictures of 16 tokens, `max_length` is 15.")


def test_processes_share_the_look_at_the_rows(encoded):
    count = 1200  # more than a part, and than a chunk of Arrow, holds
    rows = {"image": pictures(1) * count, "text": ["a", "", "b"] * (count // 3)}
    mixture = TaskMixture([TaskSource(encoded(rows), "captions")], seed=0)
    (task,) = mixture.tasks
    whole = task.unfit_rows(15)
    assert len(whole) == count and "row 1, column `text`" in whole[1] and "row 1199 has pictures" in whole[-1]
    for processes in (2, 7):
        assert [one for i in range(processes) for one in task.unfit_rows(15, i, processes)] == whole
    assert task.unfit_rows(16, 1, 2) == [
        one for one in task.unfit_rows(16) if int(re.search(r"row (\d+)", one)[1]) >= 600
    ]


def test_tokens_of_lists_of_pictures(encoded):
    """Their sums, of first variants; rows without pictures have none."""
    turns = [[{"role": "user", "content": "a"}]]
    numbers = [2, 0, 1, 3]
    rows = {"images": [pictures(number) for number in numbers], "messages": turns * len(numbers)}
    (task,) = TaskMixture([TaskSource(encoded(rows), "conversations")], seed=0).tasks
    assert task._picture_tokens(0, 4).tolist() == [16 * number for number in numbers]
    assert task._picture_tokens(2, 4).tolist() == [16, 48]


@pytest.mark.parametrize(
    "captions, message",
    [
        ([["a"], []], r"row 1, column `text`: must be text or a list of texts, got an empty list"),
        ([["a"], [" "]], r"row 1, column `text`: must be text that is not empty, got ' '"),
        ([["a"], ["<|image_pad|>"]], r"row 1, column `text`: must not contain <\|image_pad\|>"),
    ],
)
def test_bad_lists_of_captions_are_found_when_read(encoded, captions, message):
    task = task_of("captions", encoded({"image": pictures(2), "text": captions}))
    task.sample(0, seeded())
    with pytest.raises(ValueError, match=message):
        task.sample(1, seeded())


def test_missing_pictures_are_found_when_read():
    """`encode-dataset` leaves such rows out; other programs that write Parquet may not."""
    row = EncodedRow({"after": None}, {"target": "after"}, "codes, row 1", seeded())
    with pytest.raises(ValueError, match="codes, row 1, column `after`: must be a picture, got none"):
        row.picture("target")


TURNS = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
]


def changed(turn: int, **fields) -> list:
    return [{**message, **(fields if index == turn else {})} for index, message in enumerate(TURNS)]


@pytest.mark.parametrize(
    "messages, count, message",
    [
        (TURNS, 2, r"row 0, column `images`: has 2 pictures, the messages have 1"),
        (TURNS, 0, r"row 0, column `images`: has 0 pictures, the messages have 1"),
        (TURNS[:1], 1, r"column `messages`: must have a turn of the assistant"),
        (changed(1, role="bot"), 1, r"column `messages`: `role` must be system, user or assistant, got 'bot'"),
        (changed(1, content=None), 1, r"column `messages`: a turn of the assistant has no content"),
        (changed(1, content=[]), 1, r"column `messages`: a turn of the assistant has no content"),
        (changed(1, content=[{"type": "sound", "text": "x"}]), 1, r"`type` must be text or image, got 'sound'"),
        (changed(1, content=[{"type": "text", "text": None}]), 1, r"column `messages`: must be text .* got None"),
    ],
)
def test_bad_conversations(encoded, messages, count, message):
    # A good row before, from which the types of an empty list are known.
    rows = {"messages": [TURNS, messages], "images": [pictures(1), pictures(count)]}
    task = task_of("conversations", encoded(rows))
    assert shape(task.sample(0, seeded())) == [("user", ["IMAGE", "hi"]), ("assistant", ["yes"])]
    with pytest.raises(ValueError, match=message.replace("row 0", "row 1")):
        task.sample(1, seeded())


def test_conversations_may_have_plain_text_as_content(encoded):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    task = task_of("conversations", encoded({"messages": [messages] * 2, "images": [[], pictures(1)]}))
    assert shape(task.sample(0, seeded())) == [("user", ["hi"]), ("assistant", ["hello"])]
    assert list(task.texts()) == ["hi", "hello"] * 2


def test_the_texts_of_all_rows_lack_what_is_missing(encoded):
    captions = encoded({"image": pictures(3), "text": [["a cat", None], None, ["a dog"]]})
    assert list(task_of("captions", captions).texts()) == ["a cat", "a dog"]


def test_the_texts_of_conversations_lack_what_is_missing(encoded):
    rows = [TURNS, changed(1, content=None), changed(1, content=[None]), [None, TURNS[1]], None]
    task = task_of("conversations", encoded({"messages": rows, "images": [pictures(1)] * 5}))
    assert list(task.texts()) == ["hi", "yes", "hi", "hi", "yes"]


def test_sources_that_are_no_encoded_datasets_of_their_format(encoded, tmp_path):
    path = encoded({"image": pictures(1), "text": ["a"]})
    with pytest.raises(ValueError, match="there is no column `question`; there are image, text"):
        task_of("questions", path)
    with pytest.raises(ValueError, match="column `text` must be a picture; the columns with codes are image"):
        task_of("captions", path, columns={"image": "text"})
    with pytest.raises(ValueError, match="`columns` of .*: captions have no picture, but image, text"):
        task_of("captions", path, columns={"picture": "image"})
    with pytest.raises(
        ValueError, match="must be one of captions, questions, edits, conversations, or the .* got 'x'"
    ):
        task_of("x", path)
    (tmp_path / "raw").mkdir()
    command = re.escape(f"`uniwetok encode-dataset {tmp_path}/raw {tmp_path}/raw-codes --size 256 --model here`")
    with pytest.raises(ValueError, match=command):
        open_task(TaskSource(f"{tmp_path}/raw", "captions"), encode_options="--size 256 --model here")
    with pytest.raises(ValueError, match="`uniwetok encode-dataset SOURCE .*/nowhere"):
        task_of("captions", str(tmp_path / "nowhere"))


def test_stored_codes_of_another_size_name_their_row(encoded):
    sample = task_of("captions", encoded({"image": pictures(1), "text": ["a"]})).sample(0, seeded())
    with pytest.raises(ValueError, match="codes, row 0: `num_bits`"):
        sample.check_codes(32)


# --- mixtures ---


def test_a_mixture_is_a_function_of_seed_and_number(sources):
    sources = list(sources.values())
    first, second = (TaskMixture(sources, seed=3, text_dropout=0.5) for _ in range(2))
    numbers = [7, 2, 31, 2]
    wanted = [(sample.messages, sample.origin) for sample in (first[number] for number in range(40))]
    assert [(second[number].messages, second[number].origin) for number in numbers] == [wanted[n] for n in numbers]
    other = TaskMixture(sources, seed=4, text_dropout=0.5)
    assert [other[number].origin for number in range(40)] != [origin for _, origin in wanted]


def test_a_mixture_keeps_its_weights_and_epochs(encoded):
    path = encoded({"image": pictures(5), "text": list("abcde")})
    sources = [TaskSource(path, "captions", weight=3.0), TaskSource(path, "captions", weight=1.0)]
    mixture = TaskMixture(sources, seed=0)
    assert mixture.mixture.counts == [750, 250]
    # The first source alone: every five of its samples are its five rows.
    alone = TaskMixture(sources[:1], seed=0)
    origins = [alone[number].origin for number in range(20)]
    assert all(len(set(origins[start : start + 5])) == 5 for start in range(0, 20, 5))
    assert len({tuple(origins[start : start + 5]) for start in range(0, 20, 5)}) > 1


def test_text_dropout(encoded, vision, tmp_path):
    rows = {"image": pictures(2), "text": ["a", "b"], "question": ["c", "d"], "answer": ["e", "f"]}
    path = encoded(rows)
    drawings = TaskMixture([TaskSource(path, "captions")], seed=0, text_dropout=0.3)
    dropped = sum(len(drawings[number].messages) == 1 for number in range(400))
    assert 90 < dropped < 150
    answers = TaskMixture([TaskSource(path, "questions")], seed=0, text_dropout=1.0)
    assert all(len(answers[number].messages) == 2 for number in range(5))
    assert all(len(sample.messages) == 2 for _, sample in drawings.held_out(2)[0])  # nothing is dropped


def test_held_out_rows_are_always_the_same(sources):
    mixture = TaskMixture([sources["captions"], sources["questions"]], seed=0)
    once, again = mixture.held_out(3)[0], mixture.held_out(3)[0]
    assert [number for number, _ in once] == list(range(6))
    assert [sample.messages for _, sample in once] == [sample.messages for _, sample in again]
    assert [sample.task for _, sample in once] == ["captions"] * 3 + ["questions"] * 3
    assert len(mixture.held_out(1000)[0]) == 2 * len(mixture.tasks[0])


def test_codes_of_another_image_tokenizer_are_refused(sources, vision):
    mixture = TaskMixture([sources["captions"]], seed=0)
    mixture.check_encoder(encoder_fingerprint(vision))
    with pytest.raises(ValueError, match="not by this model's image tokenizer"):
        mixture.check_encoder(encoder_fingerprint(build_vision(seed=1)))


def test_an_empty_source_and_a_weight_of_zero(sources, encoded):
    with pytest.raises(ValueError, match="`weight`"):
        TaskMixture([TaskSource(sources["captions"].path, "captions", weight=0.0)], seed=0)


# --- a task of one's own ---

OWN = """
from uniwetok_hf.training.tasks import PICTURE, TEXT, EncodedTask, generation_sample


class Shouting(EncodedTask):
    columns = {"image": PICTURE, "text": TEXT}

    def __init__(self, source, encode_options, *, marks, mood="loud"):
        super().__init__(source, encode_options)
        self.ending = marks * "!"

    def converse(self, row, without_text):
        return generation_sample(None if without_text else row.text("text") + self.ending, row.picture("image"))


class Other:
    pass
"""


@pytest.fixture
def own(encoded, tmp_path):
    """The path of encoded captions, and the folder of a file with task classes of one's own, own.py."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    return encoded({"image": pictures(1), "text": ["a"]}), tmp_path / "mine"


def test_a_task_by_place(own):
    path, folder = own
    task = task_of(f"{folder}/own.py:Shouting", path, options={"marks": 2})
    sample = task.sample(0, seeded())
    assert shape(sample) == [("user", ["a!!"]), ("assistant", ["IMAGE"])]
    assert sample.task == task.name == "Shouting" and list(task.texts()) == ["a"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("Shouting", {}, "`options` of .*codes: Shouting missing a required argument: 'marks'"),
        (
            "Shouting",
            {"marks": 1, "colour": 2},
            "`options` .* Shouting got an unexpected keyword argument 'colour'",
        ),
        ("Nothing", {}, "`task` of .*codes: `.*own.py:Nothing`: .* defines no Nothing; it defines Shouting, Other"),
        ("Other", {}, "`task` of .*codes: .*own.py:Other must be a class derived from EncodedTask"),
    ],
)
def test_wrong_tasks_by_place(own, name, options, message):
    path, folder = own
    with pytest.raises(ValueError, match=message) as error:
        task_of(f"{folder}/own.py:{name}", path, options=options)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="`task` of .*codes: `nowhere.py:X`: there is no file nowhere.py in"):
        task_of("nowhere.py:X", path)


MISTAKES = {
    "    return row['count']": "column `count` is not among `columns`: image, text.",
    "    return {}['count']": "KeyError: 'count'",
    "    return self.words": "AttributeError: 'Mine' object has no attribute 'words'",
    "    return int('one')": "ValueError: invalid literal for int() with base 10: 'one'",
    "    pass": "`converse` must return a Sample, got NoneType.",
    "    return Sample([{'role': 'bot', 'content': 'hi'}], [])": "must be system, user or assistant, got 'bot'.",
    "    return Sample([{'role': 'assistant', 'content': None}], [])": "`content` must be text or a list of items",
    "    return Sample([{'role': 'assistant', 'content': ['hi']}], [])": "`content` must be text or a list of items",
    "    return Sample([{'role': 'assistant', 'content': [{'type': 'text'}]}], [])": "must be an image or have text",
    "    return Sample([{'role': 'assistant', 'content': 'a<|im_end|>'}], [])": "text must not contain <|im_end|>",
    "    return Sample([{'role': 'user', 'content': 'hi'}], [])": "there must be a turn of the assistant",
    "    return Sample([{'role': 'assistant', 'content': []}], [])": "there must be a turn of the assistant",
    "    return Sample([{'role': 'assistant', 'content': 'hi'}], [row.picture('image')])": (
        "the sample has 1 pictures, its messages have 0."
    ),
    "    return Sample([{'role': 'assistant', 'content': [IMAGE_ITEM]}], [row['image']])": "`pictures` must be a list",
}


def write_own(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(
        "from uniwetok_hf.training.tasks import IMAGE_ITEM, PICTURE, TEXT, EncodedTask, Sample\n\n\n"
        f"class Mine(EncodedTask):\n{body}\n"
    )
    return f"{folder}/mine.py:Mine"


@pytest.mark.parametrize("code, message", MISTAKES.items())
def test_mistakes_in_converse_name_class_and_row(own, code, message):
    path, folder = own
    body = f"    columns = {{'image': PICTURE, 'text': TEXT}}\n    def converse(self, row, without_text):\n    {code}"
    task = task_of(write_own(folder, body), path)
    with pytest.raises(ValueError, match="^" + re.escape(f"`mine.py:Mine`, {path}, row 0: ")) as error:
        task.sample(0, seeded())
    assert message in str(error.value)


def test_plain_text_as_content_is_a_text_item(own):
    path, folder = own
    body = (
        "    columns = {}\n    def converse(self, row, without_text):\n"
        "        return Sample([{'role': 'assistant', 'content': 'hi'}], [])"
    )
    assert shape(task_of(write_own(folder, body), path).sample(0, seeded())) == [("assistant", ["hi"])]


@pytest.mark.parametrize(
    "body, message",
    [
        ("    pass", "`task` Mine must have `columns`, a dict .* PICTURES, TEXT, .* got None"),
        ("    columns = ['image']", r"`task` Mine must have `columns`, .* got \['image'\]"),
        ("    columns = {'text': int}", "`task` Mine must have `columns`, .* ANYTHING; got {'text': "),
        ("    columns = {'text': TEXT}", r"`task` Mine must have a method `converse\(self, row, without_text\)`"),
    ],
)
def test_what_a_class_must_define(own, body, message):
    path, folder = own
    with pytest.raises(ValueError, match=message):
        task_of(write_own(folder, body), path)


def test_mistakes_in_other_methods_name_the_class(own):
    path, folder = own
    body = (
        "    columns = {'text': TEXT}\n    def __init__(self, source, encode_options, fail=False):\n"
        "        super().__init__(source, encode_options)\n        fail and {}['x']\n"
        "    def converse(self, row, without_text):\n        pass\n"
        "    def texts(self):\n        yield self.rows[0]['title']"
    )
    place = write_own(folder, body)
    with pytest.raises(ValueError, match="`task` Mine raised KeyError: 'x'"):
        task_of(place, path, options={"fail": True})
    with pytest.raises(ValueError, match="`task` Mine raised KeyError: 'title'"):
        list(TaskMixture([TaskSource(path, place)], seed=0).texts())


@pytest.mark.parametrize("path", ["my_data.py:load", "embedded-pictures"])
def test_data_of_the_tokenizer_must_be_encoded_first(path):
    with pytest.raises(ValueError, match=f"`uniwetok encode-dataset {path} NEWFOLDER --size"):
        task_of("captions", path)


def test_the_librarys_tasks_have_no_options(own):
    with pytest.raises(ValueError, match="`options` of .*codes: Captions got an unexpected keyword argument 'marks'"):
        task_of("captions", own[0], options={"marks": 1})
