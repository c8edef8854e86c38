import math
import zlib

import pytest
import torch

from uniwetok_hf.evaluation.bits import BitStatistics, bit_statistics
from uniwetok_hf.modeling.codes_uniwetok import pack_codes


def random_codes(*shape, seed=0):
    return torch.where(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) > 0, 1.0, -1.0)


def test_by_hand():
    codes = random_codes(1, 8, 1, 4)
    codes[0, 0] = 1  # stuck
    codes[0, 1, 0] = torch.tensor([1, -1, -1, -1])
    codes[0, 2] = -codes[0, 1]
    found = bit_statistics(codes)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    others = [
        -sum(p * math.log2(p) for p in (share, 1 - share) if p)
        for share in ((codes[0, bit] > 0).float().mean().item() for bit in range(3, 8))
    ]
    assert found["entropy"] == pytest.approx((0 + 2 * quarter + sum(others)) / 8)
    assert found["usage_max"] == 1 and found["stuck_bits"] >= 1
    assert found["largest_correlation"] == pytest.approx(1)
    assert (found["num_pictures"], found["num_tokens"], found["num_bits"]) == (1, 4, 8)


def test_fair_bits():
    found = bit_statistics(random_codes(50, 16, 8, 8))
    assert found["entropy"] > 0.999 and found["stuck_bits"] == 0
    assert 0.47 < found["usage_min"] < 0.5 < found["usage_max"] < 0.53
    assert found["largest_correlation"] < 0.08
    assert found["bytes_per_picture"] == 128 and found["zlib_bytes_per_picture"] == pytest.approx(128, rel=0.01)


def test_correlation_agrees_with_torch():
    codes = random_codes(30, 8, 2, 3)
    codes[:, 5] = torch.where(random_codes(30, 2, 3, seed=1) > 0, codes[:, 4], codes[:, 5])
    tokens = codes.movedim(1, -1).reshape(-1, 8)
    expected = torch.corrcoef(tokens.T).fill_diagonal_(0).abs().max().item()
    assert bit_statistics(codes)["largest_correlation"] == pytest.approx(expected, abs=1e-5)


def test_compressed_size_is_that_of_all_codes_together():
    codes = random_codes(1, 16, 4, 4).repeat(10, 1, 1, 1)
    found = bit_statistics(codes)
    packed = b"".join(pack_codes(picture[None]).numpy().tobytes() for picture in codes)
    assert found["zlib_bytes_per_picture"] == len(zlib.compress(packed, 9)) / 10
    assert found["zlib_bytes_per_picture"] < 8 < found["bytes_per_picture"]


def test_picture_by_picture_is_as_all_at_once_and_can_be_looked_at_in_between():
    codes, other = random_codes(3, 8, 2, 2), random_codes(8, 1, 5, seed=1)
    statistics = BitStatistics(8)
    statistics.add(codes)
    statistics.compute()
    statistics.add(other)
    assert statistics.compute() == bit_statistics([*codes, other])
    assert statistics.num_pictures == 4 and statistics.num_tokens == 17


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.ones(4, 2, 2), r"\[B, 8, h, w\]"),
        (torch.ones(8, 2), r"\[B, 8, h, w\]"),
        (torch.zeros(8, 2, 2), "-1 and \\+1"),
    ],
)
def test_errors(codes, message):
    statistics = BitStatistics(8)
    with pytest.raises(ValueError, match=message):
        statistics.add(codes)
    with pytest.raises(ValueError, match="none were added"):
        statistics.compute()
    with pytest.raises(ValueError, match="empty"):
        bit_statistics([])
