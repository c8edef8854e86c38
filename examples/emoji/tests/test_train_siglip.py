import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture
from tiny_training import assert_same_weights, write
from torch.nn import functional as F
from train_siglip import (
    ConceptOrder,
    EmojiPairs,
    Pair,
    PairCollator,
    SiglipTrainingConfig,
    build_model,
    caption_of,
    facts_of,
    finished,
    main,
    make_arguments,
    read_pixels,
    read_rows,
    sigmoid_loss,
    train,
    train_text_tokenizer,
    zero_shot,
)
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, SiglipModel

from uniwetok_hf.data.samples import EpochOrder
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.training.config import read_config


RECIPE = Path(__file__).parent.parent
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}
STYLES = ("flat", "noto")
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FIELDS = {
    "max_train_steps": 4,
    "batch_size": 4,
    "image_size": 16,
    "vision_model": {**TINY, "patch_size": 8},
    "text_model": TINY,
    "text_length": 16,
    "vocab_size": 300,
    "logging_steps": 1,
    "checkpointing_steps": 2,
}


def row_of(colour, style):
    """One concept of the tiny set: a disc, or a square, of a colour."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    y, x = np.mgrid[:32, :32] - 15.5
    pixels[(np.hypot(x, y) < 12) if style == "noto" else (np.maximum(abs(x), abs(y)) < 12)] = COLOURS[colour]
    keywords = [colour, "disc"] if colour != "grey" else []
    texts = {"label": f"{colour} disc", "style": style, "concept": f"{colour} {style}"}
    return {"image": Picture.fromarray(pixels), "keywords": keywords} | texts


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder like those of `emoji_data.py`: 4 concepts in 2 styles to learn from, 2 of them held out."""
    folder = tmp_path_factory.mktemp("emoji")
    columns = {name: Value("string") for name in ("label", "style", "concept")}
    features = Features({"image": Image(), **columns, "keywords": List(Value("string"))})
    rows = {
        "train": [row_of(colour, style) for colour in COLOURS for style in STYLES],
        "validation": [row_of(colour, style) for colour in ("red", "blue") for style in STYLES],
    }
    splits = {name: Dataset.from_list(values, features=features) for name, values in rows.items()}
    DatasetDict(splits).save_to_disk(folder / "pictures")
    return folder


@pytest.fixture
def make_config(data, tmp_path):
    return lambda name="run", **fields: SiglipTrainingConfig(
        **{"data": str(data), "output_dir": str(tmp_path / name)} | FIELDS | fields
    )


@pytest.fixture(scope="session")
def pairs(data):
    return EmojiPairs(read_rows(str(data), ["train"]), 300, 16, seed=3, crop_probability=0.5, crop_scale=(0.5, 0.9))


@pytest.fixture(scope="session")
def text_tokenizer(pairs):
    return train_text_tokenizer(pairs.all_texts(), 300, 16)


def test_pairs_are_of_the_rows_in_their_order(pairs):
    order = pairs.order
    assert len(pairs) == 300
    for number in range(24):
        pair, row = pairs[number], pairs.texts[order[number]]
        assert pair.facts == facts_of(row)
        assert pair.statements <= pair.facts  # a text is true of its own picture
        assert pair.pixel_values.shape == (3, 16, 16)
        assert pair.pixel_values.min() >= -1 and pair.pixel_values.max() <= 1


def test_texts_are_labels_captions_and_keywords(pairs):
    texts = {}
    for pair in map(pairs.__getitem__, range(200)):
        texts.setdefault(pair.text, set()).add(pair.statements)
    label, style = ("label", "red disc"), ("style", "noto")
    keywords = {("keyword", "red"), ("keyword", "disc")}
    assert texts["red disc"] == {frozenset({label})}
    assert texts["a noto emoji of red disc"] == {frozenset({label, style})}
    assert texts["disc, red"] == texts["red, disc"] == {frozenset(keywords)}
    assert texts["disc"] == {frozenset({("keyword", "disc")})}
    captions = {caption_of(row) for row in pairs.texts}
    assert set(texts) <= captions | {row["label"] for row in pairs.texts} | {*COLOURS, "disc"} | {
        text for text in texts if ", " in text
    }
    assert "" not in texts  # a row without keywords is described by its label


