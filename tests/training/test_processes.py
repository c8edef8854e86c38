"""Two processes (gloo, CPU) on half batches compute what one computes on whole ones; with FSDP, too, which spreads the
weights over them."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import dump_gradients
import fsdp_as_on_gpus
import pytest
import torch
from launched import FSDP2, launch, launch_two
from safetensors.torch import load_file
from tiny_encoded import class_training, language_training, later
from tiny_training import VISION, all_losses, assert_same_weights, log_lines, write
from torch.distributed.checkpoint import FileSystemReader

from uniwetok_hf import UniWeTokPipeline
from uniwetok_hf.data.samples import NOISE, sample_generators
from uniwetok_hf.training.checkpoints import list_checkpoints
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.conversation_batches import ConversationBatches
from uniwetok_hf.training.export import export_checkpoint
from uniwetok_hf.training.packed_batches import PackedBatches
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig


PROGRAM = sys.executable, dump_gradients.__file__
TRAIN = sys.executable, "-m", "uniwetok_hf", "train"
TRAIN_AS_ON_GPUS = sys.executable, fsdp_as_on_gpus.__file__, "train"
ON_GPUS = {name: value for name, value in FSDP2.items() if name != "UNIWETOK_FSDP_ON_CPU"}


def on_one_and_two(folder: Path, **trainings: dict) -> dict[str, dict[int, tuple[list, Path]]]:
    """Gradients of every step and the folder of the run, of each training, by the number of processes."""
    jobs: dict[int, list[str]] = {1: [], 2: []}
    for processes, arguments in jobs.items():
        for what, fields in trainings.items():
            place = folder / what / str(processes)
            config = write(place, fields, output_dir=str(place / "run"))
            arguments += [what, str(config), str(place / "gradients.pt")]
    dump_gradients.main(*jobs[1])
    launch_two(*PROGRAM, *jobs[2])
    return {
        what: {
            processes: (
                torch.load(folder / what / str(processes) / "gradients.pt", weights_only=True),
                folder / what / str(processes) / "run",
            )
            for processes in jobs
        }
        for what in trainings
    }


def assert_same_gradients(runs, count: int):
    one, two = runs[1][0], runs[2][0]
    assert len(one) == len(two) == count
    for alone, shared in zip(one, two, strict=True):
        for first, second in zip(alone, shared, strict=True):
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def assert_close_weights(one: Path, other: Path):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=1e-5)


def assert_same_logs(one: Path, two: Path):
    for alone, shared in zip(log_lines(one), log_lines(two), strict=True):
        assert alone == pytest.approx(shared, abs=1e-5, rel=1e-5)


@pytest.fixture(scope="module")
def language_fields(tmp_path_factory):
    """A training of the language model on its tasks, three steps."""
    fields = language_training(tmp_path_factory.mktemp("language"))
    return fields | {"max_train_steps": 3, "max_grad_norm": None, "learning_rate": 1e-5, "adam_epsilon": 1e-8}


@pytest.fixture(scope="module")
def runs(language_fields, fixtures, tmp_path_factory):
    """All trainings, that of the tokenizer with every loss, on one and on two processes; these do them in a row."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {**VISION, "data": [{"path": str(fixtures / "emoji")}], **all_losses(folder), "max_train_steps": 3}
    fields["validation_data"] = {"path": str(fixtures / "emoji"), "split": "validation"}
    # Where gradients nearly cancel, rounding decides which way Adam goes, by the learning rate: so steps are small.
    # And the entropy of latents around 0 is 4 times as steep as they, not 400 times.
    fields |= {"max_grad_norm": None, "learning_rate": 1e-6, "entropy": {"temperature": 1.0}}
    classes = class_training(folder / "classes-data") | {"max_train_steps": 3, "max_grad_norm": None}
    return on_one_and_two(folder, tokenizer=fields, mllm=language_fields, classes=classes | {"learning_rate": 1e-5})


@pytest.fixture
def tokenizer_runs(runs):
    return runs["tokenizer"]


@pytest.fixture
def language(language_fields, runs):
    return language_fields, runs["mllm"]


def test_the_tokenizer_gets_the_same_gradients(tokenizer_runs):
    assert_same_gradients(tokenizer_runs, count=5)  # three steps of the model, two of the discriminator


