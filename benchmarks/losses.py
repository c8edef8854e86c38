# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What each loss does to the image tokenizer, in equal short runs: reconstruction, and what the codes tell.

    python benchmarks/losses.py DATA TEACHER --output runs/losses [--steps 400] [--only base prior]

Trains the network of `emoji_uniwetok_stage1` at 64x64 once for each set of losses, from the same weights on the same
pictures. Then all encoders are frozen and the same new attention pools learn to carry their codes into the teacher's
space, so that zero-shot accuracy can be compared between runs with and without distillation. An interrupted benchmark
continues.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_from_disk

from uniwetok_hf import UniWeTokModel
from uniwetok_hf.evaluation.latents import class_embeddings, embed_rows, score_latents
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.training.config import read_config
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainingConfig, train


# Of the emoji recipe.
CONFIG = Path(__file__).parents[1] / "examples" / "emoji" / "emoji_uniwetok_stage1.yaml"
OFF = {"entropy": None, "perceptual": None, "adversarial": None, "distillation": None, "prior": None}
ENTROPY = {"weight": 0.005}


def variants(teacher: str) -> dict[str, dict]:
    """Sets of losses by name; all have L1 + L2."""
    distillation = {"teacher": teacher, "weight": 0.1, "hidden_size": 128}
    prior = {"weight": 0.05, "hidden_size": 128, "num_hidden_layers": 2}
    base = OFF | {"entropy": ENTROPY}
    return {
        "L1 + L2": OFF,
        "base": base,
        "distillation": base | {"distillation": distillation},
        "prior": base | {"prior": prior},
        "distillation + prior": base | {"distillation": distillation, "prior": prior},
        "commitment": base | {"commitment_weight": 0.25},
        "perceptual": base | {"perceptual": {"model": teacher, "weight": 0.1}},
        "adversarial": base | {"adversarial": {"weight": 0.05, "base_channels": 32, "start_step": 200}},
    }


def run(output_dir: Path, fields: dict) -> Path:
    """Trains, unless it is finished."""
    if not (output_dir / "model").exists():
        train(read_config(UniWeTokTrainingConfig, CONFIG, **{"output_dir": str(output_dir), **fields}))
    return output_dir


def scores(run_dir: Path, pools_dir: Path, data: str, teacher: Teacher) -> dict:
    """Reconstruction on validation pictures, use of bits, and accuracy on the concepts of the test split."""
    last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
    found = {name: last[name] for name in ("validation_psnr_64x64", "validation_ssim_64x64", "bit_entropy")}
    found["dead_bits"] = last["dead_bits"]
    splits = load_from_disk(str(Path(data) / "pictures"))
    model = UniWeTokModel.from_pretrained(run_dir / "model").eval()
    pools = PrePostDistillation.from_pretrained(pools_dir / "losses" / "distillation")
    test = embed_rows(model, splits["test"], 64, "name", pools=pools, teacher=teacher)
    classes = sorted(set(splits["test"]["name"]))
    texts = class_embeddings(teacher, classes, ["{label}"])
    groups = [embed_rows(model, splits[split], 64, "group") for split in ("validation", "test")]
    for row in score_latents(test, None, classes, texts) + score_latents(groups[1], groups[0]):
        for score in row.scores:
            found[f"{row.labels['what']} {score}"] = row.scores[score].value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of `examples/emoji/emoji_data.py`")
    parser.add_argument("teacher", help="model of `examples/emoji/train_siglip.py`")
    parser.add_argument("--output", default="runs/losses", help="folder of the runs and of results.json")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pool-steps", type=int, default=150)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the sets of losses")
    options = parser.parse_args()

    teacher, results = Teacher.from_pretrained(options.teacher), {}
    sources = {"data": [{"path": options.data}], "validation_data": {"path": options.data, "split": "validation"}}
    common = {**sources, "lr_warmup_steps": 100, "validation_steps": options.steps, "checkpointing_steps": 100}
    common["mixed_precision"] = options.mixed_precision
    for name, losses in variants(options.teacher).items():
        if options.only and name not in options.only:
            continue
        folder = Path(options.output, name.replace(" ", "-").replace("+", "and"))
        trained = run(folder, {**common, **losses, "max_train_steps": options.steps})
        after = {  # the encoder stays: besides the pools, only a bias of the decoder trains
            "init_from": str(trained / "model"),
            "model": {},
            "trainable": [r"^decoder\.conv_out\.bias$"],
            "validation_data": None,
            "max_train_steps": options.pool_steps,
            "distillation": {"teacher": options.teacher, "hidden_size": 128},
        }
        pools = run(folder.with_name(f"{folder.name}-pools"), common | OFF | after)
        results[name] = scores(trained, pools, options.data, teacher)
        Path(options.output, "results.json").write_text(json.dumps(results, indent=1))
        print(name, json.dumps(results[name]), flush=True)
    columns = list(next(iter(results.values())))
    print("| losses | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, values in results.items():
        print(f"| {name} | " + " | ".join(f"{values[column]:.4g}" for column in columns) + " |")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
