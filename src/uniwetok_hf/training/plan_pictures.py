# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What a training of the image tokenizer or of the class-to-image model would take: memory of a GPU by part, pictures
a step, hours. As in `plan.py` nothing is loaded, and what the step keeps for the backward pass is counted on the meta
device, where the networks of the step run one after the other.

Under `mixed_precision` operations keep the dtypes in which autocast computes on GPUs, and weights their copies in
bfloat16. The discriminator's own pass comes after that of the model, in memory that is free again.
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoModel, SiglipVisionConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..data.encoded import ENCODING_FILE, read_encoding
from ..losses.adversarial import PatchDiscriminator, generator_loss
from ..losses.distillation import PrePostDistillation
from ..losses.entropy import entropy_loss
from ..losses.perceptual import LPIPS, PerceptualLoss
from ..losses.prior import ClassToImagePrior, GenerativePrior
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from .config import check_fields, field_named
from .picture_batches import bucket_batch_sizes
from .plan import ATTENTION, BYTES, COMPUTED, GIB, Plan, attend, noting_kept
from .run import choose_parameters
from .settings_class_to_image import ClassToImageTrainingConfig
from .settings_uniwetok import UniWeTokTrainingConfig
from .start import find_result, vision_subfolder
from .train_uniwetok import square_grid


