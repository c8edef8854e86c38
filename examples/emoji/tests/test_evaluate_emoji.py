"""The protocol of the emoji set: rivals, candidates and scores, with judges that a test can see through."""

import evaluate_emoji as emoji
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from evaluate_emoji import (
    QUESTIONS,
    CaptionScore,
    PixelScore,
    caption_of,
    choose_by_group,
    choose_edits,
    combination_edits,
    edit_rows,
    evaluate_drawings,
    evaluate_edits,
    evaluate_naming,
    evaluate_words,
    question_rows,
    rival_captions,
    rows_by_group,
)
from PIL import Image
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline
from uniwetok_hf.cli.main import main
from uniwetok_hf.evaluation.editing import edit_pairs


STYLES = {"flat": 0, "noto": 100, "shaded": 200}
TONES = {"": 0, "light skin tone": 60, "dark skin tone": 120}
PEOPLE, ANIMALS, FOOD = "people-body", "animals-nature", "food-drink"
NAMES = {"hand": (PEOPLE, 30), "man": (PEOPLE, 90), "woman": (PEOPLE, 150), "cat": (ANIMALS, 210)}


def make_rows():
    """Every name in every style and tone, as a picture of one colour that tells them."""
    rows = []
    for name, (group, red) in NAMES.items():
        for style, green in STYLES.items():
            for tone, blue in TONES.items():
                row = {"name": name, "concept": name, "group": group, "style": style, "tone": tone}
                row |= {"id": f"{style}/{name}-{tone}", "hexcode": f"{name}-{tone}"}
                row["label"] = f"{name}: {tone}" if tone else name
                row["image"] = Image.new("RGB", (64, 64), (red, green, blue))
                rows.append(row)
    return rows


ROWS = make_rows()


class TrueJudge:
    """Knows the colour of every caption and label."""

    seen = "no"

    def describe(self):
        return "colours"

    def embed_images(self, images):
        return np.array([np.asarray(image, dtype=np.float64).mean((0, 1)) - 127 for image in images])

    def embed_texts(self, texts):
        colours = {caption_of(row): row["image"] for row in ROWS} | {row["label"]: row["image"] for row in ROWS}
        return self.embed_images([colours[text] for text in texts])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rivals_are_of_the_group_the_name_and_the_style(monkeypatch):
    monkeypatch.setattr(emoji, "SAME_GROUP", 5)
    monkeypatch.setattr(emoji, "SAME_NAME", 2)
    monkeypatch.setattr(emoji, "NUM_RIVALS", 9)
    by_caption = {caption_of(row): row for row in ROWS}
    for row in (row for row in ROWS if row["group"] == PEOPLE):
        rivals = rival_captions(row, ROWS, seeded())
        assert len(rivals) == len(set(rivals)) == 9 and caption_of(row) not in rivals
        found = [by_caption[rival] for rival in rivals]
        assert all(other["group"] == row["group"] for other in found[:5])
        assert all(other["name"] == row["name"] for other in found[5:7])
        assert all(other["style"] == row["style"] and other["name"] != row["name"] for other in found[7:])
    assert rival_captions(ROWS[0], ROWS, seeded(0)) != rival_captions(ROWS[0], ROWS, seeded(1))


def test_there_may_be_too_few_rivals():
    few = [row for row in ROWS if row["name"] == "cat"]
    assert len(rival_captions(few[0], few, seeded())) == 8


def test_caption_scores():
    captions, rivals = [caption_of(row) for row in ROWS], [rival_captions(row, ROWS, seeded()) for row in ROWS]
    score = CaptionScore(TrueJudge(), captions, rivals)
    real = [row["image"] for row in ROWS]
    assert score(real) == [True] * len(ROWS)
    assert score.chances == [1 / (1 + len(row)) for row in rivals]
    assert score([*real[1:], real[0]]) == [False] * len(ROWS)


def test_pixels_are_compared_with_others_of_the_style_and_group():
    score = PixelScore(ROWS, ROWS, seeded())
    real = [row["image"] for row in ROWS]
    # Of people, the other two in three skin tones; no other animal: a choice of one can't be wrong.
    assert score.chances == [1 / 7 if row["group"] == PEOPLE else 1 for row in ROWS]
    assert score(real) == [True] * len(ROWS)
    shown = dict(zip((row["id"] for row in ROWS), score([ROWS[0]["image"]] * len(ROWS)), strict=True))
    assert shown["flat/hand-"] and shown["noto/hand-"] and not shown["flat/man-"]  # the style is not asked for


