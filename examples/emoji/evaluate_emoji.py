# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The emoji set's own protocol: does the model generate, edit and name combinations of concept, style and skin tone
that it never saw together?

    python examples/emoji/evaluate_emoji.py data/emoji --judge examples/emoji/weights/emoji_judge

- Generation: R-precision. Of 32 captions (its own, 16 of the same group, 8 of the same name in another style or tone,
  7 of the same style and another name) the judge finds the picture's own most similar. Two prompts for every row.
- Editing: of the true target, the source, the target in the other styles and the source in the other skin tones, the
  target is the nearest to the result, by pixels and by the judge.
- Naming: name without skin tone, style and skin tone, each asked for by itself and right when the words are the same.

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
from PIL import Image

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline, embedded_path
from uniwetok_hf.evaluation.captioning import answer_all
from uniwetok_hf.evaluation.choices import cosines, top_k_outcomes
from uniwetok_hf.evaluation.editing import distinct_pictures, evaluate_editing
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.intervals import Score, share_score
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.reconstruction import reconstruct_all
from uniwetok_hf.evaluation.reports import Report, ScoreRow
from uniwetok_hf.evaluation.rows import choose_rows, picture_of
from uniwetok_hf.evaluation.words import exact_match
from uniwetok_hf.provenance import short_name


DATA = "data/emoji"
EMOJI_PROMPT = "a {style} emoji of {label}"
# Two prompts for every picture; the judge reads the first of them only.
PROMPTS = (EMOJI_PROMPT, "draw {label} in {style} style")
SAME_GROUP, SAME_NAME, NUM_RIVALS = 16, 8, 31
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
    splits = load_from_disk(f"{DATA}/pictures").values()
    pictures = {row["id"]: picture_of(row["image"]) for rows in splits for row in rows}
    return edit_rows(edits, pictures, range(len(edits)))


def load_questions(split: str) -> list[dict]:
    """All questions about a split, as rows of `uniwetok evaluate captioning`."""
    return question_rows(load_from_disk(f"{DATA}/pictures")[split])


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
        {"image": row["image"], "question": question, "answer": row[column], "kind": column}
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


def evaluate_generations(
    pipe, rows: Sequence[Mapping], pool: Sequence[Mapping], judge: Judge, seed: int = 0, batch_size: int = 16, **call
) -> list[ScoreRow]:
    """
    R-precision of generated pictures, of the rows' pictures after the image tokenizer, and of the pictures.

    Args:
        rows: rows to generate, each with its `image`.
        pool: rows whose captions may be rivals; no pictures needed.
        seed: of the choice of rivals; picture i is generated with the seed `seed` + i.
        call: further arguments of the pipeline.
    """
    generator = torch.Generator().manual_seed(seed)
    rivals = [rival_captions(row, pool, generator) for row in rows]
    prompts = [template.format(**row) for template in PROMPTS for row in rows]
    generated = generate_all(pipe, prompts, seed=seed, batch_size=batch_size, **call)
    real = [row["image"] for row in rows]
    decoded = reconstruct_all(pipe.mllm.vision_model, real, seed)
    captions = [caption_of(row) for row in rows]
    score = CaptionScore(judge, captions, rivals)
    return [
        ScoreRow({"what": "model", "of": "generations"}, {"r_precision": score(generated)}, True),
        ScoreRow({"what": "real, through the codes", "of": "generations"}, {"r_precision": score(decoded)}),
        ScoreRow({"what": "real", "of": "generations"}, {"r_precision": score(real)}),
    ]


class CaptionScore:
    """R-precision of pictures of rows with `captions` and their `rivals`; pictures may come in several rounds."""

    def __init__(self, judge: Judge, captions: Sequence[str], rivals: Sequence[Sequence[str]]):
        texts = list(dict.fromkeys([*captions, *(rival for row in rivals for rival in row)]))
        place = {text: index for index, text in enumerate(texts)}
        embedded = judge.embed_texts(texts)
        self.judge, self.count = judge, len(captions)
        self.texts = [
            embedded[[place[caption], *(place[rival] for rival in row)]]
            for caption, row in zip(captions, rivals, strict=True)
        ]

    def __call__(self, pictures: Sequence) -> Score:
        found = self.judge.embed_images(list(pictures))
        outcomes = []
        for index, features in enumerate(found):
            scores = cosines(features[None], self.texts[index % self.count])
            outcomes += list(top_k_outcomes(scores, np.array([0])))
        return share_score(outcomes, float(np.mean([1 / len(texts) for texts in self.texts])))


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


def evaluate_edits(edit_pipe, pipe, edits: Sequence[Mapping], judge: Judge, **settings) -> Report:
    """The report of [`evaluate_editing`], which takes the `settings`, with rows that say that they are of edits."""
    report = evaluate_editing(edit_pipe, pipe, edits, by="kind", judge=judge, **settings)
    for row in report.rows:
        row.labels["of"] = ": ".join(["edits", *([row.labels["of"]] if "of" in row.labels else [])])
    return report