def test_the_tokenizer_gets_the_same_losses_and_weights(tokenizer_runs):
    one, two = (tokenizer_runs[processes][1] for processes in (1, 2))
    assert_same_logs(one, two)
    for name in ("model/model.safetensors", "losses/discriminator.safetensors", "losses/lecam.safetensors"):
        first, second = load_file(one / name), load_file(two / name)
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], atol=1e-5, rtol=1e-5)


def test_the_language_model_gets_the_same_gradients(language):
    assert_same_gradients(language[1], count=3)


def test_the_language_model_gets_the_same_losses(language):
    assert_same_logs(*(language[1][processes][1] for processes in (1, 2)))


def test_the_class_to_image_model_gets_the_same(runs):
    assert_same_gradients(runs["classes"], count=3)
    assert_same_logs(*(runs["classes"][processes][1] for processes in (1, 2)))


def test_packed_rows_of_two_processes_are_one_step(language_fields, tmp_path, capsys):
    """Each reads samples of its own; their gradients are those of all these samples, padded, in one process. One
    process goes on where two have stopped, and says that its steps are smaller."""
    fields = {
        **language_fields,
        "batch_size": None,
        "length_group_steps": 1,
        "packed_tokens": 300,
        "max_train_steps": 2,
    }
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"))
    trainer = MLLMTrainer(read_config(MLLMTrainingConfig, path, output_dir=str(tmp_path / "alone")))
    launch_two(*PROGRAM, "mllm", str(path), str(tmp_path / "gradients.pt"))
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)

    parts = trainer.batches.mixture, trainer.batches.processor, trainer.batches.num_bits
    shares = [PackedBatches(*parts, 300, trainer.config.seed, process_index=i, num_processes=2) for i in range(2)]
    steps = [[one[step][0].numbers for one in shares] for step in range(2)]
    assert [{number % 2 for number in numbers} for numbers in steps[0]] == [{0}, {1}]
    padded = ConversationBatches(*parts, 1, trainer.config.seed).collate(
        [(number, parts[0][number]) for numbers in steps[0] for number in numbers]
    )
    generator = sample_generators(trainer.config.seed, padded.numbers, NOISE)
    trainer.mllm.train()(**padded.inputs, generator=generator).loss.backward()
    assert_same_gradients({1: ([[one.grad for one in trainer.parameters]], None), 2: (found[:1], None)}, count=1)

    (tmp_path / "run" / "pipeline").rename(tmp_path / "done")
    again = MLLMTrainer(read_config(MLLMTrainingConfig, path, max_train_steps=3))
    again.train()
    assert "Processes are 1 from here on, and were 2. A step has the packed rows of all" in capsys.readouterr().out
    left = [number for one in shares for number in one.position(2).waiting]
    trained = {number for step in steps for numbers in step for number in numbers}
    assert trained.isdisjoint(again.position["waiting"]) and set(left) & set(again.position["waiting"])
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.slow
def test_fsdp_trains_classes_like_one_process(runs, tmp_path):
    run = runs["classes"][1][1]
    fields = json.loads((run / "config.json").read_text())
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"))
    launch_two(*TRAIN_AS_ON_GPUS, "class-to-image", "--config", str(path), **ON_GPUS)
    losses = [[line["loss"] for line in log_lines(folder)] for folder in (run, tmp_path / "run")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5, rel=1e-5)
    export_checkpoint(tmp_path / "run", tmp_path / "exported")
    weights = Path("transformer", "model.safetensors")
    assert_same_weights(tmp_path / "exported" / weights, tmp_path / "run" / "pipeline" / weights)
    assert_close_weights(tmp_path / "exported" / weights, run / "pipeline" / weights)


