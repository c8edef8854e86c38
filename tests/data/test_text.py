import pytest

from uniwetok_hf.data.text import train_text_vocabulary


TEXTS = ["waving hand", "a noto emoji of waving hand: dark skin tone"] * 5


def test_any_text_survives():
    vocabulary = train_text_vocabulary(TEXTS, 300, num_size_tokens=4, patch_size=2)
    for text in ("waving hand", "Ünï ☺ 漢字 \n\t tabs", "<|im_start|>user\nhi<|im_end|>"):
        assert vocabulary.decode(vocabulary(text).input_ids) == text


def test_special_tokens_are_single_and_in_a_row():
    vocabulary = train_text_vocabulary(TEXTS, 300, num_size_tokens=4, patch_size=2)
    sizes = vocabulary.convert_tokens_to_ids([f"<|res_{i}|>" for i in range(1, 5)])
    assert sizes == list(range(sizes[0], sizes[0] + 4))
    queries = vocabulary.convert_tokens_to_ids([f"<|query_{i}|>" for i in range(1, 4)])
    assert queries == list(range(queries[0], queries[0] + 3))
    assert len(vocabulary("<|vision_start|><|res_2|><|query_3|><|image_pad|>").input_ids) == 4
    assert len(vocabulary) == max(queries) + 1


def test_frequent_words_are_short():
    vocabulary = train_text_vocabulary(TEXTS, 320, num_size_tokens=1)
    assert len(vocabulary("waving").input_ids) < len("waving")


def test_the_assistants_header_ends_in_a_newline_of_its_own():
    vocabulary = train_text_vocabulary(["assistant\nwaving hand"] * 50, 320, num_size_tokens=1)
    tokens = vocabulary.convert_ids_to_tokens(vocabulary("assistant\nwaving").input_ids)
    assert "Ċ" in tokens


def test_no_room_for_bytes():
    with pytest.raises(ValueError, match="`vocab_size` must be 256 or more"):
        train_text_vocabulary(TEXTS, 255, num_size_tokens=1)
