"""What users of transformers expect of a model that answers questions about pictures: its `pipeline`, and the options
of `generate`, each shown to do what it says."""

import pytest
import torch
from PIL import Image
from tiny_mllm import build, processor, seeded, shared
from transformers import CompileConfig, GenerationConfig, StoppingCriteria, TextStreamer, pipeline


def conversation(patch_size: int, *words: str) -> list[dict]:
    """A question about a picture of as many patches as words."""
    side = 32 * patch_size
    picture = Image.linear_gradient("L").convert("RGB").resize((side * len(words), side))
    return [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": " ".join(words)}]}
    ]


@pytest.fixture(params=[1, 2], ids=["single tokens", "patches"])
def patch_size(request) -> int:
    return request.param


@pytest.fixture
def inputs(patch_size, device) -> dict:
    """Two questions of different lengths about pictures of different sizes."""
    conversations = [conversation(patch_size, "what", "is", "it?"), conversation(patch_size, "why?")]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return dict(processor(patch_size).apply_chat_template(conversations, **options).to(device))


@pytest.fixture
def model(patch_size, device):
    return shared(patch_size).to(device)


def write(model, inputs: dict, **options) -> torch.Tensor:
    """The ids of 8 new tokens a row, greedy unless told otherwise."""
    written = model.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False} | options)
    return written[:, inputs["input_ids"].shape[1] :]


def first(inputs: dict) -> dict:
    """The first question alone, whose row has no padding."""
    width, height = inputs["image_sizes"][0].tolist()[::-1]
    picture = inputs["pixel_values"][:1, :, :height, :width]
    return {
        "input_ids": inputs["input_ids"][:1],
        "attention_mask": inputs["attention_mask"][:1],
        "pixel_values": picture,
    }


# --- pipeline("image-text-to-text") ---


def test_chat_pipeline_answers_like_generate(model, patch_size, device):
    chat = pipeline("image-text-to-text", model=model, processor=processor(patch_size), device=device)
    # Of one size: the pipeline stacks what is in a batch.
    questions = [conversation(patch_size, "what", "is", "it?"), conversation(patch_size, "o", "r", "why?")]
    options = {"generate_kwargs": {"max_new_tokens": 8, "do_sample": False}, "return_full_text": False}
    answers = [chat(text=question, **options)[0]["generated_text"] for question in questions]
    for question, answer in zip(questions, answers, strict=True):
        given = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        one = processor(patch_size).apply_chat_template(question, **given).to(device)
        [ids] = write(model, one)
        assert answer == processor(patch_size).decode(ids, skip_special_tokens=True)
    assert answers[0] != answers[1]
    batch = chat(text=questions, batch_size=2, **options)
    assert [answer[0]["generated_text"] for answer in batch] == answers


def test_chat_pipeline_loads_from_a_folder(tmp_path, patch_size):
    build(patch_size).save_pretrained(tmp_path)
    processor(patch_size).save_pretrained(tmp_path)
    chat = pipeline("image-text-to-text", model=str(tmp_path))
    assert type(chat.model).__name__ == "UniWeTokForCausalLM"
    full = chat(text=conversation(patch_size, "hm"), max_new_tokens=2)[0]["generated_text"]
    assert [turn["role"] for turn in full] == ["user", "assistant"]  # the conversation, one turn longer


# --- generate(generation_mode="image") ---


def test_a_picture_of_a_conversation(model, patch_size, inputs):
    """The codes that `generate_codes` makes, and nothing of the options that the prompt has besides."""
    chat = conversation(patch_size, "what", "else?")
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    size = {"height": 32 * patch_size, "width": 64 * patch_size}
    asked = dict(processor(patch_size).apply_chat_template(chat, **options, **size).to(model.device))
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    codes = model.generate(**asked, **settings, generation_mode="image", generator=seeded(0))
    needed = {name: value for name, value in asked.items() if name != "image_is_target"}
    assert torch.equal(codes, model.generate_codes(**needed, **settings, generator=seeded(0)).codes)
    assert codes.shape[2:] == (patch_size, 2 * patch_size)
    [picture] = processor(patch_size).post_process_multimodal_output(
        model.decode_image_tokens(codes), generation_mode="image"
    )
    assert picture.size == (size["width"], size["height"])
    config = GenerationConfig(guidance_scale=2.0)
    again = model.generate(
        **asked, generation_config=config, num_inference_steps=2, generation_mode="image", generator=seeded(0)
    )
    assert torch.equal(again, codes)


