"""`uniwetok encode`, end to end."""

import json

from uniwetok_hf import load_codes


def test_saved_codes_name_their_model_but_no_path(succeeds, photo, vision_folder):
    succeeds("encode", photo, "--model", vision_folder)
    saved = load_codes("codes.safetensors")
    assert saved.metadata["model"] == "tiny-vision"
    assert (saved.original_sizes, saved.content_sizes) == ([(70, 100)], [(70, 100)])
    assert str(vision_folder.parent) not in json.dumps(saved.metadata)
