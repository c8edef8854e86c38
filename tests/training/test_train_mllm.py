"""The language model's training, for real but tiny: it runs, stops anywhere, resumes exactly, hands over to a finetune
or to larger patches, and saves what the package can load."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_encoded import (
    build_vision,
    encode,
    language_training,
    later,
    pictures,
    run,
    stop_before,
)
from tiny_language import LLAMA, save_language_model
from tiny_training import assert_names_no_folder_of, assert_same_weights, log_lines, train_file, write
from transformers import LlamaConfig

from uniwetok_hf import UniWeTokModel, UniWeTokPipeline
from uniwetok_hf.data.samples import stream_seed
from uniwetok_hf.provenance import LossModel, read_training_record, training_record
from uniwetok_hf.training import train_mllm
from uniwetok_hf.training.checkpoints import list_checkpoints
from uniwetok_hf.training.config import CONFIGS, find_config, read_config, shipped_configs
from uniwetok_hf.training.run import choose_parameters
from uniwetok_hf.training.stage import finished
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig, TaskMetrics, frozen_patterns


MODEL = ("pipeline", "mllm", "model.safetensors")


def interrupt_at(step: int, monkeypatch, times: int = 1) -> None:
    """Ctrl-C is pressed in this step."""
    train_step = MLLMTrainer.train_step

    def interrupted(trainer, micro_batches, current):
        for _ in range(times if current == step else 0):
            os.kill(os.getpid(), signal.SIGINT)
        train_step(trainer, micro_batches, current)

    monkeypatch.setattr(MLLMTrainer, "train_step", interrupted)


def test_an_interrupt_waits_for_the_step_and_a_second_does_not(fields, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 1;"):
        interrupt_at(0, patch)
        run(fields, tmp_path, checkpointing_steps=100)
    folder = tmp_path / "run"
    assert [found.name for found in list_checkpoints(folder)] == ["step-000001"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="^$"):
        interrupt_at(1, patch, times=2)
        run(fields, tmp_path, checkpointing_steps=100)
    assert [found.name for found in list_checkpoints(folder)] == ["step-000001"]
    # In the last step there is nothing to stop but what comes after the training.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="is finished"):
        interrupt_at(fields["max_train_steps"] - 1, patch)
        run(fields, tmp_path, checkpointing_steps=100)
    assert (folder / "pipeline").is_dir() and signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_is_ignored_stays_ignored(fields, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            interrupt_at(1, patch)
            assert run(fields, tmp_path, validation_data=[]).is_dir()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """A training on the library's tasks."""
    return language_training(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(fields, folder, prompts=["a red square of 12 pixels"])


def weights(path) -> dict[str, torch.Tensor]:
    return load_file(path.joinpath(*MODEL))


def test_a_run_leaves_a_pipeline_and_metrics(trained, fields):
    pipeline = UniWeTokPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32)
    assert pipeline.config.default_size == 32 and pipeline.config.default_num_inference_steps == 2
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    assert pipeline("a red square of 12 pixels", generator=generator).images[0].size == (32, 32)
    for name, tensor in UniWeTokModel.from_pretrained(fields["vision_model"]).state_dict().items():
        assert torch.equal(pipeline.mllm.vision_model.state_dict()[name], tensor), name

    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    metrics = {name for line in lines for name in line}
    wanted = {"loss", "grad_norm", "bit_accuracy", "learning_rate", "samples_per_second", "tokens_per_second"}
    wanted |= {f"{part}_loss_{task}" for part in ("text", "image") for task in ("captions", "edits")}
    wanted |= {
        "text_loss_questions",
        "validation_text_loss_questions",
        "validation_image_loss_captions",
    }
    wanted |= {f"validation_bit_accuracy_t{time}" for time in (0.0, 0.25, 0.5, 0.75)}
    assert wanted <= metrics and "image_loss_questions" not in metrics
    assert "validation_bit_accuracy" in lines[1] and "validation_bit_accuracy" not in lines[0]
    assert lines[3]["tokens_per_second"] > 20 * lines[3]["samples_per_second"]
    assert (trained / "samples" / "drawings-000004.png").exists()
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert not [path for path in trained.rglob("*") if ".tmp" in path.name]
    assert finished(read_config(MLLMTrainingConfig, trained.parent / "config.yaml")) == trained / "pipeline"


