"""A run that goes on from a checkpoint applies each change of its settings, or refuses it by the name of the field."""

import copy
import dataclasses
import importlib.util
import json
import re
import shutil
import types
import typing
from pathlib import Path

import pytest
import torch
from tiny_encoded import build_vision, encode, language_training, run, shapes, stop_before
from tiny_training import VISION, log_lines, train_file, write

from uniwetok_hf.data.sources import PictureSource
from uniwetok_hf.training import train_uniwetok
from uniwetok_hf.training.checkpoints import list_checkpoints
from uniwetok_hf.training.class_batches import ClassSource
from uniwetok_hf.training.config import APPLY, KEEP, KEEP_NULL, read_config, section_of
from uniwetok_hf.training.lora import LoraSettings
from uniwetok_hf.training.picture_batches import Bucket
from uniwetok_hf.training.resume import check_resume, saved_settings
from uniwetok_hf.training.settings_uniwetok import (
    AdversarialSettings,
    DistillationSettings,
    EntropySettings,
    PerceptualSettings,
    PriorSettings,
    UniWeTokTrainingConfig,
)
from uniwetok_hf.training.tasks import TaskSource
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainingConfig
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer


# Configs in which every section is there.
TOKENIZER = UniWeTokTrainingConfig(
    output_dir="run",
    data=[PictureSource("one", crop_probability=0.5, crop_scale=[0.5, 1.0]), PictureSource("two")],
    buckets=[Bucket(32, 32)],
    max_train_steps=6,
    batch_size=4,
    validation_data=PictureSource("held-out"),
    entropy=EntropySettings(),
    perceptual=PerceptualSettings("backbone"),
    adversarial=AdversarialSettings(),
    distillation=DistillationSettings("teacher"),
    prior=PriorSettings(),
)
MLLM = MLLMTrainingConfig(
    output_dir="run",
    data=[TaskSource("one", "captions"), TaskSource("two", "edits")],
    max_train_steps=4,
    batch_size=4,
    validation_data=[TaskSource("held-out", "captions")],
    init_from="before",
    lora=LoraSettings(),
    ema_decay=0.9,
)
CLASSES = ClassToImageTrainingConfig(
    output_dir="run",
    data=[ClassSource("one"), ClassSource("two")],
    max_train_steps=4,
    batch_size=4,
    validation_data=[ClassSource("held-out")],
    init_from="before",
)
# What decides about weights that are there, about the order of samples, or about what a result may be judged by.
FIXED = {
    UniWeTokTrainingConfig: {
        *("data", "init_from", "model", "trainable", "perceptual", "adversarial", "distillation", "prior", "compile"),
        *(f"data[1].{name}" for name in ("path", "split", "name", "image_column", "streaming", "weight")),
        *("perceptual.model", "adversarial.base_channels", "adversarial.num_layers", "distillation.teacher", "seed"),
        *(f"{section}.{name}" for section in ("distillation", "prior") for name in ("hidden_size",)),
        "distillation.head",
        *(f"{section}.num_attention_heads" for section in ("distillation", "prior")),
        *("prior.num_hidden_layers", "prior.architecture"),
    },
    MLLMTrainingConfig: {
        *("data", "batch_size", "init_from", "vision_model", "language_model", "text_model", "vocab_size", "seed"),
        *("num_size_tokens", "head", "trainable", "lora", "length_group_steps", "packed_tokens"),
        *(f"data[1].{name}" for name in ("path", "task", "weight", "columns", "options")),
        *(f"lora.{name}" for name in ("r", "alpha", "targets", "options")),
    },
    ClassToImageTrainingConfig: {
        *("data", "batch_size", "init_from", "vision_model", "head", "labels", "resolution", "seed"),
        *(f"data[1].{name}" for name in ("path", "weight", "image_column", "label_column", "split", "name")),
    },
}


