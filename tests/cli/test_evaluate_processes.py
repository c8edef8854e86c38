"""`uniwetok evaluate` in two processes: the scores of one, to the last digit, printed once."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from launched import commands_on_two
from PIL import Image
from tiny_judges import build_clip, build_vit

from uniwetok_hf.cli.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_data() -> None:
    """Eleven pictures, one of which can't be read, as pictures, edits and questions; and two sets of samples."""
    cells = [png(noise(number)) for number in range(11)]
    targets = [png(noise(number).rotate(180)) for number in range(11)]
    kinds = [f"kind {number % 3}" for number in range(11)]
    texts = {"text": [f"picture {number}" for number in range(11)], "kind": kinds}
    questions = {"question": ["what?"] * 11, "answer": kinds}
    cells[4] = b"no picture"
    columns = texts | questions | {"source": cells, "image": cells, "target": targets, "instruction": texts["text"]}
    data = Dataset.from_dict(columns)
    for column in ("source", "image", "target"):
        data = data.cast_column(column, ImageFeature(decode=False))
    data.to_parquet("data.parquet")
    DatasetDict({"train": data, "test": data}).save_to_disk("splits")
    for name, count in {"samples": 9, "real": 7}.items():
        pictures = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(f"{name}.npz", arr_0=pictures)
    Dataset.from_dict({"image": [noise(2 * number + 1) for number in range(25)]}).to_parquet("many.parquet")


def noise(seed: int) -> Image.Image:
    side = 64 if seed % 4 else 32
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, 64, 3), dtype=np.uint8))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_two_processes_score_what_one_does(pipeline_folder, vision_folder, tmp_path, capsys):
    write_data()
    clip, vit = build_clip(tmp_path / "clip"), build_vit(tmp_path / "vit")
    data = ["data.parquet", "--split", "train", "--batch-size", 2]
    drawn = ["--model", pipeline_folder, "--steps", 1, "--judge", clip]
    protocols = {
        "reconstruction": [
            *(*data, "--model", vision_folder, "--by", "kind", "--sizes", 32, "native"),
            *("--features", vit, "--perceptual", vit),
        ],
        "latents": ["splits", "--batch-size", 2, "--model", vision_folder, "--label", "kind", "--size", 64],
        "generation": [*data, *drawn, "--count", 5, "--rivals", 3],
        "editing": [*data, *drawn, "--by", "kind", "--rivals", 2],
        "captioning": [*data, "--model", pipeline_folder, "--by", "kind", "--max-new-tokens", 3],
        "classes": ["samples.npz", "real.npz", "--features", vit, "--batch-size", 2],
    }
    # More pictures than the 16 channels of the features, which are added up.
    many = ["reconstruction", "many.parquet", "--split", "train", "--model", vision_folder, "--sizes", 32]
    many = ["evaluate", *many, "--batch-size", 2, "--features", vit]
    commands = {name: [str(word) for word in ("evaluate", name, *words)] for name, words in protocols.items()}
    commands["many"] = [str(word) for word in many]
    for name, words in commands.items():
        assert main([*words, "--output", f"one/{name}"]) == 0
    alone = capsys.readouterr()
    printed = commands_on_two(*([*words, "--output", f"two/{name}"] for name, words in commands.items()))
    of_many = alone.out.index("## Reconstruction: tiny-vision on many.parquet")
    assert printed[0].startswith(alone.out[:of_many].replace("one/", "two/")) and printed[1] == ""
    one, two = (
        json.loads(Path(folder, "many", "results.json").read_text())["results"][0] for folder in ("one", "two")
    )
    scores = [row["scores"].pop("frechet") for row in (one, two)]
    assert one == two and [score["count"] for score in scores] == [25, 25]
    for name in ("value", "interval"):
        assert scores[1][name] == pytest.approx(scores[0][name], rel=1e-9)
    for name in protocols:
        results = [Path(folder, name, "results.json").read_bytes() for folder in ("one", "two")]
        assert results[0] == results[1], name
        skipped = json.loads(results[0])["protocol"].get("rows and pictures left out", 0)
        assert skipped == {"classes": 0, "latents": 2}.get(name, 1), name


def test_processes_that_can_not_meet(monkeypatch, capsys):
    write_data()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["evaluate", "reconstruction", "data.parquet", "--split", "train"]) == 1
    error = capsys.readouterr().err
    assert "`WORLD_SIZE` is 2, but MASTER_ADDR, MASTER_PORT are not in the environment" in error
    assert "accelerate launch" in error and not os.path.exists("results/reconstruction/results.json")
