"""TRL's trainers on our model: answers are learnt, pictures to be generated are learnt by the model's own loss or
refused by name (docs/trl.md)."""

import functools
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_models import build_tiny_mllm, build_tiny_processor
from transformers import AutoConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained
from trl.trainer.utils import create_model_from_path

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokProcessor
from uniwetok_hf.remote_code import add_code


PATCH_SIZE = 2


class UniWeTokSFTTrainer(SFTTrainer):
    """As in docs/trl.md."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def processor(patch_size: int = PATCH_SIZE) -> UniWeTokProcessor:
    tiny = build_tiny_processor(patch_size)
    tiny.text_kwargs = {"padding_side": "left"}
    return tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_mllm(PATCH_SIZE).save_pretrained(path)
    return path


def options(folder: Path, **fields) -> dict:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    } | fields


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (64, 64 * (1 + index % 2)), (20 * index, 99, 0))


def answer(index: int) -> dict:
    """Words about a picture."""
    question = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?" * index}]
    reply = [{"type": "text", "text": f"red {index}"}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"images": [picture(index)], "messages": turns}


def drawing(index: int) -> dict:
    """A picture to be generated."""
    request = [{"type": "text", "text": f"draw {index}"}]
    reply = [{"type": "text", "text": "So: "}, {"type": "image", "text": None}]
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
    return {"images": [picture(index)], "messages": turns}


def words(index: int) -> dict:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"yo {index}"}]}


def rows(*kinds, count: int = 4) -> Dataset:
    return Dataset.from_list([kind(index) for index in range(count) for kind in kinds])


def sft(folder: Path, dataset: Dataset, trainer=SFTTrainer, **fields) -> SFTTrainer:
    args = SFTConfig(**options(folder, assistant_only_loss=True) | fields)
    return trainer(model=str(folder), args=args, train_dataset=dataset, processing_class=processor())


@functools.cache
def start() -> dict[str, torch.Tensor]:
    return build_tiny_mllm(PATCH_SIZE).state_dict()


def learnt(trainer) -> set[str]:
    """Trains, and says which parts changed."""
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value.cpu(), start()[name])}
    head = {name for name in start() if name.startswith("image_head.")}
    assert not changed & head or changed >= head
    parts = {"image_head", "lm_head", "projector", "language_model", "vision_model"}
    return {part for part in parts if any(part in name.split(".") for name in changed)}


# --- the model and the template ---


def test_a_folder_is_loaded_by_its_path(folder):
    model = create_model_from_path(str(folder))
    assert type(model) is UniWeTokForCausalLM
    config = AutoConfig.from_pretrained(folder)
    assert config.auto_map == {}
    for text in (config.to_json_string(), config.to_json_string(use_diff=False), (folder / "config.json").read_text()):
        assert "auto_map" not in text


def test_the_map_of_a_folder_with_code_is_kept(folder, tmp_path):
    build_tiny_mllm(PATCH_SIZE).save_pretrained(tmp_path / "first")
    add_code(tmp_path / "first")
    model = create_model_from_path(str(tmp_path / "first"))
    assert type(model) is UniWeTokForCausalLM
    model.save_pretrained(tmp_path / "second")
    saved = [json.loads((tmp_path / name / "config.json").read_text())["auto_map"] for name in ("first", "second")]
    assert saved[0] == saved[1] == model.config.auto_map
    assert AutoConfig.from_pretrained(folder).auto_map == {}


def test_the_template_is_one_to_train_with():
    assert get_training_chat_template(processor()) is None
    assert is_chat_template_stop_token_trained(processor())


# --- supervised fine-tuning ---


def test_answers_about_pictures(folder):
    trainer = sft(folder, rows(answer))
    labels = trainer.data_collator([answer(3), answer(1)])["labels"]
    said = [processor().tokenizer.decode(row[row != -100]) for row in labels]
    assert said == ["red 3<|im_end|>", "red 1<|im_end|>"]
    assert learnt(trainer) == {"projector", "language_model", "lm_head"}


def test_packed_words(folder):
    trainer = sft(folder, rows(words), packing=True, max_length=100)
    assert len(trainer.train_dataset) < 4
    assert learnt(trainer) == {"language_model", "lm_head"}


@pytest.mark.parametrize("kinds", [(drawing,), (answer, drawing)], ids=["pictures", "mixture"])
def test_pictures_are_refused_where_the_loss_is_of_text(folder, kinds):
    trainer = sft(folder, rows(*kinds))
    with pytest.raises(ValueError, match=r"`image_is_target` .* TRL.* \(docs/trl.md\)"):
        trainer.train()
    with pytest.raises(ValueError, match="`image_is_target`"):
        trainer.evaluate(rows(drawing, count=1))


def test_the_loss_of_the_model_learns_both(folder):
    everything = {"projector", "language_model", "lm_head", "image_head"}
    assert learnt(sft(folder, rows(answer, drawing), UniWeTokSFTTrainer, max_steps=3)) == everything


def test_the_loss_of_the_model_in_an_evaluation(folder):
    dataset = rows(answer, drawing, count=2)
    trainer = sft(folder, dataset, UniWeTokSFTTrainer, per_device_eval_batch_size=4)
    with torch.no_grad():
        wanted = trainer.model.eval()(**trainer.data_collator(list(dataset)))
    assert wanted.image_loss > 0.9 * wanted.loss  # so that it would be missed
    assert trainer.evaluate(dataset)["eval_loss"] == pytest.approx(wanted.loss.item(), rel=0.3)  # times differ


def test_pictures_are_not_packed(folder):
    with pytest.raises(ValueError, match="Packing is not supported for vision datasets"):
        sft(folder, rows(drawing), UniWeTokSFTTrainer, packing=True)


@pytest.mark.parametrize("trainer", [SFTTrainer, UniWeTokSFTTrainer])
@pytest.mark.parametrize("packing", [False, True])
def test_pictures_that_get_lost_are_missed(folder, tmp_path, trainer, packing):
    """Without a column `images` TRL keeps the tokens of the messages, and not the pictures that they name."""
    picture(0).save(tmp_path / "a.png")
    shown = [{"type": "image", "image": str(tmp_path / "a.png"), "text": None}]
    said = [{"type": "text", "image": None, "text": "red"}]
    for question, reply in ((shown, said), (said, shown)):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        dataset = Dataset.from_list([{"messages": turns}] * 2)
        with pytest.raises(ValueError, match="image placeholders, the given pictures have 0 tokens"):
            sft(folder, dataset, trainer, packing=packing, max_length=100).train()


# --- preferences and rewards ---


def preference(index: int) -> dict:
    chosen, rejected = ([{"role": "assistant", "content": f"{colour} {index}"}] for colour in ("red", "blue"))
    prompt = [{"role": "user", "content": "What is it?" * (index + 1)}]
    return {"images": [picture(index)], "prompt": prompt, "chosen": chosen, "rejected": rejected}


def dpo(folder: Path, dataset: Dataset) -> DPOTrainer:
    args = DPOConfig(**options(folder))
    return DPOTrainer(model=str(folder), args=args, train_dataset=dataset, processing_class=processor())


def test_preferences_between_answers(folder):
    assert learnt(dpo(folder, rows(preference))) == {"projector", "language_model", "lm_head"}


def test_preferences_between_pictures_are_refused(folder):
    def drawn(index: int) -> dict:
        reply = [{"role": "assistant", "content": [{"type": "image", "text": None}]}]
        request = [{"role": "user", "content": [{"type": "text", "text": "draw"}]}]
        return {"images": [picture(0), picture(1)], "prompt": request, "chosen": reply, "rejected": reply}

    with pytest.raises(ValueError, match="Number of images provided"):
        dpo(folder, rows(drawn)).train()


def test_rewards_of_answers(folder):
    """Questions of different lengths: what pads the shorter ones is not attended to."""
    rewarded, masks = [], []

    def reward(completions, **columns):
        rewarded.extend(answer[0]["content"] for answer in completions)
        return [float(len(set(answer[0]["content"]))) for answer in completions]

    def question(index: int) -> dict:
        return {"image": picture(index), "prompt": [{"role": "user", "content": "What is it?" * (index + 1)}]}

    fields = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 6}
    silent = {"suppress_tokens": [build_tiny_mllm(PATCH_SIZE).config.vision_start_token_id]}
    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=reward,
        args=GRPOConfig(**options(folder, **fields, generation_kwargs=silent)),
        train_dataset=rows(question),
        processing_class=processor(),
    )
    pad = trainer.processing_class.tokenizer.pad_token_id
    trainer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append((kwargs["input_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    assert learnt(trainer) == {"projector", "language_model", "lm_head"}
    assert len(rewarded) == 8
    padded = [(ids[:, 0] == pad) & (mask[:, 0] == 1) for ids, mask in masks if ids.shape == mask.shape]
    assert padded and not torch.cat(padded).any()
    assert any((mask == 0).any() for _, mask in masks)
