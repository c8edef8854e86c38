"""What the losses share between processes: two with half of the batch each equal one with all of it."""

import torch
from two_processes import measure, measure_on_two


def test_two_processes_equal_one(tmp_path):
    alone = measure()
    both = measure_on_two(tmp_path)
    for shared in both:
        for name in ("losses", "batch_entropy", "gradients", "averages", "usage", "bit_metrics"):
            torch.testing.assert_close(shared[name], alone[name], atol=1e-6, rtol=0)
        assert shared["sum"] == 3
    # What was compared is not trivial: the halves differ, gradients and averages are there.
    assert not torch.allclose(both[0]["own_usage"], both[1]["own_usage"])
    assert all(gradient.abs().max() > 1e-4 for gradient in alone["gradients"])
    assert all(average.abs() > 1e-4 for average in alone["averages"])
    assert (alone["losses"].abs() > 1e-2).all()
