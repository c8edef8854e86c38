"""Compiling, exporting, quantizing and spreading out, on tiny models: what comes out is what the model says."""

import copy

import pytest
import torch
from tiny_mllm import build, picture_text, processor, random_codes, seeded, shared, size_text, tokenize
from torch.export import Dim
from transformers import DynamicCache, StaticCache

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokModel


ARCHITECTURES = ["hybrid", "convolutional"]


def question(patch_size: int, device) -> dict:
    """Inputs with a picture of two patches, given as codes."""
    codes = random_codes(patch_size, 1, 2)
    inputs = tokenize(f"a {picture_text(codes, patch_size)} b", patch_size=patch_size)
    return {name: tensor.to(device) for name, tensor in (inputs | {"codes": codes[None]}).items()}


# --- torch.compile; tests/modeling/test_modeling_uniwetok.py has encode and decode ---


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
@torch.no_grad()
def test_writing_compiles_to_one_graph(patch_size, kind, device):
    """The prompt with its picture, then a step."""
    model, inputs = shared(patch_size).to(device), question(patch_size, device)
    length = inputs["input_ids"].shape[1]
    config = model.config.get_text_config()

    def write(function):
        cache = StaticCache(config=config, max_cache_len=64) if kind == "static" else DynamicCache(config=config)
        first = function(**inputs, past_key_values=cache, use_cache=True).logits
        step = {"input_ids": inputs["input_ids"][:, :1], "position_ids": torch.full((1, 1), length, device=device)}
        return first, function(**step, past_key_values=cache, use_cache=True).logits

    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    for logits, expected in zip(write(compiled), write(model), strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_head_compiles_to_one_graph(device):
    head = shared(2).to(device).image_head
    arguments = (
        torch.randn(3, 4, 16, device=device),
        torch.rand(3, device=device),
        torch.randn(3, 4, 32, device=device),
    )
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), head(*arguments))


@pytest.mark.slow
def test_drawing_with_compiled_code(device):
    """By inductor, the one that generates code."""
    model = build(2).to(device)
    inputs = tokenize("draw " + size_text(random_codes(2, 2, 1), 2), patch_size=2)["input_ids"].to(device)
    options = {"num_inference_steps": 3, "guidance_scale": 1.0}
    expected = model.generate_codes(inputs, generator=seeded(0), **options).codes
    model.image_head.compile(fullgraph=True)
    assert torch.equal(model.generate_codes(inputs, generator=seeded(0), **options).codes, expected)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_with_a_static_cache_the_language_model_is_compiled_for_prompt_and_patch(patch_size, device):
    model = build(patch_size).to(device)
    model.generation_config.cache_implementation = "static"
    inputs = tokenize("draw " + size_text(random_codes(patch_size, 2, 2), patch_size), patch_size=patch_size)[
        "input_ids"
    ]
    options = {"input_ids": inputs.to(device), "num_inference_steps": 2}
    expected = model.generate_codes(**options, generator=seeded(0)).codes
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model.model.language_model.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        assert torch.equal(model.generate_codes(**options, generator=seeded(0)).codes, expected)
    assert len(graphs) == 2


# --- torch.export and ONNX ---


