"""`uniwetok describe`, end to end."""

import shutil

import torch
from PIL import Image

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokProcessor
from uniwetok_hf.cli.loading import load_language_model
from uniwetok_hf.pipelines.writing import answer_question


def describe_by_hand(folder, path, question, max_new_tokens):
    mllm = UniWeTokForCausalLM.from_pretrained(folder, subfolder="mllm", dtype=torch.float32)
    processor = UniWeTokProcessor.from_pretrained(folder, subfolder="processor")
    ids = processor.tokenizer.convert_tokens_to_ids
    inputs = processor(
        images=[Image.open(path).copy()],
        text=[
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ],
    )
    pictures = inputs["pixel_values"]
    row, written = inputs["input_ids"], []
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = mllm(row, pixel_values=pictures).logits[0, -1].argmax().item()
        if token == ids("<|im_end|>"):
            break
        written.append(token)
        row = torch.cat([row, torch.tensor([[token]])], dim=1)
    return " ".join(processor.tokenizer.decode(written, skip_special_tokens=True).split())


def test_one_greedy_line_a_picture(succeeds, make_picture, pipeline_folder):
    for name, size, seed in (("a.png", (64, 64), 0), ("b.png", (90, 40), 1)):
        make_picture(name, *size, seed)
    lines = succeeds("describe", "a.png", "b.png", "--model", pipeline_folder, "--max-new-tokens", 8)
    assert lines == [
        f"{name}: {describe_by_hand(pipeline_folder, name, 'what is this?', 8)}" for name in ("a.png", "b.png")
    ]
    (line,) = succeeds("describe", "a.png", "--model", pipeline_folder, "--question", "why?", "--max-new-tokens", 3)
    assert line == f"a.png: {describe_by_hand(pipeline_folder, 'a.png', 'why?', 3)}"


def test_answers_end_with_the_turn(make_picture, pipeline_folder):
    make_picture("a.png", 64, 64)
    mllm, processor = load_language_model(str(pipeline_folder), "cpu")
    picture = Image.open("a.png").copy()
    (long,) = answer_question(mllm, processor, [picture], "why?", 12)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        mllm.lm_head.weight[end] = 0
        mllm.lm_head.weight[end] = 100 * mllm.lm_head.weight.mean(0)
    first = answer_question(mllm, processor, [picture, picture], "why?", 12)
    assert len(first) == 2 and first[0] == first[1]
    assert len(long) > 0


def test_bad_input(fails, photo, make_picture, pipeline_folder, workplace):
    model = ["--model", pipeline_folder]
    assert fails("describe", photo, "--question", " ", *model) == "--question is empty"
    asked = fails("describe", photo, "what is it?", *model)
    assert asked == "what is it?: no such file; a question goes into --question"
    assert fails("describe", photo, "--question", "why " * 3000, *model).startswith("`question`: ")
    make_picture("huge.png", 600, 40)
    assert fails("describe", "huge.png", *model).startswith("huge.png: `width` must be a multiple of 32")
    shutil.copytree(pipeline_folder, workplace / "broken")
    (workplace / "broken" / "processor" / "tokenizer.json").write_text("{")
    assert fails("describe", photo, "--model", "broken").startswith("broken/processor can't be loaded: ")
