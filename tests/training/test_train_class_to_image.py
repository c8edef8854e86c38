"""The class-to-image training, for real but tiny: it runs, stops anywhere, resumes exactly, goes on from a finished
one, and saves what the package can load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_encoded import build_vision, class_training, encode, pictures, shapes
from tiny_mllm import seeded
from tiny_training import assert_same_weights, log_lines, train_file, write

from uniwetok_hf import UniWeTokClassToImagePipeline, UniWeTokModel
from uniwetok_hf.data.samples import NOISE, sample_generators
from uniwetok_hf.modeling.image_processing_uniwetok import to_uint8
from uniwetok_hf.training import train_class_to_image
from uniwetok_hf.training.class_batches import ClassBatches, ClassSource
from uniwetok_hf.training.config import ConfigError, find_config, read_config
from uniwetok_hf.training.export import export_checkpoint
from uniwetok_hf.training.stage import finished
from uniwetok_hf.training.train_class_to_image import (
    ClassToImageTrainer,
    ClassToImageTrainingConfig,
    decay_groups,
)


MODEL = ("pipeline", "transformer", "model.safetensors")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return class_training(tmp_path_factory.mktemp("classes"))


def run(fields, folder, **more):
    """Runs a training in `folder`; returns its output folder."""
    return train_file(train_class_to_image, write(folder, fields, output_dir=str(folder / "run"), **more)).parent


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    return run(fields, tmp_path_factory.mktemp("trained"), sample_classes=[0, 2])


def stop_before(step: int, monkeypatch, fields, folder, **more) -> None:
    """A run that ends, as if by Ctrl-C, before this step."""
    train_step = ClassToImageTrainer.train_step

    def until(trainer, micro_batches, current):
        if current == step:
            raise KeyboardInterrupt
        train_step(trainer, micro_batches, current)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ClassToImageTrainer, "train_step", until)
        run(fields, folder, **more)


def gradients_of(fields, folder, **more) -> list[list[torch.Tensor]]:
    """Gradients of each step of a run, as the optimizer gets them."""
    path = write(folder, fields, output_dir=str(folder / "run"), **more)
    trainer = ClassToImageTrainer(read_config(ClassToImageTrainingConfig, path))
    step, dumped = trainer.optimizer.step, []

    def dump():
        if trainer.accelerator.sync_gradients:
            dumped.append([parameter.grad.clone() for parameter in trainer.parameters])
        step()

    trainer.optimizer.step = dump
    trainer.train()
    return dumped


# --- what a run leaves ---


def test_a_run_leaves_a_pipeline_and_metrics(trained, fields):
    pipe = UniWeTokClassToImagePipeline.from_pretrained(trained / "pipeline", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"red": 0, "green": 1, "blue": 2}
    assert (pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale) == (2, 2.0)
    assert pipe(["green"], generator=seeded(0)).images[0].size == (32, 32)
    for name, tensor in UniWeTokModel.from_pretrained(fields["vision_model"]).state_dict().items():
        assert torch.equal(pipe.vision_model.state_dict()[name], tensor), name
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    wanted = {"loss", "grad_norm", "bit_accuracy", "learning_rate", "pictures_per_second", "crop_probability"}
    assert wanted | {"epoch", "tokens_seen"} <= set(lines[0])
    assert [line["tokens_seen"] for line in lines] == [64, 128, 192, 256]  # 4 pictures of 16 tokens a step
    assert lines[3]["epoch"] == pytest.approx(16 / 24)
    assert "validation_loss" in lines[1] and "validation_loss" not in lines[0]
    assert {f"validation_bit_accuracy_t{time}" for time in (0.0, 0.25, 0.5, 0.75)} <= set(lines[3])
    assert (trained / "samples" / "classes-000004.png").exists()
    config = read_config(ClassToImageTrainingConfig, trained.parent / "config.yaml")
    assert finished(config) == trained / "pipeline"


def test_the_checkpoint_makes_the_same_pipeline(trained, tmp_path):
    export_checkpoint(trained, tmp_path / "exported")
    assert_same_weights(tmp_path / "exported" / "transformer" / "model.safetensors", trained.joinpath(*MODEL))
    one, other = (
        UniWeTokClassToImagePipeline.from_pretrained(path, dtype=torch.float32)
        for path in (tmp_path / "exported", trained / "pipeline")
    )
    pictures = [pipe("red", generator=seeded(0), output_type="pt").images for pipe in (one, other)]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_stopped_anywhere_resumes_exactly(fields, trained, tmp_path, monkeypatch, step):
    stop_before(step, monkeypatch, fields, tmp_path, sample_classes=[0, 2])
    resumed = run(fields, tmp_path, sample_classes=[0, 2])
    assert_same_weights(resumed.joinpath(*MODEL), trained.joinpath(*MODEL))
    assert log_lines(resumed) == log_lines(trained)


def test_a_finished_one_goes_on(trained, fields, tmp_path):
    later = {name: value for name, value in fields.items() if name not in ("vision_model", "head", "model")}
    model = {"class_dropout": 0.5, "num_diffusion_draws": 1}
    defaults = {"guidance_scale": 3.0, "temperature": 0.5}
    folder = run(later, tmp_path, init_from=str(trained), model=model, max_train_steps=1, **defaults)
    pipe = UniWeTokClassToImagePipeline.from_pretrained(folder / "pipeline")
    assert pipe.transformer.config.class_dropout == 0.5 and pipe.config.default_guidance_scale == 3.0
    assert pipe.config.default_num_inference_steps == 2 and pipe.scheduler.config.temperature == 0.5
    first = log_lines(trained)[0]["loss"]
    assert log_lines(folder)[0]["loss"] < first  # no new weights


def test_classes_that_changed_are_refused_before_weights_are_loaded(fields, drawn, tmp_path, monkeypatch):
    """As many rows, of classes that the alphabet numbers in another way."""
    more = {"data": [{"path": drawn}], "validation_data": [], "resolution": 32}
    stop_before(3, monkeypatch, fields, tmp_path, **more)
    architecture = {path: path.read_bytes() for path in (tmp_path / "run" / "architecture").rglob("*.json")}
    monkeypatch.setattr("uniwetok_hf.training.stage.load_checkpoint", lambda *_: pytest.fail("it was loaded"))
    (Path(drawn) / "red").rename(Path(drawn) / "azure")
    with pytest.raises(ValueError, match="^`labels`: class 0 of the data is 'azure' and was 'blue' when the checkp"):
        run(fields, tmp_path, **more)
    for picture in (Path(drawn) / "azure").iterdir():
        picture.rename(Path(drawn) / "blue" / f"azure-{picture.name}")
    (Path(drawn) / "azure").rmdir()
    with pytest.raises(ValueError, match="^`labels`: the data have 2 classes and had 3 when .* Put the old data back"):
        run(fields, tmp_path, **more)
    assert architecture == {path: path.read_bytes() for path in architecture}  # which an export of it needs


def test_rows_and_a_class_that_came_are_no_broken_checkpoint(fields, drawn, tmp_path, monkeypatch):
    """Its weights would not fit."""
    more = {"data": [{"path": drawn}], "validation_data": [], "resolution": 32}
    stop_before(3, monkeypatch, fields, tmp_path, **more)
    shutil.copytree(Path(drawn) / "red", Path(drawn) / "white")
    with pytest.raises(ValueError, match=r"^`data\[0\].path` .* has 32 rows and had 24 when the checkpoint was"):
        run(fields, tmp_path, **more)


# --- what a step computes ---


def test_accumulation_changes_nothing(fields, tmp_path):
    more = {"max_grad_norm": None, "learning_rate": 1e-5, "max_train_steps": 2, "validation_data": []}
    runs = {
        count: gradients_of(fields, tmp_path / str(count), gradient_accumulation_steps=count, **more)
        for count in (1, 2, 4)
    }
    losses = {count: [line["loss"] for line in log_lines(tmp_path / str(count) / "run")] for count in runs}
    for count in (2, 4):
        assert losses[count] == pytest.approx(losses[1], rel=1e-5)
        for whole, part in zip(runs[1], runs[count], strict=True):
            for one, other in zip(whole, part, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_step_by_hand(fields, tmp_path):
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), validation_data=[], max_train_steps=1)
    trainer = ClassToImageTrainer(read_config(ClassToImageTrainingConfig, path))
    [batch], _ = trainer.batches.step(0, 1.0)
    model = trainer.pipeline.transformer.train()
    loss = model(batch.codes, batch.class_labels, generator=sample_generators(0, batch.numbers, NOISE)).loss
    trainer.train()
    assert log_lines(tmp_path / "run")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_no_decay_of_embeddings_projector_biases_and_norms(trained):
    model = UniWeTokClassToImagePipeline.from_pretrained(trained / "pipeline").transformer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ([names[id(parameter)] for parameter in group["params"]] for group in decay_groups(model))
    assert len(decayed) + len(free) == len(names)
    assert decay_groups(model)[1]["weight_decay"] == 0.0
    assert {"class_embedding.weight", "queries.weight", "projector.gate_proj.weight", "norm.weight"} <= set(free)
    assert {"position_embedding.weight", "layers.0.mlp.up_proj.weight", "image_head.proj_out.weight"} <= set(decayed)
    assert not [name for name in decayed if name.endswith("bias")]


def test_training_learns_the_classes(fields, tmp_path):
    more = {"validation_data": [], "max_train_steps": 60, "checkpointing_steps": 60, "learning_rate": 3e-3}
    lines = log_lines(run(fields, tmp_path, **more))
    assert sum(line["loss"] for line in lines[-10:]) < 0.7 * sum(line["loss"] for line in lines[:10])
    assert lines[-1]["bit_accuracy"] > 0.7


# --- the data ---


def batches_of(sources, batch_size, **more) -> ClassBatches:
    """Of an image tokenizer of stride 8 and 16 bits."""
    return ClassBatches(sources, batch_size, **{"seed": 0, "stride": 8, "num_bits": 16} | more)


def source(fields) -> ClassSource:
    return ClassSource(**fields["data"][0])


def test_crops_give_way_to_whole_pictures(fields):
    config = read_config_of(fields, max_train_steps=80)
    assert [config.crop_probability_at(step) for step in (0, 69, 70, 72, 75, 79)] == [1, 1, 1, 0.6, 0, 0]
    batches = batches_of([source(fields)], 8)
    rows = batches.sources[0]
    cells = [rows.cells[index]["image"] for index in range(len(rows))]
    assert all(len(cell) == 6 for cell in cells)  # whole, two crops, and the mirror image of each
    whole = {cell[variant]["codes"] for cell in cells for variant in (0, 1)}
    crops = {cell[variant]["codes"] for cell in cells for variant in range(2, 6)}
    from uniwetok_hf import pack_codes

    def shown(crop_probability: float) -> set[bytes]:
        [batch], _ = batches.step(0, crop_probability)
        return {pack_codes(codes[None])[0].numpy().tobytes() for codes in batch.codes}

    assert shown(0.0) <= whole and shown(1.0) <= crops
    mirrored = {cell[1]["codes"] for cell in cells}
    plain = {cell[0]["codes"] for cell in cells}
    assert shown(0.0) & mirrored and shown(0.0) & plain


def read_config_of(fields, **more) -> ClassToImageTrainingConfig:
    values = {**fields, "output_dir": "runs/x"} | more
    values["data"] = [ClassSource(**one) for one in values["data"]]
    values["validation_data"] = [ClassSource(**one) for one in values["validation_data"]]
    return ClassToImageTrainingConfig(**values)


def test_samples_are_those_of_any_number_of_processes(fields):
    alone = batches_of([source(fields)], 8, seed=3).step(5, 0.5)[0][0]
    parts = [
        batch
        for rank in range(2)
        for batch in batches_of(
            [source(fields)], 8, seed=3, accumulation_steps=2, process_index=rank, num_processes=2
        ).step(5, 0.5)[0]
    ]
    assert [len(part.numbers) for part in parts] == [2, 2, 2, 2]
    assert sum((part.numbers for part in parts), []) == alone.numbers == list(range(40, 48))
    assert torch.equal(torch.cat([part.codes for part in parts]), alone.codes)
    assert torch.equal(torch.cat([part.class_labels for part in parts]), alone.class_labels)


def test_classes_by_name_and_rows_without_one(tmp_path):
    vision = build_vision()
    rows = {"picture": pictures(48), "kind": ["cat", "dog", None, "cat"] * 12}
    path = encode(rows, tmp_path / "codes", vision)
    batches = batches_of([ClassSource(path, image_column="picture", label_column="kind")], 4)
    assert batches.names == ["cat", "dog"] and batches.num_rows == [36] and batches.num_classes == 2
    with pytest.raises(ValueError, match="12 of 48|12 .*no class"):
        batches.check_rows(0.0)
    with pytest.warns(UserWarning, match="12 rows of .* are left out: no class"):
        batches.check_rows(0.5)
    named = batches_of([ClassSource(path, 1.0, "picture", "kind")], 4, labels=["dog", "cat", "bird"])
    assert named.num_classes == 3 and named.sources[0].classes[:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match="`labels` has no 'cat', a class of"):
        batches_of([ClassSource(path, 1.0, "picture", "kind")], 4, labels=["dog"])


@pytest.fixture
def drawn(tmp_path) -> str:
    """A folder of pictures of three colours, larger than the model's."""
    for index, (text, picture) in enumerate(shapes(24)):
        folder = tmp_path / "drawn" / text.split()[1]
        folder.mkdir(parents=True, exist_ok=True)
        picture.resize((48, 40)).save(folder / f"{index}.png")
    return str(tmp_path / "drawn")