def test_rows_are_chosen_evenly_over_groups_and_concepts():
    rows = [dict(row, concept=f"{row['name']}{row['tone']}") for row in ROWS]
    chosen = choose_by_group(rows, 6, seed=0)
    assert [row["group"] for row in chosen].count(PEOPLE) == 6 and len(chosen) == 12
    assert len({row["concept"] for row in chosen if row["group"] == ANIMALS}) == 3  # all that there are
    assert len({row["concept"] for row in chosen if row["group"] == PEOPLE}) == 6
    assert chosen == [row for row in rows if row in chosen] == choose_by_group(rows, 6, seed=0)
    assert chosen != choose_by_group(rows, 6, seed=1)


def test_edits_are_chosen_evenly_over_groups():
    edits = [{"target": name} for name in ["man"] * 8 + ["cat"] * 2 + ["pie"] * 5]
    groups = {"man": PEOPLE, "cat": ANIMALS, "pie": FOOD}
    chosen = choose_edits(edits, groups, lambda group: group != PEOPLE, 5, seed=0)
    assert [edits[index]["target"] for index in chosen] == ["cat"] * 2 + ["pie"] * 3
    assert choose_edits(edits, groups, lambda group: group == "flags", 5, seed=0) == []


def test_the_mean_over_things_gives_each_group_the_same_weight():
    groups = [PEOPLE] * 4 + [ANIMALS] * 3 + [FOOD]
    right = [True] * 4 + [True, False, False] + [True]
    rows = rows_by_group({"what": "model", "of": "x"}, groups, {"r_precision": (right, [0.5] * 4 + [0.1] * 3 + [0.3])})
    found = {row.labels["group"]: row for row in rows}
    assert list(found) == ["things", "people", "animals", "food"]
    things = found["things"].scores["r_precision"]
    assert things.value == pytest.approx((1 / 3 + 1) / 2) and things.chance == pytest.approx(0.2) and things.count == 4
    assert things.interval[0] < things.value < things.interval[1]
    assert found["people"].scores["r_precision"].value == 1.0 and found["people"].scores["r_precision"].chance == 0.5
    assert [row.for_card for row in rows] == [True, True, False, False]


def test_wrong_results_of_edits():
    """The target in the other styles, and the source in the other skin tones."""
    edits = [
        {"source": "noto/hand-", "target": "noto/hand-dark skin tone", "instruction": "darker", "kind": "tone"},
        {"source": "noto/man-", "target": "flat/man-", "instruction": "flat", "kind": "style"},
    ]
    one, other = edit_pairs(combination_edits(edits, ROWS, [0, 1]), by="kind")
    known = {row["image"].getpixel((0, 0)): row["id"] for row in ROWS}
    assert [known[picture.getpixel((0, 0))] for picture in one.others] == [
        "flat/hand-dark skin tone",
        "shaded/hand-dark skin tone",
        "noto/hand-light skin tone",
    ]
    assert (one.instruction, one.kind) == ("darker", "tone")
    assert known[one.target.getpixel((0, 0))] == "noto/hand-dark skin tone"
    assert [known[picture.getpixel((0, 0))] for picture in other.others] == [
        "shaded/man-",
        "noto/man-light skin tone",
        "noto/man-dark skin tone",
    ]
    assert len(combination_edits(edits, ROWS, [1])) == 1


@pytest.fixture(scope="module")
def pipe():
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_drawings_and_their_ceilings(pipe, monkeypatch):
    asked = {}

    def generate(pipe, prompts, seed, batch_size, **call):
        asked["prompts"] = prompts
        return [ROWS[index]["image"] for index in range(len(prompts))]

    monkeypatch.setattr(emoji, "generate_all", generate)
    rows = evaluate_drawings(pipe, ROWS[:6], ROWS, TrueJudge(), "known")
    assert asked["prompts"][0] == "a flat emoji of hand" and len(asked["prompts"]) == 6
    found = {row.labels["what"]: row for row in rows}
    assert {(row.labels["of"], row.labels["group"]) for row in rows} == {("drawings, known", "people")}
    assert list(found) == ["model", "real, through the codes", "real"]
    assert set(found["model"].scores) == {"r_precision", "nearest_by_pixels"}
    assert set(found["real"].scores) == {"r_precision"}
    assert all(score.value == 1.0 and score.count == 6 for score in found["model"].scores.values())


def test_edits_and_their_ceiling(pipe):
    edits = [{"source": "noto/hand-", "target": "noto/hand-dark skin tone", "instruction": "darker", "kind": "tone"}]
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    edits = combination_edits(edits, ROWS, [0])
    rows = evaluate_edits(edit_pipe, pipe, edits, TrueJudge(), "all", num_inference_steps=2).rows
    names = ["model", "copy of the source", "words alone", "targets, through the codes"]
    assert [row.labels["what"] for row in rows] == names
    assert {row.labels["of"] for row in rows} == {"edits, all"}
    assert rows[1].scores["nearest_by_judge"].value == 0 and rows[0].scores["nearest_by_pixels"].chance == 0.2