def sections(config_class: type) -> list[type]:
    """A config and all sections in it."""
    hints = typing.get_type_hints(config_class)
    found = [section_of(hints[field.name]) for field in dataclasses.fields(config_class)]
    return [config_class, *(inner for section in found if section for inner in sections(section))]


def siglip_config() -> type:
    spec = importlib.util.find_spec("train_siglip")
    return importlib.import_module(spec.name).SiglipTrainingConfig


@pytest.mark.parametrize(
    "config_class", [UniWeTokTrainingConfig, MLLMTrainingConfig, ClassToImageTrainingConfig, siglip_config()]
)
def test_every_field_says_what_a_change_does(config_class):
    for section in sections(config_class):
        if section in (Bucket,):  # its field is applied as a whole
            continue
        for field in dataclasses.fields(section):
            rule = field.metadata.get("on_resume")
            assert rule in (APPLY, KEEP, KEEP_NULL) or isinstance(rule, tuple), f"{section.__name__}.{field.name}"


def other_value(hint, value):
    """Another value of the type of a field; of one that may be null, not null."""
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
    kind = typing.get_origin(options[0]) or options[0]
    if kind is bool:
        return not value
    if kind in (int, float):
        return kind(1 if value is None else value + 1)
    if kind is list:
        return value[:-1] if value else ["new"]
    if kind is dict:
        return (value or {}) | {"new": 1}
    return f"{value}-new"


def changes(config) -> dict[str, tuple[str, object]]:
    """By the name of each field, also of sections, a copy of the config in which it differs."""
    found = {}

    def add(names: list, name: str, section) -> None:
        hints = typing.get_type_hints(type(section))
        for field in dataclasses.fields(section):
            value, full = getattr(section, field.name), f"{name}{field.name}"
            inner = section_of(hints[field.name])
            path = [*names, field.name]
            if inner and not isinstance(value, list) and value is not None:
                found[full] = changed(path, None)
                if field.metadata["on_resume"] != APPLY:
                    add(path, f"{full}.", value)
            elif inner and value:
                found[full] = changed(path, value[:-1])
                if field.metadata["on_resume"] != APPLY:
                    add([*path, 1], f"{full}[1].", value[1])
            else:
                found[full] = changed(path, other_value(hints[field.name], value))

    def changed(path: list, value):
        copied = target = copy.deepcopy(config)
        for name in path[:-1]:
            target = target[name] if isinstance(name, int) else getattr(target, name)
        setattr(target, path[-1], value)
        return copied

    add([], "", config)
    return found


CHANGES = [(config, name) for config in (TOKENIZER, MLLM, CLASSES) for name in changes(config)]


@pytest.mark.parametrize("config, name", CHANGES, ids=[f"{type(config).__name__}-{name}" for config, name in CHANGES])
def test_each_field_is_applied_or_refused_by_its_name(config, name):
    changed, where = changes(config)[name], Path("run/checkpoints/step-000002")
    if name in FIXED[type(config)]:
        with pytest.raises(
            ValueError, match="checkpoints/step-000002.* Set it back, or name another `output_dir`"
        ) as e:
            check_resume(saved_settings(config), changed, where)
        assert str(e.value).startswith(f"`{name}` is ")
    elif name in ("mllm", "model") and config is not TOKENIZER:
        with pytest.raises(ValueError, match=f"`{name}.new` is 1 and was None"):
            check_resume(saved_settings(config), changed, where)
    else:
        assert list(check_resume(saved_settings(config), changed, where)) == [name]
    assert check_resume(saved_settings(changed), changed, where) == {}


def test_the_names_of_refused_fields_are_fields():
    for config in (TOKENIZER, MLLM, CLASSES):
        assert FIXED[type(config)] <= changes(config).keys()


