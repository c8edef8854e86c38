# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A conversation in pictures: one is generated, asked about, and changed a few times; a strip tells the story.

    python examples/story.py "a noto emoji of raised hand" "what is it?" "make the skin tone dark" "name it"

The key-value cache is kept between turns, and each edit starts from the codes of the picture before, so nothing is
encoded twice (docs/conversation.md).
"""

import argparse

import torch
from PIL import Image

from uniwetok_hf import UniWeTokConversation, UniWeTokPipeline, embedded_path
from uniwetok_hf.cli import sheets


STORY = ["a noto emoji of raised hand", "what is it?", "make the skin tone dark", "redraw in fluent style", "name it"]
TILE = 160


def tell(talk: UniWeTokConversation, turns: list[str], seed: int) -> list[Image.Image]:
    """One cell per turn: the prompt, and under it the answer, a picture or text."""
    cells = []
    for number, turn in enumerate(turns):
        answer = talk.say(turn, generator=torch.Generator().manual_seed(seed + number))
        shown = [sheets.framed(picture, TILE) for picture in answer.images]
        text = [sheets.text_block(answer.text, 16, TILE)] if answer.text else []
        cells.append(sheets.below([sheets.text_block(turn, 14, TILE, sheets.GREY, num_lines=2), *shown, *text]))
    return cells


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("turns", nargs="*", default=STORY, help="what to say, one argument per turn")
    parser.add_argument("--model", default=embedded_path("uniwetok-emoji"), help="pipeline folder or Hub name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="story.jpg")
    options = parser.parse_args(arguments)

    pipe = UniWeTokPipeline.from_pretrained(options.model, dtype=torch.float32)
    talk = UniWeTokConversation(pipe)
    sheets.page([sheets.beside(tell(talk, options.turns, options.seed))]).save(options.output, quality=92)
    print(options.output)


if __name__ == "__main__":
    main()
