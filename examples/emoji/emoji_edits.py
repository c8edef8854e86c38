# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Edits between emoji: ordered pairs of pictures that differ in one thing, with the words that ask for it."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations


KINDS = ("tone", "gender", "hair", "colour", "clock", "direction", "style")

# Three ways to ask for each edit; the blanks are filled by the functions below.
TO_TONE = ("make the skin tone {}", "change the skin tone to {}", "use {} skin")
TO_UNTONED = ("make the skin yellow", "change the skin colour to yellow", "use the default yellow skin")
TO_GENDER = ("turn the {} into {}", "change the {} into {}", "replace the {} by {}")
TO_HAIR = ("give the {} {}", "change the hair of the {} to {}", "let the {} have {}")
TO_BALD = ("make the {} bald", "remove the hair of the {}", "let the {} be bald")
TO_COLOUR = ("make it {}", "change the colour to {}", "paint it {}")
TO_TIME = ("set the time to {}", "set the clock to {}", "show {}")
TO_DIRECTION = ("make the {} face {}", "turn the {} to the {}", "let the {} look {}")
TO_STYLE = ("redraw in {} style", "redraw it in the {} style", "change the style to {}")

COLOUR = re.compile(r"(.*?)\b(light blue|red|pink|orange|yellow|green|blue|purple|brown|black|grey|white)\b(.*)")
HAIR = re.compile(r"(man|woman|person): (red hair|curly hair|white hair|blond hair|bald)")
HOURS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
CLOCK = re.compile(rf"({HOURS})(-thirty| o.clock)")
# "men’s room" is a sign and "man’s shoe" a shoe: a possessive is no person.
GENDERED = re.compile(r"\b(man|woman|men|women)\b(?!.s\b)")
OTHER_GENDER = {"man": "woman", "woman": "man", "men": "women", "women": "men"}
PERSON = {"man": "person", "woman": "person", "men": "people", "women": "people"}


def find_edits(pictures: Sequence[Mapping]) -> list[dict]:
    """Find all edits between the pictures of a set.

    Inside one style: skin tone (any to any other, the untoned yellow included), gender (man and woman; from a person
    to both), hair (red, curly, white, blond, bald; not from the plain man or woman, which Noto draws closer), colour
    (same name but for the colour word), clock time, direction (left, as drawn by default, and right); all but the
    first keep the skin tone. Between styles: the same emoji redrawn. A hash of the two ids chooses among three
    phrasings. Two pictures with the same bytes (Noto has one astronaut for all genders) are never an edit.

    Args:
        pictures: rows with `id`, `style`, `name`, `tone`, `concept`, `hexcode` and `image` (`{"bytes": PNG, ...}`).

    Returns:
        Rows with `source`, `target` (ids), `instruction` and `kind` (one of `KINDS`), sorted by kind, else in the
        order of the pictures.
    """
    edits = [*_tone_edits(pictures), *_style_edits(pictures)]
    by_style_and_tone = defaultdict(dict)
    for picture in pictures:
        by_style_and_tone[picture["style"], picture["tone"]][picture["name"]] = picture["id"]
    for ids in by_style_and_tone.values():
        for find in (_gender_edits, _hair_edits, _colour_edits, _clock_edits, _direction_edits):
            edits += find(ids)
    png = {picture["id"]: picture["image"]["bytes"] for picture in pictures}
    edits = [edit for edit in edits if png[edit["source"]] != png[edit["target"]]]
    return sorted(edits, key=lambda edit: KINDS.index(edit["kind"]))


def _edit(kind: str, source: str, target: str, phrases: tuple[str, ...], *words: str) -> dict:
    choice = int(hashlib.sha256(f"{source} {target}".encode()).hexdigest(), 16) % len(phrases)
    return {"source": source, "target": target, "instruction": phrases[choice].format(*words), "kind": kind}


def _group_pairs(rows: Sequence[Mapping], *columns: str) -> Iterator[tuple[Mapping, Mapping]]:
    """All ordered pairs of rows that agree in the columns."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    for group in groups.values():
        yield from permutations(group, 2)


def _tone_edits(pictures: Sequence[Mapping]) -> Iterator[dict]:
    for source, target in _group_pairs(pictures, "style", "concept"):
        tone = target["tone"].removesuffix(" skin tone")
        yield _edit("tone", source["id"], target["id"], TO_TONE if tone else TO_UNTONED, tone)


def _style_edits(pictures: Sequence[Mapping]) -> Iterator[dict]:
    for source, target in _group_pairs(pictures, "hexcode"):
        yield _edit("style", source["id"], target["id"], TO_STYLE, target["style"])


def _who(name: str) -> str:
    """The words for whoever is in the picture: "man", "people", or the job itself ("health worker")."""
    found = re.search(r"\b(man|woman|men|women|person|people)\b", name)
    return found[1] if found else name


def _gender_edits(ids: Mapping[str, str]) -> Iterator[dict]:
    """man <-> woman, and person -> man or woman ("person running" -> "man running", "teacher" -> "man teacher")."""
    for name in ids:
        found = GENDERED.findall(name)
        if len(found) != 1:  # nobody, or a couple
            continue
        gender = found[0]
        goal = gender if gender in ("men", "women") else f"a {gender}"
        sources = (
            GENDERED.sub(OTHER_GENDER[gender], name),
            GENDERED.sub(PERSON[gender], name),
            name.removeprefix(f"{gender} "),
        )
        for source in sources:
            if source in ids and source != name:
                yield _edit("gender", ids[source], ids[name], TO_GENDER, _who(source), goal)


def _hair_edits(ids: Mapping[str, str]) -> Iterator[dict]:
    hair = {name: found for name in ids if (found := HAIR.fullmatch(name))}
    for source, target in permutations(hair, 2):
        who, goal = hair[target].groups()
        if hair[source][1] == who:
            yield _edit("hair", ids[source], ids[target], TO_BALD if goal == "bald" else TO_HAIR, who, goal)


def _colour_edits(ids: Mapping[str, str]) -> Iterator[dict]:
    found = {name: match.groups() for name in ids if ":" not in name and (match := COLOUR.fullmatch(name))}
    # Of all squares, only black and white are named by their size: "black large square" goes with "red square".
    rest = {name: (before, after.replace(" large square", " square")) for name, (before, _, after) in found.items()}
    for source, target in permutations(found, 2):
        if rest[source] == rest[target] != ("", ""):
            yield _edit("colour", ids[source], ids[target], TO_COLOUR, found[target][1])


def _clock_edits(ids: Mapping[str, str]) -> Iterator[dict]:
    times = {name: found for name in ids if (found := CLOCK.fullmatch(name))}
    for source, target in permutations(times, 2):
        hour = times[target][1]
        time = f"half past {hour}" if times[target][2] == "-thirty" else f"{hour} o'clock"
        yield _edit("clock", ids[source], ids[target], TO_TIME, time)


def _direction_edits(ids: Mapping[str, str]) -> Iterator[dict]:
    for right in ids:
        left = right.removesuffix(": facing right")
        if left != right and left in ids:
            yield _edit("direction", ids[left], ids[right], TO_DIRECTION, _who(left), "right")
            yield _edit("direction", ids[right], ids[left], TO_DIRECTION, _who(left), "left")
