import json
import shutil
import threading

import pytest
import torch
from chat_server import chat_server
from launched import commands_on_two
from tiny_models import TINY_TEXT, build_tiny_pipeline, build_tiny_text_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from uniwetok_hf.cli.main import main
from uniwetok_hf.evaluation.benchmarks import BENCHMARKS, collect_benchmark, run_benchmark
from uniwetok_hf.evaluation.benchmarks.rewriting import INSTRUCTIONS, load_rewriter
from uniwetok_hf.signals import Stopped


PROMPTS = ("a red circle", "two cats")


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "metadata.jsonl"
    rows = ({"tag": "counting", "include": [], "prompt": prompt} for prompt in PROMPTS)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A tiny language model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    text_tokenizer = build_tiny_text_tokenizer()
    text_tokenizer.chat_template = "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}\n{% endfor %}"
    ids = {"eos_token_id": text_tokenizer.eos_token_id, "pad_token_id": text_tokenizer.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(text_tokenizer), bos_token_id=None, **ids, **TINY_TEXT))
    model.generation_config.eos_token_id = list(range(len(text_tokenizer)))  # an answer of one token
    model.save_pretrained(folder)
    text_tokenizer.save_pretrained(folder)
    return str(folder)


def run(pipe, out, prompts, rewriter, name="geneval", stop=None):
    options = {"variant": "ours", "rewriter": rewriter, "num_inference_steps": 1, "stop": stop}
    return run_benchmark(BENCHMARKS[name], pipe, out, prompts, "someone/tiny", **options)


def pictures(out):
    return [path.read_bytes() for path in sorted((out / "images").rglob("*.png"))]


def test_a_server_rewrites_each_prompt_once(pipe, prompts, tmp_path):
    with chat_server(lambda prompt: f" on a table,\n\n{prompt} ") as (url, requests):
        run(pipe, tmp_path / "out", prompts, url)
        assert [path for path, _ in requests] == ["/v1/chat/completions"] * 2
        request = requests[0][1]
        assert request["model"] == "rewriter-7b" and request["temperature"] == 0
        assert request["messages"] == [{"role": "user", "content": f"{INSTRUCTIONS}\n\na red circle"}]
        saved = json.loads((tmp_path / "out" / "rewritten_prompts.json").read_text())
        assert saved["rewriter"] == url and saved["prompts"]["two cats"] == "on a table, two cats"
        next((tmp_path / "out").rglob("*.png")).unlink()
        run(pipe, tmp_path / "out", prompts, url)  # goes on with the prompts that it has
        assert len(requests) == 2
    run(pipe, tmp_path / "plain", prompts, None)
    assert pictures(tmp_path / "out") != pictures(tmp_path / "plain")
    metadata = json.loads((tmp_path / "out" / "images" / "00000" / "metadata.jsonl").read_text())
    assert metadata["prompt"] == "a red circle"  # what the judge asks about


