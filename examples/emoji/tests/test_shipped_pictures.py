"""The embedded model was trained on none of the pictures that ship for the demo."""

import json
import re

from emoji_data import concept_split, picture_split

from uniwetok_hf.cli.demo_sections import PICTURES


def test_shipped_pictures_are_of_the_splits_that_they_name():
    rows = json.loads((PICTURES / "pictures.json").read_text())
    assert len(rows) == 21
    for row in rows:
        concept, style, split = row["id"].split("/")[1], row["style"], row["split"]
        if split == "test_combinations":  # skin tones are the modifiers 1F3FB (light) to 1F3FF (dark)
            tone = re.search(r"(\S+ skin tone)", row["label"])[1]
            assert picture_split(re.sub("-1F3F[B-F]", "", concept), style, tone) == split
        else:
            assert concept_split(concept) == split and split in ("test", "validation")
