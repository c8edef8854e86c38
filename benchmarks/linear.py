# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Linear layers of few rows on a CPU in float32: the usual order beside the weights first, on which
`modeling/linear_uniwetok.py` decides.

    python benchmarks/linear.py [--threads 2]

GB of weights per second, of layers that together are too large for the caches, as those of a language model are.
"""

import argparse
import time

import torch
from torch.nn import functional as F


SHAPES = ((768, 768), (768, 2304), (1024, 3072), (3072, 1024), (256, 640))  # inputs, outputs
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64, 96, 128)
BYTES = 400e6


def seconds(call, weights: list[torch.Tensor]) -> float:
    """Of one round over the weights, the best of four."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for weight in weights:
            call(weight)
        best = min(best, time.perf_counter() - start)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, metavar="N", help="default: as torch has it")
    if threads := parser.parse_args().threads:
        torch.set_num_threads(threads)
    print(f"| rows | {' | '.join(f'{i} to {o}' for i, o in SHAPES)} |\n| ---: |{' ---: |' * len(SHAPES)}")
    for rows in ROWS:
        cells = []
        for num_inputs, num_outputs in SHAPES:
            size = 4 * num_inputs * num_outputs
            weights = [torch.randn(num_outputs, num_inputs) for _ in range(int(BYTES / size))]
            bias, inputs = torch.randn(num_outputs), torch.randn(rows, num_inputs)

            def usual(weight, bias=bias, inputs=inputs):
                return F.linear(inputs, weight, bias)

            def weights_first(weight, bias=bias, inputs=inputs):
                return torch.addmm(bias[:, None], weight, inputs.t()).t().contiguous()

            usual_s, first_s = (seconds(call, weights) for call in (usual, weights_first))
            rates = [size * len(weights) / each / 1e9 for each in (usual_s, first_s)]
            cells.append(f"{rates[0]:.1f}, {rates[1]:.1f}: {usual_s / first_s:.2f}")
        print(f"| {rows} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
