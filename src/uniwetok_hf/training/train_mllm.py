# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains the unified language model: `uniwetok train mllm --config mllm.yaml`, alone or under `accelerate launch`.

Every picture is encoded once; the image tokenizer stays frozen. The loss is text cross-entropy plus the diffusion loss
of the pictures to be drawn, whose bits are flipped now and then on input (spec 3.3). The result is a pipeline folder.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import AutoConfig, get_cosine_schedule_with_warmup

from ..data.text import train_text_vocabulary
from ..modeling.codes_uniwetok import pack_codes, unpack_codes
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig, UniWeTokMLLMConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from ..modeling.processing_uniwetok import UniWeTokProcessor
from ..pipelines import UniWeTokPipeline
from ..schedulers import BinaryFlowScheduler
from .common import (
    averaged_weights,
    load_checkpoint,
    make_output_folder,
    read_config,
    save_checkpoint,
    seeded_weights,
)
from .pictures import PictureDataset, picture_grid
from .tasks import EmojiTasks, Sample


@dataclass
class MLLMTrainingConfig:
    """A training of the language model.

    Fields: `data`, a folder of `uniwetok data`; `vision_model`, the trained image tokenizer; `output_dir`;
    `resolution` of the pictures; `steps` of `batch_size` samples; `tasks`, how often each is practised;
    `text_dropout`, how often the prompt is left out; `vocab_size` of the text, `num_size_tokens`; fields of the
    `text_model`, the `head` and the whole `mllm`; `learning_rate` after `warmup_steps`, then a cosine to zero;
    `weight_decay`, `max_grad_norm`, `ema_decay`, `seed`; `prompts` to draw at every save; the pipeline's default
    `num_inference_steps` and `guidance_scale`; `save_dtype` of the result.
    """

    data: str
    vision_model: str
    output_dir: str
    resolution: int
    steps: int
    batch_size: int
    text_model: dict
    head: dict
    mllm: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=lambda: {"draw": 0.5, "edit": 0.3, "describe": 0.2})
    text_dropout: float = 0.1
    vocab_size: int = 2048
    num_size_tokens: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    prompts: list = field(default_factory=list)
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    save_dtype: str = "float32"


def build(config: MLLMTrainingConfig, tasks: EmojiTasks) -> UniWeTokPipeline:
    """A pipeline with a new language model around the trained image tokenizer."""
    vision_model = UniWeTokModel.from_pretrained(config.vision_model, dtype=torch.float32)
    patch_size = config.mllm.get("patch_size", 1)
    text_vocabulary = train_text_vocabulary(tasks.texts(), config.vocab_size, config.num_size_tokens, patch_size)
    ids = text_vocabulary.get_vocab()
    text_config = AutoConfig.for_model(
        vocab_size=len(text_vocabulary),
        pad_token_id=text_vocabulary.pad_token_id,
        eos_token_id=text_vocabulary.eos_token_id,
        **config.text_model,
    )
    model_config = UniWeTokMLLMConfig(
        text_config=text_config,
        vision_config=vision_model.config,
        head_config=UniWeTokHeadConfig(
            num_bits=vision_model.config.num_bits, condition_size=text_config.hidden_size, **config.head
        ),
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        size_token_id=ids["<|res_1|>"],
        num_size_tokens=config.num_size_tokens,
        query_token_id=ids.get("<|query_1|>", len(ids)),
        **config.mllm,
    )
    with seeded_weights(config.seed):
        mllm = UniWeTokForCausalLM(model_config)
    mllm.vision_model.load_state_dict(vision_model.state_dict())
    mllm.vision_model.requires_grad_(False)
    mllm.generation_config.eos_token_id = text_vocabulary.eos_token_id
    mllm.generation_config.pad_token_id = text_vocabulary.pad_token_id
    stride = vision_model.config.stride
    # The language model sees every picture at the size it was trained on.
    size = {"height": config.resolution, "width": config.resolution}
    image_processor = UniWeTokImageProcessor(stride=stride * patch_size, size=size)
    processor = UniWeTokProcessor(image_processor, text_vocabulary, patch_size=patch_size, stride=stride)
    return UniWeTokPipeline(
        processor,
        mllm,
        BinaryFlowScheduler(),
        default_size=config.resolution,
        default_num_inference_steps=config.num_inference_steps,
        default_guidance_scale=config.guidance_scale,
    )


