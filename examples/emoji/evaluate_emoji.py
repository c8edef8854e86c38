# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The emoji set's own protocol: does the model draw, edit and name what it knows, and what it never saw together?

    python examples/emoji/evaluate_emoji.py data/emoji --judge examples/emoji/weights/emoji_judge

Every score is given for each of the nine groups of emoji, and as the mean over the eight groups that are no people:
there are more pictures of people than of all else. Three sets of pictures: `known`, which training showed; `new
styles`, known things in a style that training left out; `new combinations` of people, style and skin tone.

- Drawings: R-precision, of 32 captions (its own, 16 of the same group, 8 of the same name in another style or tone, 7
  of the same style and another name) the judge finds the picture's own most similar; and a second witness without a
  network, of 32 pictures of the same style and group the picture's own is the nearest by pixels.
- Edits: of the true target, the source, the target in the other styles and the source in the other skin tones, the
  target is the nearest to the result, by pixels and by the judge.
- Names: name without skin tone, style and skin tone, each asked for by itself and right when the words are the same;
  of concepts that training left out, whether the answer is a name of the set at all.

Beside the model stand the ceilings: the same scores of the real pictures, and of the real pictures after the image
tokenizer. Names are another task for the judge, which can't write: it chooses among all labels of the row's skin tone.

`load_edits` and `load_questions` give the set to the protocols of the library:

    uniwetok evaluate generation data/emoji --prompt "a {style} emoji of {label}" --within style
    uniwetok evaluate editing examples/emoji/evaluate_emoji.py:load_edits --by kind
    uniwetok evaluate captioning examples/emoji/evaluate_emoji.py:load_questions --by kind
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from datasets import load_from_disk
from emoji_packages import GROUPS, PEOPLE
from PIL import Image

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline, embedded_path
from uniwetok_hf.evaluation.captioning import answer_all
from uniwetok_hf.evaluation.choices import cosines, nearest_is_own, thumbnail, top_k_outcomes
from uniwetok_hf.evaluation.editing import distinct_pictures, evaluate_editing
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.intervals import Score, mean_of_scores, share_score
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.reconstruction import reconstruct_all
from uniwetok_hf.evaluation.reports import Report, ScoreRow
from uniwetok_hf.evaluation.rows import picture_of
from uniwetok_hf.evaluation.words import exact_match, normalize_answer
from uniwetok_hf.provenance import short_name


DATA = "data/emoji"
EMOJI_PROMPT = "a {style} emoji of {label}"
SAME_GROUP, SAME_NAME, NUM_RIVALS = 16, 8, 31
# Sets of pictures to draw, and the split each comes from.
DRAWINGS = {"known": "train", "new styles": "test_styles", "new combinations": "test_combinations"}
THINGS = "things"  # all groups but people
# Column and question.
QUESTIONS = {
    "name": "what is this?",
    "style": "which style is this?",
    "group": "which group does it belong to?",
    "tone": "which skin tone is this?",
}
ASKED = ("name", "style", "tone")


def load_edits(split: str) -> list[dict]:
    """All edits of a split, as rows of `uniwetok evaluate editing`."""
    edits = load_from_disk(f"{DATA}/edits")[split].to_list()
    # A source may lie in another split: a combination that was held out is made from pictures that were not.
    pictures = {row["id"]: row["image"] for rows in load_pictures(DATA).values() for row in rows}
    return edit_rows(edits, pictures, range(len(edits)))


def load_questions(split: str) -> list[dict]:
    """All questions about a split, as rows of `uniwetok evaluate captioning`."""
    return question_rows(load_from_disk(f"{DATA}/pictures")[split])


def load_pictures(data: str) -> dict[str, list[dict]]:
    """The rows of each split of a set, their `image` loaded."""
    splits = load_from_disk(f"{data}/pictures")
    return {name: [dict(row) | {"image": picture_of(row["image"])} for row in split] for name, split in splits.items()}