def test_names_styles_and_tones_are_asked_apart(pipe, monkeypatch):
    rows_of, columns = {id(row["image"]): row for row in ROWS}, {text: name for name, text in QUESTIONS.items()}

    def answer(mllm, processor, pictures, questions, batch_size):
        asked = [(rows_of[id(picture)], columns[text]) for picture, text in zip(pictures, questions, strict=True)]
        return [row[column].upper() if column != "tone" else "pink" for row, column in asked]

    monkeypatch.setattr(emoji, "answer_all", answer)
    rows = evaluate_naming(pipe.mllm, pipe.processor, ROWS, ROWS, TrueJudge(), "known")
    found = {
        (row.labels["what"], row.labels["of"].removesuffix(", known")): row.scores["exact_match"]
        for row in rows
        if row.labels["group"] == "people"
    }
    assert found["model", "names"].value == found["model", "styles"].value == 1.0
    for kind in ("names", "styles"):  # a blind answer knows the group: people have three names here
        assert found["model", kind].chance == pytest.approx(1 / 3)
    assert found["model", "tones"].value == 0.0 and found["model", "tones"].count == 18  # yellow ones have no tone
    assert found["judge, real", "names"].value > 0.6 and found["judge, real", "names"].chance == 0.25


def test_answers_of_unseen_concepts_are_names_of_the_set(pipe, monkeypatch):
    answers = iter(["Cat.", "catwoman", "woman", "man man"])
    monkeypatch.setattr(emoji, "answer_all", lambda *args, **options: list(answers))
    [row] = evaluate_words(pipe.mllm, pipe.processor, ROWS[:4], ROWS)
    assert row.scores["exact_match"].value == 0.5 and row.labels["group"] == "people"


def plain(red):
    return Image.new("RGB", (64, 64), (red, 0, 0))


def test_wrong_results_are_other_edits_of_the_source_first():
    names = ["noto/a", "noto/a-1", "noto/a-2", "noto/twin", "noto/b", "flat/a", "flat/b"]
    pictures = {name: plain(10 * index) for index, name in enumerate(names)}
    pictures["noto/twin"] = pictures["noto/a-1"].copy()  # the same picture under another name
    rows = [
        {"source": "noto/a", "target": "noto/a-1", "instruction": "one", "kind": "tone"},
        {"source": "noto/a", "target": "noto/a-2", "instruction": "two", "kind": "tone"},
        {"source": "noto/a", "target": "flat/a", "instruction": "flat", "kind": "style"},
    ]
    for seed in range(5):
        (first,) = edit_rows(rows, pictures, [0], num_others=2, seed=seed)
        assert {image.getpixel((0, 0))[0] for image in first["others"]} == {20, 50}  # the two other targets
        (all_of_them,) = edit_rows(rows, pictures, [0], num_others=9, seed=seed)
        # Then Noto's others: not source, target or twin.
        assert sorted(image.getpixel((0, 0))[0] for image in all_of_them["others"]) == [20, 40, 50]
    assert first["kind"] == "tone" and first["instruction"] == "one"
    assert first["source"] is pictures["noto/a"] and first["target"] is pictures["noto/a-1"]


def test_pictures_are_asked_what_they_have_an_answer_to(fixtures):
    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]
    questions = question_rows(rows)
    assert len(questions) == 3 * len(rows) + sum(tone != "" for tone in rows["tone"])
    assert {row["kind"]: row["question"] for row in questions} == QUESTIONS
    assert questions[0]["answer"] == rows[0]["name"]


def test_the_set_is_data_of_the_command(fixtures, tmp_path, monkeypatch):
    """The protocols of the library on the edits and questions of the set, by place."""
    place, folder = emoji.__file__, tmp_path / "pipeline"
    build_tiny_pipeline().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(fixtures)
    for protocol, function in (("editing", "load_edits"), ("captioning", "load_questions")):
        command = ["evaluate", protocol, f"{place}:{function}", "--split", "test_combinations", "--by", "kind"]
        command += ["--model", str(folder), "--count", "4"]
        assert main(command + (["--steps", "1"] if protocol == "editing" else ["--max-new-tokens", "2"])) == 0
        table = (tmp_path / "results" / protocol / "results.md").read_text()
        assert f"on evaluate_emoji.py:{function}, test_combinations" in table and "| model |" in table
