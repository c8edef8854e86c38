# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Drawings of random concepts on one sheet, none of them picked.

    python examples/emoji/random_drawings.py data/emoji --output docs/assets/random_drawings.jpg
    python examples/emoji/random_drawings.py data/emoji --blind --count 60 --seed 1 --output naming/drawings.png
    python examples/emoji/random_drawings.py data/emoji --blind --count 60 --seed 1 --real --output naming/real.png

Concepts are drawn uniformly from those of training, then one of their pictures, whose caption is the prompt. With
`--blind` numbers stand in place of the prompts, each group has the same number of drawings, and the prompts go into a
CSV file beside the sheet: it is for someone who says what the drawings show without having read them. `--real` shows
the pictures themselves after the image tokenizer: what can be told from the best drawing.
"""

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import torch
from datasets import load_from_disk
from emoji_packages import GROUPS
from evaluate_emoji import caption_of
from PIL import Image

from uniwetok_hf import UniWeTokPipeline, embedded_path
from uniwetok_hf.cli import sheets
from uniwetok_hf.data.images import save_image
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.reconstruction import reconstruct_all
from uniwetok_hf.evaluation.rows import picture_of


TILE = 128


def random_rows(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` rows of different concepts, or of all concepts where there are fewer; one random picture of each."""
    generator = torch.Generator().manual_seed(seed)
    pictures = defaultdict(list)
    for row in rows:
        pictures[row["concept"]].append(row)
    concepts = sorted(pictures)
    chosen = [pictures[concepts[i]] for i in torch.randperm(len(concepts), generator=generator)[:count].tolist()]
    return [of_one[int(torch.randint(len(of_one), (), generator=generator))] for of_one in chosen]


def blind_rows(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` rows of different concepts, shuffled, of each group the same number or one more."""
    seen, turns = Counter(), []  # each row with the number of rows of its group that come before it
    for row in random_rows(rows, len(rows), seed):
        turns.append((seen[row["group"]], row))
        seen[row["group"]] += 1
    chosen = [row for _, row in sorted(turns, key=lambda turn: turn[0])[:count]]
    return [chosen[i] for i in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()]


def sheet(pictures: list, lines: list[str], columns: int) -> Image.Image:
    """The pictures in rows of `columns`, each with its line below it."""
    cells = [
        sheets.below([sheets.framed(picture, TILE), sheets.text_block(line, 12, TILE, sheets.GREY, 2, 2)], gap=3)
        for picture, line in zip(pictures, lines, strict=True)
    ]
    return sheets.page([sheets.grid(cells, columns, gap=10)])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder that emoji_data.py made")
    parser.add_argument("--model", metavar="M", help="pipeline folder or Hub id (default: uniwetok-emoji)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="drawings (default: 200)")
    parser.add_argument("--columns", type=int, default=10, metavar="N", help="of the sheet (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of the first drawing (default: 0)")
    parser.add_argument("--blind", action="store_true", help="numbers for prompts; the prompts go into a CSV file")
    parser.add_argument("--real", action="store_true", help="the pictures after the image tokenizer, not drawings")
    parser.add_argument("--output", required=True, metavar="FILE", help="the sheet, .png or .jpg")
    args = parser.parse_args()

    split = load_from_disk(f"{args.data}/pictures")["train"]
    rows = [row | {"place": place} for place, row in enumerate(split.remove_columns("image").to_list())]
    chosen = (blind_rows if args.blind else random_rows)(rows, args.count, args.seed)
    prompts = [caption_of(row) for row in chosen]
    pipe = UniWeTokPipeline.from_pretrained(args.model or embedded_path("uniwetok-emoji"), dtype=torch.float32)
    if args.real:
        real = [picture_of(split[row["place"]]["image"]) for row in chosen]
        pictures = reconstruct_all(pipe.mllm.vision_model, real, args.seed)
    else:
        pictures = generate_all(pipe, prompts, seed=args.seed)
    lines = [str(number + 1) for number in range(len(chosen))] if args.blind else prompts
    print(save_image(sheet(pictures, lines, args.columns), Path(args.output)))
    if args.blind:
        key = Path(args.output).with_suffix(".csv")
        with key.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "group", "prompt"])
            writer.writerows([i + 1, GROUPS[row["group"]], caption_of(row)] for i, row in enumerate(chosen))
        print(key)


if __name__ == "__main__":
    main()