def edit_rows(
    edits: Sequence[Mapping],
    pictures: Mapping[str, Image.Image],
    chosen: Sequence[int],
    num_others: int = 6,
    seed: int = 0,
) -> list[dict]:
    """
    Some of the edits with their pictures and wrong results: first other targets of the same source, then pictures of
    the target's style.

    Args:
        edits: all rows of a split of the set's `edits`.
        pictures: its pictures by id.
        chosen: which of the rows to return.
        num_others: most wrong results of each.
    """
    generator = torch.Generator().manual_seed(seed)
    targets, styles = defaultdict(list), defaultdict(list)
    for row in edits:
        targets[row["source"]].append(row["target"])
    for name in pictures:
        styles[name.split("/")[0]].append(name)

    def shuffled(names: Sequence[str]) -> list[str]:
        return [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]

    result = []
    for index in chosen:
        row = edits[index]
        near, far = shuffled(targets[row["source"]]), shuffled(styles[row["target"].split("/")[0]])
        source, target = pictures[row["source"]], pictures[row["target"]]
        others = distinct_pictures((pictures[name] for name in [*near, *far]), [source, target], num_others)
        result.append({**row, "source": source, "target": target, "others": others})
    return result


def question_rows(rows: Iterable[Mapping]) -> list[dict]:
    """All of `QUESTIONS` that each row has an answer to."""
    return [
        {
            "image": row["image"],
            "question": question,
            "answer": row[column],
            "kind": column,
            "group": row["group"],
        }
        for row in rows
        for column, question in QUESTIONS.items()
        if row[column]
    ]


def caption_of(row: Mapping) -> str:
    """What a row's picture is called: style, name and skin tone."""
    return EMOJI_PROMPT.format(**row)


def rival_captions(row: Mapping, pool: Sequence[Mapping], generator: torch.Generator) -> list[str]:
    """31 captions that are not true of `row`: 16 of its group, 8 of its name, 7 of its style, none of them twice;
    where there are not enough of a kind, more of the last."""
    kinds = (
        (SAME_GROUP, lambda other: other["group"] == row["group"]),
        (SAME_NAME, lambda other: other["name"] == row["name"]),
        (NUM_RIVALS, lambda other: other["style"] == row["style"] and other["name"] != row["name"]),
    )
    chosen = {caption_of(row): None}
    for most, belongs in kinds:
        candidates = list(dict.fromkeys(caption_of(other) for other in pool if belongs(other)))
        candidates = [caption for caption in candidates if caption not in chosen]
        most = min(most, NUM_RIVALS + 1 - len(chosen))
        order = torch.randperm(len(candidates), generator=generator)[:most].tolist()
        chosen |= dict.fromkeys(candidates[index] for index in order)
    return list(chosen)[1:]


def choose_by_group(rows: Sequence[Mapping], count: int, seed: int) -> list[Mapping]:
    """Up to `count` rows of each group, of as many concepts as there are, in the order of `rows`."""
    generator = torch.Generator().manual_seed(seed)
    chosen = set()
    for group in GROUPS:
        seen = Counter()
        order = [i for i in torch.randperm(len(rows), generator=generator).tolist() if rows[i]["group"] == group]
        turns = []  # each row with the number of rows of its concept that come before it
        for index in order:
            turns.append((seen[rows[index]["concept"]], index))
            seen[rows[index]["concept"]] += 1
        chosen |= {index for _, index in sorted(turns, key=lambda turn: turn[0])[:count]}
    return [row for index, row in enumerate(rows) if index in chosen]


def rows_by_group(
    labels: dict[str, str], groups: Sequence[str], outcomes: Mapping[str, tuple[Sequence[bool], Sequence[float]]]
) -> list[ScoreRow]:
    """
    The score rows of each group and, where there are several that are no people, of their mean.

    Args:
        labels: what was measured.
        groups: of each sample.
        outcomes: by metric, the outcome of each sample and the level of chance of each.
    """

    def score(metric: str, group: str) -> Score:
        right, chances = outcomes[metric]
        chosen = [index for index, found in enumerate(groups) if found == group]
        return share_score([right[index] for index in chosen], float(np.mean([chances[index] for index in chosen])))

    present = [group for group in GROUPS if group in groups]
    by_group = {group: {metric: score(metric, group) for metric in outcomes} for group in present}
    things = [group for group in present if group != PEOPLE]
    is_model = labels["what"] == "model"
    table = []
    if len(things) > 1:
        means = {metric: mean_of_scores([by_group[group][metric] for group in things]) for metric in outcomes}
        table.append(ScoreRow(labels | {"group": THINGS}, means, is_model))
    for group in present:
        table.append(ScoreRow(labels | {"group": GROUPS[group]}, by_group[group], is_model and group == PEOPLE))
    return table


