# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Can a language model copy what it is shown, and which of its attention heads do that: what `copying_heads` of
`uniwetok train mllm` is chosen by.

    python benchmarks/copying.py emoji_mllm_anneal --pipeline runs/emoji_mllm_anneal/pipeline

First, of copies of validation pictures with none, a tenth and half of their bits turned over, the share of bits that
comes out wrong; half of them turned over is noise, which can only be copied. Then, for each head, how much it looks at
the place of the source that is drawn next, and the losses on the config's validation data without that head. A head is
idle when they are the same without it.
"""

import argparse
import tempfile

import torch

from uniwetok_hf.data.encoded import cell_codes, open_encoded
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow
from uniwetok_hf.training.config import find_config, read_config
from uniwetok_hf.training.tasks import COPIES
from uniwetok_hf.training.train_mllm import MLLMTrainer, MLLMTrainingConfig


def copies_of(pipeline, pictures: list[torch.Tensor]) -> dict:
    """Inputs of the model: each of `pictures` [bits, h, w], and after it the copy."""
    processor, config = pipeline.processor, pipeline.mllm.config
    height, width = (side * processor.stride for side in pictures[0].shape[1:])
    blank = torch.zeros(3, height, width)  # only its size is needed, for the placeholders
    inputs, _ = processor.drawing_inputs([COPIES[0]] * len(pictures), height, width, [[blank]] * len(pictures))
    drawn = torch.full((len(pictures), pictures[0][0].numel()), config.image_token_id)
    input_ids = torch.cat([inputs["input_ids"], drawn], dim=1)
    return {"input_ids": input_ids, "codes": [picture for picture in pictures for _ in range(2)]}


@torch.no_grad()
def wrong_bits(pipeline, pictures: list[torch.Tensor], turned_over: float) -> float:
    """Share of wrong bits of copies, each token drawn after the true ones before it."""
    mllm, generator = pipeline.mllm, torch.Generator().manual_seed(0)
    pictures = [torch.where(torch.rand(p.shape, generator=generator) < turned_over, -p, p) for p in pictures]
    hidden_states = mllm.model(**copies_of(pipeline, pictures)).last_hidden_state
    num_tokens, block = pictures[0][0].numel(), mllm.config.tokens_per_patch
    condition = hidden_states[:, -num_tokens - block : -block] + mllm.model.positions(pictures[:1])
    tokens = mllm.model.tokens(pictures).unflatten(0, (-1, block))  # [patches, P, bits]
    flow = BinaryFlow()
    flow.set_timesteps(pipeline.config.default_num_inference_steps)
    drawn = mllm.image_head.sample(condition.reshape(len(tokens), block, -1), flow, generator=generator)
    return (drawn.sign() != tokens).float().mean().item()


@torch.no_grad()
def looks_at_the_source(pipeline, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of each layer, [heads]: attention from where a token is predicted to the token of the source at its place."""
    mllm, inputs = pipeline.mllm, copies_of(pipeline, pictures)
    attentions = mllm.model(**inputs, output_attentions=True).attentions
    num_tokens, block = pictures[0][0].numel(), mllm.config.tokens_per_patch
    places = (inputs["input_ids"][0] == mllm.config.image_token_id).nonzero()[:, 0]
    source, drawn = places[:num_tokens], places[num_tokens:]
    return [attention[:, :, drawn - block, source].mean((0, 2)) for attention in attentions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a training, for its validation data")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--count", type=int, default=64, help="pictures, and validation samples of each task")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        fields = dict.fromkeys(("vision_model", "language_model", "copying_heads", "lora"))
        fields |= {"text_model": {}, "head": {}, "mllm": {}}
        fields |= {"init_from": options.pipeline, "attn_implementation": "eager"}
        fields |= {"output_dir": f"{folder}/run", "compile": False, "mixed_precision": "no", "prompts": []}
        config = read_config(MLLMTrainingConfig, find_config(options.config), **fields)
        if not config.validation_data:
            raise SystemExit(f"{options.config} has no `validation_data`.")
        trainer = MLLMTrainer(config)
        pipeline, mllm = trainer.pipeline, trainer.mllm.eval()
        rows = open_encoded(config.validation_data[0].path)
        rows = rows.select(range(min(options.count, len(rows))))
        num_bits = mllm.config.vision_config.num_bits
        pictures = [cell_codes(row["image"], 0, num_bits) for row in rows]

        shares = {share: wrong_bits(pipeline, pictures, share) for share in (0.0, 0.1, 0.5)}
        print("Wrong bits of copies:", ", ".join(f"{n:.1%} ({share:.0%} turned over)" for share, n in shares.items()))

        looks = looks_at_the_source(pipeline, pictures)
        pieces = trainer.held_out_batches.held_out(options.count)
        # Of drawings, and of edits that are not described, only the end of the turn is text: next to nothing.
        losses = {name: loss for name, loss in measured(trainer, pieces).items() if loss > 1e-3}
        print(f"\n| layer | head | looks at the source | {' | '.join(losses)} |")
        print(f"| ---: | ---: | ---: |{' ---: |' * len(losses)}")
        print(f"| all | all | | {' | '.join(f'{loss:.3f}' for loss in losses.values())} |")
        for index, layer in enumerate(mllm.model.language_model.layers):
            weight = layer.self_attn.o_proj.weight.detach()
            head_dim = layer.self_attn.head_dim
            for head, look in enumerate(looks[index].tolist()):
                written = weight[:, head * head_dim : (head + 1) * head_dim]
                kept = written.clone()
                written.zero_()
                without = measured(trainer, pieces)
                written.copy_(kept)
                cells = [f"{without[name]:.3f}" for name in losses]
                print(f"| {index} | {head} | {look:.2f} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def measured(trainer: MLLMTrainer, pieces: list) -> dict[str, float]:
    """Validation losses by name."""
    figures = trainer.measure(pieces).items()
    return {name.removeprefix("validation_").replace("_", " "): loss for name, loss in figures if "_loss_" in name}


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
