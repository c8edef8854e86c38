import pytest
import torch
from PIL import Image
from tiny_models import NUM_SIZE_TOKENS, build_tiny_pipeline, build_tiny_processor, build_tiny_text_tokenizer
from transformers import AutoProcessor

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokPipeline, UniWeTokProcessor, embedded_path


GIVEN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(params=[1, 2])
def processor(request) -> UniWeTokProcessor:
    return build_tiny_processor(request.param)


def picture(height: int, width: int, colour: str = "teal") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def queries(patch_size: int) -> str:
    return "".join(f"<|query_{n}|>" for n in range(1, patch_size**2))


def expanded(height: int, width: int, patch_size: int) -> str:
    """A given picture of so many tokens."""
    tokens = "<|image_pad|>" * (height * width)
    return f"<|vision_start|><|res_{height}|><|res_{width}|>{queries(patch_size)}{tokens}<|vision_end|>"


def texts_of(processor: UniWeTokProcessor, inputs) -> list[str]:
    """The rows without their padding."""
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [processor.tokenizer.decode(ids[mask]) for ids, mask in rows]


# --- what is written ---


def test_prompt_of_single_tokens_as_published():
    inputs, negative = build_tiny_processor(1).generation_inputs(["a red apple"], 64, 96)
    assert texts_of(build_tiny_processor(1), inputs) == [
        "<|im_start|>user\na red apple<|im_end|>\n<|im_start|>assistant\n<|vision_start|><|res_2|><|res_3|>"
    ]
    assert texts_of(build_tiny_processor(1), negative) == ["<|im_start|>assistant\n<|vision_start|><|res_2|><|res_3|>"]


def test_prompt_of_patches_as_published():
    processor = build_tiny_processor(2)
    inputs, negative = processor.generation_inputs(["a red apple"], 64, 128)
    tail = "<|im_start|>assistant\n<|vision_start|><|res_2|><|res_4|><|query_1|><|query_2|><|query_3|>"
    assert texts_of(processor, inputs) == ["<|im_start|>user\na red apple<|im_end|>\n" + tail]
    assert texts_of(processor, negative) == [tail]


def test_edit_prompt_shows_the_picture_first(processor):
    side, tokens = 32 * processor.patch_size, processor.patch_size
    inputs, negative = processor.generation_inputs(
        ["make it green", "add a hat"], side, side, images=[picture(side, side), picture(side, 2 * side)]
    )
    tail = f"<|im_start|>assistant\n<|vision_start|><|res_{tokens}|><|res_{tokens}|>{queries(processor.patch_size)}"
    assert texts_of(processor, inputs) == [
        f"<|im_start|>user\n{expanded(tokens, width, processor.patch_size)}{words}<|im_end|>\n{tail}"
        for width, words in ((tokens, "make it green"), (2 * tokens, "add a hat"))
    ]
    assert texts_of(processor, negative) == [tail]
    assert "pixel_values" not in negative
    assert inputs["image_is_target"].tolist() == [False, False]


def test_a_description_stands_between_the_request_and_the_picture(processor):
    side, tokens = 32 * processor.patch_size, processor.patch_size
    prompts, images = ["make it green", "add a hat"], [picture(side, side), picture(side, 2 * side)]
    plain, nothing = processor.generation_inputs(prompts, side, side, images=images)
    inputs, negative = processor.generation_inputs(
        prompts, side, side, images=images, descriptions=["a green square", "a man: hat"]
    )
    start = f"<|vision_start|><|res_{tokens}|><|res_{tokens}|>{queries(processor.patch_size)}"
    asked = processor(text=processor.request_texts(prompts, is_edit=True), images=images)
    for index, words in enumerate(("a green square", "a man: hat")):
        request = texts_of(processor, asked)[index]
        assert request.endswith(f"{prompts[index]}<|im_end|>\n<|im_start|>assistant\n")
        assert texts_of(processor, plain)[index] == request + start
        assert texts_of(processor, inputs)[index] == request + words + start
    assert torch.equal(negative["input_ids"], nothing["input_ids"])
    assert torch.equal(asked["pixel_values"], inputs["pixel_values"])
    with pytest.raises(ValueError, match="`prompt` must not hold the special tokens"):
        processor.request_texts(["<|im_end|>"], is_edit=True)
    with pytest.raises(ValueError, match="`negative_prompt` must not hold the special tokens"):
        processor.generation_inputs(["<|im_end|>"], side, side, argument="negative_prompt")