def test_pictures_are_encoded_in_each_step(fields, drawn, tmp_path):
    later = {"data": [{"path": drawn}], "validation_data": [], "resolution": 32, "max_train_steps": 2}
    folder = run(fields, tmp_path, **later)
    pipe = UniWeTokClassToImagePipeline.from_pretrained(folder / "pipeline")
    assert pipe.labels == {"blue": 0, "green": 1, "red": 2} and pipe.transformer.config.grid_size == 4
    path = write(tmp_path / "again", fields, output_dir=str(tmp_path / "again" / "run"), **later)
    trainer = ClassToImageTrainer(read_config(ClassToImageTrainingConfig, path))
    [batch], _ = trainer.batches.step(0, 1.0)
    assert batch.codes is None and batch.pixel_values.shape == (4, 3, 32, 32)
    codes = trainer.pipeline.vision_model.encode(batch.pixel_values).codes
    generator = sample_generators(0, batch.numbers, NOISE)
    loss = trainer.pipeline.transformer.train()(codes, batch.class_labels, generator=generator).loss
    assert log_lines(folder)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_training_that_goes_on_keeps_the_names_of_the_classes(fields, trained, drawn, tmp_path):
    """The model has red, green and blue by number; a folder numbers its classes by the alphabet."""

    def trainer(**more) -> ClassToImageTrainer:
        later = {"data": [{"path": drawn}], "validation_data": [], "resolution": 32, "init_from": str(trained)}
        later |= {"vision_model": None, "model": {}, "head": {}, "output_dir": str(tmp_path / "run")}
        path = write(tmp_path, fields, **later | more)
        return ClassToImageTrainer(read_config(ClassToImageTrainingConfig, path))

    shutil.rmtree(Path(drawn) / "blue")  # 0 is green in the folder, and 1 red
    goes_on = trainer()
    assert {int(label) for label in goes_on.batches.sources[0].classes} == {0, 1}
    assert goes_on.pipeline.labels == {"red": 0, "green": 1, "blue": 2}
    [batch], _ = goes_on.batches.step(0, 0.0)
    for picture, label in zip(batch.pixel_values, batch.class_labels.tolist(), strict=True):
        assert picture.flatten(1).min(1).values.argmax().item() == label  # the shape has the colour of its class
    (Path(drawn) / "red").rename(Path(drawn) / "rot")
    with pytest.raises(ValueError, match="the model of `init_from` has no class 'rot'; `labels` gives its"):
        trainer()
    assert trainer(labels=["rot", "green", "blau"]).pipeline.labels == {"rot": 0, "green": 1, "blau": 2}


