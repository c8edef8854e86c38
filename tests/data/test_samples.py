"""Order and random numbers of samples: functions of the seed and the running number alone."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from uniwetok_hf.data import samples
from uniwetok_hf.data.samples import (
    NOISE,
    TASK,
    ComputedOrder,
    EpochOrder,
    Mixture,
    sample_generator,
    sample_generators,
    stream_seed,
)


def test_generators_depend_on_seed_number_and_purpose():
    def draw(*arguments):
        return torch.randn(4, generator=sample_generator(*arguments))

    assert torch.equal(draw(1, 2, NOISE), draw(1, 2, NOISE))
    for other in ((0, 2, NOISE), (1, 3, NOISE), (1, 2, TASK)):
        assert not torch.equal(draw(1, 2, NOISE), draw(*other))
    batch = sample_generators(1, [2, 3], NOISE)
    assert torch.equal(torch.randn(4, generator=batch[1]), draw(1, 3, NOISE))


def test_streams_are_those_of_version_2():
    """Other numbers would need another `STREAMS`: checkpoints go on with them."""
    assert [stream_seed(0, 5), stream_seed(0, 5, 1), stream_seed(2**40, 3)] == [
        14153166575370824094,
        3945838872769138812,
        13084773996172474661,
    ]
    wanted = torch.tensor([0.6339227, 0.182994, 0.5286441])
    torch.testing.assert_close(torch.rand(3, generator=sample_generator(1, 2, TASK)), wanted)


def test_keys_of_other_lengths_are_other_streams():
    keys = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (0, 0, 0)]
    assert len({stream_seed(seed, *key) for seed in (0, 1, 2**32) for key in keys}) == 3 * len(keys)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        sample_generator(-1, 0, NOISE)


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own():
    order = EpochOrder(7, seed=0)
    epochs = [[order[7 * epoch + i] for i in range(7)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(7)) for rows in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert [EpochOrder(7, seed=0)[i] for i in (9, 3, 20)] == [order[9], order[3], order[20]]
    assert [EpochOrder(7, seed=1)[i] for i in range(7)] != epochs[0]


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 1000, 4097])
def test_an_order_that_is_computed_holds_every_row_once(length):
    orders = [[ComputedOrder(length, seed)[index] for index in range(length)] for seed in range(3)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length > 16:
        assert orders[0] != orders[1] != orders[2]


def test_an_order_that_is_computed_mixes():
    order = np.array([ComputedOrder(1 << 12, 1)[index] for index in range(1 << 12)])
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.06  # 4 standard deviations
    steps = np.diff(order)
    assert (steps == 1).mean() < 0.005 and abs(np.corrcoef(steps[1:], steps[:-1])[0, 1] + 0.5) < 0.06
    # A later epoch, and another seed, is another order: as many rows stay in place as by chance.
    other = np.array([ComputedOrder(1 << 12, 2)[index] for index in range(1 << 12)])
    assert (order == other).sum() < 12


def test_a_large_source_takes_no_memory_for_its_order(monkeypatch):
    order = EpochOrder(250_000_000, seed=3)
    tracemalloc.start()
    rows = [order[position] for position in (0, 1, 249_999_999, 250_000_000, 0)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 and rows[0] == rows[4] and len(set(rows)) == 4 and max(rows) < 250_000_000
    monkeypatch.setattr(samples, "MOST_LISTED", 10)
    assert sorted(EpochOrder(11, 0)[position] for position in range(11, 22)) == list(range(11))


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.3, 0.2], [1, 1, 1], [1e-6, 1.0], [5, 0.001, 0.001]])
def test_a_mixture_keeps_the_shares_and_counts_each_source(weights):
    mixture = Mixture(weights, seed=3, cycle=100)
    drawn = [mixture[number] for number in range(300)]
    shares = Counter(source for source, _ in drawn)
    for source, weight in enumerate(weights):
        wanted = max(300 * weight / sum(weights), 3)  # at least once a cycle
        assert abs(shares[source] - wanted) <= 3 * len(weights)
        assert [position for s, position in drawn if s == source] == list(range(shares[source]))
    assert [mixture[number] for number in (299, 0, 150)] == [drawn[299], drawn[0], drawn[150]]


def test_cycles_of_a_mixture_differ_and_follow_the_seed():
    def sources(seed, start):
        mixture = Mixture([1, 1], seed, cycle=20)
        return [mixture[start + i][0] for i in range(20)]

    assert sources(0, 0) != sources(0, 20)
    assert sources(0, 0) != sources(1, 0)


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0]])
def test_weights_must_be_positive(weights):
    with pytest.raises(ValueError, match="`weight` of each source must be above 0"):
        Mixture(weights, seed=0)
