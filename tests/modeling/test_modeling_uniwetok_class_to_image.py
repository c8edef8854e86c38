"""The class-to-image model; tests/parity/test_c2i.py has what it computes."""

import pytest
import torch
from tiny_mllm import seeded
from tiny_models import build_tiny_class_to_image, tiny_class_to_image_config
from torch.nn import functional as F

from uniwetok_hf import UniWeTokClassToImageConfig, UniWeTokClassToImageModel, UniWeTokHeadConfig
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens
from uniwetok_hf.modeling.modeling_uniwetok_class_to_image import guidance_at


PATCHES = pytest.mark.parametrize("patch_size", [1, 2])
PUBLISHED = {"B": (768, 24, 12, 6, 2), "L": (1024, 32, 16, 8, 2), "H": (1280, 40, 20, 12, 3)}


def random_codes(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 16, 4, 4, generator=seeded(seed)).sign()


@pytest.mark.parametrize(
    ("size", "num_bits", "grid_size", "patch_size", "count"),
    [
        ("B", 32, 16, 1, 242_373_152),
        ("L", 32, 16, 1, 527_271_968),
        ("H", 32, 16, 1, 1_007_960_352),
        ("B", 32, 16, 2, 260_102_432),
        ("B", 128, 8, 1, 242_594_432),
        ("L", 128, 8, 1, 527_566_976),
        ("H", 128, 8, 1, 1_008_329_088),
    ],
)
def test_parameters_of_the_published_sizes(size, num_bits, grid_size, patch_size, count):
    hidden_size, layers, heads, head_layers, modulations = PUBLISHED[size]
    config = UniWeTokClassToImageConfig(
        num_bits=num_bits,
        grid_size=grid_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    head = config.head_config.to_dict() | {"num_hidden_layers": head_layers, "num_modulation_layers": modulations}
    config = UniWeTokClassToImageConfig.from_dict(config.to_dict() | {"head_config": head})
    with torch.device("meta"):
        model = UniWeTokClassToImageModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_default_is_size_b_of_the_paper():
    config = UniWeTokClassToImageConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (768, 24, 2048)
    head = config.head_config
    assert (head.hidden_size, head.num_hidden_layers, head.num_modulation_layers) == (768, 6, 2)
    assert (head.has_attention, head.squash_output, head.num_bits) == (False, False, 128)
    assert UniWeTokClassToImageConfig(patch_size=2).head_config.has_attention


@PATCHES
def test_a_condition_depends_on_the_class_and_the_patches_before_its_own(patch_size):
    model, codes, labels = build_tiny_class_to_image(patch_size), random_codes(1), torch.tensor([2])
    block = model.config.tokens_per_patch
    with torch.no_grad():
        before = model.read(codes, labels)
        other_class = model.read(codes, torch.tensor([3]))
        assert not torch.isclose(before, other_class).all(2).any()
        order = codes_to_tokens(torch.arange(16.0).view(1, 1, 4, 4), patch_size)[0, :, 0].long()
        for position, place in enumerate(order.tolist()):
            changed = codes.clone()
            changed[:, :, place // 4, place % 4] *= -1
            moved = (model.read(changed, labels) != before).any(2)[0]
            first = (position // block + 1) * block  # of the next patch
            assert not moved[:first].any(), position
            assert moved[first:].all(), position


@PATCHES
def test_generation_reads_what_training_reads(patch_size):
    """Patch by patch with a cache, and all at once."""
    model, labels = build_tiny_class_to_image(patch_size), torch.tensor([1, 4])
    output = model.generate_codes(labels, num_inference_steps=2, generator=seeded(0), output_conditions=True)
    wanted = model.read(output.codes, labels)
    torch.testing.assert_close(torch.cat(output.conditions, dim=1), wanted, atol=1e-5, rtol=0)


@PATCHES
def test_guidance_rises_from_patch_to_patch(patch_size):
    assert [guidance_at(step, 4, 5.0, "linear") for step in range(4)] == [1, 2, 3, 4]
    assert [guidance_at(step, 4, 5.0, "constant") for step in range(4)] == [5.0] * 4
    model, labels = build_tiny_class_to_image(patch_size), torch.tensor([1, 4])

    def first_patch(**options):
        codes = model.generate_codes(labels, num_inference_steps=3, generator=seeded(0), **options).codes
        return codes[:, :, :patch_size, :patch_size], codes

    free, all_free = first_patch()
    linear, all_linear = first_patch(guidance_scale=20.0)
    constant, _ = first_patch(guidance_scale=20.0, guidance_schedule="constant")
    assert torch.equal(free, linear)
    assert not torch.equal(all_free, all_linear)
    assert not torch.equal(free, constant)


def test_the_first_patch_of_the_rows_without_a_class():
    """Theirs, or the picture's: what leads to the second patch then differs."""
    labels = torch.tensor([1, 4])

    def conditions(model, guidance_schedule="linear"):
        options = {"num_inference_steps": 2, "generator": seeded(0), "output_conditions": True}
        return model.generate_codes(labels, 3.0, guidance_schedule, **options).conditions[1]

    apart, shared = build_tiny_class_to_image(is_first_patch_apart=True), build_tiny_class_to_image()
    assert torch.equal(conditions(apart, "constant"), conditions(shared, "constant"))
    assert not torch.equal(conditions(apart)[2:], conditions(shared)[2:])


@PATCHES
@pytest.mark.parametrize("is_first_patch_apart", [False, True])
def test_a_batch_equals_single_pictures(patch_size, is_first_patch_apart):
    model = build_tiny_class_to_image(patch_size, is_first_patch_apart=is_first_patch_apart)
    labels, options = torch.tensor([0, 3, 3]), {"guidance_scale": 3.0, "num_inference_steps": 2}
    codes = model.generate_codes(labels, **options, generator=[seeded(seed) for seed in (5, 6, 7)]).codes
    for row in range(3):
        alone = model.generate_codes(labels[row : row + 1], **options, generator=seeded(5 + row)).codes
        assert torch.equal(alone[0], codes[row])
    assert not torch.equal(codes[1], codes[2])


def test_a_callback_sees_the_codes_and_ends_the_run():
    model, seen = build_tiny_class_to_image(2), []

    def callback(step, codes):
        seen.append((step, int((codes != 0).sum())))
        return step == 1

    codes = model.generate_codes(
        torch.tensor([0]), num_inference_steps=1, generator=seeded(0), callback=callback
    ).codes
    assert seen == [(0, 64), (1, 128)]
    assert (codes[:, :, :2] != 0).all()
    assert (codes[:, :, 2:] == 0).all()


@PATCHES
def test_the_loss_falls(patch_size):
    model, codes, labels = build_tiny_class_to_image(patch_size), random_codes(4), torch.tensor([0, 1, 2, 3])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(30):
        loss = model(codes, labels, generator=seeded(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@PATCHES
def test_every_weight_learns(patch_size):
    model = build_tiny_class_to_image(patch_size).train()
    model(random_codes(), torch.tensor([0, 1]), generator=seeded(0)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert still == [name for name in still if name.endswith("k_proj.bias")]  # softmax doesn't see it


def test_a_row_is_independent_of_its_batch():
    model = build_tiny_class_to_image(2).train()
    codes, labels = random_codes(3), torch.tensor([0, 1, 2])
    together = model(codes, labels, generator=[seeded(seed) for seed in range(3)]).row_losses
    for row in range(3):
        alone = model(codes[row : row + 1], labels[row : row + 1], generator=[seeded(row)]).row_losses
        torch.testing.assert_close(alone[0], together[row])
    assert not torch.isclose(together[0], together[1])


def test_what_training_leaves_out_and_flips():
    """Class dropout reads the embedding of no class; flips change what is read and not what is predicted."""
    codes, labels = random_codes(2), torch.tensor([0, 1])
    options = {"class_dropout": 1.0, "bit_flip_probability": 0.0}
    model = build_tiny_class_to_image(**options).train()
    nothing = torch.full_like(labels, model.config.num_classes)
    assert torch.equal(model(codes, labels, generator=seeded(0)).conditions, model.read(codes, nothing))

    model = build_tiny_class_to_image(class_dropout=0.0, bit_flip_probability=0.5).train()
    output = model(codes, labels, generator=seeded(0))
    assert not torch.isclose(output.conditions, model.read(codes, labels)).all(2)[:, 1:].any()
    assert torch.allclose(output.conditions[:, 0], model.read(codes, labels)[:, 0])
    flipped, kept = model._perturb(codes.repeat(500, 1, 1, 1), labels.repeat(500), seeded(1))
    share = (flipped != codes.repeat(500, 1, 1, 1)).float().mean()
    assert 0.24 < share < 0.26  # the mean probability is half of the largest
    assert torch.equal(kept, labels.repeat(500))
    model.eval()
    assert torch.equal(model(codes, labels, generator=seeded(0)).conditions, model.read(codes, labels))


def test_a_tuple_holds_the_same():
    model, codes, labels = build_tiny_class_to_image(), random_codes(), torch.tensor([0, 1])
    named = model(codes, labels, generator=seeded(0))
    for found, wanted in zip(
        model(codes, labels, generator=seeded(0), return_dict=False), named.values(), strict=True
    ):
        assert torch.equal(found, wanted)


def test_fixed_times_need_no_draw_of_times():
    model = build_tiny_class_to_image()
    output = model(random_codes(), torch.tensor([0, 1]), generator=seeded(0), timesteps=[0.0, 0.5])
    assert output.bit_accuracy.shape == (2,)
    assert 0.3 < output.bit_accuracy[0] < 0.7


@PATCHES
@pytest.mark.parametrize("attn_implementation", ["eager", "flex_attention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:_compile flag")
@torch.no_grad()
def test_attention_implementations_agree(patch_size, attn_implementation):
    model, codes, labels = build_tiny_class_to_image(patch_size), random_codes(), torch.tensor([0, 1])
    wanted = model.read(codes, labels)
    model.set_attn_implementation(attn_implementation)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(model.read(codes, labels), wanted, atol=1e-5, rtol=0)


@PATCHES
def test_gradients_with_checkpoints_are_the_same(patch_size):
    def gradients(checkpointing: bool):
        model = build_tiny_class_to_image(patch_size).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(random_codes(), torch.tensor([0, 1]), generator=seeded(0)).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradients(True), gradients(False))


@PATCHES
@torch.no_grad()
def test_compiles_to_one_graph(patch_size):
    model, codes, labels = build_tiny_class_to_image(patch_size), random_codes(), torch.tensor([0, 1])
    compiled = torch.compile(model.read, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes, labels), model.read(codes, labels))
    wanted = model.generate_codes(labels, 2.0, num_inference_steps=2, generator=seeded(0)).codes
    model.image_head.compile(backend="eager", fullgraph=True)
    assert torch.equal(model.generate_codes(labels, 2.0, num_inference_steps=2, generator=seeded(0)).codes, wanted)


def test_save_and_load(tmp_path):
    model = build_tiny_class_to_image(2, is_first_patch_apart=True)
    model.save_pretrained(tmp_path)
    loaded = UniWeTokClassToImageModel.from_pretrained(tmp_path)
    assert loaded.config.is_first_patch_apart
    labels = torch.tensor([0, 4])
    first, second = (
        one.generate_codes(labels, 2.0, num_inference_steps=1, generator=seeded(0)) for one in (model, loaded)
    )
    assert torch.equal(first.codes, second.codes)


def test_new_weights():
    torch.manual_seed(0)
    model = UniWeTokClassToImageModel(tiny_class_to_image_config(2, hidden_size=64, head_config=None))
    assert 0.015 < model.class_embedding.weight.std() < 0.025
    assert 0.015 < model.queries.weight.std() < 0.025
    assert 0.015 < model.layers[0].mlp.up_proj.weight.std() < 0.025
    assert not model.projector.gate_proj.bias.any()
    head = model.image_head
    assert not head.proj_out.weight.any()
    assert not head.modulations[0].weight.any()
    bound = (6 / (64 + 96)) ** 0.5
    assert 0.9 * bound < head.layers[0].mlp.up_proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, "`patch_size`=3 must divide `grid_size`=4"),
        ({"num_attention_heads": 3}, "`num_attention_heads`=3 must divide `hidden_size`=32"),
        ({"num_classes": 0}, "`num_classes` must be 1 or more"),
        ({"class_dropout": 1.5}, "`class_dropout` must be from 0 to 1"),
        ({"head_config": UniWeTokHeadConfig(num_bits=8, condition_size=32)}, "`head_config.num_bits` must be 16"),
    ],
)
def test_configs_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_class_to_image_config(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": torch.tensor([6])}, "from 0 to 4, or 5 for no class, got \\[6\\]"),
        ({"class_labels": torch.tensor([-1])}, "from 0 to 4"),
        ({"class_labels": torch.tensor(1)}, "one class per picture"),
        ({"class_labels": torch.tensor([1]), "guidance_schedule": "cosine"}, "'cosine'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_tiny_class_to_image().generate_codes(**arguments)


def test_codes_of_another_size():
    model = build_tiny_class_to_image()
    with pytest.raises(ValueError, match=r"`codes` must be \[B, 16, 4, 4\], got \[1, 16, 2, 2\]"):
        model(torch.ones(1, 16, 2, 2), torch.tensor([0]))


def test_bfloat16_generates():
    model = build_tiny_class_to_image(2).to(torch.bfloat16)
    codes = model.generate_codes(torch.tensor([0]), 2.0, num_inference_steps=1, generator=seeded(0)).codes
    assert F.relu(codes.abs() - 1).sum() == 0
    assert codes.dtype == torch.float32