def test_null_stays_null_and_some_keys_of_a_mapping_are_applied():
    averaged = dataclasses.replace(MLLM, lora=None, mllm={"patch_size": 1, "text_loss_weight": 0.2})
    saved = saved_settings(averaged)
    plain = dataclasses.replace(averaged, ema_decay=None)
    with pytest.raises(ValueError, match="^`ema_decay` is None and was 0.9 in"):
        check_resume(saved, plain, Path("x"))
    with pytest.raises(ValueError, match="^`ema_decay` is 0.9 and was None in"):
        check_resume(saved_settings(plain), averaged, Path("x"))
    more = {"patch_size": 1, "text_loss_weight": 0.5, "num_diffusion_draws": 2}
    applied = check_resume(saved, dataclasses.replace(averaged, mllm=more), Path("x"))
    assert applied == {"mllm.num_diffusion_draws": (None, 2), "mllm.text_loss_weight": (0.2, 0.5)}
    with pytest.raises(ValueError, match="^`mllm.patch_size` is 2 and was 1; `seed` is 1 and was 0 in"):
        check_resume(saved, dataclasses.replace(averaged, mllm=more | {"patch_size": 2}, seed=1), Path("x"))


def test_sources_may_not_be_added_and_weights_of_streams_may_change():
    saved, (one, two) = saved_settings(TOKENIZER), TOKENIZER.data
    with pytest.raises(ValueError, match="^`data` is "):
        check_resume(saved, dataclasses.replace(TOKENIZER, data=[one, two, two]), Path("x"))
    with pytest.raises(ValueError, match=r"^`data\[0\].path` is 'two' and was 'one'; `data\[1\].path`"):
        crops = {"crop_probability": 0.5, "crop_scale": [0.5, 1.0]}
        turned = [dataclasses.replace(two, **crops), PictureSource("one")]
        check_resume(saved, dataclasses.replace(TOKENIZER, data=turned), Path("x"))
    weighted = dataclasses.replace(TOKENIZER, data=[one, dataclasses.replace(two, weight=2.0)])
    assert check_resume(saved, weighted, Path("x"), ["data.weight"]) == {"data[1].weight": (1.0, 2.0)}


def test_a_run_may_be_moved_and_its_config_name_paths_in_another_way(tmp_path, monkeypatch):
    for folder in ("here/codes", "there"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    relative = dataclasses.replace(MLLM, data=[TaskSource("codes", str(tmp_path / "here" / "tasks.py:Mine"))])
    saved = saved_settings(relative)
    shutil.move(tmp_path / "here" / "codes", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    moved = dataclasses.replace(relative, data=[TaskSource("codes", str(tmp_path / "there" / "tasks.py:Mine"))])
    assert check_resume(saved, moved, Path("x")) == {}
    absolute = dataclasses.replace(moved, data=[TaskSource(str(tmp_path / "there" / "codes"), moved.data[0].task)])
    assert check_resume(saved_settings(moved), absolute, Path("x")).keys() <= {"output_dir"}
    (tmp_path / "link").symlink_to("there")
    linked = dataclasses.replace(absolute, data=[TaskSource(str(tmp_path / "link" / "codes"), moved.data[0].task)])
    assert check_resume(saved_settings(absolute), linked, Path("x")) == {}


def test_a_home_that_was_saved_as_written_is_the_same(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    saved = saved_settings(dataclasses.replace(TOKENIZER, data=[PictureSource("~/photos")]))
    assert (
        check_resume(saved, dataclasses.replace(TOKENIZER, data=[PictureSource("/home/me/photos")]), Path("x")) == {}
    )


def test_a_field_that_is_new_had_its_default():
    saved = saved_settings(MLLM)
    for form in saved.values():
        del form["seed"], form["max_skipped_steps"], form["text_dropout"]
    assert check_resume(saved, MLLM, Path("x")) == {}
    with pytest.raises(ValueError, match="^`seed` is 3 and was 0 in"):
        check_resume(saved, dataclasses.replace(MLLM, seed=3), Path("x"))


# --- whole runs ---


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Fields of a training of the language model."""
    fields = language_training(tmp_path_factory.mktemp("language"))
    return fields | {"validation_data": [], "max_train_steps": 6}


@pytest.fixture(scope="module")
def stopped(language, tmp_path_factory):
    """The folder of a run with a checkpoint of its step 2."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_before(3, patch, language, folder)
    return folder / "run"


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of it, `run` in `tmp_path`."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


OPTIMIZER = {
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "lr_warmup_steps": 4,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "ema_decay": 0.5,
    "max_train_steps": 8,
}


def test_a_new_optimizer_schedule_and_average_are_applied(language, copied, tmp_path, capsys):
    trainer = MLLMTrainer(
        read_config(MLLMTrainingConfig, write(tmp_path, language, output_dir=str(copied), **OPTIMIZER))
    )
    trainer.train()
    assert "`learning_rate` is 0.0002 from here on, and was 0.001" in capsys.readouterr().out
    (group,) = trainer.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.1)
    assert group["initial_lr"] == 2e-4 and trainer.ema.decay == trainer.ema.min_decay == 0.5
    # The rates are those of a run that had the settings from its start.
    fresh = MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path / "b", language, output_dir="b", **OPTIMIZER)))
    rates = []
    for _ in range(8):
        fresh.optimizer.step()
        fresh.scheduler.step()
        rates.append(float(f"{fresh.scheduler.get_last_lr()[0]:.6g}"))
    lines = log_lines(copied)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["learning_rate"] for line in lines[2:]] == rates[2:]
    # And what is written down is what happened.
    settings = json.loads((list_checkpoints(copied)[-1] / "manifest.json").read_text())["settings"]
    for said in (json.loads((copied / "config.json").read_text()), settings["written"], settings["absolute"]):
        assert {name: said[name] for name in OPTIMIZER} == OPTIMIZER


