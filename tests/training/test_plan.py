"""The plan of a training: against what autograd keeps of a real one, and the numbers by hand."""

import json

import pytest
import torch
from tiny_encoded import language_training
from tiny_training import write
from transformers import AutoConfig, Qwen3Config

from uniwetok_hf import embedded_path
from uniwetok_hf.cli.main import main
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.lora import LoraSettings, add_lora
from uniwetok_hf.training.plan import GIB, count_activations, kept_bytes, plan_training
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig


QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}


def config_of(tmp_path, **fields):
    given = {"output_dir": "run", "data": [{"path": "codes", "task": "captions"}], "max_train_steps": 10}
    given |= {"packed_tokens": 1000, "vision_model": "no/such/folder"}
    return read_config(MLLMTrainingConfig, write(tmp_path, given | fields))


def small(tmp_path, **fields):
    text = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    head = {"hidden_size": 32, "num_hidden_layers": 2, "num_modulation_layers": 1, "head_dim": 16}
    return config_of(tmp_path, **{"text_model": text, "vocab_size": 500, "head": head} | fields)


def test_the_paper_on_eight_gpus(tmp_path, capsys):
    Qwen3Config(**QWEN3_8B).save_pretrained(tmp_path / "qwen")
    assert AutoConfig.from_pretrained(tmp_path / "qwen").num_hidden_layers == 36
    path = write(tmp_path, {"base": "paper_mllm_pretrain", "language_model": str(tmp_path / "qwen")})
    plan = plan_training(read_config(MLLMTrainingConfig, path), 8)
    assert 9.9e9 < plan.parameters < 10e9 and plan.trained < plan.parameters
    assert plan.tokens == 8 * 10 * 35_000 and plan.code_bytes == 16
    assert plan.memory["copies"]["weights"] == pytest.approx(4 * plan.parameters / GIB)
    assert plan.memory["shards"]["Adam's moments"] == pytest.approx(8 * plan.trained / 8 / GIB)
    assert plan.total("copies") > 130 and 30 < plan.total("shards") < 80
    assert plan.memory["shards"]["inputs of the layers"] == pytest.approx(36 * 35_000 * 4096 * 2 / GIB)
    assert plan.hours(1e5) == pytest.approx(plan.tokens * plan.steps / 1e5 / 3600)
    assert main(["plan", str(path), "--gpus", "8", "--memory", "80", "--tokens-per-second", "90000"]) == 0
    text = capsys.readouterr().out
    assert "- DDP: " in text and "does not fit into 74.5 GiB" in text and "- FSDP: " in text and "fits into" in text
    assert "2,800,000 tokens a step (packed)" in text and "GiB of codes a day" in text
    assert "39,375 pictures of 256 x 256 or 9,843 pictures of 512 x 512 or 2,460 pictures of 1024 x 1024" in text


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_what_is_kept_of_a_real_step(tmp_path, patch_size, checkpointing):
    """Autograd keeps 1.06 times what is counted. With checkpointing a layer that is computed again is counted, too."""
    fields = language_training(tmp_path) | {"packed_tokens": 1500, "output_dir": str(tmp_path / "run")}
    fields |= {"batch_size": None, "length_group_steps": 1, "gradient_checkpointing": checkpointing}
    fields["mllm"] = {**fields.get("mllm", {}), "patch_size": patch_size}
    trainer = MLLMTrainer(read_config(MLLMTrainingConfig, write(tmp_path, fields)))
    (row,) = trainer.batches[0]
    trainer.mllm.train()
    real = kept_bytes(lambda: trainer.compute_losses(row), trainer.mllm)
    planned = count_activations(trainer.mllm.to("meta"), row.num_tokens, trainer.config)
    ratio = 2 * sum(planned.values()) / real  # twice: the step was in float32
    assert 0.85 < ratio < 1.1 if not checkpointing else 1 < ratio < 2


