# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Losses and their gradients on the device of `tests/one_device.py`, which fails where devices are mixed."""

import numpy as np
import pytest
import torch
from one_device import CPU, assert_same, gradients, on
from tiny_mllm import BITS, random_codes, seeded
from tiny_training import build_backbone, build_siglip

from uniwetok_hf.evaluation.metrics import perceptual_distance
from uniwetok_hf.losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss, generator_loss
from uniwetok_hf.losses.commitment import commitment_loss
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.losses.perceptual import LPIPS, PerceptualLoss
from uniwetok_hf.losses.pixel import l1_loss, l2_loss
from uniwetok_hf.losses.prior import GenerativePrior
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.training.run import seeded_weights


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def new(device: torch.device, network_class, *arguments, **options) -> torch.nn.Module:
    """A network with random weights of one seed."""
    with seeded_weights(0):
        return network_class(*arguments, **options).to(device)


def entropy(device):
    latents = noise(2, BITS, 2, 3).mul(0.01).to(device).requires_grad_()
    return gradients(entropy_loss(latents).loss, latents)


def commitment(device):
    latents = noise(2, BITS, 2, 3).to(device).requires_grad_()
    return gradients(commitment_loss(latents), latents)


def pixel(device):
    sample = noise(2, 3, 8, 8).to(device).requires_grad_()
    pixel_values = noise(2, 3, 8, 8, seed=1).to(device)
    return gradients(l1_loss(sample, pixel_values) + l2_loss(sample, pixel_values), sample)


def adversarial(device):
    discriminator = new(device, PatchDiscriminator, 4, 1, 4)
    sample, regularisation = noise(2, 3, 16, 16).to(device).requires_grad_(), LeCam().to(device)
    real, fake = discriminator(noise(2, 3, 16, 16, seed=1).to(device)), discriminator(sample)
    regularisation.update(real, fake)
    loss = discriminator_loss(real, fake) + generator_loss(fake) + regularisation(real, fake)
    return gradients(loss, discriminator, sample), regularisation.state_dict()


def distillation(device):
    pools = new(device, PrePostDistillation, BITS, 8, hidden_size=16, num_attention_heads=2)
    latents, codes = (noise(2, BITS, 2, 3, seed=seed).to(device).requires_grad_() for seed in (0, 1))
    return gradients(pools(latents, codes, noise(2, 8, seed=2).to(device)).loss, pools, latents, codes)


def prior(device):
    model = new(device, GenerativePrior, BITS, 16, num_hidden_layers=1, num_attention_heads=2)
    codes = random_codes(1, 2, 3).repeat(2, 1, 1, 1).to(device).requires_grad_()
    model(codes)
    return gradients(model(codes, [seeded(0), seeded(1)]) + model(codes, seeded(0)), model, codes)


@pytest.mark.parametrize("loss", [entropy, commitment, pixel, adversarial, distillation, prior])
def test_losses(loss):
    reads = assert_same(loss)
    assert reads == [] or loss is prior  # transformers reads the positions of its causal model


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, str]:
    """Folders of networks that judge pictures."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "backbone": build_backbone(folder / "backbone"),
        "siglip": build_siglip(folder / "siglip"),
    }


@pytest.mark.parametrize("network", ["backbone", "siglip", "lpips", "blurred lpips"])
def test_perceptual_losses(networks, network):
    if network.endswith("lpips"):
        loss = new(CPU, LPIPS, [4] * 13, blurs=network.startswith("blurred"))
    else:
        loss = PerceptualLoss.from_pretrained(networks[network])

    def compute(device):
        sample, pixel_values = noise(1, 3, 32, 40).to(device).requires_grad_(), noise(1, 3, 32, 40, seed=1).to(device)
        model, image = on(device, loss), np.zeros((32, 32, 3), np.uint8)
        return gradients(model(sample, pixel_values), sample), perceptual_distance(image, 255 - image, model)

    assert_same(compute)


def test_loss_networks_of_a_model_on_the_device(networks):
    """They are where the model is that they are made of."""
    model = Teacher.from_pretrained(networks["siglip"]).model

    def compute(device):
        pixel_values = noise(2, 3, 40, 32).to(device)
        teacher, perceptual = Teacher(on(device, model), (32, 32)), PerceptualLoss(on(device, model))
        return teacher.embed_pictures(pixel_values), perceptual(pixel_values, pixel_values.flip(0))

    assert_same(compute)


def test_teacher(networks):
    teacher = Teacher.from_pretrained(networks["siglip"])

    def compute(device):
        model = on(device, teacher)
        embedded = model.embed_pictures(noise(2, 3, 40, 32).to(device))
        return embedded, model.embed_texts(["a cat", "a dog"]), model.fingerprint

    assert_same(compute)
