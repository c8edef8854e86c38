# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What a training step costs: pictures per second, peak memory, where the time goes, and what each loss adds.

    python benchmarks/training.py [--threads 2] [--steps 8] [--mixed-precision bf16] [--compile]
    python benchmarks/training.py --profile    # the tokenizer's step by kinds of operations

Trains the networks of the shipped small configs on the pictures of the tests. Every measurement runs in a process of
its own; its memory is the peak resident size of that process, everything imported included. Times are medians over
steps, after two that are not counted.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


# Nothing here may import torch: on Linux a new process inherits the peak memory of the one that starts it.
ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "tests" / "fixtures" / "emoji"
TASKS = ROOT / "examples" / "emoji" / "emoji_tasks.py"
SIZES = [(64, 32), (128, 16)]  # side, batch
LOSSES = {
    "entropy": {"entropy": {"weight": 0.005}},
    "commitment": {"commitment_weight": 0.1},
    "perceptual (SigLIP)": {"perceptual": {"model": "SIGLIP"}},
    "adversarial": {"adversarial": {}},
    "distillation (SigLIP)": {"distillation": {"teacher": "SIGLIP", "hidden_size": 128}},
    "prior": {"prior": {"hidden_size": 128, "num_hidden_layers": 2}},
}


class Clock:
    """Adds up the time of parts of a step."""

    def __init__(self):
        self.steps, self.parts = [], {}

    @contextlib.contextmanager
    def part(self, name: str):
        start = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start

    def timed(self, name: str, function):
        def call(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def end_step(self, seconds: float):
        self.steps.append({"step": seconds} | self.parts)
        self.parts = {}

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part, without the first two steps."""
        counted = self.steps[2:]
        names = dict.fromkeys(name for step in counted for name in step)
        return {name: 1000 * statistics.median(step.get(name, 0.0) for step in counted) for name in names}


def make_siglip(folder: Path) -> str:
    """A dual encoder of the size of emoji_siglip.yaml, with random weights; costs do not depend on them."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig

    small = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={**small, "vocab_size": 2048, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
        vision_config=SiglipVisionConfig(**small, image_size=64, patch_size=16).to_dict(),
    )
    SiglipModel(config).vision_model.save_pretrained(folder)
    return str(folder)


def measure_tokenizer(side: int, batch: int, losses: list[str], steps: int, settings: dict) -> dict:
    """Runs in a process of its own: parts of a step of `small_uniwetok` with only these losses."""
    from uniwetok_hf.training.config import find_config, read_config
    from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig

    with tempfile.TemporaryDirectory() as folder:
        settings |= {"entropy": None, "distillation": None, "prior": None, "perceptual": None, "adversarial": None}
        for name in losses:
            settings |= json.loads(json.dumps(LOSSES[name]).replace("SIGLIP", make_siglip(Path(folder, "siglip"))))
        settings |= {
            "output_dir": str(Path(folder, "run")),
            "data": [{"path": str(PICTURES)}],
            "validation_data": None,
            "buckets": [{"height": side, "width": side}],
            "batch_size": batch,
            "max_train_steps": steps + 2,
            "lr_warmup_steps": 1,
            "checkpointing_steps": 10**6,
        }
        config = read_config(UniWeTokTrainingConfig, find_config("small_uniwetok"), **settings)
        trainer, clock = UniWeTokTrainer(config), Clock()
        trainer.model.register_forward_pre_hook(lambda *_: setattr(clock, "started", time.perf_counter()))
        trainer.model.register_forward_hook(
            lambda *_: clock.parts.__setitem__("forward", time.perf_counter() - clock.started)
        )
        compute_losses = trainer.compute_losses

        def timed_losses(*args):
            start = time.perf_counter()
            result = compute_losses(*args)
            clock.parts["losses"] = time.perf_counter() - start - clock.parts["forward"]
            return result

        trainer.compute_losses = timed_losses
        trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
        trainer.take_step = clock.timed("optimizer", trainer.take_step)
        trainer.batches = TimedBatches(trainer.batches, clock)
        run_steps(trainer, clock)
        return report(clock, batch)


def measure_mllm(codes: str, vision: str, steps: int, settings: dict) -> dict:
    """Runs in a process of its own: parts of a step of `small_mllm`."""
    from uniwetok_hf.training import train_mllm
    from uniwetok_hf.training.config import find_config, read_config
    from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig

    edits = {"edits": str(PICTURES / "edits" / "train")}
    with tempfile.TemporaryDirectory() as folder:
        settings |= {
            "output_dir": str(Path(folder, "run")),
            "vision_model": vision,
            "data": [
                {"path": codes, "task": f"{TASKS}:EmojiGeneration", "weight": 0.55},
                {"path": codes, "task": f"{TASKS}:EmojiEditing", "weight": 0.3, "options": edits},
                {"path": codes, "task": f"{TASKS}:EmojiQuestions", "weight": 0.15},
            ],
            "validation_data": [],
            "prompts": [],
            "batch_size": 32,
            "max_train_steps": steps + 2,
            "lr_warmup_steps": 1,
            "checkpointing_steps": 10**6,
        }
        trainer = MLLMTrainer(read_config(MLLMTrainingConfig, find_config("small_mllm"), **settings))
        clock, prefetched = Clock(), train_mllm.prefetched
        train_mllm.prefetched = lambda *args: waited_for(prefetched(*args), clock)
        trainer.compute_losses = clock.timed("forward and losses", trainer.compute_losses)
        trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
        trainer.take_step = clock.timed("optimizer", trainer.take_step)
        run_steps(trainer, clock)
        return report(clock, 32)


def waited_for(batches, clock: Clock):
    """`batches`, noting how long each is waited for."""
    iterator, done = iter(batches), object()
    while True:
        with clock.part("data"):
            batch = next(iterator, done)
        if batch is done:
            return
        yield batch


class TimedBatches:
    """Batches of the tokenizer's training, noting how long each is waited for."""

    def __init__(self, batches, clock: Clock):
        self.batches, self.clock = batches, clock

    def __iter__(self):
        return waited_for(self.batches, self.clock)

    def __getattr__(self, name):
        return getattr(self.batches, name)


def kind_of(name: str, shapes: list) -> str:
    """The kind of an operation of PyTorch."""
    if "convolution" in name or "conv2d" in name:
        side = shapes[0][-1] if shapes and len(shapes[0]) == 4 else 0
        return f"convolutions of maps of {'16 x 16 or more' if side >= 16 else '8 x 8 or fewer'}"
    if "group_norm" in name:
        return "GroupNorm"
    if "mm" in name.rpartition("::")[2] or "attention" in name:
        return "matrix products, attention"
    if "adam" in name.lower() or "foreach" in name or "lerp" in name:
        return "optimizer, average, clipping"
    return "everything else, by element and copies"


def profile_tokenizer(side: int, batch: int, losses: list[str], steps: int, settings: dict) -> dict:
    """Runs in a process of its own: milliseconds of a step by kinds of operations."""
    from torch.profiler import ProfilerActivity, profile, schedule

    from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer

    found, train_step = {}, UniWeTokTrainer.train_step

    def collect(profiler) -> None:
        for event in profiler.key_averages(group_by_input_shape=True):
            kind = kind_of(event.key, event.input_shapes)
            found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1000 / steps

    plan = schedule(wait=0, warmup=2, active=steps, repeat=1)
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, schedule=plan, record_shapes=True, on_trace_ready=collect) as profiler:

        def profiled_step(trainer, *args):
            train_step(trainer, *args)
            profiler.step()

        UniWeTokTrainer.train_step = profiled_step
        measure_tokenizer(side, batch, losses, steps, settings)
    return found