def exported(model: UniWeTokModel) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """Encoder and decoder of a model with stride 4 and 16 bits, for any batch and size."""
    batch, rows, columns = Dim("batch"), Dim("rows", max=64), Dim("columns", max=64)
    device = model.device
    pixels = torch.zeros(2, 3, 8, 12, device=device)
    arguments = tuple(torch.zeros(2, 16, 2, 3, device=device) for _ in range(1 + model.config.decoder_noise))
    sizes = {0: batch, 2: rows, 3: columns}
    with torch.no_grad():
        encoder = torch.export.export(
            model.encoder, (pixels,), dynamic_shapes=({0: batch, 2: 4 * rows, 3: 4 * columns},)
        )
        decoder = torch.export.export(model.decoder, arguments, dynamic_shapes=(sizes,) * len(arguments))
    return encoder, decoder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_exported_programs_take_any_size(make_model, make_pictures, tmp_path, architecture):
    model = make_model(architecture=architecture, decoder_noise=architecture == "hybrid")
    programs = []
    for name, program in zip(("encoder", "decoder"), exported(model), strict=True):
        torch.export.save(program, tmp_path / f"{name}.pt2")
        programs.append(torch.export.load(tmp_path / f"{name}.pt2").module())
    encoder, decoder = programs
    for batch, rows, columns in ((1, 2, 2), (3, 5, 2)):
        pictures = make_pictures(batch, 3, 4 * rows, 4 * columns)
        torch.testing.assert_close(encoder(pictures), model.encode(pictures).latents, atol=1e-5, rtol=0)
    for batch, rows, columns in ((1, 1, 1), (1, 1, 4), (3, 5, 2)):  # of a single token, too
        codes, noise = make_pictures(2, batch, 16, rows, columns).sign()
        arguments = (codes, noise) if model.config.decoder_noise else (codes,)
        expected = model.decode(codes, noise=noise).sample
        torch.testing.assert_close(decoder(*arguments), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about its own exporter
@torch.no_grad()
def test_onnx_says_the_same(make_model, make_pictures, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs uniwetok-hf[onnx]")
    pytest.importorskip("onnxscript", reason="needs uniwetok-hf[onnx]")
    model = make_model().cpu()
    sessions = []
    for name, program in zip(("encoder", "decoder"), exported(model), strict=True):
        torch.onnx.export(program, f=tmp_path / f"{name}.onnx", verbose=False)
        sessions.append(onnxruntime.InferenceSession(tmp_path / f"{name}.onnx"))
    encoder, decoder = sessions
    for batch, rows, columns in ((1, 1, 1), (3, 5, 2)):
        pictures = make_pictures(batch, 3, 4 * rows, 4 * columns).cpu()
        [latents] = encoder.run(None, {"pixel_values": pictures.numpy()})
        encoded = model.encode(pictures)
        torch.testing.assert_close(torch.from_numpy(latents), encoded.latents, atol=1e-4, rtol=0)
        assert torch.equal(torch.from_numpy(latents) > 0, encoded.codes > 0)
        noise = torch.randn(encoded.codes.shape, generator=seeded(0))
        [sample] = decoder.run(None, {"codes": encoded.codes.numpy(), "noise": noise.numpy()})
        expected = model.decode(encoded.codes, noise=noise).sample
        torch.testing.assert_close(torch.from_numpy(sample), expected, atol=1e-4, rtol=0)


# --- quantized weights ---


@pytest.mark.slow
def test_quantized_loading(tmp_path, device):
    pytest.importorskip("torchao", reason="needs uniwetok-hf[quantize]")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = build(2)
    model.save_pretrained(tmp_path)
    kept = ["model.vision_model", "model.projector", "image_head", "lm_head"]
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    small = UniWeTokForCausalLM.from_pretrained(tmp_path, quantization_config=config).to(device)
    quantized = {name for name, p in small.named_parameters() if type(p.data).__module__.startswith("torchao")}
    assert quantized and all(".language_model." in name for name in quantized)
    inputs = question(2, device)
    with torch.no_grad():
        logits, expected = small(**inputs).logits, model.to(device)(**inputs).logits
    assert 0 < (logits - expected).abs().max() < 0.1 * expected.abs().max()
    prompt = tokenize("draw " + size_text(random_codes(2, 1, 1), 2), patch_size=2)["input_ids"].to(device)
    codes = small.generate_codes(prompt, num_inference_steps=2, generator=seeded(0)).codes
    assert codes.abs().eq(1).all()


def test_codes_are_not_cast_to_quantized_weights(device):
    """As bitsandbytes stores them: the projector's weights as whole numbers, which codes must not become."""
    model = copy.deepcopy(shared(1)).to(device)
    inputs = question(1, device)
    with torch.no_grad():
        expected = model(**inputs).logits
        first = model.model.projector.fc1
        weight = first.weight.detach()
        first.weight = torch.nn.Parameter(torch.zeros_like(weight, dtype=torch.int8), requires_grad=False)
        first.forward = lambda tokens: torch.nn.functional.linear(tokens, weight, first.bias)
        torch.testing.assert_close(model(**inputs).logits, expected)


def test_missing_libraries_are_named(tmp_path):
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if is_bitsandbytes_available():
        pytest.skip("bitsandbytes is installed")
    build(1).save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="bitsandbytes"):
        UniWeTokForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


# --- device_map ---


def half_on_disk(model, folder) -> dict:
    """Options of `from_pretrained`."""
    room = {"cpu": model.get_memory_footprint() // 2}
    return {"device_map": "auto", "max_memory": room, "offload_folder": folder / "rest"}


def in_whole_blocks(model) -> bool:
    """Whether the device map leaves every block that is not to be split in one place."""
    blocks = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    return not any(place.startswith(f"{name}.") for place in model.hf_device_map for name in blocks)


def test_image_tokenizer_partly_on_disk(make_model, make_pictures, tmp_path):
    model = make_model().cpu()
    model.save_pretrained(tmp_path)
    spread = UniWeTokModel.from_pretrained(tmp_path, **half_on_disk(model, tmp_path))
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"} and in_whole_blocks(spread)
    pictures = make_pictures(2, 3, 8, 12).cpu()
    output, expected = (one(pictures, generator=seeded(0)) for one in (spread, model))
    torch.testing.assert_close(output.latents, expected.latents)
    torch.testing.assert_close(output.sample, expected.sample)


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [1, 2])
def test_language_model_partly_on_disk(tmp_path, patch_size):
    model = build(patch_size)
    model.save_pretrained(tmp_path)
    spread = UniWeTokForCausalLM.from_pretrained(tmp_path, **half_on_disk(model, tmp_path))
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"} and in_whole_blocks(spread)
    inputs = dict(processor(patch_size).generation_inputs(["x"], 32 * patch_size, 64 * patch_size)[0])
    drawn, expected = (one.generate_codes(**inputs, generator=seeded(0)).codes for one in (spread, model))
    assert torch.equal(drawn, expected)
    asked = question(patch_size, "cpu")
    written, expected = (one.generate(**asked, max_new_tokens=4, do_sample=False) for one in (spread, model))
    assert torch.equal(written, expected)
