"""The image tokenizer against the golden vectors (tests/fixtures/golden/README.md) and the published definitions."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conversion.published import to_native
from uniwetok_hf.conversion.keys import VISION_RULES
from uniwetok_hf.modeling.codes_uniwetok import binarize
from uniwetok_hf.modeling.configuration_uniwetok import UniWeTokConfig
from uniwetok_hf.modeling.modeling_uniwetok import (
    UniWeTokLayer,
    UniWeTokModel,
    apply_rotary,
    decoder_grid,
    depth_to_space,
    encoder_grid,
    rotary_tables,
)


CPU = torch.device("cpu")


def load_published(folder, device, attn_implementation="sdpa"):
    """The model of a published tokenizer folder, in float32, and what is golden about it."""
    published = json.loads((folder / "ae_config.json").read_text())
    settings = published["ddconfig"]
    config = UniWeTokConfig(
        architecture="hybrid" if "attn_blocks" in settings else "convolutional",
        num_bits=settings["z_channels"],
        base_channels=settings["ch"],
        channel_multipliers=settings["ch_mult"],
        num_res_blocks=settings["num_res_blocks"],
        num_hidden_layers=settings.get("attn_blocks", 0),
        num_attention_heads=settings.get("n_heads", 16),
        decoder_noise=published["gan_decoder"],
        attn_implementation=attn_implementation,
    )
    model = UniWeTokModel(config).eval()
    pairs = [
        pair
        for name, tensor in load_file(folder / "ae.safetensors").items()
        for pair in to_native(name, tensor.float(), VISION_RULES)
    ]
    assert len(dict(pairs)) == len(pairs), "two published tensors have the same native name"
    model.load_state_dict(dict(pairs), strict=True)
    golden = {name: tensor.to(device) for name, tensor in load_file(folder / "golden.safetensors").items()}
    return model.to(device), golden


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["tokenizer_uniwetok", "tokenizer_bitdance"])
@torch.no_grad()
def test_golden_tokenizer(fixtures, device, name, attn_implementation):
    model, golden = load_published(fixtures / "golden" / name, device, attn_implementation)
    assert model.config._attn_implementation == attn_implementation

    encoded = model.encode(golden["pixel_values"])
    torch.testing.assert_close(encoded.latents, golden["pre_quant"], atol=1e-4, rtol=0)
    decided = golden["pre_quant"].abs() > 1e-4
    assert decided.float().mean() > 0.99
    assert torch.equal(encoded.codes[decided], golden["quant"][decided])

    sample = model.decode(golden["quant"], noise=golden["noise"]).sample
    torch.testing.assert_close(sample, golden["reconstruction"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_golden_noise_is_drawn_from_the_seed(fixtures, device):
    model, golden = load_published(fixtures / "golden" / "tokenizer_uniwetok", device)
    drawn = torch.randn(golden["quant"].shape, generator=torch.Generator().manual_seed(1234))
    assert torch.equal(drawn, golden["noise"].cpu())

    sample = model.decode(golden["quant"], generator=torch.Generator().manual_seed(1234)).sample
    torch.testing.assert_close(sample, golden["reconstruction"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_golden_tokenizer_of_the_text_to_image_folder(fixtures, device):
    model, golden = load_published(fixtures / "golden" / "t2i_4x", device)
    sample = model.decode(golden["codes"], noise=golden["decoder_noise"]).sample
    torch.testing.assert_close(sample, golden["image"], atol=1e-4, rtol=0)


def residual_shapes(prefix, in_channels, out_channels):
    shapes = {f"{prefix}.norm1.{part}": (in_channels,) for part in ("weight", "bias")}
    shapes |= {f"{prefix}.norm2.{part}": (out_channels,) for part in ("weight", "bias")}
    shapes[f"{prefix}.conv1.weight"] = (out_channels, in_channels, 3, 3)
    shapes[f"{prefix}.conv2.weight"] = (out_channels, out_channels, 3, 3)
    if in_channels != out_channels:
        shapes[f"{prefix}.nin_shortcut.weight"] = (out_channels, in_channels, 1, 1)
    return shapes


def attention_shapes(half, index, hidden, ffn):
    prefix = f"{half}.mid_attn_blocks.{index}"
    return {
        f"{prefix}.attention.wqkv.weight": (3 * hidden, hidden),
        f"{prefix}.attention.wo.weight": (hidden, hidden),
        f"{prefix}.feed_forward.w1.weight": (2 * ffn, hidden),
        f"{prefix}.feed_forward.w2.weight": (hidden, ffn),
        f"{prefix}.attention_norm.weight": (hidden,),
        f"{prefix}.ffn_norm.weight": (hidden,),
    }


def with_bias(prefix, *weight):
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}


def published_shapes(base, multipliers, blocks, bits, layers=None, ffn=None, noise=True):
    """Names and shapes of a published file, written down from the key tables (docs/method.md 1.3)."""
    widths = [base * multiplier for multiplier in multipliers]
    hidden, levels, hybrid = widths[-1], len(widths), layers is not None
    shapes = {"encoder.conv_in.weight": (base, 3, 3, 3)}
    for i, width in enumerate(widths):
        before = width if hybrid else ([base] + widths)[i]
        for j in range(blocks):
            shapes |= residual_shapes(f"encoder.down.{i}.block.{j}", width if j else before, width)
        if i < levels - 1:
            after = widths[i + 1] if hybrid else width
            shapes |= with_bias(f"encoder.down.{i}.downsample", after, width, 3, 3)
    for half in ("encoder", "decoder"):
        if hybrid:
            shapes[f"{half}.register_token.weight"] = (4, hidden)
            for k in range(layers):
                shapes |= attention_shapes(half, k, hidden, ffn)
        if half == "decoder" or not hybrid:
            for j in range(blocks):
                shapes |= residual_shapes(f"{half}.mid_block.{j}", hidden, hidden)
    shapes |= with_bias("encoder.norm_out", hidden) | with_bias("encoder.conv_out", bits, hidden, 1, 1)
    shapes |= with_bias("decoder.conv_in", hidden, (2 if noise else 1) * bits, 3, 3)
    for i, width in enumerate(widths):
        before = hidden if i == levels - 1 else widths[i + 1]
        for part in ("gamma", "beta"):
            shapes |= with_bias(f"decoder.adaptive.{i}.{part}", before, bits)
        for j in range(blocks):
            shapes |= residual_shapes(f"decoder.up.{i}.block.{j}", width if j else before, width)
        if i > 0:
            shapes |= with_bias(f"decoder.up.{i}.upsample.conv1", 4 * width, width, 3, 3)
    return shapes | with_bias("decoder.norm_out", base) | with_bias("decoder.conv_out", 3, base, 3, 3)


# name: config fields, published tensors, their number, parameters of encoder and decoder (docs/method.md 1.3)
PAPER = (128, [1, 1, 2, 2, 4, 8])
PUBLISHED = {
    "paper": ({}, published_shapes(*PAPER, 2, 128, 16, 2816), 408, (265_729_664, 355_896_451)),
    "R4 A16": (
        {"num_res_blocks": 4},
        published_shapes(*PAPER, 4, 128, 16, 2816),
        564,
        (318_832_256, 446_755_971),
    ),
    "R4 A2": (
        {"num_res_blocks": 4, "num_hidden_layers": 2},
        published_shapes(*PAPER, 4, 128, 2, 2816),
        396,
        (138_972_800, 266_896_515),
    ),
    "BitDance d16c32": (
        {
            "architecture": "convolutional",
            "num_bits": 32,
            "base_channels": 256,
            "channel_multipliers": [1, 1, 2, 2, 4],
            "num_res_blocks": 4,
            "decoder_noise": False,
        },
        published_shapes(256, [1, 1, 2, 2, 4], 4, 32, noise=False),
        None,
        (198_935_328, 261_358_851),
    ),
    "BitDance d32c128": (
        {"architecture": "convolutional", "num_res_blocks": 4},
        published_shapes(*PAPER, 4, 128),
        None,
        None,
    ),
}


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    fields, shapes, num_tensors, num_parameters = PUBLISHED[name]
    with torch.device("meta"):
        model = UniWeTokModel(UniWeTokConfig(**fields))
        native = {
            new_name: tuple(part.shape)
            for old_name, shape in shapes.items()
            for new_name, part in to_native(old_name, torch.empty(shape), VISION_RULES)
        }
    assert native == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if num_tensors is not None:
        assert len(shapes) == num_tensors
    if num_parameters is not None:
        assert (count_parameters(model.encoder), count_parameters(model.decoder)) == num_parameters
    else:
        assert round(count_parameters(model) / 1e6, 2) == 421.38


def test_attention_block_size():
    with torch.device("meta"):
        config = UniWeTokConfig()
        assert count_parameters(UniWeTokLayer(config)) == 12_847_104
    assert (config.hidden_size, config.intermediate_size, config.stride) == (1024, 2816, 32)


@pytest.mark.parametrize(
    "hidden_size, expected", [(128, 512), (512, 1536), (768, 2048), (1024, 2816), (1280, 3584), (2048, 5632)]
)
def test_intermediate_size_rule(hidden_size, expected):
    config = UniWeTokConfig(base_channels=hidden_size, channel_multipliers=[1, 1], num_attention_heads=4)
    assert config.intermediate_size == expected


def test_unknown_published_name_maps_to_nothing():
    for name in ("loss.discriminator.main.0.weight", "encoder.conv_in.weight.more", "model_ema.decay"):
        assert list(to_native(name, torch.zeros(1), VISION_RULES)) == []


def test_depth_to_space_is_dcr():
    pixels = depth_to_space(torch.arange(8.0).reshape(1, 8, 1, 1))
    assert pixels.tolist() == [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]

    hidden_states = torch.randn(2, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(2, 3, 4, 6)
    for channel, row, column, a, b in torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 3, 2, 2))):
        source = hidden_states[:, (2 * a + b) * 3 + channel, row, column]
        expected[:, channel, 2 * row + a, 2 * column + b] = source
    assert torch.equal(depth_to_space(hidden_states), expected)


@pytest.mark.parametrize(
    "grid, length, expected",
    [
        (encoder_grid, 8, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]),
        (decoder_grid, 8, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]),
        (encoder_grid, 4, [0.5, 2.8333333, 5.1666667, 7.5]),
        (decoder_grid, 4, [1.0714286, 3.2142857, 5.3571429, 7.5]),
        (encoder_grid, 1, [0.5]),
        (decoder_grid, 1, [7.5]),
    ],
)
def test_grids(grid, length, expected):
    positions = grid(length, CPU)
    assert positions.dtype == torch.float32
    torch.testing.assert_close(positions, torch.tensor(expected), atol=1e-6, rtol=0)


def test_grids_of_16():
    torch.testing.assert_close(encoder_grid(16, CPU)[:3], torch.tensor([0.5, 0.9666667, 1.4333333]))
    torch.testing.assert_close(decoder_grid(16, CPU)[:3], torch.tensor([0.2419355, 0.7258065, 1.2096774]))
    assert encoder_grid(16, CPU)[-1] == decoder_grid(16, CPU)[-1] == 7.5


def test_rotary_angles():
    cos, sin = rotary_tables(torch.tensor([2.0]), torch.tensor([5.0]), num_registers=1, head_dim=16, theta=10000.0)
    angles = torch.tensor([3, 0.3, 0.03, 0.003, 6, 0.6, 0.06, 0.006])
    torch.testing.assert_close(cos, torch.stack([torch.ones(8), angles.cos()]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, torch.stack([torch.zeros(8), angles.sin()]), atol=1e-6, rtol=0)


def test_rotary_tokens_are_row_major():
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([10.0, 20.0])
    _, sin = rotary_tables(x, y, num_registers=0, head_dim=4, theta=10000.0)
    expected = torch.tensor([[1, 11], [2, 11], [3, 11], [1, 21], [2, 21], [3, 21]]).float().sin()
    torch.testing.assert_close(sin, expected)


def test_rotary_turns_adjacent_pairs():
    states = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    angles = torch.tensor([[0.3, 1.1]])
    (c0, c1), (s0, s1) = angles.cos()[0], angles.sin()[0]
    expected = torch.stack([c0 - 2 * s0, 2 * c0 + s0, 3 * c1 - 4 * s1, 4 * c1 + 3 * s1])
    torch.testing.assert_close(apply_rotary(states, angles.cos(), angles.sin())[0, 0, 0], expected)
    assert apply_rotary(states.bfloat16(), angles.cos(), angles.sin()).dtype == torch.bfloat16


def test_exact_zero_is_minus_one():
    assert binarize(torch.tensor([-1.0, -0.0, 0.0, 1e-30])).tolist() == [-1, -1, -1, 1]