PICTURE_BYTES = 110_000  # of a file, as those of ImageNet have on average
# Of the teacher of the paper, SigLIP 2 so400m, where its config can't be read.
TEACHER = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
NUM_CLASSES = 1000  # where the config has no `labels`
# Operations of torch that autocast computes in bfloat16, and in float32; the others take what they are given.
LOWER = {"conv2d", "linear", "matmul", "__matmul__", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
LOWER |= {"multi_head_attention_forward", "einsum"}
HIGHER = {
    "group_norm",
    "layer_norm",
    "rms_norm",
    "softmax",
    "log_softmax",
    "softplus",
    "cosine_similarity",
    "normalize",
}
HIGHER |= {"l1_loss", "mse_loss", "norm", "pow", "exp", "log", "sum", "prod", "cumsum"}


@dataclass
class PicturePlan(Plan):
    """
    pictures: of a step, over all GPUs; of several sizes, those of the first.
    picture_bytes: that are read of a picture.
    """

    pictures: int
    picture_bytes: int

    def hours(self, pictures_per_second: float) -> float:
        """At so many pictures a second over all GPUs."""
        return self.pictures * self.steps / pictures_per_second / 3600

    def gib_a_day(self, pictures_per_second: float) -> float:
        """Files or codes that are read in a day at so many pictures a second over all GPUs."""
        return pictures_per_second * 86400 * self.picture_bytes / GIB


def plan_uniwetok(config: UniWeTokTrainingConfig, num_gpus: int) -> PicturePlan:
    """
    The plan of a stage of the image tokenizer.

    Raises:
        ValueError: when the GPUs can't share `batch_size`, or the config of a model or network can't be read.
    """
    turns = check_share(config, num_gpus)
    is_mixed = config.mixed_precision in ("bf16", "fp16", "auto")
    networks = loss_networks(config, model := planned_model(config))
    averaged = count(*choose_parameters(model, config.trainable))
    learning = [networks[name] for name in ("distillation", "prior", "discriminator") if name in networks]
    of_losses = [parameter for network in learning for parameter in network.parameters()]
    learnt = averaged + count(*(parameter for parameter in of_losses if parameter.requires_grad))
    states = {
        "weights": BYTES * count(*model.parameters(), *of_losses),
        "gradients": BYTES * learnt,
        "Adam's moments": 2 * BYTES * learnt,
        "averages": BYTES * averaged,
        "buckets of gradients": BYTES * learnt if num_gpus > 1 else 0,
    }
    if "teacher" in networks:
        size = COMPUTED if config.mixed_precision in ("bf16", "auto") else BYTES
        states["teacher"] = size * count(*networks["teacher"].parameters())
    if "perceptual" in networks:
        states["perceptual network"] = BYTES * count(*networks["perceptual"].parameters())
    sizes = bucket_batch_sizes(config.buckets, config.batch_size, config.batch_multiple or turns)
    counted = [
        count_losses(config, model, networks, (max(size // turns, 1), bucket.height, bucket.width), is_mixed)
        for bucket, size in zip(config.buckets, sizes, strict=True)
    ]
    memory = states | max(counted, key=lambda parts: sum(parts.values()))
    gib = {name: size / GIB for name, size in memory.items() if size}
    return PicturePlan(
        {"copies": gib}, count(*model.parameters()), learnt, config.max_train_steps, sizes[0], PICTURE_BYTES
    )


def plan_classes(config: ClassToImageTrainingConfig, num_gpus: int) -> PicturePlan:
    """
    The plan of a training of the class-to-image model. Where its image tokenizer is not there yet, it counts as one of
    the paper; without `labels` there are a thousand classes.

    Raises:
        ValueError: when the GPUs can't share `batch_size`, or the fields of the model don't fit each other.
    """
    turns = check_share(config, num_gpus)
    vision_config, model_config = planned_classes(config)
    with torch.device("meta"):
        model, vision = UniWeTokClassToImageModel(model_config), UniWeTokModel(vision_config)
    if model_config.tokens_per_patch == 1:
        model.image_head.freeze_queries_and_keys()
    learnt = count(*(parameter for parameter in model.parameters() if parameter.requires_grad))
    states = {
        "weights": BYTES * count(*model.parameters()),
        "gradients": BYTES * learnt,
        "Adam's moments": 2 * BYTES * learnt,
        "averages": BYTES * learnt if config.ema_decay is not None else 0,
    }
    shape = (config.batch_size // turns, model_config.num_bits, model_config.grid_size, model_config.grid_size)
    is_mixed = config.mixed_precision in ("bf16", "fp16", "auto")
    rest = {
        "image tokenizer": BYTES * count(*vision.parameters()),
        "activations": count_classes(model, shape, is_mixed, config.gradient_checkpointing),
    }
    layer = max(count(*model.layers[0].parameters()), count(*model.class_embedding.parameters()))
    whole = states | ({"buckets of gradients": BYTES * learnt} if num_gpus > 1 else {})
    spread = {name: size / num_gpus for name, size in states.items()} | {"gathered weights": 2 * COMPUTED * layer}
    memory = {
        kind: {name: size / GIB for name, size in {**parts, **rest}.items() if size}
        for kind, parts in {"copies": whole, "shards": spread}.items()
    }
    code_bytes = model_config.num_tokens * model_config.num_bits // 8
    parameters = count(*model.parameters())
    return PicturePlan(memory, parameters, learnt, config.max_train_steps, config.batch_size, code_bytes)


def check_share(config, num_gpus: int) -> int:
    """Micro-batches of a step over all GPUs.

    Raises:
        ValueError: when they can't share `batch_size` pictures.
    """
    if num_gpus < 1:
        raise ValueError(f"`num_gpus` must be 1 or more, got {num_gpus}.")
    turns = num_gpus * config.gradient_accumulation_steps
    if config.batch_size % turns:
        raise ValueError(
            f"`batch_size`={config.batch_size} must be a multiple of GPUs x `gradient_accumulation_steps` = "
            f"{num_gpus} x {config.gradient_accumulation_steps}."
        )
    return turns


def count(*parameters: nn.Parameter) -> int:
    return sum(parameter.numel() for parameter in parameters)


def planned_model(config: UniWeTokTrainingConfig) -> UniWeTokModel:
    """The model of a stage, on the meta device. A stage before it that is not there counts as one of the paper."""
    check_fields("model", config.model or {}, UniWeTokConfig)
    with field_named("model"):
        model_config = UniWeTokConfig(**(config.model or {}))
    if config.init_from is not None:
        model_config = vision_config_of("init_from", config.init_from)
    with torch.device("meta"):
        return UniWeTokModel(model_config).train()


def planned_classes(config: ClassToImageTrainingConfig) -> tuple[UniWeTokConfig, UniWeTokClassToImageConfig]:
    """Configs of the image tokenizer and of the model that a training needs."""
    if config.init_from is not None:
        place = find_result(config.init_from, "pipeline")
        with field_named("init_from"):
            vision_config = UniWeTokConfig.from_pretrained(place, subfolder="vision_model")
            return vision_config, UniWeTokClassToImageConfig.from_pretrained(place, subfolder="transformer")
    vision_config = vision_config_of("vision_model", config.vision_model)
    check_fields("model", config.model, UniWeTokClassToImageConfig)
    check_fields("head", config.head, UniWeTokHeadConfig)
    fields = {
        "num_bits": vision_config.num_bits,
        "num_classes": len(config.labels or []) or NUM_CLASSES,
        "grid_size": (config.resolution or encoded_side(config)) // vision_config.stride,
    }
    with field_named("model`, `head"):
        model_config = UniWeTokClassToImageConfig(**fields, **config.model)
        head = model_config.head_config.to_dict() | {"intermediate_size": None} | config.head
        return vision_config, UniWeTokClassToImageConfig(**fields, **config.model, head_config=head)


def encoded_side(config: ClassToImageTrainingConfig) -> int:
    """Side in pixels of the pictures whose codes are the data. Warns where they are not there, and returns 256."""
    folder = config.data[0].path
    why = "is not encoded yet"
    if os.path.isfile(os.path.join(folder, ENCODING_FILE)):
        if sizes := read_encoding(folder).settings.get("sizes"):
            return int(sizes[0][0])
        why = "has pictures of several sizes"
    warnings.warn(f"`data` {folder} {why}: it counts as one of 256 pixels.", stacklevel=2)
    return 256


def vision_config_of(field: str, name: str) -> UniWeTokConfig:
    """The config of an image tokenizer that a field names. Warns where it is not there, and returns that of the
    paper."""
    place = find_result(name, "model")
    if not os.path.isdir(place):
        warnings.warn(f"`{field}` {name} is not there: it counts as an image tokenizer of the paper.", stacklevel=2)
        return UniWeTokConfig()
    with field_named(field):
        return UniWeTokConfig.from_pretrained(place, subfolder=vision_subfolder(place))


def loss_networks(config: UniWeTokTrainingConfig, model: UniWeTokModel) -> dict[str, nn.Module]:
    """Networks of the losses that are on, on the meta device, by name. The teacher without a text half."""
    networks, num_bits = {}, model.config.num_bits
    with torch.device("meta"):
        if settings := config.perceptual:
            with field_named("perceptual.model"):
                networks["perceptual"] = planned_perceptual(settings.model, settings.layers)
        if settings := config.distillation:
            networks["teacher"], size = planned_teacher(settings.teacher)
            shape = settings.hidden_size, settings.num_attention_heads
            with field_named("distillation"):
                networks["distillation"] = PrePostDistillation(num_bits, size, *shape, head=settings.head)
        if settings := config.prior:
            sizes = (settings.hidden_size, settings.num_hidden_layers, settings.num_attention_heads)
            with field_named("prior"):
                if settings.architecture == "class_to_image":
                    grid = square_grid(config.buckets, model.config.stride)
                    networks["prior"] = ClassToImagePrior(num_bits, grid, *sizes)
                else:
                    networks["prior"] = GenerativePrior(num_bits, *sizes)
        if settings := config.adversarial:
            with field_named("adversarial"):
                groups = min(32, settings.base_channels)
                networks["discriminator"] = PatchDiscriminator(settings.base_channels, settings.num_layers, groups)
    return networks


def planned_perceptual(name: str, layers: list[int] | None) -> nn.Module:
    if name.endswith(".safetensors"):
        return LPIPS()
    network_config = AutoConfig.from_pretrained(name)
    backbone = MODEL_FOR_BACKBONE_MAPPING.get(type(network_config), None)
    return PerceptualLoss(backbone(network_config) if backbone else AutoModel.from_config(network_config), layers)


def planned_teacher(name: str) -> tuple[nn.Module, int]:
    """The part of a teacher that sees pictures, and the size of its vectors. Warns where its config can't be read, as
    without a network: it counts as that of the paper then."""
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError:
        warnings.warn(f"`teacher` {name} can't be read: it counts as SigLIP 2 so400m.", stacklevel=2)
        config = SiglipVisionConfig(**TEACHER, image_size=384, patch_size=16)
    vision_config = getattr(config, "vision_config", config)
    sizes = (getattr(config, "projection_dim", None), getattr(vision_config, "hidden_size", None))
    size = next((size for size in sizes if size), 0) or vision_config.hidden_sizes[-1]
    return AutoModel.from_config(vision_config), size


def count_losses(
    config: UniWeTokTrainingConfig,
    model: UniWeTokModel,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
    is_mixed: bool,
) -> dict[str, int]:
    """Bytes that a step of pictures of `shape`, (number, height, width), keeps for the backward pass, by part."""
    number, height, width = shape
    grid = (number, model.config.num_bits, height // model.config.stride, width // model.config.stride)

    def empty(*sides: int, learns: bool = False) -> torch.Tensor:
        return torch.empty(*sides, device="meta", dtype=torch.float32, requires_grad=learns)

    pixels, sample = empty(number, 3, height, width), empty(number, 3, height, width, learns=True)
    codes, latents = empty(*grid, learns=True), empty(*grid, learns=True)
    parts: dict[str, tuple[Callable, nn.Module | None]] = {}
    if (net := networks.get("perceptual")) is not None:
        parts["perceptual loss"] = (lambda net=net: net(sample, pixels)), net
    if (net := networks.get("discriminator")) is not None:
        parts["adversarial loss"] = (lambda net=net: generator_loss(net.requires_grad_(False)(sample))), net
    if settings := config.entropy:
        parts["entropy"] = (
            (lambda: entropy_loss(latents, model.config.bits_per_group, settings.temperature, 1.0, 1.0)),
            None,
        )
    if (net := networks.get("distillation")) is not None:
        vectors = empty(number, net.config["embedding_size"])
        parts["distillation"] = (lambda net=net: net(latents, codes, vectors)), net
    if (net := networks.get("prior")) is not None:
        parts["prior"] = (lambda net=net: net(codes)), net
    of_model = count_kept(lambda: model(pixels, noise=empty(*grid)), model, is_mixed, config.gradient_checkpointing)
    return {"activations": of_model} | {
        name: count_kept(compute, net, is_mixed, False) for name, (compute, net) in parts.items()
    }


def count_classes(
    model: UniWeTokClassToImageModel, shape: tuple[int, ...], is_mixed: bool, is_checkpointed: bool
) -> int:
    """Bytes that a step on codes of `shape`, [B, bits, h, w], keeps for the backward pass."""
    codes = torch.empty(*shape, device="meta", dtype=torch.float32)
    labels = torch.empty(len(codes), device="meta", dtype=torch.long)
    model._block_causal_mask = lambda embeddings: None  # of which flex attention keeps next to nothing
    return count_kept(lambda: model.train()(codes, labels), model, is_mixed, is_checkpointed)


def count_kept(compute: Callable[[], object], module: nn.Module | None, is_mixed: bool, is_checkpointed: bool) -> int:
    """Bytes that autograd keeps of a computation on the meta device, but for the module's float32 weights. With
    gradient checkpointing: what is outside of the layers, the inputs of all layers, and the largest layer."""
    starts: list[int] = []
    inputs, sizes, hooks = [], [], []

    def begin(layer, args, kwargs) -> None:
        starts.append(kept())
        inputs.append(next(value.nbytes for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))

    def end(layer, args, output) -> None:
        sizes.append(kept() - starts.pop())

    for layer in module.modules() if module is not None and is_checkpointed else ():
        if isinstance(layer, GradientCheckpointingLayer):
            hooks.append(layer.register_forward_pre_hook(begin, with_kwargs=True))
            hooks.append(layer.register_forward_hook(end))
    use_flash_attention(module)
    with noting_kept(module) as kept, AsAutocast() if is_mixed else contextlib.nullcontext():
        compute()
    for hook in hooks:
        hook.remove()
    return kept() - sum(sizes) + sum(inputs) + max(sizes, default=0)


def use_flash_attention(module: nn.Module | None) -> None:
    """Lets the attention of a model keep what flash and flex attention do."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    for part in module.modules() if module is not None else ():
        if hasattr(config := getattr(part, "config", None), "_attn_implementation"):
            config._attn_implementation = ATTENTION


class AsAutocast(TorchFunctionMode):
    """The dtypes of autocast to bfloat16 on GPUs, for tensors of the meta device, which has no autocast."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        dtype = torch.bfloat16 if name in LOWER else torch.float32 if name in HIGHER else None

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

        if dtype is not None:
            args, kwargs = (tree_map_only(torch.Tensor, cast, part) for part in (args, kwargs or {}))
        return function(*args, **(kwargs or {}))
