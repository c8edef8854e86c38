"""The recipe's tasks of the language model: conversations of the set's pictures, labels and edits."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from emoji_tasks import KEEP_INSTRUCTIONS, QUESTIONS, with_article
from tiny_encoded import LANGUAGE, build_vision, encode, run
from tiny_training import write

from uniwetok_hf.data.text import train_text_vocabulary
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.tasks import TaskMixture, TaskSource, open_task
from uniwetok_hf.training.train_mllm import MLLMTrainingConfig


TASKS = Path(__file__).parent.parent / "emoji_tasks.py"


@pytest.fixture(scope="module")
def vision():
    return build_vision()


@pytest.fixture(scope="module")
def emoji(fixtures, vision, tmp_path_factory):
    """A source of each task, by the name of its class, on the training split of the fixture."""
    folder = tmp_path_factory.mktemp("emoji")
    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]
    path = encode(rows, folder / "codes", vision, num_variants=3, same_crops=True)
    edits = {"edits": str(fixtures / "emoji" / "edits" / "train")}
    options = {"EmojiGeneration": {}, "EmojiQuestions": {}, "EmojiEditing": edits, "EmojiConversations": edits}
    options["EmojiDescribedEditing"] = edits
    return {name: TaskSource(path, f"{TASKS}:{name}", options=more) for name, more in options.items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape(sample) -> list:
    """Who says what, with pictures as IMAGE."""
    return [
        (message["role"], [item.get("text", "IMAGE") for item in message["content"]]) for message in sample.messages
    ]


def test_shapes(emoji):
    shapes = {}
    for name, source in emoji.items():
        mixture = TaskMixture([source], seed=0)
        samples = [mixture[number] for number in range(30)]
        assert all(len(sample.pictures) == len(sample.codes(16)) for sample in samples)
        shapes[name] = {
            tuple((m["role"], tuple(item["type"] for item in m["content"])) for m in sample.messages)
            for sample in samples
        }
    conversations = shapes.pop("EmojiConversations")
    assert shapes == {
        "EmojiGeneration": {(("user", ("text",)), ("assistant", ("image",)))},
        "EmojiEditing": {(("user", ("image", "text")), ("assistant", ("image",)))},
        "EmojiDescribedEditing": {
            (("user", ("image", "text")), ("assistant", ("text", "image"))),
            (("user", ("image", "text")), ("assistant", ("image",))),
        },
        "EmojiQuestions": {
            (
                ("user", ("image", "text")),
                ("assistant", ("text",)),
                *[("user", ("text",)), ("assistant", ("text",))] * 2,
            )
        },
    }

    # Turns alternate, and each conversation has a picture, generates one, and goes on after that.
    assert len(conversations) > 8
    for turns in conversations:
        assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert ("assistant", ("image",)) in turns and 2 <= len(turns) <= 12
    assert any(turns[0] == ("user", ("text",)) for turns in conversations)
    assert any(turns[0] == ("user", ("image", "text")) for turns in conversations)


def test_words_are_of_the_row(emoji):
    task = open_task(emoji["EmojiGeneration"])
    seen = set()
    for seed in range(10 * len(task)):
        sample = task.sample(0, seeded(seed))
        row, words = task.rows[int(re.findall(r"row (\d+)", sample.origin)[0])], shape(sample)[0][1][0]
        seen.add(row["style"] in words)
        toned = row["name"] in words and row["tone"] and row["tone"] in words
        assert row["label"] in words or toned or any(keyword in words for keyword in row["keywords"])
    assert seen == {True, False}  # now and then the style is left open
    task = open_task(emoji["EmojiQuestions"])
    answered, claims, first = set(), set(), Counter()
    for seed in range(300):
        sample = task.sample(0, seeded(seed))
        row = task.rows[int(re.findall(r"row (\d+)", sample.origin)[0])]
        words = [turn[1][-1] for turn in shape(sample)]
        kinds = []
        for question, answer in zip(words[::2], words[1::2], strict=True):
            if answer in ("yes", "no"):
                true = {
                    f"is this {row['name']}?",
                    f"is it drawn in {row['style']} style?",
                    f"does it have {row['tone']}?",
                }
                assert (answer == "yes") == (question in true)
                claims.add(answer)
                kinds.append("claim")
                continue
            known = {key: row[key] for key in ("name", "style", "group", "tone")}
            known["caption"] = f"a {row['style']} emoji of {row['label']}"
            (kind,) = (key for key, value in known.items() if value == answer)
            assert question in QUESTIONS[kind]
            kinds.append(kind)
        assert len(set(kinds)) == 3 and "name" in kinds  # no question twice, and always what it is
        first[kinds[0] == "name"] += 1
        answered.update(kinds)
    assert answered == {*QUESTIONS, "claim"} and claims == {"yes", "no"}
    assert first[True] / 300 == pytest.approx(1 / 3, abs=0.1)  # at each of the three places
    row = task.rows[0]
    assert {*row["name"].split(), row["group"], "yes", "no"} <= set(task.texts())


@pytest.mark.parametrize("name", ["EmojiGeneration", "EmojiQuestions"])
def test_concepts_are_sampled_by_the_root_of_their_pictures_and_styles_uniformly(emoji, name):
    task = open_task(emoji[name])
    places = [int(re.findall(r"row (\d+)", task.sample(0, seeded(seed)).origin)[0]) for seed in range(2000)]
    concepts, styles = list(task.rows["concept"]), list(task.rows["style"])
    pairs = set(zip(concepts, styles, strict=True))
    roots = {concept: count**0.5 for concept, count in Counter(concepts).items()}
    assert len(set(roots.values())) > 1
    drawn = Counter((concepts[place], styles[place]) for place in places)
    for concept, style in pairs:
        share = roots[concept] / sum(roots.values()) / sum(other == concept for other, _ in pairs)
        assert drawn[concept, style] / 2000 == pytest.approx(share, abs=0.02)
    assert set(places) == set(range(len(task)))


def test_edits_are_sampled_by_kind_and_concept(emoji):
    task = open_task(emoji["EmojiEditing"])
    concepts = list(task.rows["concept"])
    drawn = [task.edits.sample(seeded(seed)) for seed in range(3000)]
    styles = Counter(concepts[edit.source] for edit in drawn if edit.kind == "style")
    # The waving hand has most changes of style, in every skin tone.
    assert max(styles.values()) < 1.6 * min(styles.values())


def test_texts_for_the_vocabulary_have_every_word_alike(emoji):
    """Labels of toned people, and words of every group, as often as each other; each word becomes one entry."""
    texts = list(open_task(emoji["EmojiGeneration"]).texts())
    counts = Counter(texts)
    for word in ("heart", "waving", "genie", "three"):
        assert counts[word] == 2 and counts[f" {word}"] in (2, 3)  # 3 where it is a keyword, too
    assert counts["waving hand: dark skin tone"] == 0
    keywords = {keyword for found in open_task(emoji["EmojiGeneration"]).rows["keywords"] for keyword in found}
    assert all(counts[f" {keyword}"] >= 1 for keyword in keywords)
    vocabulary = train_text_vocabulary(texts, 2000, 4)
    for prompt in ("a noto emoji of red heart", "draw woman genie in fluent flat style"):
        assert len(vocabulary.tokenize(prompt)) == len(prompt.split())


def test_rare_keywords_and_articles_are_prompts(emoji):
    task = open_task(emoji["EmojiGeneration"])
    prompts = {shape(task.sample(0, seeded(seed)))[0][1][0] for seed in range(3000)}
    assert {"a noto emoji of a red heart", "red heart"} <= prompts
    assert with_article("apple") == "an apple" and with_article("red apple") == "a red apple"
    counts = Counter(
        keyword
        for found in dict(zip(task.column("concept"), task.column("keywords"), strict=True)).values()
        for keyword in found
    )
    assert task.rare == {keyword for keyword, count in counts.items() if count <= 3}


def test_edits_are_described_first(emoji):
    """By the caption of the result, and not where nothing changes."""
    task = open_task(emoji["EmojiDescribedEditing"])
    described, others = 0, 0
    for seed in range(300):
        sample = task.sample(0, seeded(seed), without_text=seed % 10 == 0)
        *first, generated = sample.messages[-1]["content"]
        assert generated == {"type": "image"} and sample.messages[-1]["role"] == "assistant"
        source, target = map(int, re.findall(r"row (\d+)", sample.origin))
        if seed % 10 == 0 or source == target:
            assert not first
            continue
        row = task.rows[target]
        if first:
            assert first == [{"type": "text", "text": f"a {row['style']} emoji of {row['label']}"}]
        described, others = described + len(first), others + 1 - len(first)
    assert abs(described / (described + others) - 0.6) < 0.1
    never = open_task(
        TaskSource(
            task.path,
            f"{TASKS}:EmojiDescribedEditing",
            options=emoji["EmojiEditing"].options | {"describe_probability": 0.0},
        )
    )
    assert all(len(never.sample(0, seeded(seed)).messages[-1]["content"]) == 1 for seed in range(50))


def test_EmojiConversations_follow_the_edits(emoji):
    source = emoji["EmojiConversations"]
    task = open_task(source)
    table = {(edit["source"], edit["instruction"], edit["target"]) for edit in load_from_disk(source.options["edits"])}
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


def test_edits_are_those_of_the_table_and_kept_pictures(emoji):
    task = open_task(emoji["EmojiEditing"])
    table = load_from_disk(emoji["EmojiEditing"].options["edits"]).to_list()
    known = {(edit["source"], edit["instruction"], edit["target"]) for edit in table}
    ids = list(task.rows["id"])
    kinds, copies = set(), 0
    for seed in range(60):
        sample = task.sample(0, seeded(seed))
        source, target = map(int, re.findall(r"row (\d+)", sample.origin))
        instruction = sample.messages[0]["content"][1]["text"]
        assert sample.pictures[1]["codes"] == task.rows[target]["image"][0]["codes"]
        if instruction in KEEP_INSTRUCTIONS:
            assert source == target
            copies += 1
            continue
        assert (ids[source], instruction, ids[target]) in known
        kinds |= {edit["kind"] for edit in table if (edit["source"], edit["target"]) == (ids[source], ids[target])}
    assert 0 < copies < 20
    assert len(kinds) == len({edit["kind"] for edit in table})
    assert {instruction for _, instruction, _ in known} | set(KEEP_INSTRUCTIONS) == set(task.texts())


def test_edits_without_their_table(emoji, fixtures):
    def open_with(**options):
        return open_task(TaskSource(emoji["EmojiEditing"].path, f"{TASKS}:EmojiEditing", options=options))

    with pytest.raises(ValueError, match="`options` of .*: EmojiEditing missing a required argument: 'edits'"):
        open_with()
    with pytest.raises(ValueError, match="`edits` .* is no split of edits, such as data/emoji/edits/train"):
        open_with(edits=str(fixtures / "emoji" / "edits"))
    with pytest.raises(ValueError, match="none of them is between two pictures"):
        open_with(edits=str(fixtures / "emoji" / "edits" / "test"))


def test_a_training_finds_its_tasks_from_any_folder(emoji, vision, tmp_path, monkeypatch):
    """They are named beside the YAML file; the run's `config.json` holds where they are."""
    vision.save_pretrained(tmp_path / "vision")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "my_tasks.py").write_text(
        f"import sys\nsys.path.append({str(TASKS.parent)!r})\nfrom emoji_tasks import *\n"
    )
    sources = [
        {"path": source.path, "task": f"my_tasks.py:{name}", "options": source.options}
        for name, source in emoji.items()
    ]
    fields = {**LANGUAGE, "data": sources, "vision_model": str(tmp_path / "vision"), "max_train_steps": 2}
    path = write(tmp_path / "recipe", fields, output_dir=str(tmp_path / "recipe" / "run"))
    monkeypatch.chdir(tmp_path)
    config = read_config(MLLMTrainingConfig, path)
    assert config.data[0].task == f"{tmp_path}/recipe/my_tasks.py:EmojiGeneration"
    folder = run(fields, tmp_path / "recipe")
    monkeypatch.chdir(folder)
    assert read_config(MLLMTrainingConfig, folder / "config.json") == read_config(MLLMTrainingConfig, path)
    # A pipeline may be published, and its record says nothing of where files lie.
    assert str(tmp_path / "recipe" / "my_tasks.py") not in (folder / "pipeline" / "training.json").read_text()
    assert "my_tasks.py:EmojiGeneration" in (folder / "pipeline" / "training.json").read_text()
    log = (folder / "log.jsonl").read_text()
    assert "image_loss_EmojiGeneration" in log and "text_loss_EmojiQuestions" in log