def test_pictures_are_cropped_and_mirrored(drawn):
    """Whole pictures are the centre square; crops differ; half of each are mirrored."""
    batches = batches_of([ClassSource(drawn)], 24, resolution=32)
    whole = batches.step(0, 0.0)[0][0].pixel_values
    rows = batches.sources[0]
    centres = [Image.open(cell["path"]).copy() for cell in rows.cells["image"]]
    centres = [image.resize((32, 32), Image.Resampling.BICUBIC, (4, 0, 44, 40)) for image in centres]
    plain = {image.tobytes() for image in centres}
    mirrored = {image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() for image in centres}
    shown = [to_uint8(picture).permute(1, 2, 0).numpy().tobytes() for picture in whole]
    assert set(shown) <= plain | mirrored and set(shown) & plain and set(shown) & (mirrored - plain)
    crops = batches.step(0, 1.0)[0][0].pixel_values
    assert not any(torch.equal(one, other) for one, other in zip(crops, whole, strict=True))
    two = [batches_of([ClassSource(drawn)], 24, resolution=32, process_index=n, num_processes=2) for n in range(2)]
    assert torch.equal(torch.cat([part.step(0, 1.0)[0][0].pixel_values for part in two]), crops)


def test_classes_are_those_of_the_rows_of_a_shuffled_dataset(tmp_path):
    rows = {"image": pictures(9), "label": list(range(9))}
    Dataset.from_dict(rows).shuffle(seed=0).save_to_disk(tmp_path / "saved")
    batches = batches_of([ClassSource(str(tmp_path / "saved"))], 9, resolution=32)
    [batch], _ = batches.step(0, 0.0)
    plain = {picture.tobytes(): label for label, picture in enumerate(rows["image"])}
    plain |= {one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes(): n for n, one in enumerate(rows["image"])}
    shown = [to_uint8(one).permute(1, 2, 0).numpy().tobytes() for one in batch.pixel_values]
    assert [plain[picture] for picture in shown] == batch.class_labels.tolist()


