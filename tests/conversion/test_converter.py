"""Whole conversions of variations of the golden checkpoints. What the results compute is tested in tests/parity."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conversion.published import GOLDEN, edit_json, edit_tensors, shard, snapshot, to_native, to_published
from uniwetok_hf import UniWeTokForCausalLM, UniWeTokImageProcessor, UniWeTokModel, UniWeTokProcessor
from uniwetok_hf.conversion import ConversionError, convert_checkpoint, converter, tensors
from uniwetok_hf.conversion.keys import HEAD_RULES, PLAIN_HEAD_RULES, PROJECTOR_RULES, VISION_RULES
from uniwetok_hf.modeling.modeling_uniwetok_head import UniWeTokBinaryHead


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The golden text-to-image folder, converted."""
    return convert_checkpoint(GOLDEN / "t2i_4x", tmp_path_factory.mktemp("converted") / "t2i")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def load_all(folder):
    """All tensors of the weight files of a folder."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def renamed(file, rules, prefix=""):
    pairs = [pair for name, tensor in load_file(file).items() for pair in to_native(name, tensor, rules)]
    return {prefix + name: tensor for name, tensor in pairs}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["tokenizer_uniwetok", "tokenizer_bitdance"])
def test_tokenizer(name, out):
    assert convert_checkpoint(GOLDEN / name, str(out)) == out
    assert sorted(snapshot(out)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert_same(load_all(out), renamed(GOLDEN / name / "ae.safetensors", VISION_RULES))
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["UniWeTokModel"]
    assert config["dtype"] == "bfloat16"
    model, info = UniWeTokModel.from_pretrained(out, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info.values())
    assert UniWeTokImageProcessor.from_pretrained(out).stride == model.config.stride
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_text_to_image(converted):
    assert sorted(snapshot(converted)) == [
        "mllm/config.json",
        "mllm/generation_config.json",
        "mllm/model.safetensors",
        "model_index.json",
        "processor/chat_template.jinja",
        "processor/processor_config.json",
        "processor/tokenizer.json",
        "processor/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ]
    golden = GOLDEN / "t2i_4x"
    expected = renamed(golden / "ae.safetensors", VISION_RULES, "model.vision_model.")
    expected |= renamed(golden / "vision_head.safetensors", HEAD_RULES, "image_head.")
    expected |= renamed(golden / "projector.safetensors", PROJECTOR_RULES, "model.projector.")
    for name, tensor in load_file(golden / "model.safetensors").items():
        expected[name.replace("model.", "model.language_model.", 1)] = tensor
    assert_same(load_all(converted / "mllm"), expected)
    copied = converted / "mllm" / "generation_config.json"
    assert copied.read_bytes() == (golden / "generation_config.json").read_bytes()
    everything = b"".join(contents for name, contents in snapshot(converted).items() if name.endswith(".json"))
    assert str(golden).encode() not in everything


def test_text_to_image_configs(converted):
    model, info = UniWeTokForCausalLM.from_pretrained(converted / "mllm", output_loading_info=True)
    assert not any(info.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    config = model.config
    assert config.architectures == ["UniWeTokForCausalLM"]
    assert (config.patch_size, config.num_size_tokens, config.tie_word_embeddings) == (2, 16, False)
    tokens = {"<|image_pad|>": config.image_token_id, "<|vision_start|>": config.vision_start_token_id}
    tokens |= {"<|vision_end|>": config.vision_end_token_id, "<|res_1|>": config.size_token_id}
    tokens |= {"<|query_1|>": config.query_token_id}
    processor = UniWeTokProcessor.from_pretrained(converted / "processor")
    assert processor.tokenizer.convert_tokens_to_ids(list(tokens)) == list(tokens.values())
    assert (processor.patch_size, processor.stride, processor.image_processor.stride) == (2, 32, 64)
    assert model.generation_config.eos_token_id == [256, config.vision_start_token_id]
    index = json.loads((converted / "model_index.json").read_text())
    assert index["mllm"] == ["uniwetok_hf", "UniWeTokForCausalLM"]
    assert index["default_size"] == 512  # the largest of 16 size tokens


def test_tokenizer_loads_from_the_pipeline(converted):
    alone = UniWeTokModel.from_pretrained(converted, subfolder="mllm")
    assert_same(dict(alone.state_dict()), renamed(GOLDEN / "t2i_4x" / "ae.safetensors", VISION_RULES))


def test_tokenizer_out_of_a_text_to_image_folder(out):
    convert_checkpoint(GOLDEN / "t2i_4x" / "ae.safetensors", out)
    assert_same(load_all(out), renamed(GOLDEN / "t2i_4x" / "ae.safetensors", VISION_RULES))


def test_community_layout_gives_the_same(converted, community_golden, out):
    convert_checkpoint(community_golden, out)
    assert snapshot(out) == snapshot(converted)


def test_sharded_source_gives_the_same(converted, community_golden, out):
    shard(community_golden / "text_encoder" / "model.safetensors", 3)
    shard(community_golden / "diffusion_head" / "diffusion_pytorch_model.safetensors", 2)
    convert_checkpoint(community_golden, out)
    assert_same(load_all(out / "mllm"), load_all(converted / "mllm"))


def test_sharded_output(converted, out):
    convert_checkpoint(GOLDEN / "t2i_4x", out, max_shard_size="1MB")
    files = sorted((out / "mllm").glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 1.05e6 for file in files)
    assert_same(load_all(out / "mllm"), load_all(converted / "mllm"))
    model, info = UniWeTokForCausalLM.from_pretrained(out / "mllm", output_loading_info=True)
    assert not any(info.values())
    assert_same(dict(model.state_dict()), load_all(converted / "mllm"))


def test_small_chunks_give_the_same(converted, out, monkeypatch):
    monkeypatch.setattr(converter, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(tensors, "REOPEN_AFTER_BYTES", 100_000)
    convert_checkpoint(GOLDEN / "t2i_4x", out)
    assert snapshot(out) == snapshot(converted)


@pytest.mark.parametrize("dtype", ["float32", torch.float16])
def test_dtype(converted, out, dtype):
    convert_checkpoint(GOLDEN / "t2i_4x", out, dtype=dtype)
    expected = torch.float32 if dtype == "float32" else torch.float16
    assert_same(load_all(out / "mllm"), {name: t.to(expected) for name, t in load_all(converted / "mllm").items()})
    config = json.loads((out / "mllm" / "config.json").read_text())
    names = {config["dtype"], *(config[part]["dtype"] for part in ("text_config", "vision_config", "head_config"))}
    assert names == {str(expected).removeprefix("torch.")}


def test_dtypes_stay_as_they_are(copy_golden, out):
    folder = copy_golden("t2i_4x")
    edit_tensors(folder / "projector.safetensors", **{"fc1.bias": torch.ones(128)})
    convert_checkpoint(folder, out)
    tensors = load_all(out / "mllm")
    assert tensors.pop("model.projector.fc1.bias").dtype == torch.float32
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((out / "mllm" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "int8"}, "`dtype`"),
        ({"dtype": "bf16"}, "`dtype`"),
        ({"dtype": 16}, "`dtype`"),
        ({"max_shard_size": "much"}, "`max_shard_size`"),
        ({"num_attention_heads": 0}, "`num_attention_heads`"),
    ],
)
def test_bad_arguments(out, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(GOLDEN / "tokenizer_uniwetok", out, **arguments)
    assert not out.exists()


def test_without_json(copy_golden, out):
    folder = copy_golden("tokenizer_uniwetok")
    convert_checkpoint(folder, out / "with")
    (folder / "ae_config.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_checkpoint(folder, out / "given", num_attention_heads=4)
    assert snapshot(out / "given") == snapshot(out / "with")
    with pytest.warns(UserWarning, match="attention heads of ae.safetensors: 16 are assumed"):
        convert_checkpoint(folder, out / "assumed")
    assert UniWeTokModel.from_pretrained(out / "assumed").config.num_attention_heads == 16


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_training_checkpoint(tmp_path, out, suffix, zipped):
    published = load_file(GOLDEN / "tokenizer_uniwetok" / "ae.safetensors")
    frozen = "decoder.conv_out.bias"
    state_dict = {name: tensor if name == frozen else torch.zeros_like(tensor) for name, tensor in published.items()}
    for name, tensor in published.items():
        if name != frozen:
            state_dict["model_ema." + name.replace(".", "")] = tensor
    state_dict["loss.discriminator.main.0.weight"] = torch.ones(3)
    state_dict["model_ema.lossdiscriminatormain0weight"] = torch.ones(3)
    state_dict |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    file = tmp_path / f"UniWeTok{suffix}"
    contents = {"state_dict": state_dict, "global_step": 10, "optimizer_states": [{"state": {0: torch.ones(2)}}]}
    torch.save(contents, file, _use_new_zipfile_serialization=zipped)
    convert_checkpoint(file, out, num_attention_heads=4)
    assert_same(load_all(out), renamed(GOLDEN / "tokenizer_uniwetok" / "ae.safetensors", VISION_RULES))

    state_dict["model_ema.encoderunheardof"] = torch.ones(1)
    state_dict["distill_head.proj.weight"] = torch.ones(2)
    torch.save({"state_dict": state_dict}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=r"unknown tensors distill_head.proj.weight, model_ema.encoderunheardof"):
        convert_checkpoint(file, tmp_path / "second", num_attention_heads=4)
    del state_dict["model_ema.encoderunheardof"]
    torch.save({"state_dict": state_dict}, file, _use_new_zipfile_serialization=zipped)
    convert_checkpoint(file, tmp_path / "second", num_attention_heads=4, ignored_prefixes=["distill_head."])
    assert snapshot(tmp_path / "second") == snapshot(out)


def assert_refused(folder, out, *messages):
    """The conversion fails with these messages in one line, and leaves nothing behind."""
    before = snapshot(out.parent)
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(folder, out / "deep" / "down")
    for message in messages:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{folder} can't be converted: ")
    assert not out.exists()
    assert snapshot(out.parent) == before


FILES = {
    "ae.safetensors": ("decoder.up.2.block.0.conv1.weight", "encoder.mid_attn_blocks.1.attention.wqkv.weight"),
    "vision_head.safetensors": ("net.final_layer.linear.bias", "net.res_blocks.1.w1.weight"),
    "projector.safetensors": ("fc2.weight", "fc1.bias"),
    "model.safetensors": ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("file", FILES)
def test_each_wrong_tensor_is_named(copy_golden, out, file):
    folder = copy_golden("t2i_4x")
    missing, misshaped = FILES[file]
    shape = list(load_file(folder / file)[misshaped].shape)
    wrong = torch.zeros([shape[0] + 1, *shape[1:]])
    edit_tensors(folder / file, missing, **{misshaped: wrong, "unheard.of": torch.ones(1)})
    assert_refused(
        folder,
        out,
        f"{file} lacks {missing};",
        f"{file} has unknown tensors unheard.of;",
        f"{file} has misshaped tensors: {misshaped} is {list(wrong.shape)} instead of {shape}.",
    )


def test_wrong_tensors_of_all_files_are_in_one_message(copy_golden, out):
    folder = copy_golden("t2i_4x")
    for file, (missing, _) in FILES.items():
        edit_tensors(folder / file, missing)
    assert_refused(folder, out, *(f"{file} lacks {missing}" for file, (missing, _) in FILES.items()))


@pytest.mark.parametrize(
    "name",
    [
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "encoder.register_token.weight",
        "encoder.down.5.block.0.norm2.weight",
        "decoder.conv_in.weight",
        "decoder.conv_out.weight",
    ],
)
def test_tensors_that_tell_the_config_are_named_too(copy_golden, out, name):
    folder = copy_golden("tokenizer_uniwetok")
    edit_tensors(folder / "ae.safetensors", name)
    assert_refused(folder, out, f"ae.safetensors lacks {name}.")


def test_many_names_are_abbreviated(copy_golden, out):
    folder = copy_golden("t2i_4x")
    file = folder / "projector.safetensors"
    save_file({f"foreign.{i}": torch.ones(1) for i in range(12)}, file)
    assert_refused(
        folder, out, "projector.safetensors lacks fc1.weight, fc1.bias, fc2.weight, fc2.bias;", "... (12 in all)"
    )


@pytest.mark.parametrize("component", ["autoencoder", "diffusion_head", "projector"])
def test_foreign_names_in_the_community_layout(community_golden, out, component):
    label = f"{component}/diffusion_pytorch_model.safetensors"
    tensors = load_file(community_golden / label)
    save_file({f"renamed.{name}": tensor for name, tensor in tensors.items()}, community_golden / label)
    first = {"autoencoder": "encoder.", "diffusion_head": "net.", "projector": "fc1."}[component]
    assert_refused(community_golden, out, f"{label} lacks {first}", f"{label} has unknown tensors renamed.")


@pytest.mark.parametrize("file", FILES)
def test_truncated_file_is_named(copy_golden, out, file):
    folder = copy_golden("t2i_4x")
    contents = (folder / file).read_bytes()
    (folder / file).write_bytes(contents[:-100])
    assert_refused(folder, out, f"{file} is truncated")


def test_truncated_shard_is_named(copy_golden, out):
    folder = copy_golden("t2i_4x")
    shard(folder / "model.safetensors", 2)
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    assert_refused(folder, out, f"{second.name} is truncated")
    second.unlink()
    assert_refused(folder, out, f"model.safetensors.index.json names {second.name}, which is not there")


def test_folder_of_the_wrong_kind(tmp_path, out, copy_golden, converted):
    assert_refused(tmp_path / "absent", out, "no such file or folder")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", out, "Looked for an image tokenizer (ae.safetensors", "vision_head.safetensors")
    language_model = tmp_path / "language_model"
    language_model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / "t2i_4x" / name, language_model / name)
    assert_refused(language_model, out, "model.safetensors holds no published image tokenizer", "lm_head.weight")
    assert_refused(converted, out, "converted pipeline already")
    assert_refused(converted / "mllm", out, "converted model already")
    folder = copy_golden("t2i_4x")
    (folder / "projector.safetensors").unlink()
    assert_refused(folder, out, "lacks projector.safetensors")


def test_bad_configs(copy_golden, out):
    folder = copy_golden("t2i_4x")
    edit_json(folder / "ae_config.json", z_channels=64)
    assert_refused(folder, out, "ae_config.json and ae.safetensors disagree: z_channels is 64")
    edit_json(folder / "ae_config.json", z_channels=32)
    edit_json(folder / "vision_head_config.json", parallel_num=5)
    assert_refused(folder, out, "vision_head_config.json: parallel_num 5 is no square number")
    edit_json(folder / "vision_head_config.json", parallel_num=9)
    assert_refused(folder, out, "the text tokenizer lacks <|query_4|> to <|query_8|>")
    edit_json(folder / "vision_head_config.json", parallel_num=4, ch_target=16)
    assert_refused(folder, out, "the parts of the text-to-image model don't fit", "num_bits")
    edit_json(folder / "vision_head_config.json", ch_target=32)
    edit_json(folder / "config.json", model_type="unheard_of")
    assert_refused(folder, out, "the language model's config.json can't be used", "unheard_of")
    edit_json(folder / "config.json", model_type="t5")
    assert_refused(folder, out, "the language model's config.json is of t5, no causal language model")
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_embd": 128, "n_head": 4, "vocab_size": 281}')
    assert_refused(folder, out, "this gpt2 can't be the language model")  # its tied embeddings have another name


def test_bad_text_tokenizer(copy_golden, out):
    folder = copy_golden("t2i_4x")
    contents = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(contents[:200])
    assert_refused(folder, out, "the text tokenizer can't be loaded")


def test_out_is_never_overwritten(out):
    out.mkdir()
    convert_checkpoint(GOLDEN / "tokenizer_bitdance", out)  # empty: may be used
    before = snapshot(out)
    with pytest.raises(FileExistsError, match="not empty"):
        convert_checkpoint(GOLDEN / "tokenizer_bitdance", out)
    assert snapshot(out) == before
    with pytest.raises(FileExistsError):
        convert_checkpoint(GOLDEN / "tokenizer_bitdance", out / "config.json")


def test_nothing_is_left_of_an_interrupted_conversion(tmp_path, out):
    with pytest.raises(KeyboardInterrupt), converter._new_folder(out) as folder:
        (folder / "half").write_text("written")
        assert folder.parent == tmp_path
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def tie(folder):
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("has_copy", [False, True])
def test_tied_embeddings(copy_golden, out, has_copy):
    folder = copy_golden("t2i_4x")
    embeddings = tie(folder)
    copies = {"lm_head.weight": embeddings.clone()} if has_copy else {}
    edit_tensors(folder / "model.safetensors", "lm_head.weight", **copies)
    convert_checkpoint(folder, out)
    assert "lm_head.weight" not in load_all(out / "mllm")
    model, info = UniWeTokForCausalLM.from_pretrained(out / "mllm", output_loading_info=True)
    assert not any(info.values())
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embeddings)


def test_tied_embeddings_that_differ(copy_golden, out):
    folder = copy_golden("t2i_4x")
    tie(folder)
    assert_refused(folder, out, "config.json ties lm_head.weight to model.embed_tokens.weight, but model.safetensors")


def test_plain_head(copy_golden, out):
    folder = copy_golden("t2i_4x")
    config = UniWeTokForCausalLM.config_class.from_pretrained(convert_checkpoint(folder, out) / "mllm").head_config
    config.hidden_act, config.dtype = "silu", None
    head = UniWeTokBinaryHead(config)
    edit_json(folder / "vision_head_config.json", "use_swiglu")
    assert_refused(
        folder, out.parent / "plain", "lacks net.res_blocks.0.mlp.0.weight", "unknown tensors net.res_blocks.0.w1"
    )
    save_file(to_published(head.state_dict(), PLAIN_HEAD_RULES), folder / "vision_head.safetensors")
    convert_checkpoint(folder, out.parent / "plain")
    model = UniWeTokForCausalLM.from_pretrained(out.parent / "plain" / "mllm", dtype=torch.float32)
    assert_same(dict(model.image_head.state_dict()), dict(head.state_dict()))


def test_one_token_a_patch(copy_golden, out):
    folder = copy_golden("t2i_4x")
    edit_json(folder / "vision_head_config.json", parallel_num=1, time_shift=3.0)
    (folder / "generation_config.json").unlink()
    convert_checkpoint(folder, out)
    config = json.loads((out / "mllm" / "config.json").read_text())
    assert config["patch_size"] == 1
    assert config["head_config"]["timestep_shift"] == 3.0
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["shift"] == 3.0
    assert json.loads((out / "processor" / "processor_config.json").read_text())["image_processor"]["stride"] == 32
    assert not (out / "mllm" / "generation_config.json").exists()


def test_other_language_model(copy_golden, out):
    """A Llama in place of the Qwen3: no query and key norms, biases in attention."""
    folder = copy_golden("t2i_4x")
    edit_json(folder / "config.json", "layer_types", model_type="llama", architectures=["LlamaForCausalLM"])
    names = list(load_file(folder / "model.safetensors"))
    edit_tensors(folder / "model.safetensors", *(name for name in names if "q_norm" in name or "k_norm" in name))
    convert_checkpoint(folder, out)
    model = UniWeTokForCausalLM.from_pretrained(out / "mllm")
    assert type(model.model.language_model).__name__ == "LlamaModel"


def test_weights_say_that_they_are_torch_s(converted):
    with safe_open(converted / "mllm" / "model.safetensors", "pt") as reader:
        assert reader.metadata() == {"format": "pt"}
