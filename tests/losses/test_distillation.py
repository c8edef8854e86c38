import json
import math

import pytest
import torch
from torch.nn import functional as F

from uniwetok_hf.losses.distillation import AttentionPool, PrePostDistillation
from uniwetok_hf.training.config import find_config, read_config
from uniwetok_hf.training.settings_uniwetok import UniWeTokTrainingConfig


@pytest.fixture(params=["attention", "linear"])
def make_loss(request, device):
    def make(post_weight=1.0, **sizes):
        torch.manual_seed(0)
        sizes = {
            "head": request.param,
            "num_bits": 16,
            "embedding_size": 12,
            "hidden_size": 8,
            "num_attention_heads": 2,
        } | sizes
        return PrePostDistillation(**sizes, post_weight=post_weight).to(device)

    return make


@pytest.fixture
def inputs(make_pictures):
    """Latents, the codes of them by the straight-through estimator, and a teacher's vectors."""
    latents = make_pictures(2, 16, 3, 5).requires_grad_()
    codes = latents + (torch.where(latents > 0, 1.0, -1.0) - latents).detach()
    return latents, codes, make_pictures(2, 12, seed=1).requires_grad_()


def constant_pools(loss, pre, post):
    """Makes both pools give a fixed vector, whatever the tokens."""
    for pool, vector in ((loss.pre_pool, pre), (loss.post_pool, post)):
        torch.nn.init.zeros_(pool.output_proj.weight)
        with torch.no_grad():
            pool.output_proj.bias.copy_(torch.tensor(vector))


@pytest.mark.parametrize("post_weight", [1.0, 0.25, 0.0])
def test_values_by_hand(make_loss, inputs, post_weight):
    """cos((3, 4), (5, 0)) = 0.6 and cos((0, 2), (5, 0)) = 0; against (-3, -4) they are -1 and -0.8."""
    loss = make_loss(post_weight, embedding_size=2)
    constant_pools(loss, [3.0, 4.0], [0.0, 2.0])
    teacher = torch.tensor([[5.0, 0.0], [-3.0, -4.0]], device=inputs[0].device)
    result = loss(inputs[0], inputs[1], teacher)
    assert result.pre.item() == pytest.approx(((1 - 0.6) + (1 + 1)) / 2, rel=1e-6)
    assert result.post.item() == pytest.approx(((1 - 0) + (1 + 0.8)) / 2, rel=1e-6)
    assert result.loss.item() == pytest.approx(1.2 + post_weight * 1.4, rel=1e-6)


def test_parts_are_of_latents_and_codes(make_loss, inputs):
    loss = make_loss()
    latents, codes, teacher = inputs
    result = loss(latents, codes, teacher)
    for part, pooled in ((result.pre, loss.embed_latents(latents)), (result.post, loss.embed_codes(codes))):
        assert part.item() == pytest.approx((1 - F.cosine_similarity(pooled, teacher)).mean().item(), rel=1e-6)
    assert not torch.equal(loss.embed_latents(codes), loss.embed_codes(codes))  # two pools, not one


def test_length_of_the_teachers_vector_does_not_matter(make_loss, inputs):
    loss, (latents, codes, teacher) = make_loss(), inputs
    torch.testing.assert_close(loss(latents, codes, 100 * teacher).loss, loss(latents, codes, teacher).loss)


def test_gradients_reach_latents_both_ways_and_no_teacher(make_loss, inputs):
    loss, (latents, codes, teacher) = make_loss(), inputs
    result = loss(latents, codes, teacher)
    (pre,) = torch.autograd.grad(result.pre, latents, retain_graph=True)
    (post,) = torch.autograd.grad(result.post, latents, retain_graph=True)  # straight through the sign
    (both,) = torch.autograd.grad(result.loss, latents, retain_graph=True)
    assert pre.abs().min() > 0 and post.abs().min() > 0
    torch.testing.assert_close(both, pre + post)
    result.loss.backward()
    assert teacher.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_codes_without_gradient_teach_their_pool_only(make_loss, inputs):
    loss, (latents, codes, teacher) = make_loss(), inputs
    result = loss(latents, codes.detach(), teacher)
    (both,) = torch.autograd.grad(result.loss, latents, retain_graph=True)
    torch.testing.assert_close(both, torch.autograd.grad(result.pre, latents, retain_graph=True)[0])
    result.post.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.post_pool.parameters())
    assert all(parameter.grad is None for parameter in loss.pre_pool.parameters())