def test_pictures_that_do_not_fit(fields, drawn, tmp_path):
    with pytest.raises(ValueError, match="With `resolution`, pictures are read as they are"):
        batches_of([ClassSource(drawn)], 4)
    with pytest.raises(ValueError, match="`resolution` must be a multiple of 8, the pixels of a token, got 20"):
        batches_of([ClassSource(drawn)], 4, resolution=20)
    both = [ClassSource(drawn), source(fields)]
    with pytest.raises(ValueError, match="one is encoded, the other is not"):
        batches_of(both, 4, resolution=32, labels=["red", "green", "blue"])
    broken = Path(drawn) / "red" / "0.png"
    broken.write_bytes(b"no picture")
    [batch], skipped = batches_of([ClassSource(drawn)], 24, resolution=32).step(0, 0.0)
    assert len(batch.numbers) == 24 and len(skipped) == 1 and "0.png" in skipped[0]


def test_a_split_without_a_class_has_the_numbers_of_the_training(fields, drawn, tmp_path):
    """A folder that lacks one numbers the others from 0 on."""
    some = tmp_path / "some"
    shutil.copytree(drawn, some)
    shutil.rmtree(some / "blue")
    more = {"data": [{"path": drawn}], "validation_data": [{"path": str(some)}], "resolution": 32}
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), **more)
    trainer = ClassToImageTrainer(read_config(ClassToImageTrainingConfig, path))
    assert trainer.batches.names == ["blue", "green", "red"]
    shown = {int(label) for batch in trainer.validation.validation_batches(16) for label in batch.class_labels}
    assert shown == {1, 2}


