"""What a training starts from: new models, causal language models of several kinds, larger patches."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from tiny_encoded import LANGUAGE, build_vision
from tiny_language import LLAMA, QWEN, save_language_model
from tiny_mllm import training_batch
from tiny_models import build_tiny_pipeline
from transformers import AutoModelForCausalLM, CohereConfig, GPT2Config, LlamaConfig, PhiConfig, Qwen3Config

from uniwetok_hf import UniWeTokModel, UniWeTokPipeline
from uniwetok_hf.training.sharded_start import parts_without_weights, pipeline_without_weights
from uniwetok_hf.training.start import (
    continued_pipeline,
    find_result,
    new_pipeline,
    pipeline_from_language_model,
    raise_patch_size,
    start_pipeline,
    with_defaults,
)


HEAD, MLLM = LANGUAGE["head"], {"patch_size": 2}


def start_from(folder, **options) -> UniWeTokPipeline:
    return pipeline_from_language_model(folder, build_vision(), HEAD, MLLM, num_size_tokens=8, **options)


# Qwen3 has the tokens of the prompt format and more embeddings than tokens; Llama has neither.
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
KINDS = {
    "qwen3": (Qwen3Config, {**QWEN, "vocab_size": 300}, CHAT_TOKENS),
    "llama": (LlamaConfig, {**LLAMA, "vocab_size": 258}, ("</s>", "<s>")),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_keeps_its_weights(tmp_path, kind, tied):
    config_class, fields, special = KINDS[kind]
    model = save_language_model(tmp_path, config_class(**fields, tie_word_embeddings=tied), *special)
    pipeline = start_from(tmp_path)
    mllm, vocabulary = pipeline.mllm, pipeline.processor.tokenizer
    ours = {**mllm.model.language_model.state_dict(), "lm_head.weight": mllm.lm_head.weight}
    theirs = {**model.model.state_dict(), "lm_head.weight": model.lm_head.weight}
    assert ours.keys() == theirs.keys()
    num_old = 256 + len(special)
    for name, tensor in theirs.items():
        is_table = name in ("embed_tokens.weight", "lm_head.weight")
        assert torch.equal(ours[name][:num_old], tensor[:num_old]) if is_table else torch.equal(ours[name], tensor), (
            name
        )
    # New tokens lie around the mean of the old ones, also where the table had untrained rows in their place.
    table = ours["embed_tokens.weight"]
    assert len(table) == len(vocabulary) == mllm.config.text_config.vocab_size
    new, old = table[num_old:], table[:num_old]
    assert len(new) == 8 + 3 + (0 if kind == "qwen3" else 5)
    assert (new - old.mean(0)).abs().max() < 0.2 * old.std()
    assert (mllm.lm_head.weight is mllm.get_input_embeddings().weight) == tied
    names = [name for name in CHAT_TOKENS[1:] if name not in special] + [f"<|res_{n + 1}|>" for n in range(8)]
    assert vocabulary.convert_ids_to_tokens(list(range(num_old, len(vocabulary)))) == names + [
        f"<|query_{n + 1}|>" for n in range(3)
    ]
    assert mllm.config.size_token_id == vocabulary.convert_tokens_to_ids("<|res_1|>")
    assert mllm.generation_config.eos_token_id == vocabulary.convert_tokens_to_ids(["<|im_end|>", "<|vision_start|>"])


def test_the_sampler_has_the_shift_of_the_training(tmp_path):
    save_language_model(tmp_path, Qwen3Config(**KINDS["qwen3"][1]), *CHAT_TOKENS)
    head = HEAD | {"timestep_shift": 3.0}
    pipelines = [pipeline_from_language_model(tmp_path, build_vision(), head, MLLM, num_size_tokens=8)]
    pipelines.append(new_pipeline(build_vision(), ["a red apple"], LANGUAGE["text_model"], head, MLLM, vocab_size=300))
    for pipeline in pipelines:
        assert pipeline.mllm.config.head_config.timestep_shift == pipeline.scheduler.config.shift == 3.0


@pytest.mark.parametrize("tied", [False, True])
def test_it_draws_trains_saves_and_loads(tmp_path, tied):
    save_language_model(tmp_path / "lm", LlamaConfig(**KINDS["llama"][1], tie_word_embeddings=tied), "</s>", "<s>")
    pipeline = with_defaults(start_from(tmp_path / "lm"), default_size=32, default_num_inference_steps=2)
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "output_type": "latent"}
    drawn = pipeline(**call, generator=torch.Generator().manual_seed(0)).images
    text = pipeline.processor(text=["hello"])
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = UniWeTokPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(**call, generator=torch.Generator().manual_seed(0)).images, drawn)
    assert loaded.mllm.config.vision_config.stride == 8 and loaded.processor.patch_size == 2
    torch.testing.assert_close(loaded.mllm(**text).logits, pipeline.mllm(**text).logits)
    loss = pipeline.mllm.train()(**text, labels=text["input_ids"]).loss
    loss.backward()
    assert torch.isfinite(loss) and pipeline.mllm.get_input_embeddings().weight.grad.abs().sum() > 0


def test_new_parts_come_from_the_seed(tmp_path):
    save_language_model(tmp_path, Qwen3Config(**KINDS["qwen3"][1]), *CHAT_TOKENS)
    before = torch.get_rng_state()
    first, same, other = (start_from(tmp_path, seed=seed).mllm.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    differing = {
        name.split(".")[1 if name.startswith("model.") else 0]
        for name in first
        if not torch.equal(first[name], other[name])
    }
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert differing == {"projector", "image_head", "language_model", "lm_head"}  # of the last two, new rows
    assert abs(first["model.projector.fc2.weight"].std() - 0.02) < 0.004
    assert first["image_head.proj_out.weight"].abs().max() == 0


def test_language_models_that_can_not_be_taken(tmp_path):
    with pytest.raises(ValueError, match="has no text tokenizer"):
        folder = tmp_path / "bare"
        AutoModelForCausalLM.from_config(Qwen3Config(**KINDS["qwen3"][1])).save_pretrained(folder)
        start_from(folder)
    with pytest.raises(ValueError, match="has no text tokenizer"):
        start_from(tmp_path / "nowhere")
    configs = {
        "embeddings that are not called `embed_tokens`": GPT2Config(
            vocab_size=258, n_embd=32, n_layer=1, n_head=2, n_positions=64
        ),
        "must be linear, without biases": PhiConfig(**LLAMA, vocab_size=258),
        "makes its logits in a way of its own": CohereConfig(**LLAMA, vocab_size=258, logit_scale=0.3),
    }
    for message, config in configs.items():
        folder = tmp_path / config.model_type
        save_language_model(folder, config, "</s>", "<s>")
        with pytest.raises(ValueError, match=message):
            start_from(folder)


def test_scattered_size_tokens_are_refused(tmp_path):
    save_language_model(tmp_path, LlamaConfig(**KINDS["llama"][1]), "</s>", "<|res_2|>")
    with pytest.raises(ValueError, match=r"`<\|res_n\|>` scattered"):
        start_from(tmp_path)


def test_a_new_model():
    vision = build_vision()
    texts = ["a red heart", "a blue heart"] * 5
    made = [
        new_pipeline(vision, texts, LANGUAGE["text_model"], HEAD, MLLM, vocab_size=300, num_size_tokens=8, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, same, other = (pipeline.mllm.state_dict() for pipeline in made)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.projector.fc1.weight"], other["model.projector.fc1.weight"])
    for name, tensor in vision.state_dict().items():
        assert torch.equal(first[f"model.vision_model.{name}"], tensor)
    assert len(made[0].processor.tokenizer("a red heart")["input_ids"]) < 6  # the words were learnt
    assert made[0].processor.image_processor.stride == 16


@pytest.mark.parametrize("tied", [True, False])
def test_a_pipeline_without_weights(tied):
    """What processes get that load none: the same parameters, in the same order and tied alike, and the buffers."""
    text_model = LANGUAGE["text_model"] | {"tie_word_embeddings": tied}
    pipeline = new_pipeline(build_vision(), ["a red square"], text_model, LANGUAGE["head"], {}, vocab_size=300)
    parts = pickle.loads(pickle.dumps(parts_without_weights(pipeline)))
    other = pipeline_without_weights(*parts)
    expected, found = (dict(each.mllm.named_parameters()) for each in (pipeline, other))
    assert list(expected) == list(found) and ("lm_head.weight" in found) == (not tied)
    assert all(p.is_meta and p.shape == expected[name].shape for name, p in found.items())
    for name, buffer in pipeline.mllm.named_buffers():
        assert torch.equal(dict(other.mllm.named_buffers())[name], buffer)
    assert other.config == pipeline.config
    assert other.processor.tokenizer.get_vocab() == pipeline.processor.tokenizer.get_vocab()
    assert other.mllm.generation_config.to_dict() == pipeline.mllm.generation_config.to_dict()


# --- larger patches ---


@pytest.mark.parametrize("before, after", [(1, 2), (2, 4), (1, 4)])
def test_raising_the_patch_size(before, after):
    pipeline = build_tiny_pipeline(before, default_size=128, default_num_inference_steps=2)
    weights = copy.deepcopy(pipeline.mllm.state_dict())
    old_vocabulary = pipeline.processor.tokenizer.get_vocab()
    raised = raise_patch_size(pipeline, after)
    mllm, processor = raised.mllm, raised.processor
    assert mllm.config.patch_size == processor.patch_size == after
    assert processor.image_processor.stride == 32 * after and raised.config.default_size == 128
    vocabulary = processor.tokenizer.get_vocab()
    assert old_vocabulary.items() <= vocabulary.items()
    added = [f"<|query_{n}|>" for n in range(before**2, after**2)]
    assert [vocabulary[name] for name in added] == list(range(len(old_vocabulary), len(vocabulary)))
    assert mllm.config.query_token_id == vocabulary["<|query_1|>"]
    for name, tensor in mllm.state_dict().items():
        kept = tensor[: len(old_vocabulary)] if tensor.shape != weights[name].shape else tensor
        assert torch.equal(kept, weights[name]), name
    raised.set_progress_bar_config(disable=True)
    assert raised("a cat", output_type="latent").images.shape == (1, 16, 4, 4)
    inputs, codes = training_batch(after)
    mllm.train()(**inputs, codes=codes).loss.backward()
    new_rows = mllm.get_input_embeddings().weight.grad[len(old_vocabulary) :]
    assert (new_rows.abs().sum(1) > 0).all()


def test_a_raised_pipeline_is_saved_and_loaded(tmp_path):
    raised = raise_patch_size(build_tiny_pipeline(1, default_size=64), 2)
    raised.save_pretrained(tmp_path)
    loaded = UniWeTokPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    inputs, codes = training_batch(2)
    both = [p.mllm.eval()(**inputs, codes=codes, generator=torch.Generator().manual_seed(0)) for p in (raised, loaded)]
    assert torch.equal(both[0].loss, both[1].loss)
    assert loaded.processor.picture_tokens(64, 64) == raised.processor.picture_tokens(64, 64)
    text = loaded.processor.tokenizer.decode(
        loaded.processor.tokenizer("<|query_3|>x")["input_ids"], skip_special_tokens=True
    )
    assert text == "x"


def test_patch_sizes_that_do_not_fit():
    pipeline = build_tiny_pipeline(2, default_size=64)
    for patch_size in (1, 2):
        with pytest.raises(ValueError, match="`patch_size` must be larger than the 2 there is"):
            raise_patch_size(pipeline, patch_size)
    with pytest.raises(ValueError, match="`patch_size`=4: 64 pixels, the pipeline's size, must be a multiple of 128"):
        raise_patch_size(pipeline, 4)
    assert pipeline.mllm.config.patch_size == 2


# --- as a config says ---


@pytest.fixture
def saved(tmp_path):
    """A finished run in `run`."""
    build_tiny_pipeline(1, default_size=64).save_pretrained(tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "log.jsonl").touch()
    return tmp_path / "run"


def config(**fields):
    defaults = {"init_from": None, "vision_model": None, "language_model": None, "text_model": {}, "head": {}}
    defaults |= {"mllm": {}, "vocab_size": 300, "num_size_tokens": None, "seed": 0, "resolution": None}
    defaults |= {"input_size": None, "num_inference_steps": None, "guidance_scale": None}
    defaults |= {"image_guidance_scale": None, "negative_prompt": None}
    defaults |= {"describe_first": None, "temperature": None}
    return SimpleNamespace(**defaults | fields)


def test_going_on_from_a_run(saved):
    mllm = {"text_loss_weight": 0.5, "num_diffusion_draws": 3, "patch_size": 2}
    guidance = {"guidance_scale": 4.0, "image_guidance_scale": 3.0, "negative_prompt": "keep it"}
    guidance |= {"describe_first": True}
    pipeline = start_pipeline(config(init_from=str(saved), mllm=mllm, **guidance))
    assert pipeline.mllm.config.text_loss_weight == 0.5 and pipeline.mllm.config.num_diffusion_draws == 3
    assert pipeline.processor.patch_size == 2 and pipeline.processor.image_processor.size is None
    assert {name: pipeline.config[f"default_{name}"] for name in guidance} == guidance
    assert pipeline.config.default_size == 64 and pipeline.scheduler.temperature == 1.0
    cooler = start_pipeline(config(init_from=str(saved), temperature=0.5))
    assert cooler.scheduler.config.temperature == 0.5
    with pytest.raises(ValueError, match="`negative_prompt`"):
        start_pipeline(config(init_from=str(saved), negative_prompt="<|im_end|>"))
    sized = start_pipeline(config(init_from=str(saved), resolution=96, input_size={"height": 96, "width": 96}))
    assert sized.config.default_size == 96 and dict(sized.processor.image_processor.size)["height"] == 96


def test_an_image_tokenizer_inside_of_a_pipeline(saved):
    new = {"text_model": {"model_type": "qwen3", **QWEN}, "head": HEAD, "mllm": MLLM, "num_size_tokens": 8}
    found = start_pipeline(config(vision_model=str(saved / "pipeline"), **new), ["a red heart"]).mllm.vision_model
    expected = UniWeTokModel.from_pretrained(saved / "pipeline", subfolder="mllm")
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_starts_that_contradict_themselves(saved):
    with pytest.raises(ValueError, match="`vision_model` can't be given together with `init_from`"):
        start_pipeline(config(init_from=str(saved), vision_model="x"))
    with pytest.raises(ValueError, match="`mllm`: size_token_id can't change after `init_from`"):
        continued_pipeline(saved / "pipeline", {"size_token_id": 3})
    for fields in ({}, {"vision_model": "x"}, {"vision_model": "x", "language_model": "y", "text_model": {"a": 1}}):
        with pytest.raises(ValueError, match="Give `init_from`, .* or `vision_model`"):
            start_pipeline(config(**fields))
    with pytest.raises(ValueError, match="`resolution` must be a multiple of 32 pixels, got 40"):
        start_pipeline(config(init_from=str(saved), resolution=40))


def test_finding_the_result_of_a_run(saved):
    assert find_result(saved, "pipeline") == str(saved / "pipeline")
    assert find_result(saved / "pipeline", "pipeline") == str(saved / "pipeline")
    assert find_result("org/name", "pipeline") == "org/name"
    with pytest.raises(ValueError, match="is a training that is not finished: it has no `model` yet"):
        find_result(saved, "model")