def test_chat_template_of_a_conversation(processor):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Draw it."},
    ]
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{GIVEN}What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nDraw it.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with_start = processor.apply_chat_template(conversation, add_generation_prompt=True, picture_tokens="<|res_1|>")
    assert with_start.endswith("<|im_start|>assistant\n<|vision_start|><|res_1|>")


def test_template_tokenizes_the_pictures_in_the_messages(processor):
    side = 32 * processor.patch_size
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": picture(side, side)}, {"type": "text", "text": "?"}]}
    ]
    inputs = processor.apply_chat_template([conversation], add_generation_prompt=True, tokenize=True, return_dict=True)
    p = processor.patch_size
    assert texts_of(processor, inputs) == [
        f"<|im_start|>user\n{expanded(p, p, p)}?<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert inputs["pixel_values"].shape == (1, 3, side, side)
    apart = processor(
        text=processor.apply_chat_template([conversation], add_generation_prompt=True), images=[picture(side, side)]
    )
    assert torch.equal(inputs["input_ids"], apart["input_ids"])
    assert torch.equal(inputs["pixel_values"], apart["pixel_values"])


# --- what is returned ---


def test_texts_are_padded_left(processor):
    inputs = processor(text=["a", "bcd"])
    pad = processor.tokenizer.pad_token_id
    assert inputs["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert inputs["input_ids"][0, :2].tolist() == [pad, pad]
    assert texts_of(processor, inputs) == ["a", "bcd"]
    assert "pixel_values" not in inputs and "labels" not in inputs


def test_pictures_come_one_way_only(processor):
    with pytest.raises(ValueError, match="`images` or `picture_sizes`"):
        processor(
            text="<|vision_start|><|image_pad|><|vision_end|>", images=[picture(32, 32)], picture_sizes=[(32, 32)]
        )


def test_texts_are_padded_left_whatever_the_tokenizer_prefers(tmp_path):
    """Text tokenizers pad on the right unless they say otherwise, which spoils what is written after it."""
    text_tokenizer = build_tiny_text_tokenizer()
    text_tokenizer.padding_side = "right"
    processor = UniWeTokProcessor(UniWeTokImageProcessor(stride=32), text_tokenizer)
    processor.save_pretrained(tmp_path)
    for each in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert each(text=["a", "bcd"])["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
        inputs, _ = each.generation_inputs(["a", "bcd"], 64, 64)
        assert inputs["attention_mask"][:, 0].tolist() == [0, 1]
    assert processor(text=["a", "bcd"], padding_side="right")["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_pictures_of_one_size_are_a_batch_in_minus_one_to_one(processor):
    side = 32 * processor.patch_size
    inputs = processor(text=[GIVEN + "x", GIVEN], images=[picture(side, side, "white"), picture(side, side, "black")])
    assert inputs["pixel_values"].shape == (2, 3, side, side)
    assert inputs["pixel_values"].dtype == torch.float32
    assert inputs["pixel_values"][0].unique().tolist() == [1.0]
    assert inputs["pixel_values"][1].unique().tolist() == [-1.0]
    assert "image_sizes" not in inputs
    assert not {"original_sizes", "content_sizes"} & set(inputs)  # model(**inputs) must work


def test_mixed_sizes_are_padded_and_told(processor):
    p, side = processor.patch_size, 32 * processor.patch_size
    images = [picture(side, 2 * side, "white"), picture(3 * side, side, "white")]
    inputs = processor(text=[GIVEN * 2], images=images)
    assert inputs["pixel_values"].shape == (2, 3, 3 * side, 2 * side)
    assert inputs["image_sizes"].tolist() == [[side, 2 * side], [3 * side, side]]
    for pixels, (height, width) in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True):
        assert (pixels[:, :height, :width] == 1).all()
        assert (pixels[:, height:] == 0).all() and (pixels[:, :, width:] == 0).all()
    assert texts_of(processor, inputs) == [expanded(p, 2 * p, p) + expanded(3 * p, p, p)]


def test_pictures_off_the_grid_are_brought_to_it(processor):
    p, side = processor.patch_size, 32 * processor.patch_size
    inputs = processor(text=GIVEN, images=picture(side + 1, side - 1))
    assert inputs["pixel_values"].shape == (1, 3, 2 * side, side)
    assert texts_of(processor, inputs) == [expanded(2 * p, p, p)]


def test_options_reach_the_image_processor(processor):
    p, side = processor.patch_size, 32 * processor.patch_size
    size = {"height": 2 * side, "width": side}
    for options in ({"size": size}, {"images_kwargs": {"size": size}}):
        inputs = processor(text=GIVEN, images=picture(side, side), **options)
        assert inputs["pixel_values"].shape == (1, 3, 2 * side, side)
        assert texts_of(processor, inputs) == [expanded(2 * p, p, p)]


def conversation_of_many_turns(side: int) -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(side, 2 * side)}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Draw assistant"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "So:"}, {"type": "image", "image": picture(side, side)}],
        },
    ]