def test_a_damaged_row_is_left_out(tmp_path):
    vision = build_vision()
    path = encode({"image": pictures(8), "label": [0, 1] * 4}, tmp_path / "codes", vision)
    batches = batches_of([ClassSource(path)], 8)
    read = batches.sources[0].cells

    class Cut:  # the codes of row 3 lost a byte
        def __getitem__(self, index):
            cell = read[index]["image"]
            codes = cell[0]["codes"][: -1 if index == 3 else None]
            return {"image": [{**cell[0], "codes": codes}]}

    batches.sources[0].cells = Cut()
    [batch], skipped = batches.step(0, 0.0)
    assert len(batch.numbers) == 8 and len(skipped) == 1 and "codes, row 3: `num_bits`" in skipped[0]


def test_a_row_without_a_picture_is_left_out(tmp_path):
    path = encode({"image": pictures(8), "label": [0, 1] * 4}, tmp_path / "codes", build_vision())
    batches = batches_of([ClassSource(path)], 8)
    rows = batches.sources[0]
    cells = [cell["image"] for cell in rows.cells]
    cells[3:5] = None, []
    rows.cells = Dataset.from_dict({"image": cells}, features=rows.cells.features)
    [batch], skipped = batches.step(0, 0.0)
    assert len(batch.numbers) == 8
    assert sorted(skipped) == [f"{path}, row {row}: there is no picture in this row" for row in (3, 4)]


def test_other_sizes_than_the_first_are_left_out(tmp_path):
    path = encode(
        {"image": [*pictures(4), *pictures(4, size=(32, 16))], "label": [0] * 8},
        tmp_path / "codes",
        build_vision(),
        sizes=((32, 32), (32, 16)),
    )
    batches = batches_of([ClassSource(path)], 8)
    [batch], skipped = batches.step(0, 0.0)
    assert batch.codes.shape == (8, 16, 4, 4)
    assert skipped and all("has 4 x 2 tokens, the model's pictures 4 x 4" in reason for reason in skipped)


