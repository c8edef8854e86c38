import numpy as np
import torch
from PIL import Image

from uniwetok_hf.evaluation.drawing import draw_all, nearest_is_own, thumbnail


def test_thumbnail_averages():
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 1, 2))
    small = thumbnail(picture)
    assert small.shape == (32, 32, 3) and small.dtype == np.float32
    assert 127 <= small[0, 0, 0] <= 128 and small[0, 1:].max() == 0


def test_nearest_is_own():
    own, near, far = (np.full((2, 2, 3), value, np.float32) for value in (0, 10, 200))
    assert nearest_is_own(own + 4, own, [near, far])
    assert not nearest_is_own(own + 6, own, [near, far])
    assert not nearest_is_own(own + 5, own, [near])  # a tie is no success


class Recorder:
    """Stands where a pipeline does, and notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompt, generator, **call):
        numbers = [torch.rand(1, generator=g).item() for g in generator]
        self.calls.append((prompt, numbers, call))
        return type("Output", (), {"images": [Image.new("RGB", (1, 1), (len(text), 0, 0)) for text in prompt]})


def test_each_drawing_has_its_own_seed_whatever_the_batch():
    prompts = ["a", "bb", "ccc"]
    together, apart = Recorder(), Recorder()
    drawn = draw_all(together, prompts, seed=5, batch_size=2, guidance_scale=3)
    assert [image.getpixel((0, 0))[0] for image in drawn] == [1, 2, 3]
    assert [call[0] for call in together.calls] == [["a", "bb"], ["ccc"]]
    assert together.calls[0][2] == {"guidance_scale": 3}
    draw_all(apart, prompts, seed=5, batch_size=1)
    numbers = [number for call in together.calls for number in call[1]]
    assert numbers == [number for call in apart.calls for number in call[1]]
    assert numbers[1] == torch.rand(1, generator=torch.Generator().manual_seed(6)).item()


def test_pictures_to_change_go_with_their_words():
    recorder, sources = Recorder(), [Image.new("RGB", (1, 1), (value, 0, 0)) for value in (7, 8, 9)]
    draw_all(recorder, ["a", "b", "c"], sources, batch_size=2)
    assert [image.getpixel((0, 0))[0] for call in recorder.calls for image in call[2]["image"]] == [7, 8, 9]