@pytest.mark.slow
def test_an_adapter_gets_the_same_gradients(language, tmp_path):
    """Also those samples that draw nothing use all of it, for which the other process would else wait."""
    fields, runs = language
    more = {"init_from": str(runs[1][1]), "lora": {"r": 2, "options": {"init_lora_weights": "gaussian"}}}
    adapters = on_one_and_two(tmp_path, mllm=later(fields, **more))["mllm"]
    assert_same_gradients(adapters, count=3)
    assert all(gradient is not None for step in adapters[2][0] for gradient in step)
    assert any(gradient.any() for gradient in adapters[1][0][0])
    assert_same_logs(adapters[1][1], adapters[2][1])
    one, two = (load_file(adapters[n][1] / "adapter" / "adapter_model.safetensors") for n in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-5, rtol=1e-5)

    # Shards of the frozen weights, and adapters that are the same; a checkpoint holds them alone, and resumes.
    run, more = tmp_path / "sharded", more | {"output_dir": str(tmp_path / "sharded")}
    for steps in (2, 3):
        config = write(tmp_path, later(fields, **more), max_train_steps=steps)
        launch_two(*TRAIN_AS_ON_GPUS, "mllm", "--config", str(config), **ON_GPUS)
        (run / "adapter").rename(tmp_path / f"after-{steps}")
    export_checkpoint(run, tmp_path / "exported")
    for folder in (tmp_path / "after-3", tmp_path / "exported"):
        three = load_file(folder / "adapter_model.safetensors")
        assert one.keys() == three.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, three[name], atol=1e-5, rtol=1e-5)
    shards = list_checkpoints(run)[-1] / "shards"
    assert all(
        "lora_" in name for name in FileSystemReader(shards).read_metadata().state_dict_metadata if "model." in name
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_like_one_process(language, tmp_path, stage):
    """On CPUs DeepSpeed compiles its communication first, with the compiler of the machine."""
    fields, runs = language
    fields = fields | {"ema_decay": None}
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    environment |= {"DS_ACCELERATOR": "cpu"}
    for name, steps in (("whole", 3), ("resumed", 2), ("resumed", 3)):
        config = write(tmp_path, fields, output_dir=str(tmp_path / name), max_train_steps=steps)
        launch_two(*TRAIN, "mllm", "--config", str(config), **environment)
        (tmp_path / name / "pipeline").rename(tmp_path / f"{name}-{steps}")
    alone = [line["loss"] for line in log_lines(runs[1][1])]
    for name in ("whole", "resumed"):
        losses = [line["loss"] for line in log_lines(tmp_path / name)]
        assert losses == pytest.approx(alone, abs=1e-5, rel=1e-5)
    with pytest.raises(
        AssertionError, match=rf"has shards of DeepSpeed \(ZeRO {stage}\) by 2 processes, and this start would read"
    ):
        config = write(tmp_path, fields, output_dir=str(tmp_path / "resumed"), max_train_steps=4)
        launch(4, *TRAIN, "mllm", "--config", str(config), **environment)
    weights = Path("mllm", "model.safetensors")
    assert_close_weights(tmp_path / "resumed-3" / weights, tmp_path / "whole-3" / weights)


@pytest.mark.slow
def test_fsdp_trains_like_one_process(language, tmp_path):
    fields, runs = language
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"))
    launch_two(*TRAIN, "mllm", "--config", str(path), **FSDP2)
    alone, spread = log_lines(runs[1][1]), log_lines(tmp_path / "run")
    for name in ("loss", "bit_accuracy"):
        assert [line[name] for line in spread] == pytest.approx([line[name] for line in alone], abs=1e-5, rel=1e-5)
    # The shards of a checkpoint make the same pipeline, of averages that are those of one process.
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    assert (checkpoint / "shards").is_dir() and not (checkpoint / "model.safetensors").exists()
    export_checkpoint(tmp_path / "run", tmp_path / "exported")
    weights = Path("mllm", "model.safetensors")
    assert_same_weights(tmp_path / "exported" / weights, tmp_path / "run" / "pipeline" / weights)
    assert_close_weights(tmp_path / "exported" / weights, runs[1][1] / "pipeline" / weights)
    export_checkpoint(tmp_path / "run", tmp_path / "raw", averaged=False)
    with pytest.raises(AssertionError):  # averages are not the weights
        assert_same_weights(tmp_path / "raw" / weights, tmp_path / "exported" / weights)
    # A run goes on from them.
    half = write(tmp_path / "half", fields, output_dir=str(tmp_path / "resumed"), max_train_steps=2)
    launch_two(*TRAIN, "mllm", "--config", str(half), **FSDP2)
    (tmp_path / "resumed" / "pipeline").rename(tmp_path / "after-two")
    whole = write(tmp_path / "half", fields, output_dir=str(tmp_path / "resumed"))
    with pytest.raises(AssertionError, match="has shards of FSDP 2, and this start would read whole weights"):
        launch_two(*TRAIN, "mllm", "--config", str(whole))
    launch_two(*TRAIN, "mllm", "--config", str(whole), **FSDP2)
    assert_close_weights(tmp_path / "resumed" / "pipeline" / weights, tmp_path / "run" / "pipeline" / weights)
    # What is saved is whole.
    assert (
        UniWeTokPipeline.from_pretrained(tmp_path / "run" / "pipeline", dtype=torch.float32).config.default_size == 32
    )


def test_the_tokenizer_is_not_trained_in_shards(tmp_path):
    """It would be copies, whatever the configuration says."""
    with pytest.raises(AssertionError) as failure:
        launch_two(*TRAIN, "tokenizer", "--config", "small_uniwetok", "--set", f"output_dir={tmp_path}/run", **FSDP2)
    assert (
        str(failure.value).count("The image tokenizer trains in one process or in copies (DDP), not under FSDP") == 2
    )


@pytest.mark.slow
def test_packed_rows_in_shards(language_fields, tmp_path):
    """As in copies, validation included, of which each process has its part; three go on where two have stopped."""
    fields = language_fields | {"batch_size": None, "length_group_steps": 1, "packed_tokens": 300}
    fields |= {"validation_steps": 1}
    runs = [tmp_path / "copies", tmp_path / "shards"]
    for run, (train, environment) in zip(runs, ((TRAIN, {}), (TRAIN_AS_ON_GPUS, ON_GPUS)), strict=True):
        for count, steps in ((2, 2), (3, 3)):
            config = write(tmp_path, fields, output_dir=str(run), max_train_steps=steps)
            launch(count, *train, "mllm", "--config", str(config), **environment)
            (run / "pipeline").rename(tmp_path / f"{run.name}-{steps}")
    copies = log_lines(runs[0])
    assert [line["step"] for line in copies] == [1, 2, 3] and "validation_bit_accuracy_t0.5" in copies[0]
    assert_same_logs(*runs)
    for steps in (2, 3):
        weights = Path("mllm", "model.safetensors")
        assert_close_weights(tmp_path / f"shards-{steps}" / weights, tmp_path / f"copies-{steps}" / weights)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 0.01)])
