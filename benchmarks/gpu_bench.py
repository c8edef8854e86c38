# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the parts of `gpu.py` share: sizes, the device, the report, ways to check and to time, random inputs."""

import contextlib
import functools
import gc
import json
import os
import platform
import re
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode


ROOT = Path(__file__).resolve().parent.parent

# Sizes of Qwen3-8B and Qwen3-1.7B.
QWEN = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}
QWEN_8B = {**QWEN, "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
QWEN_2B = {**QWEN, "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}
QWEN_2B |= {"tie_word_embeddings": True}
REAL = SimpleNamespace(
    matrix=8192,
    copied=1 << 32,  # bytes
    vision={},  # the defaults are the paper's
    sides=(256, 512, 1024),
    batches=(1, 8, 64),
    compiled=((256, 8), (1024, 1)),  # side and batch
    language={"8 B": QWEN_8B, "1.7 B": QWEN_2B},
    token_ids={},  # the defaults are those of Qwen3's vocabulary
    head={"num_hidden_layers": 6, "num_modulation_layers": 2, "head_dim": 128},  # as in paper_mllm_pretrain.yaml
    patch_sizes=(4, 2, 1),
    generation_batches=(1, 4, 16),
    steps=50,
    patches=4,  # timed of each picture
    training={},
    lpips_widths=None,
    teacher={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    | {"image_size": 384, "patch_size": 16},  # SigLIP2-so400m-patch16-384
    training_side=256,
    training_batches=(64, 32, 16, 8),
    language_batches=(32, 16, 8),
    language_side=512,
)
TINY_VISION = {"base_channels": 8, "channel_multipliers": [1, 1, 2], "num_res_blocks": 1}
TINY_VISION |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_norm_groups": 4, "intermediate_size": 16}
TINY_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
TINY_TEXT |= {"intermediate_size": 32, "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": True}
TINY = SimpleNamespace(
    matrix=64,
    copied=1 << 16,
    vision=TINY_VISION,
    sides=(32, 64),
    batches=(1, 2),
    compiled=((32, 2),),
    language={"tiny": TINY_TEXT},
    token_ids={"image_token_id": 64, "vision_start_token_id": 65, "vision_end_token_id": 66, "size_token_id": 67}
    | {"num_size_tokens": 32, "query_token_id": 99},
    head={"num_hidden_layers": 1, "num_modulation_layers": 1, "head_dim": 16},
    patch_sizes=(4, 1),
    generation_batches=(1, 2),
    steps=2,
    patches=2,
    training={
        "model": TINY_VISION,
        "adversarial": {"base_channels": 4, "num_layers": 1},
        "distillation": {"teacher": "random", "hidden_size": 16, "num_attention_heads": 2},
        "prior": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    lpips_widths=(4,) * 13,
    teacher={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 32, "patch_size": 16},
    training_side=32,
    training_batches=(2,),
    language_batches=(2,),
    language_side=32,
)


class Device:
    """All that differs between CUDA and the CPU."""

    def __init__(self, name: str):
        self.torch = torch.device(name)
        self.is_cuda = self.torch.type == "cuda"

    def generator(self, seed: int) -> torch.Generator | None:
        """A generator on the device; the meta device has none."""
        return None if self.torch.type == "meta" else torch.Generator(self.torch).manual_seed(seed)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Gives back the memory of what is not used any more."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else None

    def free_gib(self) -> float | None:
        return torch.cuda.mem_get_info()[0] / 2**30 if self.is_cuda else None

    def graphed(self, function: Callable) -> Callable | None:
        """The replay of `function`'s CUDA graph; None off CUDA."""
        if not self.is_cuda:
            return None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def count_syncs(self, function: Callable) -> int | None:
        """How often `function` waits for the device; None off CUDA."""
        if not self.is_cuda:
            function()
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def describe(self) -> dict:
        about = {"python": platform.python_version(), "torch": torch.__version__, "device": str(self.torch)}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(self.torch)
            about |= {"card": properties.name, "multiprocessors": properties.multi_processor_count}
            about |= {"memory_gib": round(properties.total_memory / 2**30, 1), "free_gib": round(self.free_gib(), 1)}
            about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": read_driver()}
        about["cpu_cores"] = os.cpu_count()
        return about


def read_driver() -> str | None:
    """Version of the NVIDIA driver, as Linux tells it."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d+(\.\d+)?", path.read_text()) if path.exists() else None
    return found and found[0]


@dataclass
class Report:
    """Collects rows and prints each at once. A row has a `part` and `what` it is about, `passed` if it is a check,
    and numbers."""

    machine: dict
    lacking: list[str]
    rows: list[dict] = field(default_factory=list)
    parts: list[dict] = field(default_factory=list)

    def add(self, part: str, what: str, **values) -> None:
        self.rows.append({"part": part, "what": what, **values})
        verdict = {True: "ok    ", False: "FAILED", None: "      "}[values.get("passed")]
        print(f"{verdict} {part}: {what}: {describe_values(values)}", flush=True)

    def end_part(self, name: str, status: str, seconds: float = 0.0, **values) -> None:
        self.parts.append({"name": name, "status": status, "seconds": round(seconds, 1), **values})
        print(f"       {name}: {status}, {seconds:.0f} s", flush=True)

    @property
    def has_failed(self) -> bool:
        return any(row.get("passed") is False for row in self.rows) or any(
            part["status"] == "failed" for part in self.parts
        )

    def write(self, folder: Path) -> None:
        """`gpu.json` and `gpu.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(self, name) for name in ("machine", "lacking", "parts", "rows")}
        (folder / "gpu.json").write_text(json.dumps(values, indent=1) + "\n")
        (folder / "gpu.md").write_text(self.table())

    def table(self) -> str:
        """All rows in Markdown: the parts, and a table of each."""
        lines = [", ".join(f"{name} {value}" for name, value in self.machine.items()), ""]
        lines += [f"Lacking: {'; '.join(self.lacking) or 'nothing'}", "", "| part | status | seconds |"]
        lines += ["| --- | --- | ---: |"] + [
            f"| {p['name']} | {p['status']} | {p['seconds']:.0f} |" for p in self.parts
        ]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            names = list(dict.fromkeys(name for row in rows for name in row if name not in ("part", "traceback")))
            lines += ["", f"## {part}", "", f"| {' | '.join(names)} |", "| --- |" + " ---: |" * (len(names) - 1)]
            lines += ["| " + " | ".join(show(row.get(name)) for name in names) + " |" for row in rows]
        return "\n".join(lines) + "\n"

    def draw(self, folder: Path) -> None:
        """A plot of the pictures per second of each part that has them."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        for part in dict.fromkeys(row["part"] for row in self.rows if row.get("pictures_per_second")):
            rows = [row for row in self.rows if row["part"] == part and row.get("pictures_per_second")]
            figure, axes = pyplot.subplots(figsize=(9, 1 + 0.25 * len(rows)), layout="constrained")
            axes.barh([row["what"] for row in rows], [row["pictures_per_second"] for row in rows])
            axes.invert_yaxis()
            axes.set(xscale="log", xlabel="pictures per second", title=f"{part}, {self.machine.get('card', 'CPU')}")
            figure.savefig(folder / f"{part}.png", dpi=120)
            pyplot.close(figure)


def show(value) -> str:
    if isinstance(value, bool):
        return "ok" if value else "FAILED"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def describe_values(values: dict) -> str:
    return ", ".join(f"{k} {show(v)}" for k, v in values.items() if k not in ("passed", "traceback") and v is not None)


def describe_error(error: Exception) -> dict:
    """Type, last line and our last line of code that led there; the whole traceback goes to the JSON only."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(ROOT))] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    message = (str(error).strip().splitlines() or [""])[-1]
    text = "".join(traceback.format_exception(error))
    return {"error": f"{type(error).__name__}: {message} ({where})", "traceback": text}


class Bench:
    """What every part gets: the device, the sizes, the time that is left, and ways to check and to time."""

    def __init__(self, device: Device, report: Report, tiny: bool, deadline: float):
        self.device, self.report, self.tiny, self.deadline = device, report, tiny, deadline
        self.sizes = TINY if tiny else REAL
        self.backend = "eager" if tiny else "inductor"  # of torch.compile; tiny sizes need no C++ compiler
        self.compile_modes = {"compiled": None} | ({} if tiny else {"compiled, CUDA graphs": "reduce-overhead"})
        self.part, self.part_end = "", deadline
        self.fitting: dict[str, int] = {}  # batch sizes of trainings that there was memory for

    def begin_part(self, name: str, end: float) -> None:
        self.part, self.part_end = name, end
        self.device.release()

    def left(self) -> float:
        """Seconds that this part still has."""
        return self.part_end - time.monotonic()

    def row(self, what: str, function: Callable[[], dict]) -> bool:
        """Reports what `function` returns, or why it returns nothing; whether it went well."""
        self.device.reset_peak()
        if self.left() <= 0:
            self.report.add(self.part, what, note="not run: no time left")
            return False
        try:
            values = function()
        except torch.OutOfMemoryError:
            values = {"note": "out of memory"}
        except Exception as error:
            values = {"passed": False, **describe_error(error)}
        self.report.add(self.part, what, **values)
        is_done = "note" not in values and "error" not in values
        if not is_done:
            self.device.release()
        return is_done

    def time(self, function: Callable, seconds: float = 0.5, most: int = 20) -> float:
        """Milliseconds of a call: the median of three to `most` calls, about as many as `seconds` hold, after two
        that don't count."""
        for _ in range(1 if self.tiny else 2):
            function()
        most = 1 if self.tiny else most
        times, start = [], self._now()
        while len(times) < min(3, most) or (len(times) < most and time.perf_counter() - start < seconds):
            begin = self._now()
            function()
            times.append(self._now() - begin)
        return 1000 * statistics.median(times)

    def _now(self) -> float:
        self.device.synchronize()
        return time.perf_counter()

    def speed(self, function: Callable, pictures: int, flops: float, **values) -> dict:
        """Numbers of a call that computes `pictures` with `flops` operations."""
        most = self.peak["tflops"]  # measured before the call, since it takes memory, too
        self.device.reset_peak()
        ms = self.time(function)
        tflops = flops / ms / 1e9
        numbers = {"ms": ms, "pictures_per_second": 1000 * pictures / ms, "tflops": tflops}
        return numbers | {"share_of_peak": tflops / most, "peak_gib": self.device.peak_gib()} | values

    @functools.cached_property
    def peak(self) -> dict:
        """What the device reaches: a matrix product in bfloat16, and a copy (bytes read and written)."""
        size = self.sizes.matrix
        one, other = (self.random(size, size, dtype=torch.bfloat16) for _ in range(2))
        tflops = 2 * size**3 / self.time(lambda: one @ other) / 1e9
        source = torch.empty(self.sizes.copied, dtype=torch.uint8, device=self.device.torch).random_()
        target = torch.empty_like(source)
        return {"tflops": tflops, "gb_per_second": 2 * len(source) / self.time(lambda: target.copy_(source)) / 1e6}

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=self.device.torch, dtype=dtype)

    def codes(self, *shape: int) -> torch.Tensor:
        return torch.where(self.random(*shape) > 0, 1.0, -1.0)

    def build(self, make: Callable, dtype: torch.dtype = torch.float32):
        """What `make` makes, on the device and in `dtype` from the start, with random weights of which none is 0."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self.device.torch:
                module = make()
        finally:
            torch.set_default_dtype(before)
        generator = self.device.generator(0)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
                else:
                    parameter.fill_(float(name.endswith("weight")))
        return module


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside the block products and convolutions in float32 are computed in TF32, or not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def count_flops(function: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference; NaN if there is one."""
    return (ours.detach().float().cpu() - wanted.detach().float().cpu()).abs().max().item()


def equal_share(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Share of equal bits."""
    return (ours.cpu() == wanted.cpu()).float().mean().item()


def within(limit: float, *values: float) -> bool:
    """Whether all values are at most `limit`; NaN never is."""
    return all(value <= limit for value in values)


def psnr(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """In dB, of pixels in [-1, 1]."""
    error = (ours.float().cpu().clamp(-1, 1) - wanted.float().cpu().clamp(-1, 1)).square().mean().item()
    return float("inf") if error == 0 else 10 * torch.log10(torch.tensor(4 / error)).item()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture_batch(mllm, codes: torch.Tensor, num_words: int = 16) -> dict:
    """Inputs of a training step: rows of random words and then a picture of `codes` [B, bits, h, w] to generate."""
    config, (rows, _, height, width) = mllm.config, codes.shape
    words = torch.randint(0, min(config.image_token_id, 1000), (rows, num_words), generator=seeded())
    picture = [*picture_header(config, height, width), *height * width * [config.image_token_id]]
    input_ids = torch.cat([words, torch.tensor([*picture, config.vision_end_token_id]).expand(rows, -1)], dim=1)
    labels = torch.where(torch.arange(input_ids.shape[1]) < num_words, input_ids, -100)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    inputs |= {"image_is_target": torch.ones(rows, dtype=torch.bool)}
    return {name: tensor.to(codes.device) for name, tensor in inputs.items()} | {"codes": list(codes)}


def picture_header(config, height: int, width: int) -> list[int]:
    """What comes before a picture of `height` x `width` tokens: start, sizes, queries."""
    sizes = [config.size_token_id + side - 1 for side in (height, width)]
    queries = [config.query_token_id + index for index in range(config.tokens_per_patch - 1)]
    return [config.vision_start_token_id, *sizes, *queries]


def generation_inputs(mllm, rows: int, height: int, width: int, num_words: int = 16) -> dict:
    """Prompts of random words for pictures of `height` x `width` tokens, and the one without words."""
    header = torch.tensor([picture_header(mllm.config, height, width)])
    words = torch.randint(0, min(mllm.config.image_token_id, 1000), (rows, num_words), generator=seeded())
    inputs = {"input_ids": torch.cat([words, header.expand(rows, -1)], dim=1), "negative_input_ids": header}
    return {name: ids.to(mllm.device) for name, ids in inputs.items()}


@contextlib.contextmanager
def compilation() -> Iterator[Callable[[], dict]]:
    """Inside the block nothing is compiled yet; gives a function that tells the graph breaks so far, and why the first
    one was."""
    from torch._dynamo.utils import counters

    def breaks() -> dict:
        reasons = [str(reason).strip().splitlines()[0] for reason in counters["graph_break"]]
        return {"graph_breaks": sum(counters["graph_break"].values()), "first_break": reasons[0] if reasons else None}

    torch.compiler.reset()
    counters.clear()
    try:
        yield breaks
    finally:
        torch.compiler.reset()