def test_options_of_the_other_mode_are_refused(model, inputs):
    with pytest.raises(ValueError, match="top_k"):
        model.generate(**inputs, generation_mode="image", top_k=3)
    with pytest.raises(ValueError, match="generation_mode"):
        model.generate(**inputs, generation_mode="audio")
    with pytest.raises(ValueError, match="`height` and `width`"):
        model.generate(**inputs, generation_mode="image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 64}, "both `height` and `width`"),
        ({"height": 64, "width": 50}, "`width` must be a multiple"),
        ({"height": 64, "width": 64, "add_generation_prompt": False}, "add_generation_prompt"),
    ],
    ids=str,
)
def test_sizes_that_a_prompt_cannot_have(patch_size, options, message):
    with pytest.raises(ValueError, match=message):
        processor(patch_size).apply_chat_template(
            conversation(patch_size, "x"), **{"add_generation_prompt": True, "tokenize": True} | options
        )


# --- generate ---


def test_sampling_options(model, inputs):
    greedy = write(model, inputs)
    assert torch.equal(write(model, inputs, do_sample=True, top_k=1), greedy)
    assert torch.equal(write(model, inputs, do_sample=True, top_k=0, top_p=1e-6), greedy)
    assert torch.equal(write(model, inputs, do_sample=True, top_k=0, temperature=1e-4), greedy)
    assert torch.equal(write(model, inputs, do_sample=True, top_k=0, min_p=1.0), greedy)
    torch.manual_seed(0)  # generate knows no generator
    sampled = write(model, inputs, do_sample=True, top_k=0)
    assert not torch.equal(sampled, greedy)


def test_beams_are_scored_by_what_the_model_says(model, inputs, patch_size):
    """Of rows with a picture each: every beam keeps its own row's."""
    length = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    found = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    one = first(inputs)
    for row in range(2):  # the two best of the first question
        ids = found.sequences[row : row + 1]
        with torch.no_grad():
            logits = model(**one | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        chances = logits[0, length - 1 : -1].log_softmax(-1).gather(1, ids[0, length:, None])
        torch.testing.assert_close(chances.mean(), found.sequences_scores[row], atol=1e-4, rtol=0)
    assert found.sequences_scores[0] >= found.sequences_scores[1]


def test_what_must_and_must_not_be_written(model, inputs):
    greedy = write(model, inputs)
    banned = greedy[0, 0].item()
    assert banned not in write(model, inputs, bad_words_ids=[[banned]])
    assert banned not in write(model, inputs, suppress_tokens=[banned])
    repeated = write(model, inputs, no_repeat_ngram_size=1)
    assert all(len(set(row)) == len(row) for row in repeated.tolist())


def test_stopping(model, inputs, patch_size):
    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            done = input_ids.shape[1] >= inputs["input_ids"].shape[1] + 3
            return torch.full((len(input_ids),), done, device=input_ids.device)

    greedy = write(model, inputs)
    assert torch.equal(write(model, inputs, stopping_criteria=[AfterThree()]), greedy[:, :3])
    one = first(inputs)
    [expected] = write(model, one).tolist()
    stop = expected[2]
    assert write(model, one, eos_token_id=stop)[0].tolist() == expected[: expected.index(stop) + 1]
    least = write(model, one, eos_token_id=stop, min_new_tokens=6)[0]
    assert len(least) >= 6


def test_a_text_ends_where_a_picture_begins(model, patch_size, inputs, tmp_path):
    """`<|vision_start|>` is followed by no words. So it is with folders that name the end of a turn alone, as they did
    once; what is asked for explicitly counts."""
    begin, end = model.config.vision_start_token_id, model.config.text_config.eos_token_id
    fresh = type(model)(model.config)
    assert fresh.generation_config.eos_token_id == [end, begin]
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config.eos_token_id = end
    fresh.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).to(model.device)
    assert loaded.generation_config.eos_token_id == [end, begin]

    one = first(inputs)
    bias = {"sequence_bias": {(begin,): 1000.0}}
    assert write(loaded, one, **bias).tolist() == [[begin]]
    assert write(loaded, one, **bias, eos_token_id=end).tolist() == [[begin] * 8]
    loaded.save_pretrained(tmp_path)
    assert type(loaded.generation_config).from_pretrained(tmp_path).eos_token_id == [end, begin]