def test_pool_is_the_attention_it_claims_to_be():
    """With one head, by hand: softmax(q.k / sqrt(d)) over the tokens, weighted sum of the values."""
    torch.manual_seed(0)
    pool = AttentionPool(6, 5, hidden_size=4, num_attention_heads=1)
    tokens = torch.randn(1, 6, 2, 3)
    column, row = torch.arange(3.0).repeat(2), torch.arange(2.0).repeat_interleave(3)
    positions = torch.stack([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)  # [h*w, 4]
    states = pool.input_proj(tokens[0].flatten(1).T) + positions
    query_weight, key_weight, value_weight = pool.attention.in_proj_weight.chunk(3)
    query_bias, key_bias, value_bias = pool.attention.in_proj_bias.chunk(3)
    query = F.linear(pool.query[0, 0], query_weight, query_bias)
    scores = F.linear(states, key_weight, key_bias) @ query / math.sqrt(4)
    attended = scores.softmax(0) @ F.linear(states, value_weight, value_bias)
    expected = pool.output_proj(pool.output_norm(pool.attention.out_proj(attended)))
    torch.testing.assert_close(pool(tokens)[0], expected)


def test_the_linear_head_is_a_linear_layer_of_the_mean(make_loss, inputs):
    loss, (latents, codes, _) = make_loss(head="linear"), inputs
    for pool, tokens, found in (
        (loss.pre_pool, latents, loss.embed_latents(latents)),
        (loss.post_pool, codes, loss.embed_codes(codes)),
    ):
        ((weight, bias),) = [(layer.weight, layer.bias) for layer in pool.children()]
        torch.testing.assert_close(found, tokens.flatten(2).mean(2) @ weight.mT + bias)
    with pytest.raises(ValueError, match="`head` must be 'attention' or 'linear', got 'mean'"):
        make_loss(head="mean")


def test_heads_of_the_configs():
    """The paper's ablations on ImageNet have linear ones, its general tokenizer attention."""
    heads = {"imagenet_uniwetok": "linear"} | {f"general_uniwetok_stage{stage}": "attention" for stage in (1, 2, 3)}
    for name, head in heads.items():
        settings = read_config(UniWeTokTrainingConfig, find_config(name)).distillation
        assert (settings.head, settings.hidden_size) == (head, 256 if head == "linear" else 1024)


def test_arrangement_of_tokens_is_seen(make_loss, inputs):
    pool, (_, codes, _) = make_loss(head="attention").post_pool, inputs
    assert (pool(codes) - pool(codes.flip(3))).abs().max() > 1e-3
    assert (pool(codes) - pool(codes.flip(2))).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (8, 8)])
def test_any_grid(make_loss, make_pictures, grid):
    loss = make_loss()
    tokens = make_pictures(2, 16, *grid)
    result = loss(tokens, tokens.sign(), make_pictures(2, 12))
    assert result.loss.isfinite() and loss.embed_codes(tokens).shape == (2, 12)


def test_under_autocast_the_loss_is_float32(make_loss, inputs, device):
    loss, (latents, codes, teacher) = make_loss(), inputs
    single = loss(latents, codes, teacher)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = loss(latents, codes, teacher)
        # The cosines themselves don't lose precision.
        embedding = loss.embed_latents(latents)
        assert embedding.dtype == torch.float32
        again = 1 - F.cosine_similarity(embedding.double(), teacher.double())
    assert all(part.dtype == torch.float32 for part in result)
    assert result.pre.item() == pytest.approx(again.mean().item(), abs=1e-6)
    torch.testing.assert_close(result.loss, single.loss, atol=0.05, rtol=0)
    result.loss.backward()
    assert latents.grad.isfinite().all() and latents.grad.dtype == torch.float32


def test_half_precision_inputs_of_an_encoder(make_loss, inputs, device):
    loss, (latents, codes, teacher) = make_loss(), inputs
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = loss(latents.bfloat16(), codes.bfloat16(), teacher.bfloat16())
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    assert latents.grad.abs().sum() > 0


def test_saved_and_loaded(make_loss, inputs, tmp_path):
    loss, (latents, codes, teacher) = make_loss(post_weight=0.5), inputs
    loss.save_pretrained(tmp_path / "pools")
    assert sorted(path.name for path in (tmp_path / "pools").iterdir()) == ["config.json", "model.safetensors"]
    loaded = PrePostDistillation.from_pretrained(tmp_path / "pools").to(latents.device)
    assert not loaded.training
    for value, wanted in zip(loaded(latents, codes, teacher), loss(latents, codes, teacher), strict=True):
        assert torch.equal(value, wanted)


def test_folders_that_hold_no_pools_are_refused(make_loss, tmp_path):
    with pytest.raises(ValueError, match=f"`folder` {tmp_path}"):
        PrePostDistillation.from_pretrained(tmp_path)
    make_loss().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"embedding_size": 13}))
    with pytest.raises(ValueError, match="(?s)`folder`.*size mismatch"):
        PrePostDistillation.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="`folder`"):
        PrePostDistillation.from_pretrained(tmp_path)


@pytest.mark.parametrize("sizes", [{"hidden_size": 6, "num_attention_heads": 2}, {"num_attention_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(make_loss, sizes):
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple"):
        make_loss(**sizes, head="attention")