def test_texts_are_as_often_of_a_kind_as_weighted(data):
    rows = read_rows(str(data), ["train"])
    pairs = EmojiPairs(rows, 200, 16, seed=3, text_weights=(0.0, 3.0, 1.0))
    kinds = [next(iter(pairs[number].statements))[0] for number in range(200)]
    with_keywords = [kind for number, kind in enumerate(kinds) if pairs.texts[pairs.order[number]]["keywords"]]
    assert 0.15 < with_keywords.count("keyword") / len(with_keywords) < 0.35
    assert all("emoji of" in pairs[number].text for number, kind in enumerate(kinds) if kind == "style")


def test_a_pair_is_a_function_of_seed_and_number(pairs, data):
    def same(one, other):
        return torch.equal(one.pixel_values, other.pixel_values) and one.text == other.text

    rows = read_rows(str(data), ["train"])
    again = EmojiPairs(rows, 300, 16, seed=3, crop_probability=0.5, crop_scale=(0.5, 0.9))
    other = EmojiPairs(rows, 300, 16, seed=4, crop_probability=0.5, crop_scale=(0.5, 0.9))
    assert all(same(pairs[number], again[number]) for number in (17, 3, 100))
    assert not all(same(pairs[number], other[number]) for number in range(8))


def test_pictures_are_cropped_and_else_whole(pairs, data):
    rows = read_rows(str(data), ["train"])
    whole = [read_pixels(row["image"], 16) for row in rows]
    order = pairs.order
    is_whole = [torch.equal(pairs[number].pixel_values, whole[order[number]]) for number in range(100)]
    assert 30 < sum(is_whole) < 70
    never = EmojiPairs(rows, 100, 16, seed=3)
    assert all(torch.equal(never[number].pixel_values, whole[order[number]]) for number in range(20))


