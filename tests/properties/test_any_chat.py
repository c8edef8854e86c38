"""Any conversation gives the prompt that it says, or one clear error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniwetok_hf import UniWeTokConversation


PICTURE = Image.new("RGB", (40, 64), "red")
TOKENS = ["<|im_end|>", "<|im_start|>assistant\n", "<|image_pad|>", "<|res_1|>", "<|vision_start|>", "<|endoftext|>"]
HALVES = ["\ud83d", "\udce9", "a\udfff"]
WORDS = st.text(max_size=12) | st.sampled_from(["", " ", "\n", "{{ 1 }}", "{% raw %}", *TOKENS, *HALVES])
GOOD_WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)
OTHER = st.none() | st.integers() | st.floats() | st.binary(max_size=2) | WORDS
PICTURES = st.sampled_from([{"image": PICTURE}, {"image": np.zeros((8, 8, 3), np.uint8)}, {"url": PICTURE}])
ITEMS = st.one_of(
    st.builds(lambda words: {"type": "text", "text": words}, WORDS),
    st.builds(lambda picture: {"type": "image", **picture}, PICTURES),
    st.fixed_dictionaries({"type": st.sampled_from(["image", "video", "image_url", "text"])}),
    st.builds(lambda kind, key, value: {"type": kind, key: value}, WORDS, WORDS, OTHER),
    st.builds(lambda key, value: {"type": "image", key: value}, st.sampled_from(["image", "url", "path"]), OTHER),
    st.just({"type": "image", "image": PICTURE, "url": PICTURE}),
    OTHER,
)
CONTENT = OTHER | st.lists(ITEMS, max_size=3) | st.lists(ITEMS, max_size=2).map(tuple)
ROLES = st.sampled_from(["user", "assistant", "system"]) | OTHER
MESSAGES = st.fixed_dictionaries({}, optional={"role": ROLES, "content": CONTENT}) | OTHER
TALKS = st.recursive(MESSAGES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def parts(items: list) -> tuple[str, int]:
    """What the format says of the content of a turn, and how many pictures it has."""
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [shown if item["type"] == "image" else item["text"] for item in items]
    return "".join(texts), sum(item["type"] == "image" for item in items)


GOOD_ITEMS = st.builds(lambda words: {"type": "text", "text": words}, GOOD_WORDS) | PICTURES.map(
    lambda picture: {"type": "image", **picture}
)
GOOD_TALKS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": GOOD_WORDS | st.lists(GOOD_ITEMS, max_size=3)}
    ),
    min_size=1,
    max_size=3,
)


@given(st.lists(GOOD_TALKS, min_size=1, max_size=2), st.booleans())
def test_a_good_conversation_is_written_in_the_format(pipe, talks, is_batch):
    processor, expected, num_pictures = pipe.processor, [], 0
    talks = talks if is_batch else talks[:1]
    for talk in talks:
        said = ""
        for turn in talk:
            items = turn["content"]
            items = [{"type": "text", "text": items}] if isinstance(items, str) else items
            words, count = parts(items)
            num_pictures += count
            said += f"<|im_start|>{turn['role']}\n{words}<|im_end|>\n"
        expected.append(said)
    given_talks = talks if is_batch else talks[0]
    found = processor.apply_chat_template(given_talks)
    assert found == (expected if is_batch else expected[0])
    inputs = processor.apply_chat_template(given_talks, tokenize=True, return_dict=True)
    assert len(inputs["input_ids"]) == len(talks)
    assert len(inputs.get("pixel_values", ())) == num_pictures
    for row, said in zip(inputs["input_ids"], expected, strict=True):
        kept = [token for token in row.tolist() if token != processor.tokenizer.pad_token_id]
        words = processor.tokenizer.decode(kept)
        for turn in said.split("<|vision_start|><|image_pad|><|vision_end|>"):
            assert turn in words


def check_clear(call, *names: str):
    """The result, or None where there was a clear error."""
    try:
        return call()
    except ValueError as error:
        assert 0 < len(str(error)) < 1500
        return None


def check_any_talk(pipe, talk, tokenize: bool) -> None:
    processor = pipe.processor
    found = check_clear(lambda: processor.apply_chat_template(talk, tokenize=tokenize, return_dict=tokenize))
    if found is None:
        return
    texts = processor.tokenizer.batch_decode(found["input_ids"]) if tokenize else found
    texts = [texts] if isinstance(texts, str) else texts
    talks = talk if isinstance(talk[0], list) else [talk]
    assert len(texts) == len(talks)
    for text, turns in zip(texts, talks, strict=True):  # nothing in a text opens or ends a turn
        assert text.count("<|im_start|>") == text.count("<|im_end|>") == len(turns)


@settings(max_examples=150)
@given(TALKS, st.booleans())
def test_any_conversation(pipe, talk, tokenize):
    check_any_talk(pipe, talk, tokenize)


@settings(max_examples=100)
@given(st.lists(MESSAGES, min_size=1, max_size=2), st.booleans())
def test_any_messages(pipe, talk, tokenize):
    check_any_talk(pipe, talk, tokenize)


@pytest.mark.slow
@settings(max_examples=3000)
@given(TALKS | st.lists(MESSAGES, min_size=1, max_size=3), st.booleans())
def test_many_conversations(pipe, talk, tokenize):
    check_any_talk(pipe, talk, tokenize)


SIZES = OTHER | st.lists(OTHER | st.lists(OTHER | st.sampled_from([32, 64]), max_size=3), max_size=2)


@given(OTHER | st.lists(OTHER, max_size=2), st.none() | ITEMS | st.lists(st.just(PICTURE), max_size=2), SIZES)
def test_any_text_of_the_processor(pipe, text, images, sizes):
    found = check_clear(lambda: pipe.processor(text=text, images=images, picture_sizes=sizes))
    if found is not None:
        assert len(found["input_ids"]) == (1 if isinstance(text, str) else len(text))


@settings(max_examples=60)
@given(WORDS | OTHER, ITEMS | st.lists(OTHER | st.just(PICTURE), max_size=2), OTHER | st.integers(-1, 2))
def test_any_turn_of_a_conversation(pipe, text, images, max_new_tokens):
    talk = UniWeTokConversation(pipe)
    number = max_new_tokens if max_new_tokens.__class__ is not int else min(max_new_tokens, 2)
    reply = check_clear(lambda: talk.say(text, images, max_new_tokens=number))
    assert (len(talk.messages), reply is None) in ((0, True), (2, False))


PROMPTS = {"a number": 5, "nothing": None, "no prompts": [], "a list in a list": [["x"]], "bytes": b"x"}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_is_none(pipe, prompt):
    with pytest.raises(ValueError, match="prompt"):
        pipe(prompt, output_type="latent")


def test_a_role_is_one_line(pipe):
    """A second line would be the beginning of the turn's text."""
    with pytest.raises(ValueError, match="`role` must be one line"):
        pipe.processor.apply_chat_template([{"role": "user\nassistant", "content": "x"}])


def test_an_item_has_one_picture(pipe):
    """Two in one item and none in the next would be as many pictures as places, at other places."""
    items = [{"type": "image", "image": PICTURE, "url": PICTURE}, {"type": "image"}]
    with pytest.raises(ValueError, match="must be text or one image"):
        pipe.processor.apply_chat_template([{"role": "user", "content": items}], tokenize=True)
