"""transformers' `Trainer` on plain rows of a picture and a text; the processor alone makes inputs of them."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_mllm import build, processor
from transformers import Trainer, TrainingArguments


PATCH_SIZE = 2


def rows(count: int) -> Dataset:
    generator = np.random.default_rng(0)
    side = 32 * PATCH_SIZE
    values = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    texts = [f"number {index}" for index in range(count)]
    return Dataset.from_dict({"image": [Image.fromarray(picture) for picture in values], "text": texts})


def collate(rows: list[dict], task: str) -> dict:
    """To describe the picture, or to generate it."""
    conversations = []
    for row in rows:
        picture, text = {"type": "image", "image": row["image"]}, {"type": "text", "text": row["text"]}
        question, answer = (picture, text) if task == "describe" else (text, picture)
        turns = [{"role": "user", "content": [question]}, {"role": "assistant", "content": [answer]}]
        conversations.append(turns)
    return processor(PATCH_SIZE).apply_chat_template(
        conversations, tokenize=True, return_dict=True, processor_kwargs={"return_labels": True}
    )


def train(folder, device, task: str, model=None, **options) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "seed": 0,
    }
    trainer = Trainer(
        model=model or build(PATCH_SIZE),
        args=TrainingArguments(**arguments | options),
        train_dataset=rows(8),
        eval_dataset=rows(2),
        data_collator=lambda batch: collate(batch, task),
        processing_class=processor(PATCH_SIZE),
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_describing_is_learnt(tmp_path, device):
    before = {name: parameter.clone() for name, parameter in build(PATCH_SIZE).named_parameters()}
    trainer = train(tmp_path, device, "describe", max_steps=25, eval_strategy="steps", eval_steps=25)
    first, *_, last = losses(trainer)
    assert last < 0.6 * first
    learnt = {name for name, p in trainer.model.named_parameters() if not torch.equal(p.cpu(), before[name])}
    assert not any("vision_model" in name for name in learnt)  # the image tokenizer stays as it is
    assert {"lm_head.weight", "model.projector.fc1.weight"} <= learnt
    [evaluated] = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert np.isfinite(evaluated)


@pytest.mark.parametrize("task", ["describe", "draw"])
def test_metrics_are_computed_of_logits(tmp_path, device, task):
    """And of nothing else: tutorials take the `argmax` of all predictions."""
    trainer = train(tmp_path, device, task, max_steps=1)
    seen = []
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or {"accuracy": 0.5}
    assert trainer.evaluate()["eval_accuracy"] == 0.5
    [found] = seen
    assert isinstance(found.predictions, np.ndarray) and found.predictions.shape[:2] == found.label_ids.shape
    model, batch = trainer.model.eval(), collate(rows(2), task).to(device)
    with torch.no_grad():
        expected = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    np.testing.assert_allclose(found.predictions, expected.float().cpu().numpy(), atol=1e-5)


def test_drawing_reaches_the_head(tmp_path, device):
    before = {name: parameter.clone() for name, parameter in build(PATCH_SIZE).image_head.named_parameters()}
    trainer = train(tmp_path, device, "draw")
    after = dict(trainer.model.image_head.named_parameters())
    assert all(not torch.equal(after[name].cpu(), parameter) for name, parameter in before.items())


def test_accumulated_parts_have_the_loss_of_a_whole_batch(tmp_path, device):
    """The Trainer's count of a batch's texts must not be taken for all that its parts' losses are divided by."""
    options = {"max_steps": 1, "learning_rate": 0.0}
    [whole] = losses(train(tmp_path, device, "draw", per_device_train_batch_size=8, **options))
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    [accumulated] = losses(train(tmp_path, device, "draw", **parts, **options))
    assert 0.5 < accumulated / whole < 2  # times and noise differ


@pytest.mark.slow
def test_goes_on_from_a_checkpoint(tmp_path, device):
    train(tmp_path, device, "describe", save_steps=1)
    checkpoint = tmp_path / "checkpoint-1"
    assert {path.name for path in checkpoint.iterdir()} >= {"model.safetensors", "processor_config.json"}
    trainer = train(tmp_path, device, "describe", max_steps=1)
    trainer.args.max_steps = 2
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_and_checkpointing(tmp_path, device, precision):
    trainer = train(tmp_path, device, "draw", activation_checkpointing=True, **{precision: True})
    assert np.isfinite(losses(trainer)).all()
