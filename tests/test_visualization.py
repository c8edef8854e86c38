import numpy as np
import pytest
import torch

from uniwetok_hf.visualization import bit_planes


def test_every_bit_has_its_place_and_colour():
    codes = -torch.ones(20, 2, 3)
    codes[0, 1, 2] = 1
    codes[17, 0, 0] = 0
    sheet = np.asarray(bit_planes(codes, tile=6, gap=1))  # maps of 4 x 6 pixels
    assert sheet.shape == (2 * 5 + 1, 16 * 7 + 1)
    assert (sheet[3:5, 5:7] == 255).all() and (sheet == 255).sum() == 4
    assert (sheet[6:8, 8:10] == 128).all() and (sheet == 128).sum() == 4
    assert (sheet == 0).sum() == 20 * 24 - 8


def test_a_batch_is_no_picture():
    with pytest.raises(ValueError, match=r"one picture, \[bits, h, w\], got \[1, 8, 2, 2\]"):
        bit_planes(torch.ones(1, 8, 2, 2))
