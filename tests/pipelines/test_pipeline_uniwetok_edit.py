import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import BITS, seeded
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.modeling.codes_uniwetok import tokens_to_codes
from uniwetok_hf.modeling.flow_uniwetok import flow_step, flow_timesteps
from uniwetok_hf.pipelines import UniWeTokPipelineOutput


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipeline(request) -> UniWeTokEditPipeline:
    pipeline = UniWeTokEditPipeline.from_pipe(build_tiny_pipeline(request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def side(pipeline) -> int:
    """Pixels of a patch's side."""
    return 32 * pipeline.processor.patch_size


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def edit(pipeline: UniWeTokEditPipeline, image, prompt="make it green", seed: int = 0, **options) -> torch.Tensor:
    """Codes, unless told otherwise."""
    options = {"output_type": "latent", "generator": seeded(seed)} | options
    return pipeline(image, prompt, **options).images


def test_codes_are_those_of_generate_codes(pipeline, side):
    source = picture(side, 2 * side)
    inputs, negative = pipeline.processor.generation_inputs(["make it green"], side, 2 * side, images=[source])
    assert "pixel_values" not in negative
    wanted = pipeline.mllm.generate_codes(
        inputs["input_ids"],
        pixel_values=inputs["pixel_values"],
        negative_input_ids=negative["input_ids"],
        guidance_scale=3.0,
        num_inference_steps=4,
        generator=seeded(0),
    ).codes
    assert torch.equal(edit(pipeline, source, guidance_scale=3.0, num_inference_steps=4), wanted)


def test_source_and_instruction_matter(pipeline, side):
    codes = edit(pipeline, picture(2 * side, 2 * side))
    assert codes.abs().unique().tolist() == [1.0]
    assert not torch.equal(edit(pipeline, picture(2 * side, 2 * side, seed=1)), codes)
    assert not torch.equal(edit(pipeline, picture(2 * side, 2 * side), "make it red"), codes)
    assert torch.equal(edit(pipeline, picture(2 * side, 2 * side)), codes)


def test_size_is_the_sources_by_default(pipeline, side):
    p = pipeline.processor.patch_size
    assert edit(pipeline, picture(side, 2 * side)).shape == (1, BITS, p, 2 * p)
    assert edit(pipeline, picture(side + 1, side - 1)).shape == (1, BITS, 2 * p, p)  # as the model sees it
    assert edit(pipeline, picture(side, 2 * side), height=2 * side).shape == (1, BITS, 2 * p, 2 * p)
    assert edit(pipeline, picture(side, 2 * side), width=side).shape == (1, BITS, p, p)
    given = pipeline(picture(side, side), "x", height=2 * side, width=side, generator=seeded(0)).images[0]
    assert given.size == (side, 2 * side)


@pytest.mark.parametrize("sizes", [((1, 1), (1, 1)), ((1, 2), (2, 1))])
def test_a_batch_equals_single_edits(pipeline, side, sizes):
    """Sources of one size and of two, instructions of different lengths."""
    sources = [picture(h * side, w * side, seed=index) for index, (h, w) in enumerate(sizes)]
    prompts, size = ["green", "turn it upside down"], {"height": side, "width": side}
    together = edit(pipeline, sources, prompts, generator=[seeded(0), seeded(1)], **size)
    pictures = pipeline(sources, prompts, generator=[seeded(0), seeded(1)], output_type="pt", **size).images
    for row in range(2):
        assert torch.equal(edit(pipeline, sources[row], prompts[row], seed=row, **size)[0], together[row])
        alone = pipeline(sources[row], prompts[row], generator=seeded(row), output_type="pt", **size).images
        torch.testing.assert_close(pictures[row], alone[0], atol=1e-4, rtol=0)


def test_one_instruction_for_many_pictures(pipeline, side):
    sources = [picture(side, side, seed=index) for index in range(2)]
    one, each = (
        edit(pipeline, sources, prompt, generator=[seeded(0), seeded(1)]) for prompt in ("green", ["green", "green"])
    )
    assert torch.equal(one, each)
    assert not torch.equal(one[0], one[1])


def test_edits_of_one_picture_lie_side_by_side(pipeline, side):
    sources = [picture(side, side, seed=index) for index in range(2)]
    generators = [seeded(s) for s in range(4)]
    codes = edit(pipeline, sources, ["green", "red"], num_images_per_prompt=2, generator=generators)
    assert len(codes) == 4
    for index in range(4):
        source, prompt = sources[index // 2], ("green", "red")[index // 2]
        assert torch.equal(edit(pipeline, source, prompt, seed=index)[0], codes[index])


def test_guidance_strengthens_picture_and_words(pipeline, side):
    source = picture(2 * side, 2 * side)
    plain = edit(pipeline, source, guidance_scale=1.0)
    assert not pipeline.do_classifier_free_guidance
    assert not torch.equal(edit(pipeline, source, guidance_scale=6.0), plain)


def test_picture_and_words_have_scales_of_their_own(pipeline, side):
    """Written out from arXiv 2211.09800, equation 3, and docs/method.md 3.4."""
    source = picture(side, side)
    options = {"guidance_scale": 3.0, "negative_prompt": "leave it", "num_inference_steps": 1}
    codes = edit(pipeline, source, image_guidance_scale=2.0, **options)
    assert codes.abs().unique().tolist() == [1.0]

    processor, mllm, head = pipeline.processor, pipeline.mllm, pipeline.mllm.image_head
    prompts = [
        processor.generation_inputs([words], side, side, images=[source]) for words in ("make it green", "leave it")
    ]
    calls = [(inputs, [source]) for inputs, _ in prompts] + [(prompts[0][1], None)]
    conditions = []
    for inputs, pictures in calls:
        given = {"pixel_values": inputs["pixel_values"]} if pictures else {}
        hidden = mllm.model(input_ids=inputs["input_ids"], **given).last_hidden_state
        block = mllm.config.tokens_per_patch
        conditions.append(hidden[:, -block:] + mllm.model.positions([torch.zeros(1, *[processor.patch_size] * 2)]))
    noises = seeded(0)
    sample = torch.randn(1, block, BITS, generator=noises)
    grid = flow_timesteps(1, mllm.config.head_config.timestep_shift)
    for now, later in zip(grid, [grid[1], None], strict=True):
        words, image, nothing = (head(sample, now[None], condition) for condition in conditions)
        mixed = nothing + 2.0 * (image - nothing) + 3.0 * (words - image)
        noise = None if later is None else torch.randn(1, block, BITS, generator=noises)
        sample = flow_step(mixed, sample, now, later, noise)
    p = processor.patch_size
    assert torch.equal(codes, tokens_to_codes(sample.sign(), p, p, p))


def test_equal_scales_are_guidance_against_nothing(pipeline, side):
    source = picture(2 * side, side)
    plain = edit(pipeline, source, guidance_scale=3.0)
    assert torch.equal(edit(pipeline, source, guidance_scale=3.0, image_guidance_scale=3.0), plain)
    apart = edit(pipeline, source, guidance_scale=3.0, image_guidance_scale=1.0)
    assert not torch.equal(apart, plain)
    assert not torch.equal(
        edit(pipeline, source, guidance_scale=3.0, image_guidance_scale=1.0, negative_prompt="leave it"), apart
    )
    without = edit(pipeline, source, guidance_scale=1.0)
    assert torch.equal(edit(pipeline, source, guidance_scale=1.0, image_guidance_scale=3.0), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_of_another_leaves_the_model_its_dtype(dtype):
    pipe = build_tiny_pipeline().to(dtype=dtype)
    twin = UniWeTokEditPipeline.from_pipe(pipe)
    assert twin.mllm is pipe.mllm and {parameter.dtype for parameter in pipe.mllm.parameters()} == {dtype}
    assert UniWeTokPipeline.from_pipe(twin, dtype=torch.float16).dtype == torch.float16


def test_the_pictures_scale_keeps_its_proportion_to_that_of_the_words(side, pipeline, tmp_path):
    tuned = UniWeTokEditPipeline.from_pipe(
        pipeline,
        default_guidance_scale=4.0,
        default_image_guidance_scale=3.0,
        default_negative_prompt="leave it",
    )
    tuned.save_pretrained(tmp_path)
    loaded = UniWeTokEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    there_and_back = UniWeTokEditPipeline.from_pipe(UniWeTokPipeline.from_pipe(loaded))
    assert there_and_back.config.default_image_guidance_scale == 3.0
    assert there_and_back.config.default_negative_prompt == "leave it"
    source, leave = picture(side, side), {"negative_prompt": "leave it"}
    wanted = edit(pipeline, source, guidance_scale=4.0, image_guidance_scale=3.0, **leave)
    assert torch.equal(edit(loaded, source), wanted)
    wanted = edit(pipeline, source, guidance_scale=8.0, image_guidance_scale=6.0, **leave)
    assert torch.equal(edit(loaded, source, guidance_scale=8.0), wanted)
    assert torch.equal(edit(loaded, source, guidance_scale=1.0), edit(pipeline, source, guidance_scale=1.0))


def test_an_edit_in_a_batch_has_its_own_negative_prompt(pipeline, side):
    sources, generators = [picture(side, side, seed=index) for index in range(2)], [seeded(0), seeded(1)]
    options = {"guidance_scale": 3.0, "image_guidance_scale": 1.0}
    negatives = ["leave it", "do not change anything at all"]
    sources[1] = picture(side, 2 * side, seed=1)  # which is padded beside the other
    options |= {"height": side, "width": side}
    together = edit(pipeline, sources, negative_prompt=negatives, generator=generators, **options)
    for row in range(2):
        alone = edit(pipeline, sources[row], negative_prompt=negatives[row], seed=row, **options)
        assert torch.equal(alone[0], together[row])
    generators = [seeded(row) for row in (0, 5, 1, 6)]
    options |= {"num_images_per_prompt": 2, "negative_prompt": negatives}
    assert torch.equal(edit(pipeline, sources, generator=generators, **options)[::2], together)


def test_what_is_described_first_is_generated(pipeline, side):
    """The description is greedy, and the picture is generated behind it."""
    sources, prompts = [picture(side, side), picture(side, 2 * side, seed=1)], ["green", "turn it upside down"]
    options = {"height": side, "width": side, "guidance_scale": 3.0, "num_inference_steps": 2}
    generators = [seeded(0), seeded(1)]
    output = pipeline(sources, prompts, describe_first=True, generator=generators, output_type="latent", **options)
    assert len(output.descriptions) == 2 and all(output.descriptions)
    assert output.descriptions == pipeline.describe_results(sources, prompts)
    plain = pipeline(sources, prompts, generator=[seeded(0), seeded(1)], output_type="latent", **options)
    assert plain.descriptions is None and not torch.equal(plain.images, output.images)

    inputs, negative = pipeline.processor.generation_inputs(
        prompts, side, side, images=sources, descriptions=output.descriptions
    )
    wanted = pipeline.mllm.generate_codes(
        inputs["input_ids"],
        inputs["attention_mask"],
        pixel_values=inputs["pixel_values"],
        image_sizes=inputs["image_sizes"],
        negative_input_ids=negative["input_ids"],
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=[seeded(0), seeded(1)],
    ).codes
    assert torch.equal(output.images, wanted)
    for row in range(2):  # as alone
        alone = pipeline(
            sources[row], prompts[row], describe_first=True, generator=seeded(row), output_type="latent", **options
        )
        assert alone.descriptions == [output.descriptions[row]] and torch.equal(alone.images[0], wanted[row])


def test_a_description_counts_among_the_words(pipeline, side):
    """Guidance measures it against the picture with other words and no description."""
    source, options = picture(side, side), {"guidance_scale": 3.0, "num_inference_steps": 2}
    scales = options | {"image_guidance_scale": 2.0}
    output = pipeline(
        source,
        "green",
        describe_first=True,
        negative_prompt="leave it as it is",
        generator=seeded(0),
        output_type="latent",
        **scales,
    )
    processor = pipeline.processor
    inputs, negative = processor.generation_inputs(
        ["green"], side, side, images=[source], descriptions=output.descriptions
    )
    others, _ = processor.generation_inputs(["leave it as it is"], side, side, images=[source])
    wanted = pipeline.mllm.generate_codes(
        inputs["input_ids"],
        pixel_values=inputs["pixel_values"],
        negative_input_ids=negative["input_ids"],
        image_input_ids=others["input_ids"],
        generator=seeded(0),
        **scales,
    ).codes
    assert torch.equal(output.images, wanted)


def test_descriptions_are_the_most_likely_words_up_to_the_picture(pipeline, side):
    processor, mllm, source = pipeline.processor, pipeline.mllm, picture(side, side)
    inputs = processor(text=processor.request_texts(["green"], is_edit=True), images=[source])
    ids = inputs["input_ids"]
    ends = [processor.vision_start_token_id, processor.turn_end_token_id]
    for _ in range(64):
        logits = mllm(ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        if ids.shape[1] == inputs["input_ids"].shape[1]:  # something must be said
            logits[ends] = -torch.inf
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        if ids[0, -1] in ends:
            break
    written = ids[0, inputs["input_ids"].shape[1] :]
    words = processor.tokenizer.decode(written, skip_special_tokens=True)
    assert pipeline.describe_results([source], ["green"]) == [" ".join(words.split())]
    with pytest.raises(ValueError, match=r"`prompt`: \d+ tokens, and 64 that follow them, are more than the 1024"):
        pipeline(source, "green " * 165, describe_first=True)


def test_describing_first_is_a_default_of_the_pipeline(pipeline, side, tmp_path):
    UniWeTokEditPipeline.from_pipe(pipeline, default_describe_first=True).save_pretrained(tmp_path)
    loaded = UniWeTokEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    sources = [picture(side, side, seed=index) for index in range(2)]
    output = loaded(sources, "green", num_images_per_prompt=2, num_inference_steps=1, generator=seeded(0))
    assert len(output.images) == 4
    first, second = loaded.describe_results(sources, ["green"] * 2)
    assert output.descriptions == [first, first, second, second]
    assert loaded(sources, "green", describe_first=False, num_inference_steps=1).descriptions is None
    assert pipeline(sources, "green", num_inference_steps=1).descriptions is None


def test_output_types_and_tuple(pipeline, side):
    arguments = (picture(side, 2 * side), "make it green")
    output = pipeline(*arguments, generator=seeded(0), output_type="np")
    assert isinstance(output, UniWeTokPipelineOutput)
    assert output.images.shape == (1, side, 2 * side, 3)
    tensor = pipeline(*arguments, generator=seeded(0), output_type="pt", return_dict=False)
    assert isinstance(tensor, tuple)
    np.testing.assert_array_equal(tensor[0].permute(0, 2, 3, 1).numpy(), output.images)
    assert pipeline(*arguments, generator=seeded(0)).images[0].size == (2 * side, side)


def test_the_padding_of_the_source_is_cut_off(pipeline, side):
    """As the image processor does it: content sizes are those of `preprocess`."""
    height, width = side + 8, side - 4
    source = picture(height, width)
    codes = edit(pipeline, source)
    p = pipeline.processor.patch_size
    assert codes.shape == (1, BITS, 2 * p, p)
    padded = pipeline.decode(codes, seeded(1), "pt")
    assert padded.shape == (1, 3, 2 * side, side)
    cut = pipeline.decode(codes, seeded(1), "pt", [(height, width)])
    assert torch.equal(cut, padded[..., :height, :width])
    for kind, shape in (("pt", (1, 3, height, width)), ("np", (1, height, width, 3))):
        assert pipeline(source, "x", generator=seeded(0), output_type=kind).images.shape == shape
    assert pipeline(source, "x", generator=seeded(0)).images[0].size == (width, height)
    for given in ({"height": 2 * side}, {"width": side}, {"height": 2 * side, "width": side}):
        assert pipeline(source, "x", generator=seeded(0), **given).images[0].size == (side, 2 * side)
    pipeline.processor.image_processor.size = {"longest_edge": 2 * side}
    try:  # a large source is scaled down first
        assert pipeline(picture(4 * side, side), "x", generator=seeded(0)).images[0].size == (side // 2, 2 * side)
    finally:
        pipeline.processor.image_processor.size = None


def test_different_padding_in_a_batch_is_cut_off_for_pil_only(pipeline, side):
    """An array or a tensor has one size."""
    sources, call = [picture(side, side - 4), picture(side - 8, side, seed=1)], {"num_images_per_prompt": 2}
    pictures = pipeline(sources, "x", generator=seeded(0), **call).images
    assert [each.size for each in pictures] == [(side - 4, side)] * 2 + [(side, side - 8)] * 2
    array = pipeline(sources, "x", generator=seeded(0), output_type="np", **call).images
    assert array.shape == (4, side, side, 3)
    tensor = pipeline(sources, "x", generator=seeded(0), output_type="pt", **call).images
    assert tensor.shape == (4, 3, side, side)
    one_size = [picture(side, side - 4, seed=2), sources[0]]
    tensor = pipeline(one_size, "x", generator=seeded(0), output_type="pt", **call).images
    assert tensor.shape == (4, 3, side, side - 4)


@pytest.mark.parametrize("several", [torch.rand(4, 3, 64, 64), [[picture(64, 64), picture(64, 64, seed=1)]]])
def test_several_pictures_in_the_place_of_one_are_refused(pipeline, several):
    with pytest.raises(ValueError, match=r"`image` must be one picture, or a list of them; 1 here hold [24]\."):
        pipeline(several, "make it green")


def test_callback_and_interrupt(pipeline, side):
    seen = []

    def stop(pipe, step, total, tensors):
        seen.append((step, total, tensors["codes"].shape))
        pipe._interrupt = True

    p = pipeline.processor.patch_size
    codes = edit(pipeline, picture(side, 2 * side), callback_on_step_end=stop)
    assert seen == [(0, 2, codes.shape)]
    assert (codes[..., :p] != 0).all() and (codes[..., p:] == 0).all()


def test_runs_in_bfloat16(side, pipeline):
    low = UniWeTokEditPipeline(**build_tiny_pipeline(pipeline.processor.patch_size).components).to(torch.bfloat16)
    low.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "pt"}
    assert low(picture(side, side), "x", generator=seeded(0), **options).images.isfinite().all()


def test_call_signature():
    names = list(inspect.signature(UniWeTokEditPipeline.__call__).parameters)
    assert names[1:3] == ["image", "prompt"]
    own = ["image_guidance_scale", "negative_prompt", "describe_first"]
    others = list(inspect.signature(UniWeTokPipeline.__call__).parameters)
    assert [name for name in names[3:] if name not in own] == [name for name in others[2:] if name not in own]


def test_from_pipe_goes_both_ways_and_shares_the_parts(pipeline):
    text_to_image = UniWeTokPipeline.from_pipe(pipeline)
    back = UniWeTokEditPipeline.from_pipe(text_to_image)
    assert type(text_to_image) is UniWeTokPipeline and type(back) is UniWeTokEditPipeline
    assert text_to_image.mllm is pipeline.mllm is back.mllm
    for name in ("default_size", "default_num_inference_steps", "default_guidance_scale"):
        assert text_to_image.config[name] == pipeline.config[name] == back.config[name]
    text_to_image.set_progress_bar_config(disable=True)
    assert text_to_image("a cat", generator=seeded(0)).images[0].size == (64, 64)


def test_either_class_loads_the_same_folder(pipeline, side, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = UniWeTokEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(edit(loaded, picture(side, side)), edit(pipeline, picture(side, side)))
    text_to_image = UniWeTokPipeline.from_pretrained(tmp_path)
    text_to_image.set_progress_bar_config(disable=True)
    wanted = UniWeTokPipeline.from_pipe(pipeline)
    wanted.set_progress_bar_config(disable=True)
    generated = [pipe("a cat", generator=seeded(0), output_type="latent").images for pipe in (text_to_image, wanted)]
    assert torch.equal(*generated)


def test_pictures_of_different_sizes_need_a_size(pipeline, side):
    sources = [picture(side, side), picture(side, 2 * side)]
    with pytest.raises(ValueError, match="`image`.*`height` and `width`"):
        edit(pipeline, sources)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a <|image_pad|>"}, "prompt"),
        ({"image": []}, "prompt|image"),
        ({"image": None}, "image"),
        ({"image": "no such file.png"}, "image"),
        ({"height": 100}, "height"),
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"image_guidance_scale": "3"}, "image_guidance_scale"),
        ({"image_guidance_scale": float("nan")}, "image_guidance_scale"),
        ({"negative_prompt": "x" * 9000, "image_guidance_scale": 1.5}, "negative_prompt"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"negative_prompt": "<|im_end|>", "image_guidance_scale": 2.0, "guidance_scale": 3.0}, "negative_prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"output_type": "jpg"}, "output_type"),
        ({"generator": [seeded(0)] * 2}, "generator"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_wrong_arguments_are_named(pipeline, options, named):
    with pytest.raises(ValueError, match=named):
        pipeline(**{"image": picture(64, 64), "prompt": "a", "output_type": "latent"} | options)
