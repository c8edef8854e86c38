import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import BITS, answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokPipeline


STEPS = {"num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipe(request) -> UniWeTokPipeline:
    pipe = build_tiny_pipeline(request.param)
    with_random_weights(pipe.mllm)
    pipe.register_to_config(default_size=64 * request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def answers_with_a_picture(pipe) -> None:
    """The model answers with one picture, whatever the turn is."""
    answer_with_pictures(pipe.mllm, pipe.processor)
    yield
    pipe.mllm.generation_config.sequence_bias = None


@pytest.fixture
def answers_with_text(pipe) -> None:
    """The model answers with text alone."""
    pipe.mllm.generation_config.sequence_bias = [[[pipe.processor.vision_start_token_id], -1000.0]]
    yield
    pipe.mllm.generation_config.sequence_bias = None


def picture(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def read_anew(pipe, messages: list[dict], codes: list[torch.Tensor], picture_tokens: str = "") -> dict:
    """Model inputs of a whole conversation, without any cache."""
    text = pipe.processor.apply_chat_template(messages, add_generation_prompt=True, picture_tokens=picture_tokens)
    sizes = [(32 * c.shape[1], 32 * c.shape[2]) for c in codes]
    inputs = pipe.processor(text=[text], picture_sizes=sizes or None)
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "codes": [c.clone() for c in codes] or None,
    }


def generate_anew(pipe, talk: UniWeTokConversation, seed: int, side: int) -> torch.Tensor:
    """The picture of the last answer, generated from the whole history before it."""
    inputs = read_anew(pipe, talk.messages[:-1], talk.codes[:-1], pipe.processor.picture_tokens(side, side))
    _, negative = pipe.processor.generation_inputs(["x"], side, side)
    return pipe.mllm.generate_codes(
        **inputs, negative_input_ids=negative["input_ids"], generator=seeded(seed), scheduler=pipe.scheduler, **STEPS
    ).codes[0]


def test_pictures_are_those_of_the_whole_conversation_read_anew(pipe, answers_with_a_picture):
    side = pipe.config.default_size
    talk = UniWeTokConversation(pipe)
    replies = [talk.say("draw a red apple", generator=seeded(0), **STEPS)]
    assert torch.equal(replies[0].codes[0], generate_anew(pipe, talk, 0, side))
    replies.append(talk.say("make it green", generator=seeded(1), **STEPS))
    assert torch.equal(replies[1].codes[0], generate_anew(pipe, talk, 1, side))
    replies.append(talk.say("and this?", picture(side), generator=seeded(2), **STEPS))
    assert torch.equal(replies[2].codes[0], generate_anew(pipe, talk, 2, side))
    assert [len(reply.images) for reply in replies] == [1, 1, 1]
    assert replies[0].images[0].size == (side, side)
    assert len(talk.codes) == 4 and all(codes.shape[0] == BITS for codes in talk.codes)
    assert [turn["role"] for turn in talk.messages] == ["user", "assistant"] * 3
    assert not torch.equal(replies[0].codes[0], replies[1].codes[0])


def test_text_is_that_of_the_whole_conversation_read_anew(pipe, answers_with_a_picture, request):
    talk = UniWeTokConversation(pipe)
    talk.say("draw a red apple", generator=seeded(0), **STEPS)
    request.getfixturevalue("answers_with_text")
    first = talk.say("what is it?", max_new_tokens=5)
    second = talk.say("and this?", [picture(64), picture(64, 1)], max_new_tokens=5)
    assert first.images == second.images == [] and first.text and second.text
    # The answer as it was written: text that is tokenized again may be other tokens.
    messages, codes = talk.messages[:3], talk.codes[:1]
    inputs = read_anew(pipe, messages, codes)
    written = pipe.mllm.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = pipe.processor.tokenizer.decode(written, skip_special_tokens=True)
    assert " ".join(text.split()) == first.text


def test_an_answer_can_hold_text_and_several_pictures(pipe, answers_with_a_picture):
    processor = pipe.processor
    pipe.mllm.generation_config.sequence_bias = [[[processor.vision_start_token_id], 1000.0]]
    reply = UniWeTokConversation(pipe).say("draw on", generator=seeded(0), **STEPS)
    assert len(reply.images) == 4  # the most: this model never ends its turn


def test_after_the_most_pictures_it_goes_on_as_one_that_was_saved(pipe, answers_with_a_picture, tmp_path):
    pipe.mllm.generation_config.sequence_bias = [[[pipe.processor.vision_start_token_id], 1000.0]]
    talk = UniWeTokConversation(pipe)
    talk.say("draw on", generator=seeded(0), **STEPS)
    loaded = UniWeTokConversation.load(talk.save(tmp_path / "talk"), pipe)
    ours, theirs = (one.say("again", generator=seeded(1), **STEPS).codes[0] for one in (talk, loaded))
    assert torch.equal(ours, theirs)


def test_a_turn_whose_picture_is_not_decoded_leaves_no_trace(pipe, answers_with_a_picture, monkeypatch):
    talk, undisturbed = UniWeTokConversation(pipe), UniWeTokConversation(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.mllm.vision_model.decoder, "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            talk.say("draw", generator=seeded(0), **STEPS)
    assert talk.messages == [] and talk.codes == []
    ours, theirs = (one.say("draw", generator=seeded(0), **STEPS).codes[0] for one in (talk, undisturbed))
    assert torch.equal(ours, theirs)


def test_a_turn_inside_another_generation_is_interrupted(pipe, answers_with_a_picture):
    talk, stopped = UniWeTokConversation(pipe), []

    def stop(one, step, count, tensors):
        one._interrupt = step == 0

    def turn(one, step, count, tensors):
        if step == 0:
            with pytest.raises(InterruptedError):
                talk.say("draw", generator=seeded(0), callback_on_step_end=stop, **STEPS)
            stopped.append(step)

    codes = pipe("a", generator=seeded(0), output_type="latent", callback_on_step_end=turn).images
    assert stopped == [0] and talk.messages == [] and (codes != 0).all()


def test_size_is_that_of_the_last_picture(pipe, answers_with_a_picture):
    unit = 32 * pipe.processor.patch_size
    talk = UniWeTokConversation(pipe)
    reply = talk.say("draw", height=2 * unit, width=unit, generator=seeded(0), **STEPS)
    assert reply.images[0].size == (unit, 2 * unit)
    assert talk.say("again", generator=seeded(0), **STEPS).images[0].size == (unit, 2 * unit)
    assert talk.say("this", picture(unit), generator=seeded(0), **STEPS).images[0].size == (unit, unit)


def test_saved_conversation_goes_on_as_if_it_had_not_stopped(pipe, answers_with_a_picture, tmp_path):
    talk = UniWeTokConversation(pipe)
    talk.say("draw a red apple", generator=seeded(0), **STEPS)
    talk.say("make it green", picture(64), generator=seeded(1), **STEPS)
    folder = talk.save(tmp_path / "talk")
    assert sorted(path.name for path in folder.iterdir()) == ["conversation.json", "pictures.safetensors"]
    loaded = UniWeTokConversation.load(folder, pipe)
    assert loaded.messages == talk.messages
    assert all(torch.equal(a, b) for a, b in zip(loaded.codes, talk.codes, strict=True))
    ours, theirs = (one.say("again", generator=seeded(2), **STEPS).codes[0] for one in (talk, loaded))
    assert torch.equal(ours, theirs)
    loaded.save(folder)  # replaces
    assert UniWeTokConversation.load(folder, pipe).messages == loaded.messages
    assert [path.name for path in tmp_path.iterdir()] == ["talk"]


def test_saved_behind_a_symbolic_link(pipe, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "talk").symlink_to(tmp_path / "disk")
    talk = UniWeTokConversation(pipe)
    for _ in range(2):
        talk.save(tmp_path / "talk")
        (tmp_path / "talk" / "notes.txt").write_text("of the user")
    talk.save(tmp_path / "talk")
    assert (tmp_path / "talk").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [
        "conversation.json",
        "notes.txt",
        "pictures.safetensors",
    ]
    assert UniWeTokConversation.load(tmp_path / "disk", pipe).messages == []


def test_interrupted_turn_leaves_no_trace(pipe, answers_with_a_picture):
    def stop(pipe, step, count, tensors):
        assert tensors["codes"].shape[0] == 1 and count >= 1
        pipe._interrupt = step == 1

    talk, undisturbed = UniWeTokConversation(pipe), UniWeTokConversation(pipe)
    for one in (talk, undisturbed):
        one.say("draw", generator=seeded(0), **STEPS)
    with pytest.raises(InterruptedError, match="as it was before"):
        talk.say("again", generator=seeded(1), callback_on_step_end=stop, **STEPS)
    assert talk.messages == undisturbed.messages and len(talk.codes) == 1
    ours, theirs = (one.say("again", generator=seeded(1), **STEPS).codes[0] for one in (talk, undisturbed))
    assert torch.equal(ours, theirs)


def test_history_shows_pictures(pipe, answers_with_a_picture):
    talk = UniWeTokConversation(pipe)
    talk.say("draw", picture(64), generator=seeded(0), **STEPS)
    shown = talk.history
    assert [item["type"] for item in shown[0]["content"]] == ["image", "text"]
    assert isinstance(shown[0]["content"][0]["image"], Image.Image)
    assert isinstance(shown[1]["content"][0]["image"], Image.Image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "`text` is empty"),
        ({"text": "a <|im_end|>"}, "`text` must not hold the special tokens <|im_end|>"),
        ({"text": "draw " * 5000}, "25019 tokens, and 1 that follow them, are more than the 1024"),
        ({"text": "draw", "images": "absent.png"}, "absent.png"),
        ({"text": "draw", "height": 33}, "`height` must be a multiple of"),
        ({"text": "draw", "guidance_scale": "3"}, "`guidance_scale` must be a number, got '3'"),
        ({"text": "draw", "num_inference_steps": 0}, "`num_inference_steps` must be a whole number of 1 or more"),
    ],
)
def test_bad_turns(pipe, arguments, words):
    talk = UniWeTokConversation(pipe)
    with pytest.raises(ValueError, match=words.replace("|", r"\|")):
        talk.say(**arguments)
    assert talk.messages == [] and talk.codes == []


def test_an_answer_ends_where_the_positions_do(pipe):
    """And the conversation can't go on from there, which a longer answer would not have said."""
    talk, most = UniWeTokConversation(pipe), pipe.mllm.config.text_config.max_position_embeddings
    talk.say("a " * (most // 2 - 30), max_new_tokens=200)
    assert most - 60 < len(talk._ids) <= most + 1
    with pytest.raises(ValueError, match="are more than the 1024 that the model's positions reach"):
        talk.say("a", max_new_tokens=200)


def test_pictures_come_from_files_too(pipe, answers_with_a_picture, tmp_path):
    picture(64).save(tmp_path / "a.png")
    codes = []
    for shown in (picture(64), tmp_path / "a.png", [str(tmp_path / "a.png")]):
        talk = UniWeTokConversation(pipe)
        reply = talk.say("draw", images=shown, generator=seeded(0), **STEPS)
        codes.append(talk.codes)
    assert all(torch.equal(ours, first) for other in codes[1:] for ours, first in zip(other, codes[0], strict=True))
    assert "tensor" not in repr(reply)  # in a notebook: words and pictures, not bits


def test_bad_folders(pipe, tmp_path):
    with pytest.raises(ValueError, match="holds no conversation"):
        UniWeTokConversation.load(tmp_path, pipe)
    (tmp_path / "other.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        UniWeTokConversation(pipe).save(tmp_path)
    folder = UniWeTokConversation(pipe).save(tmp_path / "talk")
    record = json.loads((folder / "conversation.json").read_text())
    (folder / "conversation.json").write_text(json.dumps(record | {"version": 2}))
    with pytest.raises(ValueError, match="update uniwetok-hf"):
        UniWeTokConversation.load(folder, pipe)
    (folder / "conversation.json").write_text(json.dumps({"format": "chat"}))
    with pytest.raises(ValueError, match="holds no conversation"):
        UniWeTokConversation.load(folder, pipe)


def test_an_offloaded_model_is_put_away_after_each_turn(pipe, device):
    offloaded = build_tiny_pipeline(pipe.processor.patch_size)
    offloaded.register_to_config(default_size=pipe.config.default_size)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device=device)
    talk = UniWeTokConversation(offloaded)
    for _ in range(2):
        hook = offloaded.mllm._hf_hook
        talk.say("x", picture(64), max_new_tokens=2, **STEPS)
        assert offloaded.mllm._hf_hook is not hook
        assert next(offloaded.mllm.parameters()).device.type == "cpu"