# --- refused settings ---


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"crop_end": [0.9]}, "`crop_end` must be two numbers from 0 to 1"),
        ({"crop_end": [0.9, 0.5]}, "`crop_end` must be two numbers"),
        ({"guidance_schedule": "cosine"}, "`guidance_schedule` must be linear or constant"),
        ({"model": {"num_classes": 4}}, "`model.num_classes` follows from the data"),
        ({"model": {"num_hidden_layer": 4}}, "`model.num_hidden_layer` is no field .*did you mean num_hidden_layers"),
        ({"head": {"depth": 4}}, "`head.depth` is no field of UniWeTokHeadConfig"),
        ({"model": {"num_attention_heads": 7}}, "`num_attention_heads`=7 must divide"),
        ({"head": {"num_modulation_layers": 4}}, "`num_modulation_layers`=4 must divide"),
        ({"vision_model": None}, "Give `vision_model`"),
        ({"init_from": "x"}, "`vision_model` can't be given together with `init_from`"),
        *(
            ({"init_from": "x", "vision_model": None, "head": {}, "model": model}, f"`model`: .*{message}")
            for model, message in (
                ({"class_dropout": 1.5}, "`class_dropout` must be from 0 to 1, got 1.5"),
                ({"bit_flip_probability": -0.1}, "`bit_flip_probability` must be from 0 to 1, got -0.1"),
                ({"num_diffusion_draws": 0}, "`num_diffusion_draws` must be 1 or more, got 0"),
                ({"num_diffusion_draws": "many"}, "num_diffusion_draws"),
            )
        ),
        ({"sample_classes": [3]}, "`sample_classes` must be from 0 to 2, got 3"),
        ({"labels": ["a", "b"]}, "row .* is of class 2, there are names for 2"),
        ({"batch_size": 3, "gradient_accumulation_steps": 2}, "`batch_size`=3 must be a multiple"),
        ({"data": []}, "`data` must name at least one source"),
    ],
)
def test_settings_that_do_not_fit(fields, tmp_path, more, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        run(fields, tmp_path, **more)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_does_not_fit(fields, tmp_path):
    other = build_vision(seed=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was encoded by .* not by `vision_model`"):
        run(fields, tmp_path, vision_model=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="no such column `class`; there are image, label"):
        run(fields, tmp_path, data=[fields["data"][0] | {"label_column": "class"}])
    with pytest.raises(ValueError, match="holds no encoded dataset. This makes one: `uniwetok encode-dataset SOURCE"):
        run(fields, tmp_path, data=[{"path": str(tmp_path / "nothing")}])
    wide = encode(
        {"image": pictures(4, size=(32, 16)), "label": [0] * 4}, tmp_path / "w", build_vision(), sizes=((32, 16),)
    )
    with pytest.raises(ValueError, match="pictures must be square"):
        run(fields, tmp_path, data=[{"path": wide}], validation_data=[])


@pytest.mark.parametrize("patch_size", [1, 2])
def test_single_tokens_and_patches(fields, tmp_path, patch_size):
    model = fields["model"] | {"patch_size": patch_size}
    folder = run(fields, tmp_path, model=model, max_train_steps=2)
    pipe = UniWeTokClassToImagePipeline.from_pretrained(folder / "pipeline")
    assert pipe.transformer.config.head_config.has_attention is (patch_size == 2)


@pytest.mark.parametrize(
    "name", ["imagenet_b", "imagenet_l", "imagenet_h", "imagenet_bitdance_b_1x", "imagenet_bitdance_b_4x"]
)
def test_shipped_configs_make_the_published_models(name, monkeypatch):
    """Their sizes, and 400 or 800 epochs of ImageNet."""
    from uniwetok_hf.training import train_class_to_image as training

    config = read_config(ClassToImageTrainingConfig, find_config(name))
    is_ours = "bitdance" not in name
    epochs = config.max_train_steps * config.batch_size / 1_281_167
    assert epochs == pytest.approx(400 if is_ours else 800, rel=1e-4)
    fields = {"num_bits": 128 if is_ours else 32, "num_classes": 1000, "grid_size": 8 if is_ours else 16}
    model = training.UniWeTokClassToImageConfig(**fields, **config.model)
    head = model.head_config.to_dict() | {"intermediate_size": None} | config.head
    model = training.UniWeTokClassToImageConfig(**fields, **config.model, head_config=head)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in training.UniWeTokClassToImageModel(model).parameters())
    assert (
        count
        == {
            "imagenet_b": 242_594_432,
            "imagenet_l": 527_566_976,
            "imagenet_h": 1_008_329_088,
            "imagenet_bitdance_b_1x": 242_373_152,
            "imagenet_bitdance_b_4x": 260_102_432,
        }[name]
    )
    if is_ours:  # 33 B tokens
        assert config.max_train_steps * config.batch_size * 64 == pytest.approx(33e9, rel=0.01)