def test_a_run_that_diverged_goes_on_with_a_smaller_rate(language, copied, tmp_path):
    """As our own error advises."""
    with pytest.raises(FloatingPointError, match="step-000002. Set a smaller `learning_rate`: the same command"):
        run(language, tmp_path, learning_rate=1e30, lr_scheduler="constant", max_skipped_steps=1)
    assert [path.name for path in list_checkpoints(copied)] == ["step-000002"]  # and no step of a diverged model
    run(language, tmp_path, learning_rate=1e-4)
    lines = log_lines(copied)
    assert [line["step"] for line in lines] == list(range(1, 7)) and lines[-1]["loss"] < lines[0]["loss"] + 1
    assert "skipped_steps" not in lines[-1]  # the steps after the checkpoint were taken back


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 8}, "^`batch_size` is 8 and was 4"),
        ({"ema_decay": None}, "^`ema_decay` is None and was 0.9"),
        ({"seed": 1}, "^`seed` is 1 and was 0"),
        ({"mllm": {"patch_size": 1, "text_loss_weight": 0.2}}, "^`mllm.patch_size` is 1 and was 2"),
        ({"trainable": ["image_head"]}, r"^`trainable` is \['image_head'\] and was \[\]"),
        ({"max_train_steps": 1}, "^`max_train_steps` is 1, but .*step-000002 has 2 steps"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_loaded(
    language, copied, tmp_path, change, message, monkeypatch
):
    monkeypatch.setattr("uniwetok_hf.training.train_mllm.start_pipeline", lambda *_: pytest.fail("it was loaded"))
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message):
        run(language, tmp_path, **change)
    after = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    status = json.loads(after.pop(copied / "status.json"))  # which says why
    assert status["status"] == "failed" and re.search(message, status["error"])
    assert before.pop(copied / "status.json") and before == after


def test_another_task_is_refused(language, copied, tmp_path):
    one, *others = language["data"]
    with pytest.raises(ValueError, match="^`data` is "):
        run(language, tmp_path, data=[one, *others, one])
    with pytest.raises(ValueError, match=r"^`data\[0\].path` is .*; `data\[0\].task` is"):
        run(language, tmp_path, data=[*others, one])
    with pytest.raises(ValueError, match=r"^`data\[0\].weight` is 3.0 and was 1.0"):
        run(language, tmp_path, data=[one | {"weight": 3.0}, *others])


