"""How bits are used: shares, entropies, stuck and dead bits."""

import json
import math

import pytest
import torch

from uniwetok_hf.evaluation.bits import BitStatistics
from uniwetok_hf.training.bit_usage import BitUsage


def codes_with_shares(shares, tokens=(2, 5, 10)):
    """Codes [2, bits, 5, 10] whose bit k is +1 in `shares[k]` percent of the 100 tokens."""
    count = math.prod(tokens)
    codes = torch.stack([torch.where(torch.arange(count) < share, 1.0, -1.0) for share in shares])  # [bits, tokens]
    return codes[:, torch.randperm(count, generator=torch.Generator().manual_seed(0))].view(-1, *tokens).movedim(0, 1)


SHARES = [0, 100, 50, 1, 99, 2, 25]


def test_shares_and_entropies_by_hand(device):
    used = BitUsage()
    used.update(codes_with_shares(SHARES).to(device))
    torch.testing.assert_close(used.usage.cpu(), torch.tensor(SHARES) / 100)
    one, two, quarter = 0.0807931, 0.1414405, 0.8112781  # H_b(0.01), H_b(0.02), H_b(0.25)
    wanted = torch.tensor([0, 0, 1, one, one, two, quarter])
    torch.testing.assert_close(used.entropies.cpu(), wanted, atol=1e-6, rtol=0)
    assert used.mean_entropy == pytest.approx(wanted.mean().item(), abs=1e-6)


def test_metrics_of_all_updates(device):
    codes = codes_with_shares(SHARES).to(device)
    used, at_once = BitUsage(), BitUsage()
    for part in (codes[:1], codes[1:]):
        used.update(part)
    at_once.update(codes)
    assert torch.equal(used.usage, at_once.usage) and used.mean_entropy == at_once.mean_entropy
    assert used.stuck == 2  # never and always +1
    assert used.dead == 4  # those, and 1 and 99 percent; 2 percent is above 0.1 bit


def test_batches_count_by_their_tokens():
    used = BitUsage()
    used.update(torch.ones(1, 4, 2, 2))
    used.update(-torch.ones(3, 4, 2, 2))
    torch.testing.assert_close(used.usage, torch.full((4,), 0.25))


@pytest.mark.parametrize("changes, stuck", [(1, 8), (249, 8), (251, 6)])
def test_a_bit_that_hardly_changes_is_stuck(changes, stuck):
    """As in the evaluation: below one token in a thousand."""
    codes = torch.ones(1, 8, 500, 500)
    codes[0, 0].view(-1)[:changes] = -1
    codes[0, 1].view(-1)[changes:] = -1
    used = BitUsage()
    used.update(codes)
    assert used.stuck == stuck and used.dead == 8
    statistics = BitStatistics(8)
    statistics.add(codes)
    assert statistics.compute()["stuck_bits"] == stuck


def test_reset_and_checkpoint():
    used = BitUsage()
    used.update(torch.ones(1, 2, 2, 2))
    other = BitUsage()
    other.load_state_dict(json.loads(json.dumps(used.state_dict())))
    other.update(-torch.ones(1, 2, 2, 2))
    assert other.usage.tolist() == [0.5, 0.5]
    used.reset()
    used.update(-torch.ones(1, 2, 2, 2))
    assert used.usage.tolist() == [0, 0]
    used.reset()
    other.load_state_dict(used.state_dict())
    for metric in ("usage", "stuck", "dead", "mean_entropy"):
        with pytest.raises(ValueError, match="before the first `update`"):
            getattr(other, metric)


def test_counts_of_processes_are_added_and_kept_apart():
    ours, theirs = BitUsage(), BitUsage()
    ours.update(torch.ones(1, 2, 2, 2))
    theirs.update(-torch.ones(3, 2, 2, 2))
    total = ours.over_processes(lambda counts: counts + theirs._counts)
    assert total.usage.tolist() == [0.25, 0.25] and ours.usage.tolist() == [1, 1]
    assert ours.over_processes().usage.tolist() == [1, 1]  # alone


def test_codes_may_require_gradients():
    used = BitUsage()
    used.update(torch.ones(1, 2, 2, 2, requires_grad=True))
    assert not used.usage.requires_grad