def test_fsdp_as_accelerate_runs_it_on_gpus(language_fields, tmp_path, precision, tolerance):
    """Its own code for FSDP, with untied embeddings, which are gathered apart; with micro-batches, and with averages
    that differ from the weights when they are validated, in a step without a checkpoint."""
    fields = language_fields | {"mixed_precision": precision, "gradient_accumulation_steps": 2, "ema_decay": 0.5}
    fields |= {"validation_steps": 2, "checkpointing_steps": 3, "learning_rate": 1e-3}
    fields["text_model"] = fields["text_model"] | {"tie_word_embeddings": False}
    runs = {tmp_path / "copies": (TRAIN, {}), tmp_path / "shards": (TRAIN_AS_ON_GPUS, ON_GPUS)}
    for run, (command, environment) in runs.items():
        config = write(tmp_path, fields, output_dir=str(run))
        launch_two(*command, "mllm", "--config", str(config), **environment)
    copies, shards = map(log_lines, runs)
    assert [line["step"] for line in copies] == [1, 2, 3] and "validation_bit_accuracy_t0.5" in copies[1]
    for alone, spread in zip(copies, shards, strict=True):
        assert spread == pytest.approx(alone, abs=tolerance, rel=tolerance)


@pytest.mark.slow
def test_fsdp_takes_no_fp16(language_fields, tmp_path):
    config = write(tmp_path, language_fields, output_dir=str(tmp_path / "run"), mixed_precision="fp16")
    with pytest.raises(AssertionError, match="`mixed_precision` must be bf16 or no under FSDP 2"):
        launch_two(*TRAIN, "mllm", "--config", str(config), **FSDP2)


@pytest.mark.slow
def test_shards_that_can_not_be_written_end_the_run(language, tmp_path):
    """Written in the background, on a disk that is full: both processes say so, and nothing is left."""
    config = write(tmp_path, language[0], output_dir=str(tmp_path / "run"), checkpointing_steps=1)
    command = f"ulimit -f 600; exec {' '.join(TRAIN)} mllm --config {config}"
    with pytest.raises(AssertionError) as failure:
        launch_two("bash", "-c", command, **FSDP2)
    assert str(failure.value).count("step-000001 can't be written: not all of it could be written") == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def test_processes_fail_together():
    """What fails on one, such as a tracker without a network, ends the others at once."""
    code = """
from accelerate import Accelerator
from uniwetok_hf.training.agreement import failed_together
accelerator = Accelerator(cpu=True)
try:
    with failed_together(accelerator):
        if accelerator.is_main_process:
            raise ValueError("no network")
except Exception as error:
    print(type(error).__name__, error)
"""
    first, second = launch_two(sys.executable, "-c", code)
    assert first == "ValueError no network\n"
    assert second.startswith("ConnectionError another process of the training could not start")
