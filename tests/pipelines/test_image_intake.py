"""A picture is preprocessed and encoded once, whatever is done with it."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import BITS, answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import (
    UniWeTokConversation,
    UniWeTokEditPipeline,
    UniWeTokImageProcessor,
    UniWeTokModel,
    UniWeTokPipeline,
)
from uniwetok_hf.pipelines.image_intake import EncodedImage, as_encoded_images
from uniwetok_hf.pipelines.writing import answer_question, generate_text


@pytest.fixture(scope="module")
def pipe() -> UniWeTokPipeline:
    pipe = build_tiny_pipeline()
    with_random_weights(pipe.mllm)
    return pipe


@pytest.fixture(scope="module")
def edit(pipe) -> UniWeTokEditPipeline:
    edit = UniWeTokEditPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    return edit


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Counts calls of `preprocess` and `encode` from here on."""
    counts = Counter()
    for owner, name in ((UniWeTokImageProcessor, "preprocess"), (UniWeTokModel, "encode")):

        def counted(self, *args, name=name, method=getattr(owner, name), **kwargs):
            counts[name] += 1
            return method(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    return counts


ONCE = {"preprocess": 1, "encode": 1}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("describe_first", [False, True])
@pytest.mark.parametrize("scales", [(1.0, None), (3.0, None), (3.0, 2.0)])
def test_an_edit_encodes_its_sources_once(edit, calls, describe_first, scales):
    """For the size, the description, all branches of guidance, and several results per source."""
    sources = [picture(60, 64), picture(60, 64, seed=1)]
    guidance_scale, image_guidance_scale = scales
    output = edit(
        sources,
        "make it green",
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        describe_first=describe_first,
        num_images_per_prompt=2,
        generator=seeded(0),
        output_type="latent",
    )
    assert output.images.shape == (4, BITS, 2, 2) and (output.descriptions is not None) == describe_first
    assert calls == ONCE


def test_a_turn_encodes_its_pictures_once(pipe, calls):
    """Whether it is answered with text or pictures; later turns don't encode them again."""
    answer_with_pictures(pipe.mllm, pipe.processor)
    talk = UniWeTokConversation(pipe)
    try:
        reply = talk.say("make it green", [picture(64, 64), picture(64, 64, seed=1)], generator=seeded(0))
        assert len(reply.images) == 1 and calls == ONCE
        talk.say("and red", generator=seeded(1))
        assert calls == ONCE
    finally:
        pipe.mllm.generation_config.sequence_bias = None


def test_an_answer_encodes_its_pictures_once(pipe, calls):
    pictures = [picture(64, 64), picture(64, 64, seed=1)]
    assert len(answer_question(pipe.mllm, pipe.processor, pictures, "what is this?", 5)) == 2
    assert calls == ONCE


def test_what_is_encoded_is_not_encoded_again(pipe, edit, calls):
    (source,) = edit.encode_image(picture(60, 90))
    assert calls == ONCE
    options = {"describe_first": True, "generator": seeded(0), "output_type": "latent"}
    codes = edit(source, "make it green", **options).images
    answer = answer_question(pipe.mllm, pipe.processor, [source], "what is this?", 5)
    assert calls == ONCE
    again = edit(picture(60, 90), "make it green", **options | {"generator": seeded(0)}).images
    assert torch.equal(codes, again)
    assert answer == answer_question(pipe.mllm, pipe.processor, [picture(60, 90)], "what is this?", 5)
    mixed = edit([source, picture(60, 90, seed=1)], "x", generator=[seeded(0), seeded(1)], output_type="latent").images
    alone = edit(picture(60, 90, seed=1), "x", generator=seeded(1), output_type="latent").images
    assert torch.equal(mixed[1], alone[0])


def test_codes_and_sizes_are_those_of_the_image_processor_and_the_tokenizer(pipe):
    pictures = [picture(60, 90), picture(32, 64, seed=1)]
    first, second = as_encoded_images(pipe.mllm, pipe.processor, pictures)
    assert (first.pixel_size, first.content_size) == ((64, 96), (60, 90))
    assert (second.pixel_size, second.content_size) == ((32, 64), (32, 64))
    for image, encoded in zip(pictures, (first, second), strict=True):
        codes = pipe.mllm.vision_model.encode(pipe.processor.image_processor(image)["pixel_values"]).codes[0]
        assert encoded.codes.dtype == torch.float32 and torch.equal(encoded.codes, codes)
    assert as_encoded_images(pipe.mllm, pipe.processor, []) == []


def test_codes_serve_as_pixels_do(pipe):
    """The model reads the codes as it would read the pictures themselves."""
    processor, pictures = pipe.processor, [picture(64, 64), picture(32, 64, seed=1)]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[text] * 2, images=pictures)
    inputs.pop("image_is_target")
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": processor.turn_end_token_id}
    rows = pipe.mllm.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    wanted = [" ".join(text.split()) for text in processor.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    assert generate_text(pipe.mllm, processor, [text] * 2, pictures, 6) == wanted


def test_a_picture_that_the_model_cannot_read_is_refused_before_it_is_encoded(pipe, edit, calls):
    with pytest.raises(ValueError, match="`width` must be a multiple of 32 from 32 to 512 pixels, got 608"):
        edit(picture(40, 600), "make it green")
    assert calls == {"preprocess": 1}


def test_it_runs_in_the_models_precision():
    low = build_tiny_pipeline().to(torch.bfloat16)
    (encoded,) = low.encode_image(picture(32, 32))
    assert isinstance(encoded, EncodedImage) and encoded.codes.dtype == torch.float32
    assert encoded.codes.abs().unique().tolist() == [1.0]