def test_networks_that_the_image_tokenizer_was_trained_with_are_passed_on(fields, tmp_path):
    """They must not judge drawings either (provenance.py)."""
    vision = tmp_path / "vision"
    build_vision().save_pretrained(vision)
    seen = LossModel("teacher", "siglip", ("a", "b"))
    (vision / "training.json").write_text(json.dumps(training_record([seen])))
    short = {"validation_data": [], "max_train_steps": 1}
    first = run(fields, tmp_path / "first", vision_model=str(vision), **short)
    record = read_training_record(first / "pipeline")
    assert record.loss_models == (seen,) and record.is_complete
    second = run(later(fields, init_from=str(first), **short), tmp_path / "second")
    assert read_training_record(second / "pipeline") == record
    for one in (first, second):
        assert_names_no_folder_of(tmp_path, one / "pipeline")
    unknown = run(fields, tmp_path / "unknown", **short)  # its image tokenizer has no record
    assert not read_training_record(unknown / "pipeline").is_complete


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_the_averaged_weights_are_saved(fields, tmp_path, ema_decay):
    folder = run(fields, tmp_path, ema_decay=ema_decay, validation_data=[], max_train_steps=3)
    last, saved = load_file(folder / "checkpoints" / "step-000003" / "model.safetensors"), weights(folder)
    differing = {name.split(".")[0] for name in last if not torch.equal(last[name], saved[name])}
    assert differing == ({"model", "image_head"} if ema_decay else set())


def test_a_finished_training_is_not_replaced(trained):
    before = weights(trained)
    with pytest.raises(ValueError, match="`output_dir` .* holds the pipeline of a finished training"):
        train_file(train_mllm, trained.parent / "config.yaml")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trained).items())


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_stopped_anywhere_resumes_exactly(fields, trained, tmp_path, monkeypatch, step):
    """Before the first checkpoint, and after another step than the last."""
    stop_before(step, monkeypatch, fields, tmp_path)
    resumed = run(fields, tmp_path)
    assert_same_weights(resumed.joinpath(*MODEL), trained.joinpath(*MODEL))
    assert log_lines(resumed) == log_lines(trained)


def test_config_json_resumes_a_run_from_any_folder(fields, trained, tmp_path, monkeypatch):
    """Also a run whose config names everything relative to the folder in which it was started."""

    def relative(value):
        if isinstance(value, dict):
            return {name: relative(item) for name, item in value.items()}
        if isinstance(value, list):
            return [relative(item) for item in value]
        return os.path.relpath(value, tmp_path) if isinstance(value, str) and os.path.isabs(value) else value

    monkeypatch.chdir(tmp_path)
    stop_before(3, monkeypatch, relative(fields), Path(""))
    assert read_config(MLLMTrainingConfig, "config.yaml").output_dir == "run"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = train_file(train_mllm, Path("..", "run", "config.json")).parent
    assert resumed == tmp_path / "run" and not os.listdir()
    assert_same_weights(resumed.joinpath(*MODEL), trained.joinpath(*MODEL))
    assert log_lines(resumed) == log_lines(trained)
    assert str(tmp_path) not in (resumed / "pipeline" / "training.json").read_text()  # may be published


def test_metrics_between_two_lines_of_the_log_are_resumed(fields, tmp_path, monkeypatch):
    more = {"logging_steps": 3, "max_train_steps": 3, "validation_data": []}
    stop_before(2, monkeypatch, fields, tmp_path / "stopped", **more)
    lines = log_lines(run(fields, tmp_path / "stopped", **more))
    assert lines == log_lines(run(fields, tmp_path / "straight", **more)) and len(lines) == 1


