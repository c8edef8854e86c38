"""The embedded model was trained on none of the pictures that ship for the demo."""

import json
import re

from emoji_data import concept_split, held_out_style, picture_split
from emoji_packages import DEFAULT_STYLES

from uniwetok_hf.cli.demo_sections import PICTURES


def test_shipped_pictures_are_of_the_splits_that_they_name():
    rows = json.loads((PICTURES / "pictures.json").read_text())
    assert len(rows) == 28
    for row in rows:
        concept, style, split = row["id"].split("/")[1], row["style"], row["split"]
        if split == "test_combinations":  # skin tones are the modifiers 1F3FB (light) to 1F3FF (dark)
            tone = re.search(r"(\S+ skin tone)", row["label"])[1]
            assert picture_split(re.sub("-1F3F[B-F]", "", concept), style, tone) == split
        elif split == "test_styles":  # the newest emoji have no picture in the last style, of 2017
            styles = list(DEFAULT_STYLES)
            assert style in {held_out_style(concept, "objects", styles[:count]) for count in (4, 5)}
        else:
            assert concept_split(concept) == split and split in ("test", "validation")