def run_steps(trainer, clock: Clock) -> None:
    """Trains, noting how long every step takes, the wait for its data included."""
    train_step = trainer.train_step

    def timed_step(*args):
        start = time.perf_counter()
        train_step(*args)
        clock.end_step(time.perf_counter() - start + clock.parts.get("data", 0.0))

    trainer.train_step = timed_step
    trainer.train()


def report(clock: Clock, batch: int) -> dict:
    medians = clock.medians()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"ms": medians, "per_second": 1000 * batch / medians["step"], "peak_mib": peak}


def in_a_process(threads: int, call: str) -> dict:
    """Result of `call` in a new process."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport training as t, torch, json\n"
    code += f"torch.set_num_threads({threads})\nprint('RESULT' + json.dumps(t.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.rsplit("RESULT", 1)[1])


def row(name: str, result: dict, names: list[str]) -> str:
    cells = [f"{result['ms'].get(part, 0.0):.0f}" for part in names]
    return f"| {name} | " + " | ".join([*cells, f"{result['per_second']:.1f}", f"{result['peak_mib']:.0f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="counted steps of each measurement")
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true", help="compile the tokenizer; minutes per row")
    parser.add_argument("--profile", action="store_true", help="the tokenizer's step by kinds of operations, only")
    parser.add_argument("--without-mllm", action="store_true", help="measure the tokenizer only")
    options = parser.parse_args()

    precision = {"mixed_precision": options.mixed_precision}
    common = f"{options.steps}, {precision | {'compile': options.compile}}"
    usual = ["entropy", "distillation (SigLIP)", "prior"]
    if options.profile:
        print("| tokenizer | kind of operation | ms per step | share |\n| --- | --- | ---: | ---: |")
        for side, batch in SIZES:
            kinds = in_a_process(options.threads, f"profile_tokenizer({side}, {batch}, {usual}, {common})")
            for kind, ms in sorted(kinds.items(), key=lambda pair: -pair[1]):
                print(
                    f"| {side}x{side}, {batch} pictures | {kind} | {ms:.0f} | {ms / sum(kinds.values()):.0%} |",
                    flush=True,
                )
        return

    names = ["data", "forward", "losses", "backward", "optimizer", "step"]
    print("| tokenizer | " + " | ".join(f"{name} ms" for name in names) + " | pictures/s | peak MiB |")
    print("| --- |" + " ---: |" * (len(names) + 2))
    for side, batch in SIZES:
        call = f"measure_tokenizer({side}, {batch}, {usual}, {common})"
        print(row(f"{side}x{side}, {batch} pictures", in_a_process(options.threads, call), names), flush=True)

    side, batch = SIZES[0]
    print(f"\n| loss at {side}x{side}, {batch} pictures | ms per step | added ms | peak MiB | added MiB |")
    print("| --- |" + " ---: |" * 4)
    base = None
    for name in [None, *LOSSES]:
        call = f"measure_tokenizer({side}, {batch}, {[name] if name else []}, {common})"
        result = in_a_process(options.threads, call)
        base = base or result
        step, peak = result["ms"]["step"], result["peak_mib"]
        added = f"{step - base['ms']['step']:.0f} | {peak:.0f} | {peak - base['peak_mib']:.0f}"
        print(f"| {name or 'L1 + L2 alone'} | {step:.0f} | {added} |", flush=True)
    if options.without_mllm:
        return

    names = ["data", "forward and losses", "backward", "optimizer", "step"]
    print("\n| language model | " + " | ".join(f"{name} ms" for name in names) + " | samples/s | peak MiB |")
    print("| --- |" + " ---: |" * (len(names) + 2))
    with tempfile.TemporaryDirectory() as folder:
        model, codes = prepare_codes(folder)
        call = f"measure_mllm({codes!r}, {model!r}, {options.steps}, {precision})"
        print(row("32 samples: generation, editing, questions", in_a_process(options.threads, call), names))


def prepare_codes(folder: str) -> tuple[str, str]:
    """The embedded image tokenizer alone, and the tests' pictures as its codes."""
    model, codes = str(Path(folder, "vision")), str(Path(folder, "codes"))
    code = (
        "from uniwetok_hf import UniWeTokModel, embedded_path; "
        f"UniWeTokModel.from_pretrained(embedded_path('uniwetok-emoji'), subfolder='mllm').save_pretrained({model!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    command = ["-m", "uniwetok_hf", "encode-dataset", str(PICTURES), codes, "--model", model, "--size", "128"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return model, codes


if __name__ == "__main__":
    main()