def test_rows_that_came_or_went_are_refused(language, copied, tmp_path):
    """The same path, but another order of all rows."""
    (state,) = copied.glob("checkpoints/step-000002/data-0.json")
    assert json.loads(state.read_text())["rows"] == [24, 24, 24, 24]
    state.write_text(state.read_text().replace("[24, 24,", "[24, 25,"))
    with pytest.raises(ValueError, match=r"^`data\[1\].path` .* has 24 rows and had 25 when the checkpoint was"):
        run(language, tmp_path)


def test_texts_and_codes_that_changed_behind_their_paths_are_refused(language, tmp_path, monkeypatch):
    """As many rows. Other texts make another vocabulary, and another image tokenizer gives other codes."""
    texts, images = zip(*shapes(8), strict=True)

    def put(texts, seed):
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        (vision := build_vision(seed)).save_pretrained(tmp_path / "vision")
        return encode({"image": list(images), "text": list(texts)}, tmp_path / "codes", vision)

    fields = language | {"data": [{"path": put(texts, 0), "task": "captions"}], "max_train_steps": 3}
    fields["vision_model"] = str(tmp_path / "vision")
    stop_before(2, monkeypatch, fields, tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    with monkeypatch.context() as patch:
        patch.setattr("uniwetok_hf.training.stage.load_checkpoint", lambda *_: pytest.fail("it was loaded"))
        put([f"corrected: {text}" for text in texts], 0)
        with pytest.raises(ValueError, match="^`text_model`: the vocabulary that is made of the texts of `data` is"):
            run(fields, tmp_path)
        put(texts, 1)
        with pytest.raises(ValueError, match=r"^`data\[0\].path` .* is encoded by the image tokenizer \w{12}, and"):
            run(fields, tmp_path)
    # Earlier versions did not note them.
    state, manifest = (checkpoint / name for name in ("data-0.json", "manifest.json"))
    old = json.loads(state.read_text())
    del old["encoder"], old["vocabulary"]
    state.write_text(json.dumps(old))
    told = json.loads(manifest.read_text())
    told["files"]["data-0.json"] = state.stat().st_size
    manifest.write_text(json.dumps(told))
    assert [line["step"] for line in log_lines(run(fields, tmp_path))] == [1, 2, 3]


def test_a_finished_run_says_so_before_anything_is_loaded(language, copied, tmp_path, monkeypatch):
    (copied / "pipeline").mkdir()
    monkeypatch.setattr("uniwetok_hf.training.train_mllm.start_pipeline", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="`output_dir` .* holds the pipeline of a finished training"):
        run(language, tmp_path, learning_rate=1.0)


def test_a_checkpoint_without_settings_resumes_and_says_so(language, copied, tmp_path):
    """As those of commit 4e296a4."""
    manifest = copied / "checkpoints" / "step-000002" / "manifest.json"
    old = json.loads(manifest.read_text())
    del old["settings"]
    manifest.write_text(json.dumps(old))
    with pytest.warns(
        UserWarning, match="step-000002 was written by a version that did not keep the settings"
    ) as caught:
        run(language, tmp_path)
    assert len([warning for warning in caught if "did not keep" in str(warning.message)]) == 1
    assert [line["step"] for line in log_lines(copied)] == list(range(1, 7))


@pytest.fixture(scope="module")
def pictures(fixtures):
    """Fields of a training of the image tokenizer with a discriminator."""
    return {
        **VISION,
        "data": [{"path": str(fixtures / "emoji")}],
        "adversarial": {"base_channels": 4, "num_layers": 1},
    }


@pytest.fixture(scope="module")
def stopped_tokenizer(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        train_step = UniWeTokTrainer.train_step

        def until(self, batch, step):
            if step == 2:
                raise KeyboardInterrupt
            train_step(self, batch, step)

        patch.setattr(UniWeTokTrainer, "train_step", until)
        train_file(train_uniwetok, write(folder, pictures, output_dir=str(folder / "run")))
    return folder / "run"


def test_the_tokenizer_applies_what_it_can(pictures, stopped_tokenizer, tmp_path):
    """Rates of both optimizers, losses without weights of their own, crops, and even the size of batches and pictures:
    the running numbers go on where they were."""
    folder = shutil.copytree(stopped_tokenizer, tmp_path / "run")
    new = {
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "weight_decay": 0.2,
        "ema_decay": 0.25,
        "l2_weight": 0.5,
        "entropy": None,
        "commitment_weight": 0.5,
        "flip": False,
        "batch_size": 2,
        "buckets": [{"height": 32, "width": 32}],
        "adversarial": {**pictures["adversarial"], "learning_rate": 7e-4, "weight": 0.3},
    }
    path = write(tmp_path, {**pictures, **new}, output_dir=str(folder))
    trainer, seen = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path)), []
    train_step = trainer.train_step
    trainer.train_step = lambda batch, step: (seen.append(batch.numbers), train_step(batch, step))
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [3e-4]
    assert [group["lr"] for group in trainer.discriminator_optimizer.param_groups] == [7e-4]
    assert {group["weight_decay"] for group in trainer.discriminator_optimizer.param_groups} == {0.2}
    assert trainer.ema.decay == 0.25 and log_lines(folder)[-1]["learning_rate"] == 3e-4
    assert "commitment" in log_lines(folder)[-1] and "entropy" not in log_lines(folder)[-1]
    first = json.loads((stopped_tokenizer / "checkpoints" / "step-000002" / "data-0.json").read_text())
    numbers = [number for batch in seen for number in batch]
    assert numbers == list(range(first["batches"]["number"], first["batches"]["number"] + 8))