def test_labels_are_what_the_assistant_says(processor):
    conversation = conversation_of_many_turns(32 * processor.patch_size)
    inputs = processor.apply_chat_template(
        [conversation, conversation[2:]], tokenize=True, return_dict=True, return_labels=True
    )
    labels, ids = inputs["labels"], inputs["input_ids"]
    assert labels.shape == ids.shape and labels.dtype == torch.long
    said = labels != -100
    assert torch.equal(labels[said], ids[said])
    # It learns to begin a picture and to end its turn, and nothing about sizes, queries and image tokens.
    drawing = "So:<|vision_start|><|im_end|>"
    assert [processor.tokenizer.decode(row[row != -100]) for row in labels] == ["A cat.<|im_end|>" + drawing, drawing]
    assert not said[1][inputs["attention_mask"][1] == 0].any()


def test_the_text_is_that_of_the_earlier_template(processor, fixtures):
    earlier = (fixtures / "saved_by_84bac22/pipeline/processor/chat_template.jinja").read_text(encoding="utf-8")
    assert "generation -%}" in processor.chat_template and "generation -%}" not in earlier
    conversation = [
        {"role": "system", "content": ""},
        *conversation_of_many_turns(32),
        {"role": "user", "content": []},
        {
            "role": "assistant",
            "content": [{"type": "image"}, {"type": "text", "text": "\n{{ € }} "}, {"type": "image"}],
        },
        {"role": "tool", "content": "\n"},
        {"role": "assistant", "content": "\n\n"},
    ]
    conversations = [conversation[start:stop] for start in range(9) for stop in range(start + 1, 10)]
    for options in (
        {},
        {"add_generation_prompt": True},
        {"add_generation_prompt": True, "picture_tokens": "<|res_1|>"},
    ):
        old = processor.apply_chat_template(conversations, chat_template=earlier, **options)
        assert processor.apply_chat_template(conversations, **options) == old


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_mask_of_the_assistant_is_that_of_the_labels(processor, padding_side):
    side = 32 * processor.patch_size
    conversation = conversation_of_many_turns(side)
    conversation[-1]["content"].append({"type": "text", "text": "€!"})
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    common = {"return_labels": True, "padding_side": padding_side}
    shown = processor.apply_chat_template([conversation, conversation[2:]], **options, processor_kwargs=common)
    masks = torch.tensor(shown["assistant_masks"]).bool()
    assert torch.equal(masks, shown["labels"] != -100)
    assert processor.decode(shown["input_ids"][1][masks[1]]) == "So:<|vision_start|>€!<|im_end|>"

    for turn in conversation:  # the pictures come as codes
        items = turn["content"] if isinstance(turn["content"], list) else []
        turn["content"] = [{k: v for k, v in item.items() if k != "image"} for item in items] or turn["content"]
    sizes = {"picture_sizes": [(side, 2 * side), (side, side), (side, side)]}
    told = processor.apply_chat_template([conversation, conversation[2:]], **options, processor_kwargs=common | sizes)
    assert set(shown) - set(told) == {"pixel_values", "image_sizes"}
    assert told["assistant_masks"] == shown["assistant_masks"]


def test_the_embedded_model_has_the_template():
    embedded = UniWeTokProcessor.from_pretrained(embedded_path("uniwetok-emoji") / "processor")
    assert embedded.chat_template == build_tiny_processor().chat_template