def test_crops_lie_inside_the_picture_and_have_their_scale(data):
    """Of a picture whose red and green tell column and row, a crop shows a range as long as its side."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(32) * 8, np.arange(32)[:, None] * 8
    texts = {"label": "a", "style": "b", "concept": "a", "keywords": []}
    rows = Dataset.from_list([{"image": Picture.fromarray(pixels)} | texts])
    pairs = EmojiPairs(rows.cast_column("image", Image()), 40, 16, 0, crop_probability=1.0, crop_scale=(0.5, 0.75))
    lefts = []
    for number in range(40):
        red, green, _ = (pairs[number].pixel_values + 1) * 127.5 / 8
        width, height = red.max() - red.min(), green.max() - green.min()
        assert 0.5 * 32 - 2.5 < width < 0.75 * 32 and abs(width - height) < 0.5
        assert (red.diff(dim=1) > 0).all()  # never mirrored
        lefts.append(red.min().item())
    assert min(lefts) < 3 and max(lefts) > 10


def test_truth_of_pairs_is_labelled(text_tokenizer):
    def pair(text, statements, facts):
        return Pair(torch.zeros(3, 16, 16), frozenset(facts), text, frozenset(statements))

    label, other = ("label", "hand"), ("label", "hand: dark skin tone")
    noto, flat, keyword = ("style", "noto"), ("style", "flat"), ("keyword", "wave")
    batch = PairCollator(text_tokenizer)(
        [
            pair("hand", [label], [label, noto, keyword]),
            pair("a flat emoji of hand", [label, flat], [label, flat, keyword]),
            pair("hand: dark skin tone", [other], [other, noto, keyword]),
            pair("wave", [keyword], [other, flat, keyword]),
        ]
    )
    assert batch["labels"].tolist() == [  # rows are texts, columns pictures
        [1, 1, -1, -1],  # a label is true of the concept in any style, but not of another tone
        [-1, 1, -1, -1],  # with a style, of this one only
        [-1, -1, 1, 1],
        [1, 1, 1, 1],  # a keyword of the concept is true of all of them
    ]
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["input_ids"].shape == (4, 16)


def test_texts_are_padded_and_cut_to_one_length(text_tokenizer):
    batch = text_tokenizer(["Red disc", "red disc " * 20], padding="max_length", truncation=True)
    assert list(batch) == ["input_ids"]  # no mask: SigLIP attends to the padding
    short, long = batch["input_ids"]
    assert len(short) == len(long) == 16
    assert short[-1] == text_tokenizer.pad_token_id and text_tokenizer.pad_token_id not in long
    assert text_tokenizer.decode(short, skip_special_tokens=True).strip() == "red disc"  # lower case
    assert text_tokenizer("é 🙂")["input_ids"]  # any text can be written
    with pytest.raises(ValueError, match="`vocab_size` must be 257 or more"):
        train_text_tokenizer(["a"], 256, 8)


def test_loss_is_transformers_own_with_one_positive_each(make_config, text_tokenizer):
    model = build_model(make_config(), text_tokenizer)
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(3, 3, 16, 16), "input_ids": torch.randint(5, 200, (3, 16))}
    outputs = model(**inputs, return_loss=True)
    torch.testing.assert_close(sigmoid_loss(outputs, 2 * torch.eye(3) - 1), outputs.loss)
    # By hand with two positives: texts are rows.
    outputs.logits_per_text = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    expected = -(F.logsigmoid(torch.tensor([1.0, 2.0, 1.0, 0.0]))).sum() / 2
    assert sigmoid_loss(outputs, labels).item() == pytest.approx(expected.item())


def test_new_models_logits(make_config, text_tokenizer):
    model = build_model(make_config(), text_tokenizer)
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10
    assert build_model(make_config(logit_bias=-3.0), text_tokenizer).logit_bias.item() == -3
    assert model.config.vision_config.image_size == 16
    text_config = model.config.text_config
    assert (text_config.vocab_size, text_config.max_position_embeddings) == (len(text_tokenizer), 16)
    assert text_config.projection_size == model.config.vision_config.hidden_size


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished training of 4 steps, and torch's global random state before and after it."""
    folder = tmp_path_factory.mktemp("siglip")
    state = torch.get_rng_state()
    config = write(folder, FIELDS, data=str(data), output_dir=str(folder / "none"))
    main(["--config", str(config), "--set", f"output_dir={folder / 'run'}"])
    return folder / "run" / "model", state, torch.get_rng_state()


def test_result_is_a_teacher_and_loads_by_the_auto_classes(run, data):
    path = run[0]
    assert path.name == "model"
    model, text_tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    image_processor = AutoImageProcessor.from_pretrained(path)
    assert isinstance(model, SiglipModel)
    assert text_tokenizer.model_max_length == 16
    teacher = Teacher.from_pretrained(path)
    assert (teacher.image_size, teacher.embedding_size) == ((16, 16), 16)
    image = row_of("red", "noto")["image"].resize((16, 16))
    prepared = image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, read_pixels(image, 16)[None], atol=1e-6, rtol=0)
    inputs = text_tokenizer(["red disc"], padding="max_length", truncation=True, return_tensors="pt")
    torch.testing.assert_close(teacher.embed_texts(["red disc"]), model.get_text_features(**inputs).pooler_output)
    result = json.loads((path.parent / "zero_shot.json").read_text())
    assert result == zero_shot(teacher, str(data), "validation")
    assert (result["pictures"], result["labels"], result["chance"]) == (4, 2, 0.5)


def test_global_random_state_is_left_alone(run):
    assert torch.equal(run[1], run[2])