def evaluate_drawings(
    pipe,
    rows: Sequence[Mapping],
    pool: Sequence[Mapping],
    judge: Judge,
    of: str,
    seed: int = 0,
    batch_size: int = 16,
    **call,
) -> list[ScoreRow]:
    """
    R-precision and the nearest by pixels of drawings, of the rows' pictures after the image tokenizer, and of the
    pictures themselves, by group.

    Args:
        rows: rows to draw, each with its `image`.
        pool: rows that may be rivals, each with its `image`.
        of: name of the set in the table.
        seed: of the choice of rivals; picture i is generated with the seed `seed` + i.
        call: further arguments of the pipeline.
    """
    generator = torch.Generator().manual_seed(seed)
    captions, rivals = [caption_of(row) for row in rows], [rival_captions(row, pool, generator) for row in rows]
    judged, seen = CaptionScore(judge, captions, rivals), PixelScore(rows, pool, generator)
    real = [row["image"] for row in rows]
    pictures = {
        "model": generate_all(pipe, captions, seed=seed, batch_size=batch_size, **call),
        "real, through the codes": reconstruct_all(pipe.mllm.vision_model, real, seed),
        "real": real,
    }
    table, groups = [], [row["group"] for row in rows]
    for what, made in pictures.items():
        outcomes = {"r_precision": (judged(made), judged.chances)}
        if what != "real":  # which is nearest to itself
            outcomes["nearest_by_pixels"] = (seen(made), seen.chances)
        table += rows_by_group({"what": what, "of": f"drawings, {of}"}, groups, outcomes)
    return table


class CaptionScore:
    """Whether the judge finds the own caption of each picture the nearest of it and its `rivals`."""

    def __init__(self, judge: Judge, captions: Sequence[str], rivals: Sequence[Sequence[str]]):
        texts = list(dict.fromkeys([*captions, *(rival for row in rivals for rival in row)]))
        place = {text: index for index, text in enumerate(texts)}
        embedded = judge.embed_texts(texts)
        self.judge = judge
        self.texts = [
            embedded[[place[caption], *(place[rival] for rival in row)]]
            for caption, row in zip(captions, rivals, strict=True)
        ]
        self.chances = [1 / len(texts) for texts in self.texts]

    def __call__(self, pictures: Sequence[Image.Image]) -> list[bool]:
        found = self.judge.embed_images(list(pictures))
        return [
            bool(top_k_outcomes(cosines(features[None], texts), np.array([0]))[0])
            for features, texts in zip(found, self.texts, strict=True)
        ]


class PixelScore:
    """Whether the own picture of each row is the nearest by pixels of it and 31 others of its style and group that
    show another concept; of fewer where there are not as many."""

    def __init__(self, rows: Sequence[Mapping], pool: Sequence[Mapping], generator: torch.Generator):
        kinds = defaultdict(list)
        for row in pool:
            kinds[row["style"], row["group"]].append(row)
        self.own = [thumbnail(row["image"]) for row in rows]
        self.others = []
        for row in rows:
            others = [other for other in kinds[row["style"], row["group"]] if other["concept"] != row["concept"]]
            picks = torch.randperm(len(others), generator=generator)[:NUM_RIVALS].tolist()
            self.others.append([thumbnail(others[pick]["image"]) for pick in picks])
        self.chances = [1 / (1 + len(others)) for others in self.others]

    def __call__(self, pictures: Sequence[Image.Image]) -> list[bool]:
        return [
            nearest_is_own(thumbnail(picture), own, others)
            for picture, own, others in zip(pictures, self.own, self.others, strict=True)
        ]


def combination_edits(edits: Sequence[Mapping], rows: Sequence[Mapping], chosen: Sequence[int]) -> list[dict]:
    """Rows of `evaluate_editing` whose wrong results are the target in the other styles and the source in the other
    skin tones.

    Args:
        edits: rows of `edits` of the set.
        rows: all rows of `pictures` that are needed, with their `image`.
        chosen: which of the edits to return.
    """
    by_id = {row["id"]: row for row in rows}
    same_thing, same_tones = defaultdict(list), defaultdict(list)
    for row in rows:
        same_thing[row["hexcode"]].append(row)
        same_tones[row["style"], row["concept"]].append(row)
    result = []
    for index in chosen:
        edit = edits[index]
        source, target = by_id[edit["source"]], by_id[edit["target"]]
        others = [*same_thing[target["hexcode"]], *same_tones[source["style"], source["concept"]]]
        wrong = [row["image"] for row in others]
        result.append({**edit, "source": source["image"], "target": target["image"], "others": wrong})
    return result


