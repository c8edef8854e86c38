"""A damaged model folder works, or ends each command with one line that names it; nothing half-written is left."""

import json
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from mutations import damaged_bytes, damaged_json, damaged_tensors
from PIL import Image

from uniwetok_hf import UniWeTokConversation
from uniwetok_hf.cli.main import main
from uniwetok_hf.data.encoded import read_encoding
from uniwetok_hf.files import read_json
from uniwetok_hf.provenance import read_training_record


@pytest.fixture(scope="module")
def place(pipe, tmp_path_factory) -> Path:
    """A folder with the pipeline `pipe` and a picture."""
    folder = tmp_path_factory.mktemp("models")
    pipe.save_pretrained(folder / "pipe")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "p.png")
    return folder


def some(cases: dict, count: int) -> dict:
    """So many of the cases, the same ones every time. 10^30 layers would be built one by one."""
    names = sorted(name for name in cases if not name.endswith("huge"))
    return {name: cases[name] for name in random.Random(1).sample(names, min(count, len(names)))}


def check_command(place: Path, capsys, argv: list, named: str, case: str) -> bool:
    """Whether a command works; where it does not, it says why in one line and leaves nothing."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    lines = capsys.readouterr().err.splitlines()
    left = [path.name for path in place.iterdir() if path.name not in ("pipe", "p.png", "codes.safetensors")]
    if code == 0:
        shutil.rmtree(place / "out", ignore_errors=True)
        return True
    assert code == 1 and len(lines) == 1 and lines[0].startswith("uniwetok: error: "), (case, lines[-3:])
    assert named in lines[0] or "must be" in lines[0], (case, lines[0])
    assert left == [], case
    return False


CASES = {
    "model_index.json": damaged_json,
    "scheduler/scheduler_config.json": damaged_json,
    "processor/processor_config.json": damaged_json,
    "processor/tokenizer.json": damaged_bytes,
    "processor/tokenizer_config.json": damaged_json,
    "mllm/generation_config.json": damaged_json,
    "mllm/config.json": damaged_json,
    "mllm/model.safetensors": lambda content: damaged_bytes(content, flips=1) | damaged_tensors(content),
}


def check_folder(place, capsys, name, count) -> None:
    path = place / "pipe" / name
    whole = path.read_bytes()
    tail = ["--model", place / "pipe", "--output", place / "out"]
    argv = ["generate", "a cat", "--steps", "1", *tail]
    try:
        worked = [
            check_command(place, capsys, argv, str(place / "pipe"), case)
            for case, content in some(CASES[name](whole), count).items()
            if path.write_bytes(content) or not content
        ]
        path.unlink()
        if name not in ("mllm/generation_config.json", "processor/tokenizer_config.json"):  # which may be missing
            assert not all(worked)
            assert not check_command(place, capsys, argv, str(place / "pipe"), "missing")
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", CASES)
def test_commands_with_a_damaged_folder(place, capsys, name):
    check_folder(place, capsys, name, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_commands_with_a_folder_damaged_in_many_ways(place, capsys, name):
    check_folder(place, capsys, name, 80)


def test_a_config_without_its_sizes_takes_no_memory(place, capsys):
    """The model of its defaults would take 40 GB."""
    path = place / "pipe" / "mllm" / "config.json"
    whole, before = path.read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for lost in ([*json.loads(whole)], ["head_config"]):
            path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name not in lost}))
            assert main(["generate", "a cat", "--model", str(place / "pipe"), "--output", str(place / "out")]) == 1
            assert " parameters, its weight files " in capsys.readouterr().err and not (place / "out").exists()
    finally:
        path.write_bytes(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_shapes_of_weights_are_named(place, capsys):
    path = place / "pipe" / "mllm" / "model.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged_tensors(whole)["another shape"])
        main(["generate", "a cat", "--model", str(place / "pipe"), "--output", str(place / "out")])
    finally:
        path.write_bytes(whole)
    assert " of the shape [" in capsys.readouterr().err and not (place / "out").exists()


def test_commands_with_damaged_codes(place, capsys):
    codes = place / "codes.safetensors"
    assert main(["encode", str(place / "p.png"), "--model", str(place / "pipe"), "--output", str(codes)]) == 0
    whole = codes.read_bytes()
    argv = ["decode", codes, "--model", place / "pipe", "--output", place / "out"]
    cases = damaged_bytes(whole, flips=2) | damaged_tensors(whole)
    for case, content in cases.items():
        codes.write_bytes(content)
        assert not check_command(place, capsys, argv, "codes.safetensors", case), case
    codes.unlink()


def test_conversations(pipe, tmp_path):
    talk = UniWeTokConversation(pipe)
    talk.say("x", Image.new("RGB", (64, 64), "red"), max_new_tokens=1)
    talk.save(tmp_path / "talk")
    path = tmp_path / "talk" / "conversation.json"
    whole, failed = path.read_bytes(), 0
    turn = json.loads(whole)["messages"][0]
    others = [
        {**turn, "role": 3},
        {"role": "user"},
        {**turn, "content": "x"},
        {**turn, "content": [{"type": "text"}]},
        5,
    ]
    changed = [json.dumps(json.loads(whole) | {"messages": [other]}).encode() for other in others]
    for content in [*damaged_json(whole).values(), *changed]:
        path.write_bytes(content)
        try:
            UniWeTokConversation.load(tmp_path / "talk", pipe).history
        except ValueError as error:
            failed += 1
            assert str(tmp_path / "talk") in str(error)
    assert failed > 30


ENCODING = {
    **{"model": "m", "fingerprint": "f", "num_bits": 16, "stride": 32, "picture_columns": ["image"]},
    **{"num_variants": 1, "num_rows": 1, "num_parts": 1, "num_skipped": 0, "bytes": {}, "pictures_per_second": 0.5},
    **{"settings": {}, "format": 1},
}
RECORD = {"format": 1, "is_complete": True, "loss_models": [{"role": "teacher", "name": "n", "weights": ["a"]}]}


@pytest.mark.parametrize(
    "name, values, read",
    [
        ("encoding.json", ENCODING, lambda path: read_encoding(path.parent)),
        ("training.json", RECORD, lambda path: read_training_record(path.parent)),
        ("any.json", RECORD, read_json),
    ],
)
def test_small_files(tmp_path, name, values, read):
    """Read, or refused by an error that names the file."""
    path, failed = tmp_path / name, 0
    for case, content in damaged_json(json.dumps(values).encode()).items():
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            failed += 1
            assert name in str(error), case
    assert failed > 5