def test_interrupted_training_goes_on_exactly(run, make_config, monkeypatch):
    """A run that dies in its last step, after the checkpoint of step 2, ends like one that did not."""
    config, order, seen = make_config(), EpochOrder.__getitem__, []

    def note(self, position):
        seen.append(position)
        if position == 14 and 0 in seen:
            raise RuntimeError("killed")
        return order(self, position)

    monkeypatch.setattr(EpochOrder, "__getitem__", note)
    with pytest.raises(RuntimeError, match="killed"):
        train(config)
    assert finished(config) is None
    seen.clear()
    path = train(config)
    assert sorted(seen) == list(range(8, 16))  # it did not begin anew
    assert_same_weights(path / "model.safetensors", run[0] / "model.safetensors")
    assert (path / "tokenizer.json").read_text() == (run[0] / "tokenizer.json").read_text()
    losses = [
        [line["loss"] for line in json.loads(file.read_text())["log_history"] if "loss" in line]
        for folder in (path.parent, run[0].parent)
        for file in folder.glob("checkpoint-4/trainer_state.json")
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert finished(config) == path
    with pytest.raises(ValueError, match="`output_dir`"):
        train(config)


def test_settings_that_change_are_applied_or_refused(make_config, monkeypatch):
    """Trainer itself would learn at the rate of the checkpoint and log as often as before, without a word."""
    config, order = make_config(), EpochOrder.__getitem__

    def die(self, position):
        if position == 14:
            raise RuntimeError("killed")
        return order(self, position)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(EpochOrder, "__getitem__", die)
        train(config)
    for change in ({"learning_rate": 0.5}, {"seed": 7}, {"crop_scale": [0.9, 1.0]}, {"max_train_steps": 5}):
        with pytest.raises(ValueError, match=f"^`{next(iter(change))}` is .* and was .*checkpoint-2"):
            train(dataclasses.replace(config, **change))
    path = train(dataclasses.replace(config, logging_steps=4))
    history = json.loads((path.parent / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 4]


def test_the_environment_does_not_change_the_precision(make_config, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_arguments(make_config(), tmp_path).mixed_precision == "no"


def test_ctrl_c_keeps_the_step(run, make_config, monkeypatch):
    config, order = make_config(), EpochOrder.__getitem__

    def press(self, position):
        if position == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return order(self, position)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 1;"):
        patch.setattr(EpochOrder, "__getitem__", press)
        train(config)
    assert [path.name for path in Path(config.output_dir).glob("checkpoint-*")] == ["checkpoint-1"]
    assert finished(config) is None
    path = train(config)
    assert_same_weights(path / "model.safetensors", run[0] / "model.safetensors")


def test_low_precision_runs(make_config, tmp_path, request):
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision of the tests before
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    seen = set()

    def note(module, args, output):
        if isinstance(module, torch.nn.Linear) and module.training:
            seen.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    request.addfinalizer(hook.remove)
    folder = train(make_config(mixed_precision="bf16", output_dir=str(tmp_path / "run"), max_train_steps=2))
    assert seen == {torch.bfloat16}
    model = SiglipModel.from_pretrained(folder)
    assert model.dtype == torch.float32 and all(p.isfinite().all() for p in model.parameters())


def test_it_learns(make_config):
    """Colours are told apart after a few steps, of the very pictures it saw."""
    steps = {"max_train_steps": 60, "batch_size": 16, "logging_steps": 60, "checkpointing_steps": 1000}
    config = make_config(**steps, logit_bias=-2.8, learning_rate=5e-3, validation_split="train")
    result = json.loads((train(config).parent / "zero_shot.json").read_text())
    assert result["labels"] == 4 and result["top1"] >= 0.75


def test_zero_shot_by_hand(data):
    """Pictures and texts whose colour is their vector."""

    class ByColour:
        image_size = (16, 16)

        def embed_pictures(self, pixel_values):
            return pixel_values[:, :, 8, 8]

        def embed_texts(self, texts):
            return torch.tensor([COLOURS[text.split()[0]] for text in texts]) / 127.5 - 1

    assert zero_shot(ByColour(), str(data), "validation")["top1"] == 1
    ByColour.embed_texts = lambda self, texts: torch.ones(len(texts), 3)
    assert zero_shot(ByColour(), str(data), "validation")["top1"] == 0  # a tie is wrong


def test_arguments(make_config, tmp_path):
    arguments = make_arguments(make_config(learning_rate=0.01, weight_decay=0.3, lr_warmup_steps=2), tmp_path)
    assert (arguments.max_steps, arguments.per_device_train_batch_size) == (4, 4)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.warmup_steps) == (0.01, 0.3, 2)
    assert arguments.train_sampling_strategy == "sequential" and arguments.lr_scheduler_type == "cosine"


def test_wrong_settings_are_refused(make_config, tmp_path, data):
    with pytest.raises(ValueError, match=r"`data`: .*nothing holds no pictures"):
        train(make_config(data=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="`splits` must be some of train, validation, got .*'tests'"):
        train(make_config(splits=["train", "tests"]))
    with pytest.raises(ValueError, match="`splits` must be some of"):
        read_rows(str(data), [])
    for scale in ([0.5], [0.9, 0.5], [0.0, 1.0], [0.5, 1.5]):
        with pytest.raises(ValueError, match="`crop_scale`"):
            make_config(crop_scale=scale)
    for weights in ([1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="`text_weights` must be three numbers of 0 or more"):
            make_config(text_weights=weights)
    with pytest.raises(ValueError, match="`group_size` must be 1 or more, got 0"):
        make_config(group_size=0)
    with pytest.raises(ValueError, match="`mixed_precision` must be auto, no, fp16 or bf16, got 'int8'"):
        make_config(mixed_precision="int8")
    with pytest.raises(ValueError, match="`rows` is empty"):
        EmojiPairs(read_rows(str(data), ["train"]).select([]), 4, 16, 0)


def test_hard_negatives_come_together(data):
    """Both styles of a concept, one after the other."""
    rows = read_rows(str(data), ["train"])
    rows = rows.remove_columns("concept").add_column("concept", rows["label"])
    pairs = EmojiPairs(rows, 8, 16, seed=0, group_size=2)
    labels = [rows[pairs.order[number]]["label"] for number in range(8)]
    assert labels[0::2] == labels[1::2] and len(set(labels)) == 4


def test_several_splits_are_joined(data):
    assert len(read_rows(str(data), ["train", "validation"])) == 12


def test_shipped_config(text_tokenizer):
    config = read_config(SiglipTrainingConfig, RECIPE / "emoji_siglip.yaml")
    model = build_model(config, text_tokenizer)
    assert model.vision_model.embeddings.num_patches == 16
    assert config.splits == ["train"]
    assert yaml.safe_load((RECIPE / "emoji_siglip.yaml").read_text())["data"] == "data/emoji"


def test_every_concept_has_the_same_share():
    keys = ["a"] * 6 + ["b"] * 3 + ["c"]
    order = ConceptOrder(keys, size=2, seed=0)
    epochs = [[order[5 * epoch + place] for place in range(5)] for epoch in range(30)]
    assert all(len(set(epoch)) == 5 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 20
    for epoch in epochs:  # two of a, two of b, and c, each together
        found = [keys[row] for row in epoch]
        assert sorted(found) == ["a", "a", "b", "b", "c"] and "aa" in "".join(found) and "bb" in "".join(found)
    assert {row for epoch in epochs for row in epoch} == set(range(10))
    again = ConceptOrder(keys, size=2, seed=0)
    assert again[12] == epochs[2][2] and [again[place] for place in range(5)] == epochs[0]
    assert [ConceptOrder(keys, 2, seed=1)[place] for place in range(5)] != epochs[0]