def test_pictures_of_the_assistant_are_targets(processor):
    conversation = conversation_of_many_turns(32 * processor.patch_size)
    inputs = processor.apply_chat_template([conversation, conversation[2:]], tokenize=True, return_dict=True)
    assert inputs["image_is_target"].tolist() == [False, True, True]
    assert "labels" not in inputs


def test_sizes_stand_for_pictures_that_come_as_codes(processor):
    side = 32 * processor.patch_size
    conversation = conversation_of_many_turns(side)
    texts = [processor.apply_chat_template(conversation), processor.apply_chat_template(conversation[2:])]
    sizes = [(side, 2 * side), (side, side), (side, side)]
    with_pictures = processor(text=texts, images=[picture(*size) for size in sizes], return_labels=True)
    with_sizes = processor(text=texts, picture_sizes=sizes, return_labels=True)
    assert set(with_pictures) - set(with_sizes) == {"pixel_values", "image_sizes"}
    for name in with_sizes:
        assert torch.equal(with_sizes[name], with_pictures[name]), name
    with pytest.raises(ValueError, match="picture_sizes"):
        processor(text=texts, picture_sizes=sizes[:2])


def test_rows_may_stay_lists(processor):
    inputs = processor(text=["x", "<|im_start|>assistant\ny"], padding=False, return_tensors=None, return_labels=True)
    assert [len(row) for row in inputs["labels"]] == [len(row) for row in inputs["input_ids"]]
    assert inputs["labels"][0] == [-100]
    assert inputs["labels"][1][-2:] == [-100, inputs["input_ids"][1][-1]]


def test_a_picture_left_to_be_drawn_is_not_counted(processor):
    """Its `<|vision_start|>` ends the prompt; `image_is_target` is about the pictures that are given."""
    side = 32 * processor.patch_size
    inputs, _ = processor.generation_inputs(["x"], side, side, images=[picture(side, side)])
    assert len(inputs["image_is_target"]) == len(inputs["pixel_values"]) == 1


def test_names_of_inputs_are_complete(processor):
    side = 32 * processor.patch_size
    inputs = processor(text=GIVEN * 2, images=[picture(side, side), picture(side, 2 * side)])
    assert set(inputs) == set(processor.model_input_names)


def test_number_of_placeholders_can_be_asked(processor):
    p, side = processor.patch_size, 32 * processor.patch_size
    asked = processor._get_num_multimodal_tokens([(side, side), (side + 1, side)])
    assert asked["num_image_tokens"] == [p * p, 2 * p * p]
    size = {"height": 2 * side, "width": side}
    assert processor._get_num_multimodal_tokens([(5, 7)], size=size)["num_image_tokens"] == [2 * p * p]
    small = build_tiny_processor(p)
    small.image_processor.size = {"longest_edge": side}
    assert small._get_num_multimodal_tokens([(9 * side, side)])["num_image_tokens"] == [p * p]


# --- errors ---


def test_text_is_required(processor):
    with pytest.raises(ValueError, match="text"):
        processor(images=picture(64, 64))


@pytest.mark.parametrize("text, count", [("x", 1), (GIVEN, 2), (GIVEN * 2, 1), (GIVEN, 0)])
def test_pictures_and_placeholders_must_match(processor, text, count):
    with pytest.raises(ValueError, match="image"):
        processor(text=text, images=[picture(64, 64)] * count or None)


@pytest.mark.parametrize("text, options", [("<|image_pad|>", {}), (GIVEN, {"truncation": True, "max_length": 3})])
def test_pictures_must_be_whole(processor, text, options):
    with pytest.raises(ValueError, match="image|text"):
        processor(text=text, images=picture(64, 64), **options)


@pytest.mark.parametrize("side", [0, -64, 33, 32 * NUM_SIZE_TOKENS + 64])
def test_sizes_to_draw_are_checked(processor, side):
    with pytest.raises(ValueError, match="`height` must be a multiple of"):
        processor.picture_tokens(side, 64)
    with pytest.raises(ValueError, match="`width` must be a multiple of"):
        processor.picture_tokens(64, side)
    with pytest.raises(ValueError, match="`height` must be a multiple of"):
        processor.check_size(side, None)
    processor.check_size(None, 64)


