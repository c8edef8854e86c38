"""The same picture gives the same codes through every door: commands, pipelines, processors, chat, app, data."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from nasty_pictures import pictures
from PIL import Image
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline
from uniwetok_hf.cli.main import main
from uniwetok_hf.data.encoded import cell_codes, open_encoded
from uniwetok_hf.data.encoded_parts import EncodingSettings
from uniwetok_hf.data.encoding import encode_dataset
from uniwetok_hf.data.images import read_image
from uniwetok_hf.data.sources import PictureSource
from uniwetok_hf.evaluation.rows import PictureRows
from uniwetok_hf.modeling.codes_uniwetok import load_codes
from uniwetok_hf.training.picture_batches import Bucket, PictureBatches, validation_pictures
from uniwetok_hf.web_app import read_upload


PICTURES = pictures()
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # says Pillow


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nasty")
    for index, content in enumerate(PICTURES.values()):
        (folder / f"{index:02}.png").write_bytes(content)  # whatever it is: names don't count
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def codes(pipe) -> list[torch.Tensor]:
    """Of each picture, [bits, h, w]."""
    return [pipe.encode_image(read_image(content))[0].codes for content in PICTURES.values()]


def as_pil(path: Path) -> list[Image.Image]:
    """The picture as Pillow opens it; it refuses long or damaged text before the pixels, as no other door does."""
    try:
        return [Image.open(io.BytesIO(path.read_bytes()))]
    except (ValueError, OSError):
        return []


def same(found, expected, name: str) -> None:
    assert found.shape == expected.shape and torch.equal(found.float(), expected.float()), name


def test_the_table_holds_different_pictures(codes):
    seen = {(tuple(one.shape), one.numpy().tobytes()) for one in codes}
    assert len(seen) > 0.6 * len(codes)


def test_pipelines_and_processors(pipe, files, codes):
    edit = UniWeTokEditPipeline.from_pipe(pipe)
    for name, path, expected in zip(PICTURES, files, codes, strict=True):
        for given in (path, str(path), path.read_bytes(), np.asarray(read_image(path)), *as_pil(path)):
            inputs = pipe.processor.image_processor(given)
            same(pipe.mllm.model.encode_pictures(inputs["pixel_values"])[0], expected, name)
        for pipeline in (pipe, edit):
            for given in (str(path), *as_pil(path)):
                same(pipeline.encode_image(given)[0].codes, expected, name)
        for image in ({"path": str(path)}, *({"image": given} for given in as_pil(path))):
            talk = [{"role": "user", "content": [{"type": "image", **image}, {"type": "text", "text": "what?"}]}]
            inputs = pipe.processor.apply_chat_template(talk, tokenize=True, return_dict=True)
            same(pipe.mllm.model.encode_pictures(inputs["pixel_values"])[0], expected, name)


def test_conversation_and_app(pipe, files, codes):
    for name, path, expected in zip(PICTURES, files, codes, strict=True):
        for given in (str(path), *as_pil(path)):
            talk = UniWeTokConversation(pipe)
            talk.say("what?", images=given, max_new_tokens=1)
            same(talk.codes[0], expected, name)
        same(pipe.encode_image(read_upload(str(path)))[0].codes, expected, name)


def test_command(pipe, files, codes, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    output = str(tmp_path / "codes.safetensors")
    assert main(["encode", *map(str, files), "--model", str(tmp_path / "pipe"), "--output", output]) == 0
    for name, found, expected in zip(PICTURES, load_codes(output).codes, codes, strict=True):
        same(found, expected, name)


def test_data(pipe, files, tmp_path):
    """At a size of its own: the square in the middle."""
    processor, vision = pipe.processor.image_processor, pipe.mllm.vision_model
    read = [read_image(path) for path in files]
    crops = [processor(picture, size={"height": 64, "width": 64}, fit="crop")["pixel_values"] for picture in read]
    rows = Dataset.from_dict({"image": [path.read_bytes() for path in files]})
    encode_dataset(rows, tmp_path / "codes", vision, EncodingSettings(sizes=((64, 64),), batch_size=1))
    for name, row, pixels in zip(PICTURES, open_encoded(tmp_path / "codes"), crops, strict=True):
        same(cell_codes(row["image"], 0, 16), vision.encode(pixels).codes[0], name)

    for name, row, picture in zip(PICTURES, PictureRows(rows), read, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture), name)


def test_training(files, tmp_path):
    rows = Dataset.from_dict({"image": [path.read_bytes() for path in files]})
    rows.to_parquet(tmp_path / "rows.parquet")
    source = PictureSource(str(tmp_path / "rows.parquet"))
    batches = PictureBatches([source], [Bucket(48, 48)], len(files), seed=0, flip=False, crop_probability=0.0)
    assert next(iter(batches)).skipped == []
    kept = validation_pictures(source, 48, 48, len(files))
    for name, path, pixels in zip(PICTURES, files, kept, strict=True):
        picture = read_image(path)
        left, top = (picture.width - 48) // 2, (picture.height - 48) // 2
        expected = np.asarray(picture.crop((left, top, left + 48, top + 48)))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected, name)