def test_results_name_the_rewriter(pipe, prompts, tmp_path):
    with chat_server(lambda prompt: f"{prompt}, red") as (url, _):
        run(pipe, tmp_path / "out", prompts, url)
    lines = [
        {"filename": str(tmp_path / f"{index:05d}/samples/{k:05d}.png"), "tag": "counting", "correct": True}
        for index in range(2)
        for k in range(4)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = collect_benchmark(BENCHMARKS["geneval"], tmp_path / "out", tmp_path / "results.jsonl")
    assert report.protocol["prompts"] == report.split == "ours, rewritten by rewriter-7b"


def test_a_model_of_transformers(pipe, prompts, chat_folder, tmp_path):
    name, rewrite = load_rewriter(chat_folder)
    assert name in chat_folder
    answer = rewrite("two cats")
    assert answer and answer == rewrite("two cats") and "two cats" not in answer
    run(pipe, tmp_path / "out", prompts, chat_folder)
    saved = json.loads((tmp_path / "out" / "rewritten_prompts.json").read_text())
    assert saved["prompts"]["two cats"] == " ".join(answer.split())


def test_rewriters_that_are_none(pipe, prompts, chat_folder, tmp_path):
    with pytest.raises(ValueError, match="`rewriter` .*absent can't be loaded"):
        run(pipe, tmp_path / "out", prompts, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="`rewriter` http://127.0.0.1:9/v1 has no model that answers"):
        run(pipe, tmp_path / "again", prompts, "http://127.0.0.1:9/v1")
    answers = {
        "empty": ("  ", "stop", "answered 'a red circle' with nothing"),
        "thinking": ("<think>a red", "stop", "the answer to 'a red circle' is longer than 1024 tokens"),
        "cut": ("a red cir", "length", "the answer to 'a red circle' is longer than 1024 tokens"),
        "error": (None, "stop", "gave no answer to 'a red circle'"),
    }
    for name, (answer, reason, message) in answers.items():
        with chat_server(lambda _, answer=answer: answer, finish_reason=reason) as (url, requests):
            with pytest.raises(ValueError, match=message):
                run(pipe, tmp_path / name, prompts, url)
            assert len(requests) == 3  # as often as it is asked
    for name in ("out", "again", *answers):
        assert not (tmp_path / name).exists()  # the command can be corrected
    text_tokenizer = build_tiny_text_tokenizer()
    text_tokenizer.save_pretrained(tmp_path / "mute")
    shutil.copytree(chat_folder, tmp_path / "mute", dirs_exist_ok=True, ignore=lambda *_: ["chat_template.jinja"])
    with pytest.raises(ValueError, match="mute has no chat template"):
        load_rewriter(str(tmp_path / "mute"))


def test_a_stopped_run_keeps_its_answers(pipe, prompts, tmp_path):
    out, stop = tmp_path / "out", threading.Event()

    def answer(prompt):
        stop.set()  # while the first prompt is rewritten
        return f"{prompt}, red"

    with chat_server(answer) as (url, requests):
        with pytest.raises(Stopped, match="stopped before prompt 1 is rewritten; the same command continues"):
            run(pipe, out, prompts, url, stop=stop)
        assert len(requests) == 1 and not (out / "images").exists()
        run(pipe, out, prompts, url)
        assert len(requests) == 2 and not (out / "rewritten_parts").exists()
    saved = json.loads((out / "rewritten_prompts.json").read_text())
    assert saved["prompts"] == {prompt: f"{prompt}, red" for prompt in PROMPTS}


@pytest.mark.parametrize("bad", ["red<|im_end|>", "red " * 500, "red \ud83d"])
def test_an_answer_that_the_model_can_not_read(pipe, prompts, tmp_path, bad):
    with (
        chat_server(lambda prompt: bad if "cats" in prompt else f"{prompt}, red") as (url, _),
        pytest.warns(UserWarning, match="the answer to 'two cats' can't be used, the prompt stays as it is") as found,
    ):
        run(pipe, tmp_path / "out", prompts, url)
    assert sum("two cats" in str(warning.message) for warning in found) == 1
    saved = json.loads((tmp_path / "out" / "rewritten_prompts.json").read_text())
    assert saved["prompts"] == {"a red circle": "a red circle, red", "two cats": "two cats"}


def test_thoughts_are_left_out(pipe, prompts, tmp_path):
    with chat_server(lambda prompt: f"<think>\nwhat is {prompt}?\n</think>\n\n{prompt},\nred") as (url, _):
        run(pipe, tmp_path / "out", prompts, url)
    saved = json.loads((tmp_path / "out" / "rewritten_prompts.json").read_text())
    assert saved["prompts"]["two cats"] == "two cats, red"


@pytest.mark.slow
def test_two_processes_share_the_prompts(pipe, prompts, tmp_path):
    """A new run, and one that goes on where the second process has something left to do."""
    pipe.save_pretrained(tmp_path / "pipeline")
    begun, new = tmp_path / "begun", tmp_path / "new"
    with chat_server(lambda prompt: f"{prompt}, red") as (url, requests):
        options = ["--prompts", prompts, "--variant", "ours", "--steps", "1", "--batch-size", "4", "--rewriter", url]
        commands = [["benchmark", "geneval", str(tmp_path / "pipeline"), str(out), *options] for out in (begun, new)]
        assert main(commands[0]) == 0 and len(requests) == 2
        wanted = pictures(begun)
        next((begun / "images" / "00001").rglob("*.png")).unlink()
        printed = commands_on_two(*commands)
        assert len(requests) == 4 and printed[0].count("all pictures are there") == 2 and printed[1] == ""
    assert pictures(begun) == pictures(new) == wanted and len(wanted) == 8


def test_another_rewriter_needs_another_folder(pipe, prompts, tmp_path):
    with chat_server(lambda prompt: prompt) as (url, _):
        run(pipe, tmp_path / "out", prompts, url)
    with pytest.raises(ValueError, match="`rewriter`: .* was begun with"):
        run(pipe, tmp_path / "out", prompts, None)
    saved = tmp_path / "out" / "rewritten_prompts.json"
    saved.write_text(json.dumps({"rewriter": url, "prompts": {"two cats": "cats"}}))
    with pytest.raises(ValueError, match="rewritten_prompts.json lacks 'a red circle': it is of other prompts"):
        run(pipe, tmp_path / "out", prompts, url)
