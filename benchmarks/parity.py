"""How far this package is from the published definitions: largest absolute differences to the golden vectors, on the
CPU in float32. Prints the table of the README.

    python benchmarks/parity.py
"""

import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

from uniwetok_hf import UniWeTokModel, UniWeTokPipeline, convert_checkpoint
from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.modeling.codes_uniwetok import binarize, pack_codes


GOLDEN = Path(__file__).parent.parent / "tests" / "fixtures" / "golden"


def difference(ours: torch.Tensor, golden: torch.Tensor) -> str:
    return f"{(ours - golden).abs().max().item():.1e}"


def equal(ours: torch.Tensor, golden: torch.Tensor) -> str:
    return f"{int((ours == golden).sum())} of {golden.numel()} equal"


def vision_rows(name: str, folder: Path) -> list[tuple[str, str]]:
    golden = load_file(GOLDEN / name / "golden.safetensors")
    model = UniWeTokModel.from_pretrained(convert_checkpoint(GOLDEN / name, folder / name), dtype=torch.float32)
    encoded = model.encode(golden["pixel_values"])
    sample = model.decode(golden["quant"], noise=golden["noise"]).sample
    return [
        (f"{name}: encoder output", difference(encoded.latents, golden["pre_quant"])),
        (f"{name}: bits", equal(encoded.codes, golden["quant"])),
        (f"{name}: reconstruction", difference(sample, golden["reconstruction"])),
    ]


def generation_rows(folder: Path) -> list[tuple[str, str]]:
    golden = load_file(GOLDEN / "t2i_4x" / "golden.safetensors")
    pipe = UniWeTokPipeline.from_pretrained(convert_checkpoint(GOLDEN / "t2i_4x", folder / "t2i"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    inputs, negative = pipe.processor.generation_inputs(["a red apple on a table"] * 2, height=128, width=64)
    generated = pipe.mllm.generate_codes(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        negative_input_ids=negative["input_ids"],
        guidance_scale=3.0,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(42),
        output_conditions=True,
    )
    head = pipe.mllm.image_head(golden["head_x"], golden["head_t"], golden["head_c"])
    image = pipe.mllm.vision_model.decode(golden["codes"], noise=golden["decoder_noise"]).sample
    return [
        ("text to image: binary head", difference(head, golden["head_out"])),
        ("text to image: hidden states", difference(torch.cat(generated.conditions, 1), golden["head_condition"])),
        ("text to image: generated bits", equal(generated.codes, golden["codes"])),
        ("text to image: image", difference(image, golden["image"])),
    ]


def quantizer_rows() -> list[tuple[str, str]]:
    golden = load_file(GOLDEN / "quantizer.safetensors")
    latents = golden["latents"].requires_grad_()
    losses = entropy_loss(latents)
    losses.loss.backward()
    indices = pack_codes(binarize(latents.detach())).flatten(1, 2).long()
    rows = [(f"quantizer: {n.replace('_', ' ')}", difference(getattr(losses, n), golden[n])) for n in losses._fields]
    return [
        *rows,
        ("quantizer: gradient", difference(latents.grad, golden["grad"])),
        ("quantizer: group indices", equal(indices, golden["group_index"])),
    ]


@torch.no_grad()
def measure() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        rows = [*vision_rows("tokenizer_uniwetok", folder), *vision_rows("tokenizer_bitdance", folder)]
        rows += generation_rows(folder)
        with torch.enable_grad():
            return rows + quantizer_rows()


if __name__ == "__main__":
    print("| what | difference |\n| --- | --- |")
    for what, value in measure():
        print(f"| {what} | {value} |")