def evaluate_edits(edit_pipe, pipe, edits: Sequence[Mapping], judge: Judge, of: str, **settings) -> Report:
    """The report of [`evaluate_editing`], which takes the `settings`, with rows that say that they are of edits."""
    report = evaluate_editing(edit_pipe, pipe, edits, by="kind", judge=judge, **settings)
    for row in report.rows:
        row.labels["of"] = ": ".join([f"edits, {of}", *([row.labels["of"]] if "of" in row.labels else [])])
    return report


def evaluate_naming(
    mllm,
    processor,
    rows: Sequence[Mapping],
    pool: Sequence[Mapping],
    judge: Judge,
    of: str,
    seed: int = 0,
    batch_size: int = 16,
) -> list[ScoreRow]:
    """
    How often answers are right, by group. Beside the model's names those of the judge, which is shown the pictures,
    and the pictures after the image tokenizer, and takes the nearest of all labels in `pool` of the row's own skin
    tone: a label without a skin tone is another picture's.
    """
    asked = [row for row in question_rows(rows) if row["kind"] in ASKED]
    pictures, questions = [row["image"] for row in asked], [row["question"] for row in asked]
    answers = answer_all(mllm, processor, pictures, questions, batch_size=batch_size)
    table = []
    for column in ASKED:
        found = [(row, answer) for row, answer in zip(asked, answers, strict=True) if row["kind"] == column]
        if not found:
            continue
        counts = defaultdict(Counter)  # a blind answer knows the group
        for row, _ in found:
            counts[row["group"]][row["answer"]] += 1
        usual = {group: max(own.values()) / own.total() for group, own in counts.items()}
        right = [exact_match(answer, row["answer"]) for row, answer in found]
        labels = {"what": "model", "of": f"{column}s, {of}"}
        outcomes = {"exact_match": (right, [usual[row["group"]] for row, _ in found])}
        table += rows_by_group(labels, [row["group"] for row, _ in found], outcomes)
    real = [row["image"] for row in rows]
    labels = {
        tone: sorted({row["label"] for row in pool if row["tone"] == tone}) for tone in {r["tone"] for r in rows}
    }
    texts = {tone: judge.embed_texts(of_tone) for tone, of_tone in labels.items()}
    chances = [1 / len(labels[row["tone"]]) for row in rows]
    decoded = reconstruct_all(mllm.model.vision_model, real, seed)
    for what, pictures in {"judge, through the codes": decoded, "judge, real": real}.items():
        right = []
        for row, features in zip(rows, judge.embed_images(pictures), strict=True):
            nearest = cosines(features[None], texts[row["tone"]])[0].argmax()
            right.append(labels[row["tone"]][nearest] == row["label"])
        outcomes = {"exact_match": (right, chances)}
        table += rows_by_group({"what": what, "of": f"names, {of}"}, [row["group"] for row in rows], outcomes)
    return table


def evaluate_words(
    mllm, processor, rows: Sequence[Mapping], pool: Sequence[Mapping], batch_size: int = 16
) -> list[ScoreRow]:
    """Of pictures of concepts that training left out, how often the answer is a name of the set, right or wrong: a
    model that puts syllables together invents words. For a name of the set, drawn blindly, it is all."""
    names = {normalize_answer(row["name"]) for row in pool}
    questions = [QUESTIONS["name"]] * len(rows)
    answers = answer_all(mllm, processor, [row["image"] for row in rows], questions, batch_size=batch_size)
    known = [normalize_answer(answer) in names for answer in answers]
    outcomes = {"exact_match": (known, [1.0] * len(known))}
    labels = {"what": "model", "of": "answers that are a name of the set, unseen concepts"}
    return rows_by_group(labels, [row["group"] for row in rows], outcomes)


def choose_edits(edits: Sequence[Mapping], groups: Mapping[str, str], kept, count: int, seed: int) -> list[int]:
    """Up to `count` of the edits whose target's group is `kept`, of each group as many as there are."""
    order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [index for index in order if kept(groups[edits[index]["target"]])]
    seen, turns = Counter(), []
    for index in order:
        group = groups[edits[index]["target"]]
        turns.append((seen[group], index))
        seen[group] += 1
    return sorted(index for _, index in sorted(turns, key=lambda turn: turn[0])[:count])


