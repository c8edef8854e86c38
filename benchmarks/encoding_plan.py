# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What encoding a large dataset reads, writes and costs, as arithmetic from the speed of one GPU.

    python benchmarks/encoding_plan.py --speed 500 [--pictures 100000000] [--gpus 64] [--size 256] [--variants 1]

The speed is yours: pictures per second of one process, which `uniwetok encode-dataset` prints at its end, of a few
thousand of your pictures on one of your GPUs. Nothing is measured here.
"""

import argparse
import sys
from pathlib import Path


def plan(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Rows of the table: what, and how much."""
    from uniwetok_hf import UniWeTokConfig
    from uniwetok_hf.data.encoded_parts import EncodingSettings
    from uniwetok_hf.data.encoding_pieces import MOST_SHARDS, PIECE_ROWS, choose_rows_per_part

    config = UniWeTokConfig(num_bits=arguments.bits)
    settings = EncodingSettings(
        sizes=((arguments.size, arguments.size),), num_variants=arguments.variants, columns=("image",)
    )
    encodings = arguments.pictures * arguments.variants
    tokens = (arguments.size // config.stride) ** 2
    row_bytes = tokens * arguments.bits // 8 * arguments.variants
    seconds = encodings / arguments.speed / arguments.gpus
    rows = choose_rows_per_part(settings, config, arguments.pictures)
    # Parts of a stream end with their shard.
    shard_rows = -(-arguments.pictures // MOST_SHARDS)
    files = {"not streamed": -(-arguments.pictures // rows), "streamed": MOST_SHARDS * -(-shard_rows // rows)}
    hours = seconds * arguments.gpus / 3600
    read = arguments.pictures * arguments.bytes
    return [
        ("read", f"{read / 1e12:,.1f} TB, {read / seconds / 1e9:,.2f} GB/s by all machines together"),
        ("codes written", f"{arguments.pictures * row_bytes / 1e9:,.0f} GB, {row_bytes:,} bytes per row"),
        ("files", f"{files['not streamed']:,} of {rows:,} rows; at most {files['streamed']:,} of a stream"),
        ("time", f"{seconds / 3600:,.2f} hours on {arguments.gpus} GPUs, {hours:,.1f} GPU hours"),
        ("cost", f"{hours * arguments.price:,.0f} at {arguments.price:g} per GPU hour"),
        ("lost by a killed process", f"{PIECE_ROWS * arguments.variants / arguments.speed:,.1f} seconds of its work"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, required=True, help="pictures per second of one GPU")
    parser.add_argument("--pictures", type=int, default=100_000_000, help="default: 100 million")
    parser.add_argument("--gpus", type=int, default=64, help="default: 64")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: 256)")
    parser.add_argument("--bits", type=int, default=128, help="of a token (default: 128)")
    parser.add_argument("--variants", type=int, default=1, help="encodings of each picture (default: 1)")
    parser.add_argument("--bytes", type=int, default=100_000, help="of a stored picture (default: 100,000)")
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU hour, in your currency (default: 2)")
    print("| what | how much |")
    print("| --- | --- |")
    for name, amount in plan(parser.parse_args()):
        print(f"| {name} | {amount} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a clone that is not installed, too
    main()
