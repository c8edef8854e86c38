"""`inputs_embeds` in place of `input_ids`, with and without pictures, and what peft does with them: the same logits
and the same texts, or an error."""

import pytest
import torch
from tiny_mllm import PATCH_SIZES, build, picture_text, random_codes, shared, size_text, tokenize, training_batch

from uniwetok_hf.modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM


peft = pytest.importorskip("peft", reason="needs uniwetok-hf[train]")


@pytest.fixture(params=PATCH_SIZES, ids=[f"patches of {p}" for p in PATCH_SIZES])
def patch_size(request) -> int:
    return request.param


@pytest.fixture
def model(patch_size, device) -> UniWeTokForCausalLM:
    return shared(patch_size).to(device)


@pytest.fixture
def batch(patch_size, device) -> dict:
    """Two rows, of which one has two pictures and one has padding."""
    inputs, codes = training_batch(patch_size)
    inputs = {name: tensor.to(device) for name, tensor in inputs.items() if name in ("input_ids", "attention_mask")}
    return inputs | {"codes": [picture.to(device) for picture in codes]}


def embedded(model, batch: dict, ready: bool = False) -> dict:
    """`batch` with embeddings of its words in place of `input_ids`; `ready`, with the pictures' features in them."""
    batch = dict(batch)
    ids = batch.pop("input_ids")
    embeddings = model.get_input_embeddings()(ids)
    if ready:
        codes = batch.pop("codes")
        features = model.model.embed_image_tokens(model.model.tokens(codes), model.model.positions(codes))
        embeddings = embeddings.masked_scatter((ids == model.config.image_token_id)[..., None], features)
    return batch | {"inputs_embeds": embeddings}


@pytest.mark.parametrize("ready", [False, True], ids=["placeholders", "features"])
@torch.no_grad()
def test_logits_are_those_of_input_ids(model, batch, ready):
    torch.testing.assert_close(model(**embedded(model, batch, ready)).logits, model(**batch).logits)


@torch.no_grad()
def test_pixels_go_with_embeddings(model, batch, patch_size, device):
    ids = tokenize(f"see {size_text(random_codes(patch_size, 1, 2), patch_size)}", patch_size=patch_size)["input_ids"]
    placeholders = torch.full((1, 2 * patch_size**2), model.config.image_token_id)
    ids = torch.cat([ids, placeholders, ids[:, :2]], dim=1).to(device)
    pixels = torch.rand(1, 3, 32 * patch_size, 64 * patch_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = {"pixel_values": pixels.to(device)}
    expected = model(input_ids=ids, **given).logits
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids), **given).logits, expected)


