"""Time and peak memory of converting a large text-to-image folder.

Makes a folder in the published layout with random weights (3.5 GB in bfloat16 by default; the image tokenizer is the
paper's), converts it in a process of its own and watches that process. Nothing stays on the disk.

    python benchmarks/conversion.py [--layers 12] [--folder /where/there/is/room]

Linux only: memory is read from /proc. "Anonymous" memory is what the process really holds. "Resident" memory also
counts the pages of libraries and source files that are mapped at that moment, which the system takes back whenever it
needs them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Qwen3Config

from uniwetok_hf import UniWeTokConfig, UniWeTokForCausalLM, UniWeTokHeadConfig, UniWeTokMLLMConfig
from uniwetok_hf.conversion.keys import (
    HEAD_RULES,
    PROJECTOR_RULES,
    VISION_RULES,
    Rules,
    language_rules,
    native_names,
    published_name,
)
from uniwetok_hf.conversion.shards import OutputTensor, write_shards


TEXT_FILES = Path(__file__).parents[1] / "tests" / "fixtures" / "golden" / "t2i_4x"
CHUNK = 1 << 22
CHILD = """
import sys
from uniwetok_hf import UniWeTokPipeline, convert_checkpoint
print("ready", flush=True)
sys.stdin.readline()
convert_checkpoint(sys.argv[1], sys.argv[2])
print("done", flush=True)
sys.stdin.readline()
"""


def random_chunks(count: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, CHUNK):
        yield torch.randn(min(CHUNK, count - start), generator=generator).bfloat16()


def write_published(file: Path, shapes: dict[str, tuple[int, ...]], rules: Rules) -> None:
    """Writes a published file of random tensors which the rules turn to tensors of our `shapes`."""
    tensors = {}
    for native in shapes:
        name = published_name(native, rules)
        parts = [shapes[part] for part in native_names(name, rules)]
        shape = (sum(part[0] for part in parts), *parts[0][1:])
        count, seed = torch.Size(shape).numel(), len(tensors)
        tensors[name] = OutputTensor(name, shape, torch.bfloat16, lambda c=count, s=seed: random_chunks(c, s))
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        write_shards(Path(folder), list(tensors.values()), 10**15)
        (Path(folder) / "model.safetensors").rename(file)


def make_published_folder(folder: Path, num_layers: int) -> None:
    """A published text-to-image folder: a Qwen3 of width 2048, the paper's image tokenizer, a head of width 2048."""
    text = Qwen3Config(
        vocab_size=60_000,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    head = {"ch_target": 128, "ch_cond": 2048, "ch_latent": 2048, "depth_latent": 6, "depth_adanln": 2}
    head |= {"parallel_num": 4, "use_swiglu": True}
    config = UniWeTokMLLMConfig(
        text_config=text,
        vision_config=UniWeTokConfig(),
        head_config=UniWeTokHeadConfig(num_bits=128, condition_size=2048, hidden_size=2048),
        **dict.fromkeys(["image_token_id", "vision_start_token_id", "vision_end_token_id"], 0),
        **dict.fromkeys(["size_token_id", "query_token_id"], 0),
    )
    with torch.device("meta"):
        state_dict = UniWeTokForCausalLM(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    for file, prefix, rules in (
        ("ae", "model.vision_model.", VISION_RULES),
        ("vision_head", "image_head.", HEAD_RULES),
        ("projector", "model.projector.", PROJECTOR_RULES),
    ):
        part = {name.removeprefix(prefix): shapes.pop(name) for name in list(shapes) if name.startswith(prefix)}
        write_published(folder / f"{file}.safetensors", part, rules)
    write_published(folder / "model.safetensors", shapes, language_rules("model"))

    vision = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4, 8], "num_res_blocks": 2, "z_channels": 128, "in_channels": 3}
    vision |= {"out_ch": 3, "attn_blocks": 16, "n_heads": 16}
    (folder / "ae_config.json").write_text(json.dumps({"ddconfig": vision, "gan_decoder": True}))
    (folder / "vision_head_config.json").write_text(json.dumps(head))
    text.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TEXT_FILES / name, folder / name)


def memory(pid: int) -> dict[str, float]:
    """Memory of a process now, in MB, by the names of /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile", "VmRSS")}


def convert_and_watch(source: Path, out: Path) -> None:
    """Converts in a process of its own, and prints what it took."""
    command = [sys.executable, "-c", CHILD, str(source), str(out)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    before = memory(child.pid)
    peak = dict(before)
    start = time.perf_counter()
    child.stdin.write("go\n")
    child.stdin.flush()
    size = sum(file.stat().st_size for file in source.iterdir())
    while not out.exists():  # it appears at once, when all is done
        if child.poll() is not None:
            raise SystemExit("the conversion failed")
        now = memory(child.pid)
        peak = {name: max(peak[name], now[name]) for name in peak}
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    assert child.stdout.readline() == "done\n"
    child.communicate("bye\n")
    largest = max(file.stat().st_size for file in source.iterdir())
    print(f"source                    {size / 1e9:8.2f} GB (largest file {largest / 1e9:.2f} GB)")
    print(f"time                      {seconds:8.1f} s  ({size / 1e6 / seconds:.0f} MB/s)")
    print(f"anonymous memory, imports {before['RssAnon']:8.0f} MB")
    print(f"anonymous memory, peak    {peak['RssAnon']:8.0f} MB (+{peak['RssAnon'] - before['RssAnon']:.0f})")
    print(f"resident memory, imports  {before['VmRSS']:8.0f} MB")
    print(f"resident memory, peak     {peak['VmRSS']:8.0f} MB (+{peak['VmRSS'] - before['VmRSS']:.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the language model, 0.1 GB each")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the files meanwhile: twice 3.5 GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "published"
        source.mkdir()
        start = time.perf_counter()
        make_published_folder(source, arguments.layers)
        print(f"made the source in {time.perf_counter() - start:.0f} s")
        convert_and_watch(source, Path(folder) / "converted")


if __name__ == "__main__":
    main()