def test_the_tokenizer_refuses_pictures_that_came_or_went(pictures, stopped_tokenizer, tmp_path):
    folder = shutil.copytree(stopped_tokenizer, tmp_path / "run")
    (state,) = folder.glob("checkpoints/step-000002/data-0.json")
    values = json.loads(state.read_text())
    assert len(values["rows"]) == 1 and values["rows"][0] > 9
    state.write_text(json.dumps(values | {"rows": [10**6]}))
    manifest = state.with_name("manifest.json")
    told = json.loads(manifest.read_text())
    told["files"]["data-0.json"] = state.stat().st_size
    manifest.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"^`data\[0\].path` .* rows and had 1000000 when"):
        train_file(train_uniwetok, write(tmp_path, pictures, output_dir=str(folder)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"adversarial": None}, "^`adversarial` is None and was {"),
        ({"prior": {"hidden_size": 32}}, "^`prior` is {.*} and was None"),
        ({"adversarial": {"base_channels": 8, "num_layers": 1}}, "^`adversarial.base_channels` is 8 and was 4"),
        ({"model": {**VISION["model"], "num_bits": 8}}, "^`model` is "),
        ({"seed": 5}, "^`seed` is 5 and was 0"),
    ],
)
def test_the_tokenizer_refuses_by_name(pictures, stopped_tokenizer, tmp_path, change, message):
    folder = shutil.copytree(stopped_tokenizer, tmp_path / "run")
    config = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        train_file(train_uniwetok, write(tmp_path, {**pictures, **change}, output_dir=str(folder)))
    assert (folder / "config.json").read_bytes() == config


def test_precision_may_change(pictures, stopped_tokenizer, tmp_path):
    """A checkpoint of fp16 has the scale of its gradients, others have none."""
    folder = shutil.copytree(stopped_tokenizer, tmp_path / "run")
    path = write(tmp_path, pictures, output_dir=str(folder), mixed_precision="no", gradient_checkpointing=True)
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path))
    trainer.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.train()
    assert trainer.accelerator.scaler is scaler and log_lines(folder)[-1]["step"] == 6