@torch.no_grad()
def encode_pictures(
    vision_model: UniWeTokModel, config: MLLMTrainingConfig, ids: list[str]
) -> dict[str, torch.Tensor]:
    """Packed codes of all training pictures, by id: 16 bytes a token."""
    pictures = PictureDataset(config.data, "train", config.resolution)
    packed = {}
    for start in tqdm(range(0, len(pictures), 64), desc="encoding"):
        chosen = range(start, min(start + 64, len(pictures)))
        pixel_values = torch.stack([pictures[i]["pixel_values"] for i in chosen]).to(vision_model.device)
        codes = pack_codes(vision_model.encode(pixel_values).codes).cpu()
        packed.update(zip((ids[i] for i in chosen), codes, strict=True))
    return packed


def collate(samples: list[Sample], processor: UniWeTokProcessor, packed: dict[str, torch.Tensor], resolution: int):
    """Model inputs of a batch of conversations, with codes in place of pictures."""
    texts = processor.apply_chat_template([sample.messages for sample in samples])
    names = [name for sample in samples for name in sample.pictures]
    inputs = processor(text=texts, picture_sizes=[(resolution, resolution)] * len(names), return_labels=True)
    return {**inputs, "codes": unpack_codes(torch.stack([packed[name] for name in names]))}


def train(config: MLLMTrainingConfig) -> Path:
    """Runs the training, resuming it when it was interrupted, and returns the pipeline folder.

    Raises:
        FloatingPointError: at a loss that is not finite; the last checkpoint is kept.
    """
    accelerator = Accelerator()
    tasks = EmojiTasks(config.data, config.tasks, config.text_dropout)
    folder = make_output_folder(config.output_dir, "pipeline")
    pipe = build(config, tasks)
    processor, mllm = pipe.processor, pipe.mllm
    mllm.vision_model.to(accelerator.device).eval()
    packed = encode_pictures(mllm.vision_model, config, [row["id"] for row in tasks.rows])

    parameters = [p for p in mllm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    ema = EMAModel(parameters, decay=config.ema_decay)
    model, optimizer, scheduler = accelerator.prepare(mllm, optimizer, scheduler)
    accelerator.register_for_checkpointing(ema)
    ema.to(accelerator.device)
    start = load_checkpoint(accelerator, folder)

    bar = tqdm(total=config.steps, initial=start, desc="language model", mininterval=10)
    clock, figures = time.monotonic(), {}
    choices, noise = torch.Generator(), torch.Generator(accelerator.device)
    for step in range(start, config.steps):
        # Step n is a function of the seed and n: a resumed run goes on as if it had not stopped.
        samples = tasks.batch(config.batch_size, choices.manual_seed(hash((config.seed, step))))
        inputs = collate(samples, processor, packed, config.resolution)
        batch = {name: tensor.to(accelerator.device) for name, tensor in inputs.items()}
        model.train()
        mllm.vision_model.eval()
        output = model(**batch, generator=noise.manual_seed(hash((config.seed, step, 1))))
        if not torch.isfinite(output.loss):
            raise FloatingPointError(f"The loss is {output.loss.item()} at step {step}; the last checkpoint is kept.")
        accelerator.backward(output.loss)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.step(parameters)
        bar.update()
        # Batches that draw have next to no text to learn, so the text's own figure is that of the descriptions.
        name = "text_loss" if output.image_loss is None else "image_loss"
        figures.setdefault(name, []).append(output[name].item())

        if (step + 1) % config.log_every == 0:
            means = {name: sum(values) / len(values) for name, values in figures.items()}
            means["samples_per_second"] = config.log_every * config.batch_size / (time.monotonic() - clock)
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, **{k: round(v, 4) for k, v in means.items()}}) + "\n")
            clock, figures = time.monotonic(), {}
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_checkpoint(accelerator, folder, step + 1)
            with averaged_weights(ema, mllm):
                draw_prompts(pipe, config, folder / f"drawings-{step + 1:06d}.png")
    ema.copy_to(parameters)
    pipe.to(getattr(torch, config.save_dtype)).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def draw_prompts(pipe: UniWeTokPipeline, config: MLLMTrainingConfig, path: Path) -> None:
    """A grid of four drawings of each of the config's prompts, a row each."""
    if not config.prompts:
        return
    pipe.mllm.eval()
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for _ in config.prompts for seed in range(4)]
    drawn = pipe(list(config.prompts), num_images_per_prompt=4, generator=generators, output_type="pt").images
    picture_grid(list(drawn * 2 - 1), columns=4).save(path)


def main(config_path: str, **overrides) -> Path:
    return train(read_config(MLLMTrainingConfig, config_path, **overrides))