def gradients_of(fields, folder, **more) -> list[list[torch.Tensor]]:
    """Gradients of each step of a run, as the optimizer gets them."""
    trainer = MLLMTrainer(
        read_config(MLLMTrainingConfig, write(folder, fields, output_dir=str(folder / "run"), **more))
    )
    step, dumped = trainer.optimizer.step, []

    def dump():
        if trainer.accelerator.sync_gradients:
            dumped.append([parameter.grad.clone() for parameter in trainer.parameters])
        step()

    trainer.optimizer.step = dump
    trainer.train()
    return dumped


def test_accumulation_changes_nothing(fields, tmp_path):
    """Micro-batches of other tasks and lengths have other numbers of tokens; both losses still are means over all."""
    more = {
        "mllm": {"patch_size": 1, "text_loss_weight": 0.2, "num_diffusion_draws": 2},
        "max_grad_norm": None,
    }
    # A gradient near 0 may take Adam either way; plain weights then differ by the step's size.
    more |= {"learning_rate": 1e-5, "max_train_steps": 2, "validation_data": []}
    runs = {
        count: gradients_of(fields, tmp_path / str(count), gradient_accumulation_steps=count, **more)
        for count in (1, 2, 4)
    }
    losses = {count: [line["loss"] for line in log_lines(tmp_path / str(count) / "run")] for count in runs}
    for count in (2, 4):
        assert losses[count] == pytest.approx(losses[1], rel=1e-5)
        for whole, part in zip(runs[1], runs[count], strict=True):
            assert len(whole) > 30
            for one, other in zip(whole, part, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_step_by_hand(fields, tmp_path):
    """Means over all text and image tokens of the batch, weighted as the config says."""
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), validation_data=[], max_train_steps=1)
    run_of = MLLMTrainer(read_config(MLLMTrainingConfig, path))
    (batch,) = run_of.batches[0]
    whole = run_of.mllm.train()(
        **batch.inputs, generator=[torch.Generator().manual_seed(stream_seed(0, n, 1)) for n in batch.numbers]
    )
    run_of.train()
    (line,) = log_lines(tmp_path / "run")
    assert line["loss"] == pytest.approx(0.2 * whole.text_loss.item() + whole.image_loss.item(), rel=1e-5)
    assert line["bit_accuracy"] == pytest.approx(whole.bit_accuracy.item(), rel=1e-5)
    rows = {name: (batch.tasks == task).nonzero()[:, 0] for task, name in enumerate(run_of.batches.names)}
    for name, chosen in rows.items():
        if len(chosen):
            wanted = whole.row_text_losses[chosen].sum() / batch.text_tokens[chosen].sum()
            assert line[f"text_loss_{name}"] == pytest.approx(wanted.item(), rel=1e-5)


def test_training_learns(fields, tmp_path):
    captions = [source for source in fields["data"] if source["task"] == "captions"]
    more = {"data": captions, "validation_data": [], "max_train_steps": 40, "checkpointing_steps": 40}
    lines = log_lines(run(fields, tmp_path, **more, learning_rate=3e-3, text_dropout=0.0))
    for name in ("image_loss_captions", "text_loss_captions"):
        first, last = (sum(line[name] for line in part) for part in (lines[:10], lines[-10:]))
        assert last < 0.8 * first, name
    assert lines[-1]["bit_accuracy"] > 0.6


# --- later stages ---


def test_a_finetune_goes_on_from_the_stage_before(fields, trained, tmp_path):
    stage = later(fields, init_from=str(trained), max_train_steps=1, ema_decay=None)
    kept = run(stage, tmp_path / "kept", learning_rate=0.0)
    assert_same_weights(kept.joinpath(*MODEL), trained.joinpath(*MODEL))
    moved = run(stage, tmp_path / "moved", max_train_steps=2, mllm={"text_loss_weight": 1.0, "num_diffusion_draws": 2})
    pipeline = UniWeTokPipeline.from_pretrained(moved / "pipeline")
    assert pipeline.mllm.config.text_loss_weight == 1.0 and pipeline.config.default_guidance_scale == 2.0
    assert not torch.equal(
        weights(moved)["image_head.input_proj.weight"], weights(trained)["image_head.input_proj.weight"]
    )


