"""A measurement of the losses that several processes share, alone or as one of two; see
tests/losses/test_two_processes.py. A module of its own, because new processes import it by name."""

import warnings

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from uniwetok_hf.losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss
from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.losses.processes import mean_over_processes, sum_over_processes
from uniwetok_hf.training.bit_usage import BitUsage


def measure_on_two(folder) -> list[dict]:
    """Results of [`measure`] of two processes that share the batch."""
    multiprocessing.spawn(_work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(measure(rank, 2), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def measure(rank: int = 0, world_size: int = 1) -> dict:
    """Losses, gradients and metrics of a batch of which this process has its part."""
    torch.manual_seed(0)  # weights, and the whole batch
    wrap = DistributedDataParallel if world_size > 1 else lambda network: network
    encoder = wrap(nn.Conv2d(3, 16, 4, stride=4))
    discriminator = wrap(PatchDiscriminator(base_channels=4, num_layers=1, num_norm_groups=2))
    lecam = LeCam(decay=0.9)
    pictures, fakes = torch.rand(2, 4, 3, 16, 16) * 2 - 1
    real, fake = (part.chunk(world_size)[rank] for part in (pictures, fakes))

    latents = encoder(real).tanh()
    entropy = entropy_loss(latents, bits_per_group=8, temperature=2.0, sample_weight=0.5, batch_weight=2.0)
    entropy.loss.backward()

    lecam.update(fake[:, :1] + 1.5, real[:, :1])
    logits = discriminator(real), discriminator(fake)
    losses = discriminator_loss(*logits), lecam(*logits)
    sum(losses).backward()
    lecam.update(*logits)
    uneven = LeCam(decay=0.5)  # one of three pictures, two of three
    uneven.update(*(part[:3].tensor_split([1])[rank] if world_size > 1 else part[:3] for part in (pictures, fakes)))

    usage = BitUsage()
    for codes in latents.sign().split(1):
        usage.update(codes)
    total = usage.over_processes()
    scalars = torch.stack([entropy.loss, entropy.sample_entropy, *losses]).detach()
    return {
        "losses": mean_over_processes(scalars),
        "batch_entropy": entropy.batch_entropy.detach(),
        "gradients": [weight.grad for network in (encoder, discriminator) for weight in network.parameters()],
        "averages": [*lecam.state_dict().values(), *uneven.state_dict().values()],
        "usage": total.usage,
        "bit_metrics": torch.tensor([total.mean_entropy, total.stuck, total.dead]),
        "own_usage": usage.usage,
        "sum": sum_over_processes(torch.tensor(rank + 1)),
    }
