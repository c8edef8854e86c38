import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from uniwetok_hf.modeling.configuration_uniwetok import UniWeTokConfig
from uniwetok_hf.modeling.modeling_uniwetok import (
    UniWeTokAdaptiveGroupNorm,
    UniWeTokDecoderOutput,
    UniWeTokEncoderOutput,
    UniWeTokModel,
    UniWeTokOutput,
    UniWeTokRMSNorm,
)


ARCHITECTURES = ["hybrid", "convolutional"]
MIXED_SIZES = [(8, 8), (4, 12), (8, 8), (4, 4), (12, 4), (4, 12)]
BITS = 16  # of the tiny models of conftest.py; their stride is 4


def seeded(*seeds):
    """A generator, or a list of generators for several seeds."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators[0] if len(seeds) == 1 else generators


def assert_near(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture
def mixed(make_pictures):
    """Pictures of mixed sizes; two of the sizes occur twice, not side by side."""
    return [make_pictures(3, *size, seed=index) for index, size in enumerate(MIXED_SIZES)]


@pytest.fixture
def codes(device):
    signs = torch.randn(2, BITS, 2, 3, generator=seeded(5))
    return torch.where(signs > 0, 1.0, -1.0).to(device)


# --- shapes, ranges, one-token axes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("height, width", [(8, 8), (8, 12), (20, 4), (4, 20), (4, 8), (4, 4)])
def test_shapes_and_ranges(make_model, make_pictures, architecture, height, width):
    output = make_model(architecture=architecture)(make_pictures(2, 3, height, width), generator=seeded(0))
    assert isinstance(output, UniWeTokOutput)
    assert output.latents.shape == output.codes.shape == (2, BITS, height // 4, width // 4)
    assert output.sample.shape == (2, 3, height, width)
    assert output.latents.isfinite().all() and output.sample.isfinite().all()
    assert torch.equal(output.codes, torch.where(output.latents > 0, 1.0, -1.0))


@pytest.mark.parametrize("multipliers, stride", [([1, 2], 2), ([1, 1, 2], 4), ([1, 1, 1, 1, 2, 2], 32)])
def test_stride_follows_the_levels(make_model, make_pictures, multipliers, stride):
    output = make_model(channel_multipliers=multipliers)(make_pictures(1, 3, 64, 96))
    assert output.codes.shape == (1, BITS, 64 // stride, 96 // stride)
    assert output.sample.shape == (1, 3, 64, 96)


def test_only_the_hybrid_squashes_its_latents(make_model, make_pictures):
    pictures = make_pictures(2, 3, 16, 16)
    for architecture, is_squashed in (("hybrid", True), ("convolutional", False)):
        model = make_model(architecture=architecture)
        with torch.no_grad():
            model.encoder.conv_out.weight.mul_(5)
        assert (model.encode(pictures).latents.abs().max() < 1) == is_squashed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("height, width", [(4, 4), (4, 12), (12, 4)])
def test_one_token_axes_have_finite_gradients(make_model, make_pictures, architecture, height, width):
    model = make_model(architecture=architecture).train()
    model(make_pictures(2, 3, height, width), generator=seeded(0)).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_adaptive_norm_reads_unbiased_deviation_and_mean(make_config, codes):
    norm = UniWeTokAdaptiveGroupNorm(make_config(), 8).to(codes.device)
    hidden_states = torch.randn(2, 8, 4, 6, generator=seeded(2)).to(codes.device)
    gain = norm.gain((codes.flatten(2).std(-1) ** 2 + 1e-6).sqrt())[..., None, None]
    shift = norm.shift(codes.mean((2, 3)))[..., None, None]
    assert_near(norm(hidden_states, codes), gain * norm.norm(hidden_states) + shift)


def test_deviation_of_a_single_token_is_that_of_equal_tokens(make_config):
    norm = UniWeTokAdaptiveGroupNorm(make_config(), 8)
    hidden_states = torch.randn(1, 8, 4, 4, generator=seeded(2))
    assert_near(norm(hidden_states, torch.ones(1, BITS, 1, 1)), norm(hidden_states, torch.ones(1, BITS, 2, 2)))


def test_registers_and_positions_reach_the_latents(make_model, make_pictures):
    model, pictures = make_model(), make_pictures(1, 3, 8, 12)
    before = model.encode(pictures).latents
    with torch.no_grad():
        model.encoder.transformer.register_tokens.weight.mul_(2)
    assert (model.encode(pictures).latents - before).abs().max() > 1e-4
    model = make_model(rope_theta=10.0)
    assert (model.encode(pictures).latents - before).abs().max() > 1e-6


def test_rms_norm():
    norm = UniWeTokRMSNorm(4, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    states = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
    assert_near(norm(states), states / 2**0.5 * norm.weight, atol=1e-6)  # mean square 1.5, + 0.5


# --- lists


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_lists_equal_single_pictures(make_model, mixed, architecture):
    model = make_model(architecture=architecture)
    output = model(mixed, generator=seeded(*range(len(mixed))))
    assert all(isinstance(values, list) for values in (output.sample, output.latents, output.codes))
    for index, picture in enumerate(mixed):
        alone = model(picture[None], generator=seeded(index))
        assert_near(output.latents[index], alone.latents[0])
        assert torch.equal(output.codes[index], alone.codes[0])
        assert_near(output.sample[index], alone.sample[0])


@torch.no_grad()
def test_lists_through_encode_and_decode(tiny_model, mixed):
    encoded = tiny_model.encode(mixed)
    assert isinstance(encoded, UniWeTokEncoderOutput)
    decoded = tiny_model.decode(encoded.codes, generator=seeded(*range(len(mixed))))
    assert isinstance(decoded, UniWeTokDecoderOutput)
    assert [sample.shape for sample in decoded.sample] == [picture.shape for picture in mixed]
    expected = tiny_model(mixed, generator=seeded(*range(len(mixed)))).sample
    for sample, wanted in zip(decoded.sample, expected, strict=True):
        assert torch.equal(sample, wanted)
    # A tuple is a sequence too.
    assert torch.equal(tiny_model.encode(tuple(mixed)).codes[3], encoded.codes[3])


@torch.no_grad()
def test_one_generator_draws_for_the_pictures_of_a_list_in_turn(tiny_model, mixed):
    codes = tiny_model.encode(mixed).codes
    samples = tiny_model.decode(codes, generator=seeded(3)).sample
    generator = seeded(3)
    for sample, picture in zip(samples, codes, strict=True):
        assert_near(sample, tiny_model.decode(picture[None], generator=generator).sample[0])


@torch.no_grad()
def test_noise_of_a_list(tiny_model, mixed):
    codes = tiny_model.encode(mixed).codes
    noise = [torch.randn(c.shape, generator=seeded(i)).to(c.device) for i, c in enumerate(codes)]
    samples = tiny_model.decode(codes, noise=noise).sample
    for sample, picture, own in zip(samples, codes, noise, strict=True):
        assert_near(sample, tiny_model.decode(picture[None], noise=own[None]).sample[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lists_have_gradients(make_model, mixed, architecture):
    model = make_model(architecture=architecture).train()
    output = model(mixed, generator=seeded(*range(len(mixed))))
    sum(sample.square().mean() for sample in output.sample).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_empty_lists_are_refused(tiny_model):
    with pytest.raises(ValueError, match="`codes`"):
        tiny_model.decode([])
    with pytest.raises(ValueError, match="`pixel_values`"):
        tiny_model.encode([])


@pytest.mark.parametrize(
    "name, make",
    [
        ("generator", lambda codes: seeded(1, 2, 3)),
        ("noise", lambda codes: [codes[0]]),
        ("noise", lambda codes: [codes[0], codes[1][:, :1]]),
    ],
    ids=["three generators", "one noise", "another shape"],
)
def test_errors_of_lists_name_the_argument(tiny_model, codes, name, make):
    with pytest.raises(ValueError, match=f"`{name}`"):
        tiny_model.decode(list(codes), **{name: make(codes)})


# --- noise


@torch.no_grad()
def test_decoding_repeats_with_the_generator(tiny_model, codes):
    first = tiny_model.decode(codes, generator=seeded(1)).sample
    assert torch.equal(tiny_model.decode(codes, generator=seeded(1)).sample, first)
    assert (tiny_model.decode(codes, generator=seeded(2)).sample - first).abs().max() > 1e-3
    assert (tiny_model.decode(codes).sample - tiny_model.decode(codes).sample).abs().max() > 1e-3


@torch.no_grad()
def test_noise_passed_or_drawn(tiny_model, codes):
    noise = torch.randn(codes.shape, generator=seeded(1)).to(codes.device)
    drawn = tiny_model.decode(codes, generator=seeded(1)).sample
    assert torch.equal(tiny_model.decode(codes, noise=noise).sample, drawn)
    assert torch.equal(tiny_model.decode(codes, generator=seeded(2), noise=noise).sample, drawn)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_integer_codes_get_the_noise_of_float32(make_model, codes, architecture, dtype):
    model = make_model(architecture=architecture)
    expected = model.decode(codes, generator=seeded(1)).sample
    assert torch.equal(model.decode(codes.to(dtype), generator=seeded(1)).sample, expected)
    listed = model.decode([picture.to(dtype) for picture in codes], generator=seeded(1)).sample
    assert torch.equal(torch.stack(listed), torch.stack(model.decode(list(codes), generator=seeded(1)).sample))


@torch.no_grad()
def test_a_picture_looks_the_same_in_any_batch(tiny_model, codes):
    batch = torch.cat([codes, codes.flip(0)])  # pictures 0, 1, 1, 0
    samples = tiny_model.decode(batch, generator=seeded(7, 8, 9, 7)).sample
    assert_near(samples[0], samples[3])
    assert (samples[1] - samples[2]).abs().max() > 1e-3
    assert_near(samples[2:3], tiny_model.decode(batch[2:3], generator=seeded(9)).sample)
    assert_near(samples[2:3], tiny_model.decode(batch[2:3], generator=[seeded(9)]).sample)


def batch_sizes(module):
    """A list that grows by the number of pictures of each call of `module`."""
    sizes = []
    module.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("architecture, decoder_noise", [("hybrid", True), ("convolutional", False)])
@torch.no_grad()
def test_slices_give_the_same_pictures_one_by_one(make_model, make_pictures, architecture, decoder_noise):
    model, pictures = make_model(architecture=architecture, decoder_noise=decoder_noise), make_pictures(3, 3, 8, 12)
    whole = model(pictures, generator=seeded(1))
    encoder_calls, decoder_calls = batch_sizes(model.encoder), batch_sizes(model.decoder)
    model.enable_slicing()
    sliced = model(pictures, generator=seeded(1))
    assert encoder_calls == decoder_calls == [1, 1, 1]
    assert_near(sliced.latents, whole.latents)
    assert torch.equal(sliced.codes, whole.codes)
    assert_near(sliced.sample, whole.sample)
    model.disable_slicing()
    model(pictures)
    assert encoder_calls[3:] == decoder_calls[3:] == [3]


@torch.no_grad()
def test_slices_of_lists(tiny_model, mixed):
    whole = tiny_model(mixed, generator=seeded(1))
    calls = batch_sizes(tiny_model.decoder)
    tiny_model.enable_slicing()
    sliced = tiny_model(mixed, generator=seeded(1))
    assert calls == [1] * len(mixed)
    for sample, expected in zip(sliced.sample, whole.sample, strict=True):
        assert_near(sample, expected)


def test_slices_have_gradients(make_model, make_pictures):
    pictures, gradients = make_pictures(2, 3, 8, 8), []
    for slicing in (False, True):
        model = make_model().train()
        if slicing:
            model.enable_slicing()
        model(pictures, generator=seeded(0)).sample.square().mean().backward()
        gradients.append(model.encoder.conv_in.weight.grad)
    assert_near(*gradients, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_noise_is_not_used_without_decoder_noise(make_model, codes, architecture):
    model = make_model(architecture=architecture, decoder_noise=False)
    assert model.decoder.conv_in.in_channels == BITS
    plain = model.decode(codes).sample
    generator = seeded(1)
    state = generator.get_state()
    assert torch.equal(model.decode(codes, generator=generator).sample, plain)
    assert torch.equal(model.decode(codes, noise=torch.ones_like(codes)).sample, plain)
    assert torch.equal(torch.stack(model.decode(list(codes), generator=seeded(1, 2)).sample), plain)
    assert torch.equal(generator.get_state(), state)


# --- straight-through gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_passes_gradients_straight_through(make_model, make_pictures, architecture):
    model = make_model(architecture=architecture).train()
    output = model(make_pictures(2, 3, 8, 12), generator=seeded(0))
    assert output.codes.abs().eq(1).all()
    codes_gradient, latents_gradient = torch.autograd.grad(
        output.sample.square().mean(), (output.codes, output.latents), retain_graph=True
    )
    assert codes_gradient.abs().sum() > 0
    assert torch.equal(latents_gradient, codes_gradient)
    output.sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_codes_in_training_are_exact_signs(tiny_model, scale):
    """Also where latents + (codes - latents) would not be: codes vanish beside latents of 1e9."""
    latents = (scale * torch.randn(1, BITS, 5, 5, generator=seeded(0))).requires_grad_()
    assert torch.equal(tiny_model.train().quantize(latents), torch.where(latents > 0, 1.0, -1.0))


def test_evaluation_stops_gradients_at_the_codes(tiny_model, make_pictures):
    output = tiny_model(make_pictures(2, 3, 8, 12), generator=seeded(0))
    assert not output.codes.requires_grad
    output.sample.square().mean().backward()
    assert all(parameter.grad is None for parameter in tiny_model.encoder.parameters())
    assert tiny_model.decoder.conv_in.weight.grad.abs().sum() > 0


def test_training_gives_the_same_values_as_evaluation(tiny_model, make_pictures):
    pictures = make_pictures(2, 3, 8, 12)
    evaluated = tiny_model(pictures, generator=seeded(0))
    trained = tiny_model.train()(pictures, generator=seeded(0))
    for name in ("latents", "codes", "sample"):
        assert torch.equal(trained[name], evaluated[name])


# --- errors


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8), (2, 3, 8, 9), (2, 3, 6, 8), (1, 2, 3, 8, 8)])
@torch.no_grad()
def test_pixel_values_are_checked(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`pixel_values` must be \[B, 3, H, W\] with H and W multiples of 4"):
        tiny_model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="`pixel_values` must be"):
        tiny_model(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 9), (1, 3, 8, 8), (8, 8)])
@torch.no_grad()
def test_pixel_values_of_a_list_are_checked(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`pixel_values` must be \[B, 3, H, W\] with H and W multiples of 4"):
        tiny_model.encode([torch.zeros(3, 8, 8), torch.zeros(shape)])


@pytest.mark.parametrize("shape", [(8,), (), (2, 3, 0, 8), (0, 3, 8, 8)])
def test_pixel_values_of_no_picture_are_checked(tiny_model, shape):
    with pytest.raises(ValueError, match="`pixel_values` must be"):
        tiny_model.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 8, 2, 3), (2, 32, 2, 3), (16, 2, 3), (2, 16, 6), (1, 2, 16, 2, 3)])
def test_codes_are_checked(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`codes` must be \[B, 16, h, w\], got"):
        tiny_model.decode(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.complex64])
def test_codes_without_a_sign_are_refused(tiny_model, codes, dtype):
    for signs in (codes.to(dtype), list(codes.to(dtype))):
        with pytest.raises(ValueError, match=f"`codes` must be of a dtype that holds -1 and [+]1.*got {dtype}"):
            tiny_model.decode(signs)


def test_codes_of_a_list_are_checked(tiny_model):
    with pytest.raises(ValueError, match=r"`codes` must be \[B, 16, h, w\], got \(1, 8, 2, 2\)"):
        tiny_model.decode([torch.ones(16, 2, 2), torch.ones(8, 2, 2)])


@pytest.mark.parametrize("shape", [(1, 16, 2, 3), (2, 16, 3, 2), (2, 16, 1, 1), (2, 8, 2, 3), (16, 2, 3)])
def test_noise_is_checked(tiny_model, codes, shape):
    with pytest.raises(ValueError, match=r"`noise` must be shaped like `codes` \(2, 16, 2, 3\)"):
        tiny_model.decode(codes, noise=torch.zeros(shape))


def test_number_of_generators_is_checked(tiny_model, codes):
    with pytest.raises(ValueError, match="`generator` is a list of 3, but 2"):
        tiny_model.decode(codes, generator=seeded(1, 2, 3))


# --- outputs


@torch.no_grad()
def test_tuples_instead_of_outputs(tiny_model, make_pictures, codes):
    pictures = make_pictures(2, 3, 8, 12)
    sample, latents, signs = tiny_model(pictures, generator=seeded(0), return_dict=False)
    expected = tiny_model(pictures, generator=seeded(0))
    assert torch.equal(sample, expected.sample)
    assert torch.equal(latents, expected.latents)
    assert torch.equal(signs, expected.codes)
    latents, signs = tiny_model.encode(pictures, return_dict=False)
    assert torch.equal(latents, expected.latents) and torch.equal(signs, expected.codes)
    (sample,) = tiny_model.decode(signs, generator=seeded(0), return_dict=False)
    assert torch.equal(sample, expected.sample)
    latents, signs = tiny_model.encode(list(pictures), return_dict=False)
    assert isinstance(latents, list) and torch.equal(torch.stack(signs), expected.codes)


@torch.no_grad()
def test_tuples_by_the_config(make_model, make_pictures):
    model, pictures = make_model(return_dict=False), make_pictures(2, 3, 8, 12)
    assert isinstance(model.encode(pictures), tuple)
    assert isinstance(model.encode(list(pictures)), tuple)
    assert isinstance(model(pictures), tuple)


@torch.no_grad()
def test_hidden_states_and_attentions(make_model, make_pictures):
    model = make_model()
    model.set_attn_implementation("eager")
    pictures = make_pictures(2, 3, 8, 12)
    output = model(pictures, generator=seeded(0), output_hidden_states=True, output_attentions=True)
    # What enters the encoder's attention stage, then every block's output: 2 of the encoder, 2 of the decoder.
    assert [states.shape for states in output.hidden_states] == [(2, 4 + 6, 16)] * 5
    registers = model.encoder.transformer.register_tokens.weight
    assert torch.equal(output.hidden_states[0][1, :4], registers)
    latents = output.hidden_states[2][:, 4:].transpose(1, 2).unflatten(2, (2, 3))
    assert_near(torch.tanh(model.encoder.conv_out(model.encoder.norm_out(latents)) / 2), output.latents)
    assert [weights.shape for weights in output.attentions] == [(2, 2, 10, 10)] * 4
    for weights in output.attentions:
        assert_near(weights.sum(-1), torch.ones(2, 2, 10, device=weights.device))
    *left_out, last = model(pictures, generator=seeded(0), output_hidden_states=[-1]).hidden_states
    assert left_out == [None] * 4 and torch.equal(last, output.hidden_states[-1])
    plain = model(pictures, generator=seeded(0))
    assert plain.hidden_states is None and plain.attentions is None
    assert torch.equal(plain.sample, output.sample)


# --- attention implementations, precision, memory


def test_eager_and_sdpa_attention_agree(make_model, make_pictures):
    pictures = make_pictures(2, 3, 8, 20)
    gradients, outputs = [], []
    for name in ("sdpa", "eager"):
        model = make_model().train()
        model.set_attn_implementation(name)
        assert model.encoder.transformer.layers[0].self_attn.config._attn_implementation == name
        outputs.append(model(pictures, generator=seeded(0)))
        outputs[-1].sample.square().mean().backward()
        gradients.append(model.encoder.transformer.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().max() > 1e-5
    assert_near(gradients[1], gradients[0])
    assert_near(outputs[1].latents, outputs[0].latents)
    assert_near(outputs[1].sample, outputs[0].sample)


def assert_flex_attention_agrees(model, pictures):
    expected = model(pictures, generator=seeded(0))
    model.set_attn_implementation("flex_attention")
    output = model(pictures, generator=seeded(0))
    assert_near(output.latents, expected.latents)
    assert_near(output.sample, expected.sample)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_agrees(tiny_model, make_pictures):
    with torch.compiler.set_stance("force_eager"):
        assert_flex_attention_agrees(tiny_model, make_pictures(2, 3, 8, 20))


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_agrees(tiny_model, make_pictures):
    assert_flex_attention_agrees(tiny_model, make_pictures(2, 3, 8, 20))


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_one_graph(tiny_model, make_pictures, codes):
    torch.compiler.reset()  # transformers' wrapper of all forwards is compiled anew for each, eight times at most
    pictures = make_pictures(2, 3, 8, 12)
    for function, arguments in (
        (tiny_model, {"pixel_values": pictures, "noise": codes}),
        (tiny_model.encode, {"pixel_values": pictures}),
        (tiny_model.decode, {"codes": codes, "noise": -codes}),
    ):
        compiled = torch.compile(function, backend="eager", fullgraph=True)(**arguments)
        for value, expected in zip(compiled.to_tuple(), function(**arguments).to_tuple(), strict=True):
            assert_near(value, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_keeps_gradients_and_saves_memory(make_model, make_pictures, architecture):
    def run(model):
        saved = 0

        def count(tensor):
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(make_pictures(2, 3, 16, 16), generator=seeded(0)).sample.square().mean()
        loss.backward()
        return saved, {name: parameter.grad for name, parameter in model.named_parameters()}

    plain_saved, plain = run(make_model(architecture=architecture).train())
    model = make_model(architecture=architecture).train()
    model.activation_checkpointing_enable()
    checkpointed_saved, checkpointed = run(model)
    assert checkpointed_saved < 0.5 * plain_saved
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert_near(checkpointed[name], gradient, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_low_precision_is_close_to_float32(make_model, make_pictures, codes, architecture, dtype):
    model = make_model(architecture=architecture)
    pictures = make_pictures(2, 3, 16, 24)
    latents = model.encode(pictures).latents
    sample = model.decode(codes, generator=seeded(0)).sample
    model.to(dtype)
    encoded = model.encode(pictures)  # float32, as an image processor makes them
    decoded = model.decode(codes, generator=seeded(0))
    assert encoded.latents.dtype == encoded.codes.dtype == decoded.sample.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (encoded.latents.float() - latents).abs().max() < tolerance * latents.abs().max()
    assert (decoded.sample.float() - sample).abs().max() < tolerance * sample.abs().max()


def test_autocast_trains(tiny_model, make_pictures):
    tiny_model.train()
    pictures = make_pictures(2, 3, 8, 12)
    with torch.autocast(pictures.device.type, dtype=torch.bfloat16):
        output = tiny_model(pictures, generator=seeded(0))
    assert output.codes.abs().eq(1).all()
    F.mse_loss(output.sample.float(), pictures).backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# --- weights: start, save, load


def test_starting_weights(tiny_config):
    model = UniWeTokModel(tiny_config)
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and "adaptive_norm" not in name:
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound, name
            assert module.bias is None or module.bias.eq(0).all(), name
        elif isinstance(module, (torch.nn.GroupNorm, UniWeTokRMSNorm)) and module.weight is not None:
            assert module.weight.eq(1).all(), name
    registers = torch.cat([half.transformer.register_tokens.weight for half in (model.encoder, model.decoder)])
    assert 0.5 * tiny_config.initializer_range < registers.std() < 1.5 * tiny_config.initializer_range


def test_adaptive_norms_start_as_plain_norms(tiny_config):
    for module in UniWeTokModel(tiny_config).modules():
        if isinstance(module, UniWeTokAdaptiveGroupNorm):
            assert module.gain.weight.eq(0).all() and module.gain.bias.eq(1).all()
            assert module.shift.weight.eq(0).all() and module.shift.bias.eq(0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_saved_and_loaded(make_model, make_pictures, tmp_path, device, architecture):
    model = make_model(architecture=architecture)
    model.save_pretrained(tmp_path)
    loaded, report = UniWeTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert not loaded.training
    assert loaded.config.to_diff_dict() == UniWeTokConfig.from_pretrained(tmp_path).to_diff_dict()
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].cpu()), name
    pictures = make_pictures(2, 3, 8, 12)
    expected = model(pictures, generator=seeded(0))
    for value, wanted in zip(
        loaded.to(device)(pictures, generator=seeded(0)).values(), expected.values(), strict=True
    ):
        assert torch.equal(value, wanted)


def test_saved_file_holds_every_tensor_and_nothing_else(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == tiny_model.state_dict().keys() == dict(tiny_model.named_parameters()).keys()


@torch.no_grad()
def test_bfloat16_checkpoints(make_model, make_pictures, tmp_path, device):
    model = make_model()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert UniWeTokModel.from_pretrained(tmp_path).dtype == torch.bfloat16

    loaded = UniWeTokModel.from_pretrained(tmp_path, dtype=torch.float32).to(device)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    pictures = make_pictures(2, 3, 8, 12)
    expected = model.float()(pictures, generator=seeded(0))  # the rounded weights, computed in float32
    assert torch.equal(loaded(pictures, generator=seeded(0)).sample, expected.sample)


MISSING = {
    "encoder.transformer.register_tokens.weight": lambda weight: 0 < weight.abs().max() < 0.2,
    "encoder.transformer.layers.1.input_layernorm.weight": lambda weight: weight.eq(1).all(),
    "encoder.conv_out.bias": lambda weight: weight.eq(0).all(),
    "decoder.up_blocks.0.adaptive_norm.gain.weight": lambda weight: weight.eq(0).all(),
    "decoder.up_blocks.1.adaptive_norm.gain.bias": lambda weight: weight.eq(1).all(),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_weight_gets_its_starting_value(tiny_model, tmp_path, name):
    tiny_model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = UniWeTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert list(report["missing_keys"]) == [name]
    for key, parameter in loaded.named_parameters():
        assert MISSING[name](parameter) if key == name else torch.equal(parameter, tensors[key]), key


@torch.no_grad()
def test_loads_alone_from_inside_a_language_model(tiny_model, make_pictures, tmp_path, device):
    """The layout of `mllm/` in a pipeline folder: the tokenizer's tensors under a prefix, its config as a part."""
    folder = tmp_path / "mllm"
    folder.mkdir()
    tensors = {f"model.vision_model.{name}": tensor.cpu() for name, tensor in tiny_model.state_dict().items()}
    tensors |= {
        f"{name}.weight": torch.ones(2) for name in ("model.projector.fc1", "model.language_model.norm", "lm_head")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "uniwetok_mllm", "vision_config": tiny_model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))

    loaded, report = UniWeTokModel.from_pretrained(tmp_path, subfolder="mllm", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pictures = make_pictures(2, 3, 8, 12)
    expected = tiny_model(pictures, generator=seeded(0)).sample
    assert torch.equal(loaded.to(device)(pictures, generator=seeded(0)).sample, expected)