def test_a_stage_that_raises_the_patch_size(fields, trained, tmp_path):
    raised = run(later(fields, init_from=str(trained), mllm={"patch_size": 4}, max_train_steps=2), tmp_path)
    pipeline = UniWeTokPipeline.from_pretrained(raised / "pipeline", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.mllm.config.patch_size == pipeline.processor.patch_size == 4
    assert pipeline("a heart").images[0].size == (32, 32) and pipeline.num_timesteps == 1
    assert log_lines(raised)[-1]["image_loss_captions"] < 10


def test_a_causal_language_model_as_the_start(fields, tmp_path):
    model = save_language_model(tmp_path / "lm", LlamaConfig(**LLAMA, vocab_size=258), "</s>", "<s>")
    more = {"language_model": str(tmp_path / "lm"), "text_model": {}, "trainable": ["image_head", "projector"]}
    trained = run(fields, tmp_path, **more, save_dtype="bfloat16", max_train_steps=2)
    stored = weights(trained)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, tensor in model.model.state_dict().items():
        found = stored[f"model.language_model.{name}"]
        assert torch.equal(found[: len(tensor)], tensor.bfloat16()), name
    loaded = UniWeTokPipeline.from_pretrained(trained / "pipeline")
    assert loaded.mllm.dtype == torch.bfloat16 and loaded.mllm.config.text_config.model_type == "llama"


@pytest.mark.parametrize(
    "trainable, changed",
    [
        (["image_head", "projector"], {"image_head", "model.projector"}),
        ([r"layers\.0\.self_attn"], {"model.language_model", "image_head"}),
        (["language_model.norm"], {"model.language_model"}),
    ],
)
def test_only_the_chosen_parts_learn(fields, trained, tmp_path, trainable, changed):
    stage = later(fields, init_from=str(trained), trainable=trainable, max_train_steps=2, validation_data=[])
    before, after = weights(trained), weights(run(stage, tmp_path, weight_decay=0.1))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in moved} == changed
    assert all(any(torch.tensor(part.replace("\\", "") in name) for part in trainable) for name in moved)


def test_what_never_trains(fields, trained):
    pipeline = UniWeTokPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32)
    choose_parameters(pipeline.mllm, [], frozen_patterns(pipeline.mllm))
    frozen = {name for name, parameter in pipeline.mllm.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in pipeline.mllm.named_parameters() if name.startswith("model.vision_model.")}
    pipeline.mllm.config.patch_size = 1  # attention over one token is its value
    choose_parameters(pipeline.mllm, [], frozen_patterns(pipeline.mllm))
    more = {name for name, parameter in pipeline.mllm.named_parameters() if not parameter.requires_grad} - frozen
    assert len(more) == 8 and all(
        name.startswith("image_head") and ("q_proj" in name or "k_proj" in name) for name in more
    )
    for part in ("vision_model", "decoder"):
        with pytest.raises(ValueError, match=f"no parameter's name matches '{part}'; the parts are image_head, "):
            choose_parameters(pipeline.mllm, [part], frozen_patterns(pipeline.mllm))


def test_shipped_finetunes_name_parts_that_are_there(fields, trained):
    """Tied embeddings are one weight with two names, and `lm_head` is the second."""
    mllm = UniWeTokPipeline.from_pretrained(trained / "pipeline", dtype=torch.float32).mllm
    assert mllm.lm_head.weight is mllm.get_input_embeddings().weight
    chosen = choose_parameters(mllm, read_config(MLLMTrainingConfig, find_config("paper_mllm_chat")).trainable)
    assert any(parameter is mllm.lm_head.weight for parameter in chosen)
    assert len(choose_parameters(mllm, ["lm_head"])) == 1


# --- what goes wrong ---


