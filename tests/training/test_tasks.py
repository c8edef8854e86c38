"""What the language model practises: rows of encoded datasets as conversations, and what is said of bad rows."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List, load_dataset
from tasks import (
    DESCRIBE_CHANCE,
    EDITS_IN_PLACE,
    FAITHFUL_EDITS,
    MOST_TURNED_OVER_IN_EDITS,
    patchwork,
)
from tiny_encoded import build_vision, encode, encode_emoji, pictures

from uniwetok_hf.data.encoded import encoder_fingerprint
from uniwetok_hf.training.tasks import COPIES, FORMATS, IMAGE_ITEM, Row, TaskMixture, TaskSource, open_task, turn_over


FORMATS_PAGE = Path(__file__).parents[2] / "docs" / "data-formats.md"


@pytest.fixture(scope="module")
def vision():
    return build_vision()


@pytest.fixture
def encoded(vision, tmp_path):
    """`encoded(columns, **settings)`: the folder of an encoded dataset."""
    return lambda columns, **settings: encode(with_pictures(columns), tmp_path / "codes", vision, **settings)


@pytest.fixture(scope="module")
def emoji(fixtures, vision, tmp_path_factory):
    """Sources of the emoji tasks, by name of the task."""
    fields = encode_emoji(fixtures / "emoji", tmp_path_factory.mktemp("emoji"), vision)
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
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", FORMATS_PAGE.read_text(), re.M | re.S)
    return [
        pytest.param(title.lower(), [json.loads(line) for line in block.strip().splitlines()], id=f"{title}-{index}")
        for title, text in sections
        for index, block in enumerate(re.findall(r"```json\n(.*?)```", text, re.S))
    ]


@pytest.mark.parametrize("task, rows", documented_examples())
def test_documented_examples(task, rows, vision, tmp_path):
    assert task in FORMATS and len(rows) == 5
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
    assert {example.values[0] for example in documented_examples()} == set(FORMATS)


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


def test_copies_are_of_a_picture_that_nobody_knows(encoded):
    path = encoded({"image": pictures(2, size=(64, 64))}, num_variants=2)
    task, shares = task_of("copies", path), []
    stored = [cell["codes"] for cell in task.rows[1]["image"]]
    for seed in range(40):
        sample = task.sample(1, seeded(seed))
        ((_, (_, words)), (_, drawn)) = shape(sample)
        assert words in COPIES and drawn == ["IMAGE"]
        source, target = (picture["codes"] for picture in sample.pictures)
        assert source == target
        shares.append(min(turned(source, codes).mean() for codes in stored))
    assert min(shares) < 0.1 and 0.4 < max(shares) < 0.6
    (picture,) = task.sample(1, seeded(), without_text=True).pictures  # what pictures look like is not to be unlearnt
    assert picture["codes"] in stored
    assert set(task.texts()) == set(COPIES)


def turned(before: bytes, after: bytes) -> np.ndarray:
    """Which bits differ."""
    return np.unpackbits(np.frombuffer(before, np.uint8) ^ np.frombuffer(after, np.uint8)).astype(bool)


def test_the_same_bits_are_turned_over_in_all_pictures():
    before = [packed(0b1010, 20, 20), packed(0b0111, 20, 20)]
    after = turn_over(before, 0.2, seeded())
    one, other = (turned(old["codes"], new["codes"]) for old, new in zip(before, after, strict=True))
    assert np.array_equal(one, other) and one.mean() == pytest.approx(0.2, abs=0.02)
    assert turn_over(before, 0.0, seeded()) == before
    unlike = [packed(0, 2, 6), packed(0, 3, 4)]
    assert turn_over(unlike, 0.5, seeded()) == unlike


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
        (["a", "b", "c<|im_end|>"], r"row 2, column `instruction`: must not hold <\|im_end\|>"),
        ([1, 2, 3], r"column `instruction` must be text, it is typed Value\('int64'\)"),
        ([["a"], ["b"], ["c"]], r"column `instruction` must be text, it is typed List"),
    ],
)
def test_bad_texts_are_found_when_a_dataset_is_opened(encoded, words, message):
    with pytest.raises(ValueError, match=message):
        task_of("edits", encoded(edit_columns(instruction=words)))


@pytest.mark.parametrize(
    "captions, message",
    [
        ([["a"], []], r"row 1, column `text`: must be text or a list of texts, got an empty list"),
        ([["a"], [" "]], r"row 1, column `text`: must be text that is not empty, got ' '"),
        ([["a"], ["<|image_pad|>"]], r"row 1, column `text`: must not hold <\|image_pad\|>"),
    ],
)
def test_bad_lists_of_captions_are_found_when_read(encoded, captions, message):
    task = task_of("captions", encoded({"image": pictures(2), "text": captions}))
    task.sample(0, seeded())
    with pytest.raises(ValueError, match=message):
        task.sample(1, seeded())


def test_missing_pictures_are_found_when_read():
    """`encode-dataset` leaves such rows out; other programs that write Parquet may not."""
    row = Row({"after": None}, {"target": "after"}, "codes, row 1", seeded())
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


def test_sources_that_are_no_encoded_datasets_of_their_format(encoded, tmp_path):
    path = encoded({"image": pictures(1), "text": ["a"]})
    with pytest.raises(ValueError, match="there is no column `question`; there are image, text"):
        task_of("questions", path)
    with pytest.raises(ValueError, match="column `text` must be a picture; the columns with codes are image"):
        task_of("captions", path, columns={"image": "text"})
    with pytest.raises(ValueError, match="`columns` of .*: captions have no picture, but image, text"):
        task_of("captions", path, columns={"picture": "image"})
    with pytest.raises(ValueError, match="`task` of .* must be one of captions, questions, .*emoji_drawing.* got 'x'"):
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
        sample.codes(32)


# --- mixtures ---


def test_a_mixture_is_a_function_of_seed_and_number(emoji):
    sources = list(emoji.values())
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
    assert all(len(sample.messages) == 2 for _, sample in drawings.held_out(2))  # nothing is dropped of held-out rows


def test_held_out_rows_are_always_the_same(emoji):
    mixture = TaskMixture([emoji["emoji_drawing"], emoji["emoji_describing"]], seed=0)
    once, again = mixture.held_out(3), mixture.held_out(3)
    assert [number for number, _ in once] == list(range(6))
    assert [sample.messages for _, sample in once] == [sample.messages for _, sample in again]
    assert [sample.task for _, sample in once] == ["emoji_drawing"] * 3 + ["emoji_describing"] * 3
    assert len(mixture.held_out(1000)) == 2 * len(mixture.tasks[0])


def test_codes_of_another_image_tokenizer_are_refused(emoji, vision):
    mixture = TaskMixture([emoji["emoji_drawing"]], seed=0)
    mixture.check_encoder(encoder_fingerprint(vision))
    with pytest.raises(ValueError, match="not by this model's image tokenizer"):
        mixture.check_encoder(encoder_fingerprint(build_vision(seed=1)))


def test_an_empty_source_and_a_weight_of_zero(emoji, encoded):
    with pytest.raises(ValueError, match="`weight`"):
        TaskMixture([TaskSource(emoji["emoji_drawing"].path, "emoji_drawing", weight=0.0)], seed=0)


# --- emoji ---


def test_emoji_tasks(emoji):
    shapes = {}
    for name, source in emoji.items():
        mixture = TaskMixture([source], seed=0)
        samples = [mixture[number] for number in range(30)]
        assert all(len(sample.pictures) == len(sample.codes(16)) for sample in samples)
        shapes[name] = {
            tuple((m["role"], tuple(item["type"] for item in m["content"])) for m in sample.messages)
            for sample in samples
        }
    conversations = shapes.pop("emoji_conversations")
    assert shapes == {
        "emoji_drawing": {(("user", ("text",)), ("assistant", ("image",)))},
        "emoji_editing": {(("user", ("image", "text")), ("assistant", ("image",)))},
        "emoji_describing": {(("user", ("image", "text")), ("assistant", ("text",)))},
    }

    # Turns alternate, and each conversation shows a picture, draws one, and goes on after that.
    assert len(conversations) > 8
    for turns in conversations:
        assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert ("assistant", ("image",)) in turns and 2 <= len(turns) <= 12
    assert any(turns[0] == ("user", ("text",)) for turns in conversations)
    assert any(turns[0] == ("user", ("image", "text")) for turns in conversations)


def test_emoji_words_are_of_the_row(emoji):
    task = open_task(emoji["emoji_drawing"])
    seen = set()
    for seed in range(10 * len(task)):
        sample = task.sample(0, seeded(seed))
        row, words = task.rows[int(re.findall(r"row (\d+)", sample.origin)[0])], shape(sample)[0][1][0]
        seen.add(row["style"] in words)
        toned = row["name"] in words and row["tone"] and row["tone"] in words
        assert row["label"] in words or toned or any(keyword in words for keyword in row["keywords"])
    assert seen == {True, False}  # now and then the style is left open
    task = open_task(emoji["emoji_describing"])
    row = task.rows[0]
    caption = f"a {row['style']} emoji of {row['label']}"
    said = [[turn[1][-1] for turn in shape(task.sample(0, seeded(seed)))] for seed in range(80)]
    claims = {question: answer for question, answer in said if answer in ("yes", "no")}
    assert set(claims.values()) == {"yes", "no"}
    for question, answer in claims.items():
        true = {f"is this {row['name']}?", f"is it drawn in {row['style']} style?", f"does it have {row['tone']}?"}
        assert (answer == "yes") == (question in true)
    answers = {answer for question, answer in said if question not in claims}
    known = {row["name"], row["style"], row["group"], caption} | ({row["tone"]} if row["tone"] else set())
    assert answers == known
    assert {row["name"], row["label"], row["group"], "yes", "no"} <= set(task.texts())


def test_concepts_are_drawn_by_the_root_of_their_number_of_pictures(emoji):
    task = open_task(emoji["emoji_drawing"])
    places = [int(re.findall(r"row (\d+)", task.sample(0, seeded(seed)).origin)[0]) for seed in range(2000)]
    concepts = task.rows["concept"]
    drawn, pictures = Counter(concepts[place] for place in places), Counter(concepts)
    assert len(set(pictures.values())) > 1
    weights = {concept: count**0.5 for concept, count in pictures.items()}
    for concept, weight in weights.items():
        assert drawn[concept] / 2000 == pytest.approx(weight / sum(weights.values()), abs=0.03)
    assert set(places) == set(range(len(task)))


def test_edits_in_place_are_of_the_same_crop_of_both_pictures(fixtures, vision, tmp_path):
    from datasets import load_from_disk

    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]
    edits = str(fixtures / "emoji" / "edits" / "train")
    table = {(edit["source"], edit["target"]): edit["kind"] for edit in load_from_disk(edits)}
    table |= {(name, name): "copy" for name in rows["id"]}
    shown = {}
    for same_crops in (True, False):
        path = encode(rows, tmp_path / str(same_crops), vision, num_variants=3, same_crops=same_crops)
        for name in ("emoji_editing", "emoji_conversations", "emoji_drawing"):
            task = open_task(TaskSource(path=path, task=name, edits=edits))
            cells = [(row["id"], variant, cell) for row in task.rows for variant, cell in enumerate(row["image"])]
            variant_of = {cell["codes"]: (name, variant) for name, variant, cell in reversed(cells)}
            samples = [task.sample(0, seeded(seed)) for seed in range(150)]
            varied = ("part of it", "turned over")
            whole = [sample for sample in samples if not any(words in sample.origin for words in varied)]
            assert (len(whole) < len(samples)) == (same_crops and name == "emoji_editing")
            if name == "emoji_editing":  # what guidance is measured against is no crop
                silent = [task.sample(0, seeded(seed), without_text=True).pictures for seed in range(50)]
                assert {variant_of[cell["codes"]][1] for (cell,) in silent} == {0}
            shown[name, same_crops] = [[variant_of[cell["codes"]] for cell in sample.pictures] for sample in whole]

    for name in ("emoji_editing", "emoji_conversations"):
        for drawn in shown[name, True]:
            variants = {variant for _, variant in drawn}
            assert len(variants) == 1
            changes = zip(drawn, drawn[1:], strict=False)
            kinds = {table[before, after] for (before, _), (after, _) in changes}
            assert variants == {0} or kinds <= set(EDITS_IN_PLACE)
        assert {variant for drawn in shown[name, True] for _, variant in drawn} == {0, 1, 2}
        assert {variant for drawn in shown[name, False] for _, variant in drawn} == {0}
    assert {variant for drawn in shown["emoji_drawing", True] for _, variant in drawn} == {0}


def packed(value: int, height: int = 3, width: int = 4) -> dict:
    return {"codes": bytes([value]) * (2 * height * width), "height": height, "width": width}


def test_patchwork_takes_one_band_of_all_pictures():
    ours, others = [packed(0), packed(1)], [packed(2), packed(3)]
    bands = set()
    for seed in range(100):
        mixed = [
            np.frombuffer(cell["codes"], np.uint8).reshape(3, 4, 2) for cell in patchwork(ours, others, seeded(seed))
        ]
        taken = mixed[0] == 2
        assert np.array_equal(mixed[0], np.where(taken, 2, 0)) and np.array_equal(mixed[1], np.where(taken, 3, 1))
        bands.add(taken[..., 0].astype(int).tobytes())
    rows = [np.arange(3)[:, None] < line for line in (1, 2)]
    columns = [np.arange(4)[None] < line for line in (1, 2, 3)]
    one_side = [np.broadcast_to(band, (3, 4)) for band in (*rows, *columns)]
    assert bands == {side.astype(int).tobytes() for band in one_side for side in (band, ~band)}


def test_patchwork_of_unlike_sizes_or_of_one_token_is_none():
    ours = [packed(0), packed(1)]
    for others in ([packed(2), packed(3, 4, 3)], [packed(2, 2, 6), packed(3, 2, 6)]):
        assert patchwork(ours, others, seeded(0)) == ours
    assert patchwork([packed(0, 1, 1)], [packed(1, 1, 1)], seeded(0)) == [packed(0, 1, 1)]


@pytest.fixture(scope="module")
def edits_of_crops(fixtures, vision, tmp_path_factory):
    """`emoji_described_editing` of three variants of each picture, and the rows of its table of edits."""
    from datasets import load_from_disk

    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]
    edits = str(fixtures / "emoji" / "edits" / "train")
    path = encode(rows, tmp_path_factory.mktemp("crops") / "codes", vision, num_variants=3, same_crops=True)
    task = open_task(TaskSource(path=path, task="emoji_described_editing", edits=edits))
    return task, load_from_disk(edits).to_list()


def test_edits_of_a_patchwork_are_told_the_same(edits_of_crops):
    task, edits = edits_of_crops
    table = {(edit["source"], edit["target"], edit["instruction"]) for edit in edits}
    ids, mixed = list(task.rows["id"]), 0

    def tokens(cell):
        return np.frombuffer(cell["codes"], np.uint8).reshape(cell["height"] * cell["width"], -1)

    for seed in range(150):
        sample = task.sample(0, seeded(seed))
        if "part of it" not in sample.origin or "turned over" in sample.origin:
            continue
        words = sample.messages[0]["content"][1]["text"]
        places = list(map(int, re.findall(r"row (\d+)", sample.origin)))  # source, target, the other's source, target
        for source, target in (places[:2], places[2:]):
            is_copy = words in COPIES and source == target
            assert is_copy or (ids[source], ids[target], words) in table
        fits = []
        for variant in range(3):  # every token is one of the two edits', of one variant
            pairs = [
                [tokens(task.rows[place]["image"][variant]) for place in sides]
                for sides in zip(places[:2], places[2:])
            ]
            shown = [tokens(picture) for picture in sample.pictures]
            fits.append(
                all(
                    ((own == picture).all(1) | (other == picture).all(1)).all()
                    for picture, (own, other) in zip(shown, pairs, strict=True)
                )
            )
            mixed += fits[-1] and not any(np.array_equal(shown[0], whole) for whole in pairs[0])
        assert any(fits)
    assert mixed > 10


def test_bits_are_turned_over_in_source_and_target(edits_of_crops):
    task, edits = edits_of_crops
    table = {(edit["source"], edit["target"]): edit["kind"] for edit in edits}
    ids, kinds, shares = list(task.rows["id"]), set(), []
    for seed in range(300):
        origin = (sample := task.sample(0, seeded(seed))).origin
        if "turned over" not in origin or "part of it" in origin:
            continue
        places = list(map(int, re.findall(r"row (\d+)", origin)))
        kinds.add("copy" if places[0] == places[1] else table[tuple(ids[place] for place in places)])
        masks = [
            [turned(task.rows[place]["image"][variant]["codes"], shown["codes"]) for variant in range(3)]
            for place, shown in zip(places, sample.pictures, strict=True)
        ]
        (variant,) = [v for v in range(3) if np.array_equal(masks[0][v], masks[1][v])][:1]
        shares.append(masks[0][variant].mean())
    assert kinds <= set(FAITHFUL_EDITS) and {"tone", "copy"} <= kinds
    assert len(shares) > 20 and 0.15 < max(shares) < MOST_TURNED_OVER_IN_EDITS + 0.1


def test_edits_are_described_before_they_are_drawn(edits_of_crops):
    """Only where the label fits the picture or a crop of it, and not where nothing changes."""
    task, _ = edits_of_crops
    described, others = 0, 0
    for seed in range(300):
        sample = task.sample(0, seeded(seed), without_text=seed % 10 == 0)
        *first, drawn = sample.messages[-1]["content"]
        assert drawn == IMAGE_ITEM and sample.messages[-1]["role"] == "assistant"
        source, target = list(map(int, re.findall(r"row (\d+)", sample.origin)))[:2]
        is_varied = "part of it" in sample.origin or "turned over" in sample.origin
        if seed % 10 == 0 or is_varied or source == target:
            assert not first
            continue
        row = task.rows[target]
        if first:
            assert first == [{"type": "text", "text": f"a {row['style']} emoji of {row['label']}"}]
        described, others = described + len(first), others + 1 - len(first)
    assert abs(described / (described + others) - DESCRIBE_CHANCE) < 0.15


def test_emoji_conversations_follow_the_edits(emoji):
    from datasets import load_from_disk

    source = emoji["emoji_conversations"]
    task = open_task(source)
    table = {(edit["source"], edit["instruction"], edit["target"]) for edit in load_from_disk(source.edits)}
    rows = {tuple(row["image"][0]["codes"]): row for row in task.rows}
    for seed in range(60):
        sample = task.sample(0, seeded(seed))
        shown = iter([rows[tuple(picture["codes"])] for picture in sample.pictures])
        last, words, edits = None, None, 0
        for message in sample.messages:
            for item in message["content"]:
                if item["type"] == "image":
                    before, last = last, next(shown)
                    if message["role"] == "assistant" and before is not None:
                        assert (before["id"], words, last["id"]) in table
                        edits += 1
                else:
                    words = item["text"]
        assert 1 <= edits <= 2 and next(shown, None) is None
        assert len(sample.pictures) == edits + 1


def test_emoji_edits_are_those_of_the_table_and_copies(emoji, fixtures):
    from datasets import load_from_disk

    task = open_task(emoji["emoji_editing"])
    table = load_from_disk(emoji["emoji_editing"].edits).to_list()
    known = {(edit["source"], edit["instruction"], edit["target"]) for edit in table}
    ids = list(task.rows["id"])
    kinds, copies = set(), 0
    for seed in range(60):
        sample = task.sample(0, seeded(seed))
        source, target = map(int, re.findall(r"row (\d+)", sample.origin))
        instruction = sample.messages[0]["content"][1]["text"]
        assert sample.pictures[1]["codes"] == task.rows[target]["image"][0]["codes"]
        if instruction in COPIES:
            assert source == target == 0
            copies += 1
            continue
        assert (ids[source], instruction, ids[target]) in known
        kinds |= {edit["kind"] for edit in table if (edit["source"], edit["target"]) == (ids[source], ids[target])}
    assert 0 < copies < 20
    assert len(kinds) == len({edit["kind"] for edit in table})
    assert {instruction for _, instruction, _ in known} | set(COPIES) == set(task.texts())


def test_emoji_edits_without_their_table(emoji, fixtures):
    path = emoji["emoji_editing"].path
    with pytest.raises(ValueError, match="emoji_editing needs a split of edits"):
        task_of("emoji_editing", path)
    with pytest.raises(ValueError, match="`edits` .* is no split of `uniwetok data emoji`"):
        task_of("emoji_editing", path, edits=str(fixtures / "emoji" / "edits"))
    with pytest.raises(ValueError, match="none of them is between two pictures"):
        task_of("emoji_editing", path, edits=str(fixtures / "emoji" / "edits" / "test"))
