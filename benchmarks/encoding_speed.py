# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pictures per second of `uniwetok encode-dataset` with uniwetok-emoji, and bytes per picture beside those of the
stored files and of JPEG.

    python benchmarks/encoding_speed.py data/emoji [--rows 2000] [--size 128] [--processes 1 2] [--engines local ray]

Processes divide the threads. Seconds count all, the start of Ray too; pictures/s count from the first report on, since
new processes import torch first, which takes seconds, once. Equal digests mean that the same bytes were written.
"""

import argparse
import hashlib
import itertools
import platform
import sys
import tempfile
import time
from pathlib import Path


def measure(dataset, model, size: int, num_processes: int, engine: str) -> dict:
    """Encodes `dataset` into a new folder."""
    from uniwetok_hf.data.encoded_parts import EncodingSettings
    from uniwetok_hf.data.encoding import encode_dataset

    settings = EncodingSettings(sizes=((size, size),), rows_per_part=250)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        encoding = encode_dataset(dataset, folder, model, settings, num_processes=num_processes, engine=engine)
        seconds = time.perf_counter() - start
        parts = b"".join(path.read_bytes() for path in sorted(Path(folder).glob("*.parquet")))
    return {"encoding": encoding, "seconds": seconds, "digest": hashlib.sha256(parts).hexdigest()[:12]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that examples/emoji/emoji_data.py made, or any other folder of pictures")
    parser.add_argument("--rows", type=int, default=2000, help="pictures to encode (default: 2000)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default: 128)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--engines", nargs="+", default=["local"], help="local, ray or both (default: local)")
    arguments = parser.parse_args()

    import torch

    from uniwetok_hf import UniWeTokModel, embedded_path
    from uniwetok_hf.data.sources import PictureSource, open_source

    dataset = open_source(PictureSource(arguments.data))
    dataset = dataset.select(range(min(arguments.rows, len(dataset))))
    model = UniWeTokModel.from_pretrained(embedded_path("uniwetok-emoji") / "mllm", dtype=torch.float32)
    print("| engine | processes | threads of each | seconds | pictures/s | digest |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for engine, number in itertools.product(arguments.engines, arguments.processes):
        result = measure(dataset, model, arguments.size, number, engine)
        threads, encoding = max(1, torch.get_num_threads() // number), result["encoding"]
        cells = f"{result['seconds']:.1f} | {encoding.pictures_per_second:.1f} | {result['digest']}"
        print(f"| {engine} | {number} | {threads} | {cells} |", flush=True)
    sizes = encoding.bytes
    parts = sizes["parts"] / encoding.num_rows
    print(f"\n{sizes['pictures']} pictures at {arguments.size} x {arguments.size}:")
    print(f"- codes {sizes['codes']:.0f} bytes a picture; a row in the Parquet files, text and all, {parts:.0f}")
    print(f"- as they were stored {sizes['source']:.0f} bytes, {sizes['source'] / sizes['codes']:.1f} times as much")
    print(f"- JPEG of quality 90 {sizes['jpeg']:.0f} bytes, {sizes['jpeg'] / sizes['codes']:.1f} times as much")
    print(f"\ntorch {torch.__version__}, {platform.system()} {platform.machine()}, float32.")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a clone that is not installed, too
    main()