def evaluate_naming(
    mllm,
    processor,
    rows: Sequence[Mapping],
    pool: Sequence[Mapping],
    judge: Judge,
    seed: int = 0,
    batch_size: int = 16,
) -> list[ScoreRow]:
    """
    How often answers are right. Beside the model's names those of the judge, which is shown the pictures, and the
    pictures after the image tokenizer, and takes the nearest of all labels in `pool` of the row's own skin tone: a
    label without a skin tone is another picture's.
    """
    asked = [row for row in question_rows(rows) if row["kind"] in ASKED]
    pictures, questions = [row["image"] for row in asked], [row["question"] for row in asked]
    answers = answer_all(mllm, processor, pictures, questions, batch_size=batch_size)
    table = []
    for column in ASKED:
        pairs = [(answer, row["answer"]) for answer, row in zip(answers, asked, strict=True) if row["kind"] == column]
        if pairs:
            usual = Counter(right for _, right in pairs).most_common(1)[0][1] / len(pairs)
            score = share_score([exact_match(*pair) for pair in pairs], usual)
            table.append(ScoreRow({"what": "model", "of": f"{column}s"}, {"exact_match": score}, for_card=True))
    real = [row["image"] for row in rows]
    labels = {
        tone: sorted({row["label"] for row in pool if row["tone"] == tone}) for tone in {r["tone"] for r in rows}
    }
    texts = {tone: judge.embed_texts(of_tone) for tone, of_tone in labels.items()}
    decoded = reconstruct_all(mllm.model.vision_model, real, seed)
    for what, pictures in {"judge, through the codes": decoded, "judge, real": real}.items():
        outcomes = []
        for row, features in zip(rows, judge.embed_images(pictures), strict=True):
            nearest = cosines(features[None], texts[row["tone"]])[0].argmax()
            outcomes.append(labels[row["tone"]][nearest] == row["label"])
        chance = float(np.mean([1 / len(labels[row["tone"]]) for row in rows]))
        table.append(ScoreRow({"what": what, "of": "names"}, {"exact_match": share_score(outcomes, chance)}))
    return table


def evaluate(args: argparse.Namespace) -> Report:
    """All of the protocol.

    Raises:
        ValueError: when the data are no emoji set or lack the split, or the judge does not fit.
    """
    model = args.model or embedded_path("uniwetok-emoji")
    judge = Judge.from_pretrained(args.judge, args.device, unseen_by=model)
    if not judge.reads_texts:
        raise ValueError(f"`--judge` {args.judge} reads no texts: give a dual encoder such as CLIP or SigLIP.")
    try:
        edits, pictures = (load_from_disk(f"{args.data}/{name}") for name in ("edits", "pictures"))
    except FileNotFoundError:
        raise ValueError(f"{args.data} is no folder of emoji_data.py.") from None
    if args.split not in edits:
        raise ValueError(f"`--split` {args.split}: {args.data} has {', '.join(edits)}.")
    pool = [dict(row) | {"image": picture_of(row["image"])} for split in pictures.values() for row in split]
    chosen = set(choose_rows(pictures[args.split], ["id"], args.count, args.seed)["id"])
    rows = [row for row in pool if row["id"] in chosen]
    edits = edits[args.split].to_list()
    order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(args.seed))
    edits = combination_edits(edits, pool, sorted(order[: args.count].tolist()))

    dtype = torch.float32 if torch.device(args.device).type == "cpu" else None
    pipe = UniWeTokPipeline.from_pretrained(model, dtype=dtype).to(args.device)
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    for pipeline in (pipe, edit_pipe):
        pipeline.set_progress_bar_config(disable=True)
    settings = {"seed": args.seed, "batch_size": args.batch_size}
    call = settings | {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    edit_call = call | {"image_guidance_scale": args.image_guidance_scale, "describe_first": args.describe_first}
    generated = evaluate_generations(pipe, rows, pool, judge, **call)
    report = evaluate_edits(edit_pipe, pipe, edits, judge, **edit_call)
    report.task, report.data, report.split = "emoji", short_name(args.data), args.split
    report.model = short_name(model)
    report.rows = generated + report.rows
    report.rows += evaluate_naming(pipe.mllm, pipe.processor, rows, pool, judge, **settings)
    report.protocol |= {
        "candidates": "of edits: target, source, target in other styles, source in other skin tones",
        "generations": f"{len(rows)} rows, two prompts each",
        "captions": "32: its own, 16 of its group, 8 of its name, 7 of its style",
        "answers": "the most likely ones; case and punctuation do not count",
        "names of the judge": "the nearest of all labels of the row's own skin tone",
    }
    return report


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Generate, edit and name emoji in combinations of concept, style and skin tone that training "
        "never shows. Beside the model: the real pictures, before and after the image tokenizer. Prints a table and "
        "writes results.json, results.md and model-index.yaml."
    )
    parser.add_argument("data", metavar="DATA", help="folder that emoji_data.py made")
    parser.add_argument(
        "--judge", required=True, metavar="M", help="folder or Hub name of a dual encoder that no training loss used"
    )
    parser.add_argument("--split", default="test_combinations", help="default: test_combinations")
    parser.add_argument("--model", metavar="M", help="pipeline folder or Hub id (default: uniwetok-emoji)")
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")
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
    parser.add_argument("--count", type=int, default=500, metavar="N", help="rows, and edits (default: 500)")
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
