"""What a YAML file says counts, whatever the environment says to Accelerate, and whatever the locale is."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tiny_encoded import language_training
from tiny_training import write

from uniwetok_hf.training.config import ConfigError, read_config
from uniwetok_hf.training.run import overrule_deepspeed, start_accelerator
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig


@pytest.fixture
def fresh_state():
    """Accelerate remembers what the first Accelerator of a process was told."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState):
        state._reset_state()


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    more = {"validation_data": [], "checkpointing_steps": 100, "max_grad_norm": None}
    return language_training(tmp_path_factory.mktemp("language")) | more


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.parametrize("variable, micro_batches", [("2", 1), ("1", 2), ("4", 2)])
def test_micro_batches_are_those_of_the_config(fields, tmp_path, monkeypatch, variable, micro_batches):
    """With other ones than it counts on, the trainer would take half the steps, or twice as many, and scale losses
    wrong."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", variable)
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), gradient_accumulation_steps=micro_batches)
    trainer, updates = MLLMTrainer(read_config(MLLMTrainingConfig, path)), []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    trainer.train()
    assert len(updates) == fields["max_train_steps"] == 4


@pytest.mark.usefixtures("fresh_state")
def test_precision_and_compilation_are_those_of_the_config(tmp_path, monkeypatch):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "inductor",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
    }.items():
        monkeypatch.setenv(name, value)
    accelerator, _ = start_accelerator(config(tmp_path, mixed_precision="no"), tmp_path)
    assert accelerator.mixed_precision == "no"
    assert isinstance(accelerator.prepare(torch.nn.Linear(2, 2)), torch.nn.Linear)


@pytest.mark.usefixtures("fresh_state")
def test_without_a_word_in_the_config_precision_is_as_accelerate_is_configured(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator, _ = start_accelerator(config(tmp_path, mixed_precision=None), tmp_path)
    assert accelerator.mixed_precision == "bf16"


def config(folder, **fields) -> MLLMTrainingConfig:
    from uniwetok_hf.training.tasks import TaskSource

    data = [TaskSource("codes", "captions")]
    return MLLMTrainingConfig(output_dir=str(folder), data=data, max_train_steps=1, batch_size=4, **fields)


@pytest.mark.usefixtures("fresh_state")
def test_deepspeed_takes_micro_batches_and_clipping_from_the_config(monkeypatch):
    """It does both by itself, and Accelerate follows its configuration."""
    from accelerate import DeepSpeedPlugin

    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "3.0")
    found = DeepSpeedPlugin().deepspeed_config
    assert (found["gradient_accumulation_steps"], found["gradient_clipping"]) == (8, 3.0)
    for norm, clipping in ((0.5, 0.5), (None, 0.0)):
        overrule_deepspeed(found, SimpleNamespace(gradient_accumulation_steps=2, max_grad_norm=norm), None)
        assert (found["gradient_accumulation_steps"], found["gradient_clipping"]) == (2, clipping)


@pytest.mark.usefixtures("fresh_state")
def test_deepspeed_takes_the_precision_from_the_config(tmp_path):
    """Of its own file, Accelerate replaces `auto` alone."""
    from accelerate import DeepSpeedPlugin

    settings, path = SimpleNamespace(gradient_accumulation_steps=1, max_grad_norm=1.0), tmp_path / "deepspeed.json"
    for of_file, precision, wanted in (
        (True, "no", (False, False)),
        (False, "bf16", (False, True)),
        (True, None, (False, True)),
        ("auto", "fp16", (True, False)),
    ):
        path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": of_file, "more": 1}}))
        plugin = DeepSpeedPlugin(hf_ds_config=str(path))
        plugin.set_mixed_precision(precision or "no")
        overrule_deepspeed(found := plugin.deepspeed_config, settings, precision)
        assert (found["fp16"]["enabled"], found["bf16"]["enabled"]) == wanted and found["bf16"]["more"] == 1


PRINT = """
import ascii_config, sys
for path in sys.argv[1:]:
    print(ascii(ascii_config.read(path)))
"""
READ = """
from dataclasses import dataclass
from uniwetok_hf.training.config import read_config, setting

@dataclass
class Config:
    prompts: list[str] = setting([], on_resume="apply")

def read(path):
    return read_config(Config, path).prompts
"""


def test_configs_are_read_in_the_encoding_that_they_are_written_in(tmp_path):
    """In the locale C, where text would be ASCII."""
    (tmp_path / "ascii_config.py").write_text(READ, encoding="utf-8")
    paths = []
    for suffix in ("yaml", "json"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            paths.append(tmp_path / f"{encoding}.{suffix}")
            paths[-1].write_bytes('{"prompts": ["caf\u00e9 \u00fc \u4e2d"]}\n'.encode(encoding))
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    environment = os.environ | locale | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", PRINT, *paths], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [ascii(["caf\u00e9 \u00fc \u4e2d"])] * 6, done.stderr


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_config_that_is_no_text_is_named(tmp_path, suffix):
    path = tmp_path / f"config.{suffix}"
    path.write_bytes('prompts: ["caf\u00e9"]'.encode("latin-1"))
    with pytest.raises(ConfigError, match=f"config.{suffix} is no YAML: "):
        read_config(MLLMTrainingConfig, path)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_configuration_that_would_be_passed_over_is_refused(tmp_path, kind):
    """One process on a CPU, as of `accelerate launch --config_file fsdp.yaml` there."""
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    command = [sys.executable, "-m", "uniwetok_hf", "train", "tokenizer", "--config", "small_uniwetok"]
    environment = os.environ | {f"ACCELERATE_USE_{kind}": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]  # the libraries of some extras print lines before
    wanted = f"Accelerate is configured with {kind} (ACCELERATE_USE_{kind} in the environment), but would run without"
    assert wanted in line