def test_codes_of_another_image_tokenizer(fields, tmp_path):
    build_vision(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was encoded by .*, not by this model's image tokenizer"):
        run(fields, tmp_path, vision_model=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_pictures_that_were_not_encoded(fields, fixtures, tmp_path):
    raw = str(fixtures / "emoji" / "pictures")
    command = f"`uniwetok encode-dataset {raw} {raw}-codes --size 32 --model {fields['vision_model']}`"
    with pytest.raises(ValueError) as error:
        run(fields, tmp_path, data=[{"path": raw, "task": "captions"}])
    assert command in str(error.value) and not (tmp_path / "run").exists()


def test_a_bad_row_of_a_list_is_named_and_left_out(fields, tmp_path):
    rows = {"image": pictures(8), "text": [["fine"]] * 7 + [[""]]}
    path = encode(rows, tmp_path / "codes", build_vision())
    folder = run(fields, tmp_path, data=[{"path": path, "task": "captions"}], validation_data=[], text_dropout=0.0)
    names = set((folder / "skipped-0.txt").read_text().splitlines())
    assert names == {f"{path}, row 7, column `text`: must be text that is not empty, got ''."}


def test_a_loss_that_is_not_finite_stops_the_run(fields, trained, tmp_path):
    stage = later(
        fields,
        init_from=str(trained),
        mllm={"text_loss_weight": 3e38},
        validation_data=[],
        max_skipped_steps=0,
    )
    with pytest.raises(FloatingPointError, match="Not finite at step 1: loss; there is no checkpoint yet"):
        run(stage, tmp_path)
    assert not (tmp_path / "run" / "pipeline").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(fields, trained, tmp_path, monkeypatch):
    """Its loss may be finite."""
    compute = MLLMTrainer.compute_losses

    def spoilt(*args, **options):
        output = compute(*args, **options)
        output.loss.register_hook(lambda gradient: gradient * float("nan"))
        return output

    monkeypatch.setattr(MLLMTrainer, "compute_losses", spoilt)
    stage = later(fields, init_from=str(trained), max_grad_norm=None, validation_data=[], max_skipped_steps=0)
    with pytest.raises(FloatingPointError, match="Not finite at step 1: grad_norm"):
        run(stage, tmp_path)


@pytest.mark.slow
def test_compiled_layers_learn_the_same(fields, trained, tmp_path):
    """Validation and drawing, which are not compiled, in between."""
    torch.compiler.reset()
    folder = run(fields, tmp_path, compile=True, prompts=["a red square of 12 pixels"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # a layer of each part
    expected, found = (
        [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
        for run_folder in (trained, folder)
    )
    for name in ("loss", "grad_norm", "validation_image_loss_captions"):
        values = [[line[name] for line in lines if name in line] for lines in (expected, found)]
        torch.testing.assert_close(*values, rtol=1e-3, atol=0)
    assert weights(folder).keys() == weights(trained).keys()


@pytest.mark.parametrize(
    "more, message",
    [
        ({"steps": 3}, "unknown field steps"),
        ({"seed": -1}, "`seed` must be 0 or more, got -1"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more, got 0"),
        ({"text_dropout": 2.0}, "`text_dropout` must be from 0 to 1"),
        ({"save_dtype": "int8"}, "`save_dtype` must be float32, bfloat16 or float16"),
        ({"data": [{"task": "captions"}]}, r"missing field data\[0\].path"),
        ({"data": []}, "`data` must name at least one"),
        ({"batch_size": 5, "gradient_accumulation_steps": 2}, "`batch_size`=5 must be a multiple"),
        ({"init_from": "x"}, "`vision_model` can't be given together with `init_from`"),
    ],
)
def test_bad_settings_are_named(fields, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(fields, tmp_path, **more)


def test_shipped_configs_are_read():
    names = [name for name in shipped_configs() if "mllm" in name]
    stages = {f"paper_mllm_{stage}" for stage in ("pretrain", "gen", "edit", "chat", "patch")}
    assert {"small_mllm", *stages} == set(names)
    configs = {name: read_config(MLLMTrainingConfig, find_config(name)) for name in names}
    outputs = {config.output_dir for config in configs.values()}
    for name, config in configs.items():
        assert config.output_dir == f"runs/{name}"
        assert (config.init_from is None) != (config.vision_model is None)
        assert config.init_from in outputs | {None, "uniwetok-emoji"}


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_shipped_accelerate_configs_are_read(name):
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == name.upper() and config.mixed_precision == "bf16"


@pytest.mark.filterwarnings("ignore:`mixed_precision. bf16` is many times slower")
def test_low_precision_runs(fields, tmp_path, request):
    """bf16 autocast with checkpointing: what large models are trained with."""
    AcceleratorState._reset_state()  # it remembers the precision of the tests before
    request.addfinalizer(AcceleratorState._reset_state)
    lines = log_lines(run(fields, tmp_path, mixed_precision="bf16", gradient_checkpointing=True, max_train_steps=2))
    assert 1 < lines[-1]["loss"] < 20


def test_attention_is_chosen_by_name(fields, tmp_path):
    for name in ("eager", "sdpa"):
        path = write(tmp_path / name, fields, output_dir=str(tmp_path / name / "run"), attn_implementation=name)
        mllm = MLLMTrainer(read_config(MLLMTrainingConfig, path)).mllm
        assert {part.config._attn_implementation for part in (mllm.model.language_model, mllm.image_head)} == {name}


def test_task_metrics_add_up_over_micro_batches():
    tasks = TaskMetrics(["draw", "say"])
    tasks.by_task += torch.tensor([[2.0, 4, 9, 3], [5.0, 10, 0, 0]])
    tasks.overall += torch.tensor([1.5, 3, 40])
    other = TaskMetrics(["draw", "say"])
    other.load_state_dict(json.loads(json.dumps(tasks.state_dict())))
    accelerator = Accelerator(cpu=True)
    wanted = {"tokens": 40, "text_loss_draw": 0.5, "image_loss_draw": 3.0, "text_loss_say": 0.5, "bit_accuracy": 0.5}
    assert tasks.take(accelerator) == wanted
    assert other.take(accelerator) == wanted | {"tokens": 0}  # of those since the start, for tokens per second
    assert other.take(accelerator) == {"tokens": 0}


@pytest.fixture
def damaged(fields, tmp_path):
    """Fields of a training on captions of which five can't be used: no text, too long a text, tokens of the format."""
    texts = [f"square {index}" for index in range(20)]
    texts[3], texts[8], texts[11], texts[12], texts[17] = "", "long " * 40, None, "a <|im_end|>", "longer " * 40
    path = encode({"image": pictures(20), "text": texts}, tmp_path / "damaged", build_vision())
    return {**fields, "data": [{"path": path, "task": "captions"}], "validation_data": [], "max_length": 120}


@pytest.mark.filterwarnings("ignore:3 rows of")
def test_rows_that_cannot_be_used_are_counted_and_named_and_a_resume_changes_nothing(damaged, tmp_path, monkeypatch):
    straight = run(damaged, tmp_path / "straight", max_train_steps=8)
    names, last = (straight / "skipped-0.txt").read_text(), log_lines(straight)[-1]
    rows = {re.search(r"row (\d+)", name)[1] for name in names.splitlines()}
    assert rows <= {"3", "8", "11", "12", "17"}
    assert len(names.splitlines()) == last["skipped_samples"] > 2
    stop_before(5, monkeypatch, damaged, tmp_path / "stopped", max_train_steps=8)
    stopped = run(damaged, tmp_path / "stopped", max_train_steps=8)
    assert (stopped / "skipped-0.txt").read_text() == names and log_lines(stopped) == log_lines(straight)
    assert_same_weights(stopped.joinpath(*MODEL), straight.joinpath(*MODEL))


@pytest.mark.filterwarnings("ignore:3 rows of")
def test_too_many_rows_that_cannot_be_used_end_the_run(damaged, tmp_path):
    message = r"`max_skipped_share`=0.01: 1\d of \d+ samples can't be used .*skipped-0.txt"
    with pytest.raises(ValueError, match=message):
        run(damaged, tmp_path / "many", max_train_steps=40, checkpointing_steps=5)
    assert run(damaged, tmp_path / "many", max_train_steps=40, max_skipped_share=0.5).is_dir()  # and goes on
