"""`uniwetok` where Accelerate takes FSDP 2 as it does on GPUs, although there are none: its state says FSDP, and so
its own code for FSDP runs, which it passes over on CPUs."""

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from uniwetok_hf.cli.main import main_of_process


class StateAsOnGPUs(AcceleratorState):
    def __init__(self, *args, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **options):
        is_new = not AcceleratorState._shared_state
        super().__init__(*args, fsdp_plugin=fsdp_plugin, **options)
        if is_new and fsdp_plugin is not None:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    import accelerate.accelerator

    accelerate.accelerator.AcceleratorState = StateAsOnGPUs
    raise SystemExit(main_of_process())