def evaluate(args: argparse.Namespace) -> Report:
    """All of the protocol.

    Raises:
        ValueError: when the data are no emoji set or lack a split, or the judge does not fit.
    """
    model = args.model or embedded_path("uniwetok-emoji")
    judge = Judge.from_pretrained(args.judge, args.device, unseen_by=model)
    if not judge.reads_texts:
        raise ValueError(f"`--judge` {args.judge} reads no texts: give a dual encoder such as CLIP or SigLIP.")
    try:
        edits, splits = load_from_disk(f"{args.data}/edits"), load_pictures(args.data)
    except FileNotFoundError:
        raise ValueError(f"{args.data} is no folder of emoji_data.py.") from None
    if missing := {*DRAWINGS.values(), "test"} - set(splits):
        raise ValueError(f"{args.data} lacks the splits {', '.join(sorted(missing))}: build it anew.")
    pool = [row for rows in splits.values() for row in rows]
    groups = {row["id"]: row["group"] for row in pool}

    dtype = getattr(torch, args.dtype)
    pipe = UniWeTokPipeline.from_pretrained(model, dtype=dtype).to(args.device)
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    for pipeline in (pipe, edit_pipe):
        pipeline.set_progress_bar_config(disable=True)
    settings = {"seed": args.seed, "batch_size": args.batch_size}
    call = settings | {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    edit_call = call | {"image_guidance_scale": args.image_guidance_scale, "describe_first": args.describe_first}

    table, report = [], None
    chosen = {of: choose_by_group(splits[split], args.count, args.seed) for of, split in DRAWINGS.items()}
    for of, rows in chosen.items():
        if rows:
            table += evaluate_drawings(pipe, rows, pool, judge, of, **call)
    for of, split, kept in (
        ("people, new combinations", "test_combinations", lambda group: group == PEOPLE),
        ("style of known things", "test_edits", lambda group: group != PEOPLE),
        ("style of things, new styles", "test_styles", lambda group: group != PEOPLE),
    ):
        rows = edits[split].to_list()
        if places := choose_edits(rows, groups, kept, args.edits, args.seed):
            pairs = combination_edits(rows, pool, places)
            report = evaluate_edits(edit_pipe, pipe, pairs, judge, of, **edit_call)
            table += report.rows
    for of in ("known", "new combinations"):
        if chosen[of]:
            table += evaluate_naming(pipe.mllm, pipe.processor, chosen[of], pool, judge, of, **settings)
    unseen = choose_by_group(splits["test"], args.count, args.seed)
    table += evaluate_words(pipe.mllm, pipe.processor, unseen, pool, args.batch_size)

    protocol = {} if report is None else report.protocol
    report = Report("emoji", short_name(model), short_name(args.data), "by group", protocol, table)
    report.protocol |= {
        "judge": judge.describe(),
        "precision": args.dtype,
        THINGS: "the mean over the groups that are no people, each with the same weight",
        "drawings": "one a row; " + ", ".join(f"{of}: {len(rows)}" for of, rows in chosen.items()),
        "captions": "32: its own, 16 of its group, 8 of its name, 7 of its style",
        "nearest by pixels of drawings": "among 32 pictures of its style and group",
        "candidates": "of edits: target, source, target in other styles, source in other skin tones",
        "answers": "the most likely ones; case and punctuation do not count",
        "names of the judge": "the nearest of all labels of the row's own skin tone",
    }
    return report


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Draw, edit and name emoji that training showed, and others in styles and combinations that it "
        "left out, by group. Beside the model: the real pictures, before and after the image tokenizer. Prints a "
        "table and writes results.json, results.md and model-index.yaml."
    )
    parser.add_argument("data", metavar="DATA", help="folder that emoji_data.py made")
    parser.add_argument(
        "--judge", required=True, metavar="M", help="folder or Hub name of a dual encoder that no training loss used"
    )
    parser.add_argument("--model", metavar="M", help="pipeline folder or Hub id (default: uniwetok-emoji)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ... or mps")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the model (default: float32)"
    )
    parser.add_argument("--output", default="results/emoji", metavar="DIR", help="default: results/emoji")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="at once (default: 16)")
    parser.add_argument("--steps", type=int, metavar="N", help="diffusion steps per patch (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, metavar="W", help="default: the model's")
    parser.add_argument("--image-guidance-scale", type=float, metavar="V", help="of edits (default: the model's)")
    parser.add_argument(
        "--describe-first",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="edits: the model describes the result first, or not (default: as the model is set)",
    )
    parser.add_argument("--count", type=int, default=100, metavar="N", help="rows of each group (default: 100)")
    parser.add_argument("--edits", type=int, default=250, metavar="N", help="edits of each set (default: 250)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture and of all choices (default: 0)")
    args = parser.parse_args(arguments)
    try:
        report = evaluate(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(report.to_markdown())
    for path in report.save(args.output):
        print(path)


if __name__ == "__main__":
    main()