def test_more_gpus_and_checkpointing_take_less(tmp_path):
    plans = [plan_training(small(tmp_path, gradient_checkpointing=on), 4) for on in (False, True)]
    assert plans[1].total("shards") < plans[0].total("shards")
    assert "layers" in plans[0].memory["copies"] and "inputs of the layers" in plans[1].memory["copies"]
    spread = [plan_training(small(tmp_path), count).memory["shards"]["weights"] for count in (1, 4)]
    assert spread[0] == pytest.approx(4 * spread[1])
    alone = plan_training(small(tmp_path), 1)
    assert "buckets of gradients" not in alone.memory["copies"]
    averaged = plan_training(small(tmp_path, ema_decay=0.9), 1)
    assert averaged.memory["copies"]["averages"] == pytest.approx(4 * averaged.trained / GIB)


def test_padded_rows_count_as_long_as_they_may_be(tmp_path):
    fields = {"packed_tokens": None, "batch_size": 64, "gradient_accumulation_steps": 4}
    assert plan_training(small(tmp_path, max_length=512, **fields), 8).tokens == 64 * 512
    with pytest.raises(ValueError, match="`packed_tokens` or `max_length` must be set"):
        plan_training(small(tmp_path, **fields), 8)


def test_a_stage_that_goes_on(tmp_path):
    from tiny_models import build_tiny_pipeline

    build_tiny_pipeline().save_pretrained(tmp_path / "before" / "pipeline")
    fields = {"init_from": str(tmp_path / "before"), "vision_model": None, "mllm": {"patch_size": 2}}
    plan = plan_training(config_of(tmp_path, **fields), 1)
    assert plan.code_bytes == 2 and plan.trained < plan.parameters


def test_the_image_tokenizer_of_a_pipeline(tmp_path):
    plan = plan_training(small(tmp_path, vision_model=str(embedded_path("uniwetok-emoji"))), 1)
    assert plan.code_bytes == 16 and plan.stride == 32


def test_a_stage_that_is_not_there_is_named(tmp_path):
    fields = {"init_from": str(tmp_path / "later"), "vision_model": None}
    with pytest.raises(ValueError, match="`init_from` .*later is not there yet"):
        plan_training(config_of(tmp_path, **fields), 1)


def test_adapters_are_what_trains(tmp_path):
    from tiny_models import build_tiny_pipeline

    pipeline = build_tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "before" / "pipeline")
    whole = {"init_from": str(tmp_path / "before"), "vision_model": None, "ema_decay": 0.9}
    plans = [plan_training(config_of(tmp_path, **whole, **more), 4) for more in ({}, {"lora": {"r": 4}})]
    assert plans[1].trained == sum(p.numel() for p in add_lora(pipeline.mllm, LoraSettings(r=4), seed=0))
    assert plans[1].parameters == plans[0].parameters + plans[1].trained
    for part in ("gradients", "Adam's moments", "averages"):
        assert plans[1].memory["shards"][part] < plans[0].memory["shards"][part]
    # Layers keep less: inputs of frozen weights are for no gradient, but where an adapter has the same.
    assert plans[1].total("shards") < plans[0].total("shards")


def test_errors_are_one_line(tmp_path, capsys):
    path = write(tmp_path, json.loads(json.dumps({"base": "paper_mllm_pretrain", "language_model": "no/such"})))
    assert main(["plan", str(path)]) == 1 and "`language_model`" in capsys.readouterr().err
    assert main(["plan", str(path), "--pictures-per-second", "5"]) == 1
    assert "--pictures-per-second is not for a config of `uniwetok train mllm`" in capsys.readouterr().err
    assert main(["plan", str(path), "--tokens-per-second", "0"]) == 1
    assert "--tokens-per-second must be above 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`num_gpus` must be 1 or more, got 0"):
        plan_training(small(tmp_path), 0)
    assert torch.get_default_device().type == "cpu"
