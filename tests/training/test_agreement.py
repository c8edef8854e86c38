"""How processes find a part of the store of `torchrun` that no start before them had."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from uniwetok_hf.training.agreement import _agree_on_part


def test_every_start_has_a_part_of_its_own():
    """Also when a process of the start before asked, and ended before it was told."""
    store, second = HashStore(), timedelta(seconds=20)
    store.set("question-2", "of a process that is gone")
    with ThreadPoolExecutor(3) as threads:
        starts = [
            set(threads.map(lambda rank: _agree_on_part(store, rank, 3, second), order))
            for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))
        ]
    assert [len(parts) for parts in starts] == [1, 1, 1] and len(set.union(*starts)) == 3


def test_processes_that_do_not_come_are_named():
    with pytest.raises(RuntimeError, match="Timed out waiting for processes 1, 2 to start"):
        _agree_on_part(HashStore(), 0, 3, timedelta(seconds=0.1))
