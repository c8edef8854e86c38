"""The unified model in training: losses by hand, perturbed inputs, gradients."""

import copy
import re

import pytest
import torch
from tiny_mllm import (
    BITS,
    HIDDEN,
    PATCH_SIZES,
    build,
    picture_text,
    random_codes,
    seeded,
    shared,
    tokenize,
    training_batch,
)
from torch.nn import functional as F

from uniwetok_hf import UniWeTokForCausalLM
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens
from uniwetok_hf.modeling.modeling_uniwetok_mllm import sinusoidal_positions


def image_loss_by_hand(model, inputs: dict, read: list, clean: list, generator: torch.Generator) -> torch.Tensor:
    """The head's loss of the last two pictures when the language model reads `read` and should draw `clean`."""
    block = model.config.tokens_per_patch
    hidden = model.model(inputs["input_ids"], inputs["attention_mask"], codes=read).last_hidden_state
    conditions, tokens = [], []
    for row, picture in ((0, clean[1]), (1, clean[2])):
        count = picture[0].numel()
        places = (inputs["input_ids"][row] == model.config.image_token_id).nonzero()[-count:, 0]
        table = codes_to_tokens(sinusoidal_positions(*picture.shape[1:], HIDDEN)[None], model.config.patch_size)[0]
        conditions.append((hidden[row, places - block] + table).view(-1, block, HIDDEN))
        tokens.append(codes_to_tokens(picture[None], model.config.patch_size)[0].view(-1, block, BITS))
    draws = model.config.num_diffusion_draws
    return model.image_head.compute_loss(torch.cat(tokens), torch.cat(conditions), generator, draws)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_losses_by_hand(patch_size):
    model, (inputs, codes) = shared(patch_size), training_batch(patch_size)
    output = model(**inputs, codes=codes, generator=seeded(3))
    predicted, labels = output.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    torch.testing.assert_close(output.text_loss, F.cross_entropy(predicted, labels, ignore_index=-100))
    wanted = image_loss_by_hand(model, inputs, codes, codes, seeded(3))
    torch.testing.assert_close(output.image_loss, wanted)
    torch.testing.assert_close(output.loss, 0.01 * output.text_loss + output.image_loss)


def test_loss_weights_and_number_of_draws():
    inputs, codes = training_batch()
    model = build(1, text_loss_weight=0.5, image_loss_weight=0.25, num_diffusion_draws=3)
    output = model(**inputs, codes=codes, generator=seeded(3))
    torch.testing.assert_close(output.image_loss, image_loss_by_hand(model, inputs, codes, codes, seeded(3)))
    torch.testing.assert_close(output.loss, 0.5 * output.text_loss + 0.25 * output.image_loss)


def test_text_loss_is_normalised_by_the_items_of_the_whole_batch():
    """What gradient accumulation passes, so that it equals one large batch."""
    model, (inputs, codes) = shared(1), training_batch()
    mean = model(**inputs, codes=codes, generator=seeded(3)).text_loss
    count = (inputs["labels"][:, 1:] != -100).sum()
    summed = model(**inputs, codes=codes, generator=seeded(3), num_items_in_batch=4 * count).text_loss
    torch.testing.assert_close(summed, mean / 4)