def test_losses_and_gradients_are_those_of_input_ids(model, batch, patch_size, device):
    inputs, _ = training_batch(patch_size)
    labels = {name: inputs[name].to(device) for name in ("labels", "image_is_target")}

    def step(arguments: dict) -> tuple:
        output = model(**arguments, **labels, generator=torch.Generator().manual_seed(0), timesteps=[0.5])
        [gradient] = torch.autograd.grad(output.loss, model.model.projector.fc1.weight)
        return output.text_loss, output.image_loss, gradient

    for found, expected in zip(step(embedded(model, batch)), step(batch), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_numbers_of_pictures_and_placeholders_are_compared(model, batch):
    with pytest.raises(ValueError, match="placeholders"):
        model(**embedded(model, batch | {"codes": batch["codes"][:2]}))


@torch.no_grad()
def test_a_picture_whose_beginning_was_altered_is_refused(patch_size, model, batch):
    """Where pictures are can't be told any more, so that the mask would be causal inside patches."""
    if patch_size == 1:
        pytest.skip("a patch of one token needs no mask")
    altered = embedded(model, batch, ready=True)
    starts = batch["input_ids"] == model.config.vision_start_token_id
    altered["inputs_embeds"][starts] += 0.1
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(**altered)


@torch.no_grad()
def test_tokens_of_one_embedding_are_refused(patch_size, batch):
    if patch_size == 1:
        pytest.skip("a patch of one token needs no mask")
    model = build(patch_size).to(batch["input_ids"].device)
    first = model.config.size_token_id
    weight = model.get_input_embeddings().weight
    weight[first + 1] = weight[first]
    with pytest.raises(ValueError, match="same embedding"):
        model(**embedded(model, batch))


@torch.no_grad()
def test_a_mask_of_four_dimensions_is_used_as_it_is(model, batch):
    """In sdpa's form, with booleans. It serves embeddings that say nowhere where pictures are, too."""
    expected = model(**batch).logits
    block_ids = model.model.block_ids(batch["input_ids"])
    ready = embedded(model, batch, ready=True)
    position_ids = torch.arange(block_ids.shape[1], device=block_ids.device)[None]
    seen = position_ids[..., None] >= position_ids[:, None]
    seen = seen | ((block_ids[:, :, None] == block_ids[:, None]) & (block_ids >= 0)[:, None])
    seen = (seen & batch["attention_mask"].bool()[:, None])[:, None]
    real = batch["attention_mask"].bool()
    for inputs in (batch, ready):
        logits = model(**inputs | {"attention_mask": seen}).logits
        torch.testing.assert_close(logits[real], expected[real])
    seen = seen.clone()
    seen[..., -1, 0] = ~seen[..., -1, 0]  # and no other one is made of it
    assert not torch.allclose(model(**batch | {"attention_mask": seen}).logits[:, -1], expected[:, -1])


# --- generate ---


def write(model, inputs: dict, **options) -> torch.Tensor:
    """The new tokens; `generate` returns no others for embeddings."""
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return model.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False} | options)[:, start:]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_text_alone_goes_on(model, patch_size, device, cache):
    inputs = {name: tensor.to(device) for name, tensor in tokenize("a", "a b c", patch_size=patch_size).items()}
    options = {} if cache == "dynamic" else {"cache_implementation": cache}
    assert torch.equal(write(model, embedded(model, inputs), **options), write(model, inputs))


@pytest.mark.parametrize("ready", [False, True], ids=["placeholders", "features"])
def test_text_goes_on_after_pictures(model, batch, ready):
    expected = write(model, batch)
    assert torch.equal(write(model, embedded(model, batch, ready)), expected)
    assert torch.equal(write(model, embedded(model, batch, ready), cache_implementation="static"), expected)


@pytest.mark.parametrize("ready", [False, True], ids=["placeholders", "features"])
def test_beams_keep_the_pictures_of_their_row(model, batch, ready):
    expected = write(model, batch, num_beams=3, num_return_sequences=2)
    assert torch.equal(write(model, embedded(model, batch, ready), num_beams=3, num_return_sequences=2), expected)


# --- peft: soft prompts ---

PROMPTS = {
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "P-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # peft's, about generate's own
def test_soft_prompts_learn_an_answer(patch_size, device, kind, tmp_path):
    """About a picture. What was learnt is written, and again after saving and loading; the model itself stays as it
    was."""
    torch.manual_seed(0)  # peft's new weights
    model = build(patch_size).to(device)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    codes = random_codes(patch_size, 1, 2)
    asked = tokenize(f"see {picture_text(codes, patch_size)}", patch_size=patch_size) | {"codes": codes[None]}
    asked = {name: tensor.to(device) for name, tensor in asked.items()}

    def answered(answer: torch.Tensor) -> dict:
        ids = torch.cat([asked["input_ids"], answer], dim=1)
        return asked | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    tuned = peft.get_peft_model(model, PROMPTS[kind]())
    answer = torch.tensor([[65, 66, 67]], device=device)
    labels = torch.cat([torch.full_like(asked["input_ids"], -100), answer], dim=1)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(p) for p in tuned.prompt_encoder.parameters()}
    optimizer = torch.optim.Adam(trained, lr=0.2)
    losses = []
    for _ in range(30):
        losses.append(tuned(**answered(answer), labels=labels).text_loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters() if name in before)

    tuned.eval()
    written = tuned.generate(**asked, max_new_tokens=3, do_sample=False)[:, -3:]
    with torch.no_grad():
        logits = tuned(**answered(written)).logits[:, -4:-1]
    assert torch.equal(written, logits.argmax(-1))  # training and generation read the same prompt
    assert not torch.equal(written, model.generate(**asked, max_new_tokens=3, do_sample=False)[:, -3:])
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(patch_size).to(device), tmp_path)
    assert torch.equal(again.generate(**asked, max_new_tokens=3, do_sample=False)[:, -3:], written)