def test_drawing_sizes_are_multiples_of_a_patch():
    assert build_tiny_processor(1).picture_tokens(32, 64) == "<|res_1|><|res_2|>"
    with pytest.raises(ValueError, match="multiple of 64"):
        build_tiny_processor(2).picture_tokens(32, 64)


def test_largest_size_is_the_vocabularys():
    side = 32 * NUM_SIZE_TOKENS
    assert build_tiny_processor(1).picture_tokens(side, side) == f"<|res_{NUM_SIZE_TOKENS}|>" * 2


def test_a_picture_larger_than_the_vocabulary_is_refused(processor):
    with pytest.raises(ValueError, match="width"):
        processor(text=GIVEN, images=picture(64, 32 * NUM_SIZE_TOKENS + 1))


def test_image_processor_must_fit_the_patches():
    with pytest.raises(ValueError, match="stride"):
        UniWeTokProcessor(UniWeTokImageProcessor(stride=32), build_tiny_text_tokenizer(2), patch_size=2, stride=32)


def test_vocabulary_must_have_the_queries():
    with pytest.raises(ValueError, match=r"tokenizer.*<\|query_4\|>"):
        UniWeTokProcessor(UniWeTokImageProcessor(stride=96), build_tiny_text_tokenizer(2), patch_size=3, stride=32)


# --- saving ---


def test_saved_and_loaded(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is UniWeTokProcessor
    assert type(loaded.image_processor) is UniWeTokImageProcessor
    assert (loaded.patch_size, loaded.stride) == (processor.patch_size, 32)
    conversation = conversation_of_many_turns(32 * processor.patch_size)
    options = {"tokenize": True, "return_dict": True, "return_labels": True}
    before = processor.apply_chat_template([conversation, conversation[2:]], **options)
    after = loaded.apply_chat_template([conversation, conversation[2:]], **options)
    assert set(before) == set(after)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_own_template_is_kept(tmp_path):
    processor = build_tiny_processor()
    own = UniWeTokProcessor(
        processor.image_processor, processor.tokenizer, chat_template="{{ messages[0]['content'] }}!", stride=32
    )
    own.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).apply_chat_template([{"role": "user", "content": "x"}]) == "x!"


@pytest.mark.parametrize("fields", [{"stride": 0.5}, {"stride": 0}, {"patch_size": True}, {"patch_size": None}])
def test_sides_are_whole_numbers(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}` must be a whole number"):
        UniWeTokProcessor(UniWeTokImageProcessor(stride=32), build_tiny_text_tokenizer(), **fields)


def test_a_vocabulary_without_padding_is_refused():
    tokenizer = build_tiny_text_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="`tokenizer` has no `pad_token`"):
        UniWeTokProcessor(UniWeTokImageProcessor(), tokenizer)


@pytest.mark.parametrize("field", ["image_token_id", "vision_start_token_id", "size_token_id", "query_token_id"])
def test_a_model_with_other_tokens_is_refused(field):
    pipeline = build_tiny_pipeline(2)
    setattr(pipeline.mllm.config, field, getattr(pipeline.mllm.config, field) + 1)
    with pytest.raises(ValueError, match=f"must be made for each other: .* by `{field}`"):
        UniWeTokPipeline(**pipeline.components)


@pytest.mark.parametrize("field", ["stride", "patch_size"])
def test_a_model_with_other_sizes_of_tokens_is_refused(field):
    pipeline = build_tiny_pipeline(2)
    own = {"stride": 32, "patch_size": 2}
    other = {"stride": (64, 2), "patch_size": (32, 1)}[field]
    processor = UniWeTokProcessor(
        UniWeTokImageProcessor(stride=128), pipeline.processor.tokenizer, stride=other[0], patch_size=other[1]
    )
    with pytest.raises(ValueError, match=f"`{field}` of the processor is .*, that of the model {own[field]}"):
        UniWeTokPipeline(**pipeline.components | {"processor": processor})


def test_a_model_with_more_sizes_is_refused():
    pipeline = build_tiny_pipeline()
    pipeline.mllm.config.num_size_tokens = 10**30
    with pytest.raises(ValueError, match=f"must be at most {NUM_SIZE_TOKENS}"):
        UniWeTokPipeline(**pipeline.components)