def test_a_model_whose_texts_have_no_end_gets_none(patch_size, tmp_path):
    model = build(patch_size)  # names no end
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).generation_config.eos_token_id is None


def test_stop_strings(model, inputs, patch_size):
    words = processor(patch_size).tokenizer
    letters = [words.convert_tokens_to_ids(letter) for letter in "ab"]
    biased = {(token,): 100.0 for token in letters}
    written = write(model, inputs, sequence_bias=biased, stop_strings=["a", "b"], tokenizer=words)
    assert written.shape[1] == 1 and set(written.flatten().tolist()) <= set(letters)


def test_streamer_writes_the_answer_as_it_comes(model, inputs, patch_size, capsys):
    words = processor(patch_size).tokenizer
    one = first(inputs)
    streamer = TextStreamer(words, skip_prompt=True, skip_special_tokens=True)
    [ids] = write(model, one, streamer=streamer)
    assert capsys.readouterr().out == words.decode(ids, skip_special_tokens=True) + "\n"


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_caches_agree(model, inputs, options):
    assert torch.equal(write(model, inputs, **options), write(model, inputs))


@pytest.mark.parametrize("assistant", ["itself", "prompt lookup"])
def test_assisted_generation_changes_nothing(model, inputs, assistant):
    one = first(inputs)
    options = {"assistant_model": model} if assistant == "itself" else {"prompt_lookup_num_tokens": 3}
    assert torch.equal(write(model, one, **options), write(model, one))


@pytest.fixture
def compiler():
    """Nothing compiled is left: torch compiles a function eight times at most, and other tests compile this one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_steps_of_a_static_cache_are_compiled_to_one_graph(model, inputs, compiler):
    """As `generate` does by itself on a GPU: one graph for all steps, whatever the patch size."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiling = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    compiling._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiling}
    assert torch.equal(write(model, inputs, **options), write(model, inputs))
    assert len(graphs) == 1


def test_going_on_with_a_cache(model, inputs):
    """A second turn reads only what is new: the picture is in the cache."""
    one = first(inputs)
    start = model.generate(**one, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    turn = torch.cat([start.sequences, torch.tensor([[65, 66, 67]], device=start.sequences.device)], dim=1)
    longer = {"input_ids": turn, "attention_mask": torch.ones_like(turn)}
    cached = write(model, longer, past_key_values=start.past_key_values)
    assert torch.equal(cached, write(model, one | longer))


def test_padding_on_the_left_changes_nothing(model, inputs):
    """The second question, alone and beside a longer one."""
    real = inputs["attention_mask"][1].bool()
    assert not real.all()
    height, width = inputs["image_sizes"][1].tolist()
    alone = {name: inputs[name][1:, real] for name in ("input_ids", "attention_mask")}
    alone["pixel_values"] = inputs["pixel_values"][1:, :, :height, :width]
    assert torch.equal(write(model, alone), write(model, inputs)[1:])


def test_states_of_the_answer(inputs, patch_size, device):
    """One entry per step: first of the whole prompt, then of each token."""
    model = build(patch_size).to(device)
    model.set_attn_implementation("eager")  # the one that has attentions
    options = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)
    config, length = model.config.text_config, inputs["input_ids"].shape[1]
    for step, (states, attentions) in enumerate(zip(answer.hidden_states, answer.attentions, strict=True)):
        new = length if step == 0 else 1
        assert [tuple(one.shape) for one in states] == [(2, new, config.hidden_size)] * (config.num_hidden_layers + 1)
        shape = (2, config.num_attention_heads, new, length + step)
        assert [tuple(one.shape) for one in attentions] == [shape] * config.num_hidden_layers


def test_scores_of_the_answer(model, inputs):
    options = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    logits = torch.stack(answer.logits, dim=1)
    assert logits.shape == (2, 4, model.config.text_config.vocab_size)
    assert torch.equal(logits.argmax(-1), answer.sequences[:, -4:])
    chances = model.compute_transition_scores(answer.sequences, answer.scores, normalize_logits=True)
    assert (chances <= 0).all()
