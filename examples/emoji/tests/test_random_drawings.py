"""Which drawings are shown, and that nobody can tell from a blind sheet what they are of."""

import csv
import sys
from collections import Counter

import pytest
import random_drawings
from emoji_packages import GROUPS
from PIL import Image
from random_drawings import blind_rows, random_rows
from tiny_models import build_tiny_pipeline


# Concept 0 has far more pictures than the others, as people have.
ROWS = [
    {"concept": str(concept), "group": list(GROUPS)[concept % 9], "picture": picture}
    for concept in range(90)
    for picture in range(200 if concept == 0 else 2)
]


def test_concepts_count_alike():
    rows = random_rows(ROWS, 45, seed=0)
    assert len({row["concept"] for row in rows}) == 45
    assert random_rows(ROWS, 45, seed=0) == rows != random_rows(ROWS, 45, seed=1)
    assert len(random_rows(ROWS, 1000, seed=0)) == 90
    drawn = Counter(row["concept"] for seed in range(400) for row in random_rows(ROWS, 9, seed))
    assert 15 < drawn["0"] < 65  # 40 of 400 on average; by pictures it would be in all of them


@pytest.mark.parametrize("count", [18, 20])
def test_a_blind_sheet_has_all_groups_alike(count):
    rows = blind_rows(ROWS, count, seed=3)
    assert len(rows) == len({row["concept"] for row in rows}) == count
    assert set(Counter(row["group"] for row in rows).values()) <= {count // 9, count // 9 + 1}
    places = [list(GROUPS).index(row["group"]) for row in rows]
    assert places != sorted(places)


@pytest.mark.parametrize("blind, real", [(False, False), (True, False), (True, True)])
def test_the_command(blind, real, fixtures, tmp_path, monkeypatch, capsys):
    build_tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    sheet = tmp_path / "sheet.png"
    arguments = ["random_drawings.py", str(fixtures / "emoji"), "--model", str(tmp_path / "pipeline")]
    arguments += [
        "--count",
        "3",
        "--columns",
        "2",
        "--output",
        str(sheet),
        *(["--blind"] if blind else []),
        *(["--real"] if real else []),
    ]
    if real:
        monkeypatch.setattr(random_drawings, "generate_all", None)
    monkeypatch.setattr(sys, "argv", arguments)
    random_drawings.main()
    printed = capsys.readouterr().out.splitlines()
    key = sheet.with_suffix(".csv")
    expected = [str(sheet), str(key)] if blind else [str(sheet)]
    assert printed[-len(expected) :] == expected  # DeepSpeed, where it is installed, says something before
    with Image.open(sheet) as page:
        assert page.width > 2 * 128 and page.height > 2 * 128
    assert key.exists() == blind
    if blind:
        with key.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["number"] for row in rows] == ["1", "2", "3"]
        assert all(row["prompt"].startswith("a ") and row["group"] in GROUPS.values() for row in rows)