def test_image_loss_is_normalised_by_the_tokens_of_the_whole_batch():
    model, (inputs, codes) = shared(2), training_batch(2)
    mean = model(**inputs, codes=codes, generator=seeded(3)).image_loss
    count = codes[1][0].numel() + codes[2][0].numel()
    summed = model(**inputs, codes=codes, generator=seeded(3), num_image_tokens_in_batch=4 * count).image_loss
    torch.testing.assert_close(summed, mean / 4)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_losses_of_rows_add_up(patch_size):
    model, (inputs, codes) = shared(patch_size), training_batch(patch_size)
    output = model(**inputs, codes=codes, generator=seeded(3))
    num_text = (inputs["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(output.row_text_losses.sum() / num_text, output.text_loss)
    torch.testing.assert_close(output.row_image_losses.sum() / (3 * patch_size**2), output.image_loss)
    assert not output.row_text_losses.requires_grad and not output.row_image_losses.requires_grad
    # The first row alone, with a picture to draw of two patches.
    first = {name: value[:1] for name, value in inputs.items()} | {"image_is_target": torch.tensor([False, True])}
    alone = model(**first, codes=codes[:2], generator=seeded(3))
    torch.testing.assert_close(alone.row_text_losses[0], output.row_text_losses[0])
    assert alone.row_image_losses[0] / (2 * patch_size**2) == pytest.approx(alone.image_loss.item())


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_row_with_its_own_generator_does_not_depend_on_its_batch(patch_size):
    """Flips, times and noise: what makes two processes on half batches equal to one on the whole."""
    model = build(patch_size, bit_flip_probability=0.5, num_diffusion_draws=2).train()
    inputs, codes = training_batch(patch_size)
    whole = model(**inputs, codes=codes, generator=[seeded(11), seeded(12)])
    parts = []
    for row, pictures in ((0, slice(0, 2)), (1, slice(2, 3))):
        part = {name: value[row : row + 1] for name, value in inputs.items()}
        part["image_is_target"] = inputs["image_is_target"][pictures]
        counts = {"num_items_in_batch": (inputs["labels"][:, 1:] != -100).sum()}
        counts["num_image_tokens_in_batch"] = 3 * patch_size**2
        parts.append(model(**part, codes=codes[pictures], generator=[seeded(11 + row)], **counts))
    for name in ("loss", "text_loss", "image_loss"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
    for name in ("row_text_losses", "row_image_losses"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    other = model(**inputs, codes=codes, generator=[seeded(11), seeded(13)])
    assert other.row_image_losses[0] == whole.row_image_losses[0]
    assert other.row_image_losses[1] != whole.row_image_losses[1]


def test_labels_may_come_shifted():
    """As who gives each process a part of a row must: the next token may be in the next part."""
    model = shared()
    inputs, codes = training_batch()
    labels = inputs.pop("labels")
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    expected = model(**inputs, codes=codes, labels=labels, generator=seeded(0))
    outputs = model(**inputs, codes=codes, labels=labels.roll(5), shift_labels=shifted, generator=seeded(0))
    assert torch.equal(outputs.text_loss, expected.text_loss) and torch.equal(outputs.loss, expected.loss)


def test_losses_do_not_depend_on_the_logits_that_are_kept():
    model, (inputs, codes) = shared(1), training_batch()
    whole = model(**inputs, codes=codes, generator=seeded(3))
    for keep in (2, torch.tensor([4, 1]), torch.empty(0, dtype=torch.long)):
        output = model(**inputs, codes=codes, generator=seeded(3), logits_to_keep=keep)
        wanted = whole.logits[:, -2:] if isinstance(keep, int) else whole.logits[:, keep]
        torch.testing.assert_close(output.logits, wanted)
        torch.testing.assert_close(output.loss, whole.loss)


def test_the_output_layer_is_called_once():
    """FSDP loses gradients of a tied layer that is called twice."""
    model, (inputs, codes) = shared(1), training_batch()
    calls = []
    handle = model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    for keep in (0, 1, torch.empty(0, dtype=torch.long)):
        model(**inputs, codes=codes, logits_to_keep=keep)
    handle.remove()
    assert len(calls) == 3


def test_bit_accuracy():
    """At the end of the flow a picture is nearly seen; at its start there is noise alone."""
    model, (inputs, codes) = shared(1), training_batch()
    output = model(**inputs, codes=codes, generator=seeded(3), timesteps=[0.0, 0.5, 0.9])
    assert output.bit_accuracy.shape == (3,) and 0 <= output.bit_accuracy.min() <= output.bit_accuracy.max() <= 1
    _, right = model.image_head.compute_losses(
        *model._target_patches(
            model.model(inputs["input_ids"], inputs["attention_mask"], codes=codes).last_hidden_state,
            codes,
            model.find_places(**inputs, codes=codes),
        ),
        seeded(3),
        timesteps=[0.0, 0.5, 0.9],
    )
    torch.testing.assert_close(output.bit_accuracy, right.mean(1))


def test_the_loss_comes_first_in_a_tuple():
    model, (inputs, codes) = shared(1), training_batch()
    output = model(**inputs, codes=codes, generator=seeded(3), return_dict=False)
    assert output[0].ndim == 0 and output[1].ndim == 3


def test_without_text_labels_the_text_loss_is_zero():
    model, (inputs, codes) = copy.deepcopy(shared(1)), training_batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    output = model(**inputs, codes=codes, generator=seeded(3))
    assert output.text_loss == 0
    assert torch.equal(output.loss, output.image_loss)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_targets_there_is_no_image_loss():
    model, (inputs, codes) = shared(1), training_batch()
    for none in (torch.tensor([False] * 3), None):
        output = model(**inputs | {"image_is_target": none}, codes=codes)
        assert output.image_loss is None
        torch.testing.assert_close(output.loss, 0.01 * output.text_loss)
    inputs = tokenize("only words")
    assert model(**inputs, labels=inputs["input_ids"]).image_loss is None


def test_without_labels_there_is_no_loss():
    model, (inputs, codes) = shared(1), training_batch()
    output = model(**inputs | {"labels": None}, codes=codes)
    assert output.loss is output.text_loss is output.image_loss is None
    assert output.logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_target_changes_what_context_only_reads(patch_size):
    """The loss covers the targets alone: more context pictures change it only through the hidden states."""
    model, (inputs, codes) = shared(patch_size), training_batch(patch_size)
    other = [-codes[0], *codes[1:]]
    losses = [model(**inputs, codes=c, generator=seeded(3)).image_loss for c in (codes, other)]
    assert not torch.isclose(*losses)  # the context is read ...
    wanted = image_loss_by_hand(model, inputs, other, codes, seeded(3))
    torch.testing.assert_close(losses[1], wanted)  # ... and is no target


def test_wrong_number_of_target_marks_is_refused():
    inputs, codes = training_batch()
    with pytest.raises(ValueError, match="image_is_target"):
        shared(1)(**inputs | {"image_is_target": torch.tensor([True])}, codes=codes)


# --- perturbation of what is to be drawn ---


def tokens_read(model: UniWeTokForCausalLM, inputs: dict, codes: list, seed: int = 7) -> torch.Tensor:
    """The bits [T, bits] that the language model gets to read in a call."""
    read = []
    handle = model.model.projector.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(**inputs, codes=codes, generator=seeded(seed))
    handle.remove()
    return read[0]


def test_targets_are_flipped_on_input_and_context_is_not():
    model, (inputs, codes) = build(2, bit_flip_probability=1.0).train(), training_batch(2)
    clean = model.model.tokens(codes)
    read = tokens_read(model, inputs, codes)
    context = codes[0][0].numel()
    assert torch.equal(read[:context], clean[:context])
    assert not torch.equal(read[context:], clean[context:])
    assert read.abs().unique().tolist() == [1.0]


def test_flipped_targets_stay_clean_in_the_loss():
    model, (inputs, codes) = build(2, bit_flip_probability=1.0).train(), training_batch(2)
    output = model(**inputs, codes=codes, generator=seeded(7))
    generator, read = seeded(7), [codes[0]]
    for picture in codes[1:]:
        chance, draw = torch.rand(2, *picture.shape, generator=generator)
        read.append(torch.where(draw < chance, -picture, picture))
    torch.testing.assert_close(output.image_loss, image_loss_by_hand(model, inputs, read, codes, generator))


def test_pictures_that_are_only_read_are_never_perturbed():
    model, (inputs, codes) = build(1, bit_flip_probability=1.0), training_batch()
    inputs["image_is_target"] = torch.tensor([False] * 3)
    with torch.no_grad():
        logits = model(**inputs, codes=codes).logits
        assert torch.equal(model.train()(**inputs, codes=codes).logits, logits)


def test_nothing_is_perturbed_outside_training():
    model, (inputs, codes) = build(1, bit_flip_probability=1.0), training_batch()
    assert torch.equal(tokens_read(model, inputs, codes), model.model.tokens(codes))


@pytest.mark.parametrize("largest, rate", [(0.1, 0.05), (1.0, 0.5), (0.0, 0.0)])
def test_rate_of_flipped_bits(largest, rate):
    """Each bit is flipped with p_max U, U uniform and drawn for it alone: p_max / 2 of them on average."""
    model, codes = build(1, bit_flip_probability=largest).train(), random_codes(1, 16, 16)
    inputs = tokenize(picture_text(codes, 1))
    inputs |= {"labels": inputs["input_ids"], "image_is_target": torch.tensor([True])}
    flipped = tokens_read(model, inputs, [codes]) != model.model.tokens([codes])
    assert abs(flipped.float().mean() - rate) < 0.02


# --- gradients ---


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients_reach_everything_but_the_image_tokenizer(patch_size):
    model, (inputs, _) = copy.deepcopy(shared(patch_size)).train(), training_batch(patch_size)
    side = 32 * patch_size
    pixels = [torch.rand(3, h * side, w * side, generator=seeded(h)) for h, w in ((1, 2), (2, 1), (1, 1))]
    model(**inputs, pixel_values=pixels, generator=seeded(0)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("model.vision_model"):
            assert parameter.grad is None, name
        elif patch_size > 1 or not re.match(r"image_head.*[qk]_proj", name):  # one token attends to nothing
            assert parameter.grad is not None, name
            # A bias of the keys adds the same to all scores of a query: softmax doesn't see it.
            assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pictures", [False, True])
def test_a_batch_that_draws_nothing_gives_every_weight_a_gradient(pictures):
    """A process of several with such a share must not keep the others waiting; but it changes nothing."""
    model = copy.deepcopy(shared(2)).train()
    inputs, codes = tokenize("only words here", patch_size=2), None
    if pictures:
        inputs, codes = training_batch(2)
        inputs["image_is_target"] = torch.tensor([False] * 3)
    output = model(**{"labels": inputs["input_ids"], **inputs}, codes=codes)
    torch.testing.assert_close(output.loss, 0.01 * output.text_loss)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        is_idle = name.startswith("image_head") or (not pictures and "projector" in name)
        if name.startswith("model.vision_model"):
            assert parameter.grad is None, name
        else:
            assert (parameter.grad.abs().max() == 0) == is_idle or name.endswith("k_proj.bias"), name


def test_outside_training_nothing_runs_idle():
    model, calls = shared(2), []
    handle = model.image_head.register_forward_hook(lambda *_: calls.append(1))
    inputs = tokenize("only words here", patch_size=2)
    model(**inputs, labels=inputs["input_ids"])
    handle.remove()
    assert not calls


@pytest.mark.parametrize("patch_size", [1, 2])
def test_checkpointing_gives_equal_gradients(patch_size):
    inputs, codes = training_batch(patch_size)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(shared(patch_size)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            layers = [*model.model.language_model.layers, *model.image_head.layers]
            assert all(layer.gradient_checkpointing for layer in layers)
        model(**inputs, codes=codes, generator=seeded(0)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
