# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Makes diffusers' own loaders find the pipelines: `DiffusionPipeline`, `ModularPipeline` and the `AutoPipeline`s.

diffusers has no function to register another package's pipelines, so tables of its modules get entries of ours; none
of its own is changed. A module that is not imported yet gets them right after its import: a program that never uses
diffusers does not import it, and the order of the two imports does not matter. Our pipelines are imported when
diffusers asks for one of them.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


# The names that diffusers looks up in its own namespace: those of `model_index.json`, and those of modular pipelines.
NAMES = (
    "UniWeTokBlocks",
    "UniWeTokClassToImagePipeline",
    "UniWeTokEditPipeline",
    "UniWeTokModularPipeline",
    "UniWeTokPipeline",
)


def ours(name: str):
    return getattr(importlib.import_module("uniwetok_hf"), name)


def add_library(pipeline_loading_utils: ModuleType) -> None:
    """Components, which `model_index.json` names `["uniwetok_hf", "UniWeTokForCausalLM"]`: they load without trusting
    remote code, and modules can move without breaking saved pipelines. The top level of the package exposes the
    libraries' base classes that diffusers looks for beside them. And pipelines, which diffusers looks for by name in
    its own namespace only."""
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("uniwetok_hf", {})
    diffusers = sys.modules["diffusers"]
    before = vars(diffusers).get("__getattr__")

    def find_pipeline(name: str):
        if name in NAMES:
            return ours(name)
        if before is not None:
            return before(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    diffusers.__getattr__ = find_pipeline  # a module's, as in PEP 562: asked before diffusers' lazy imports


def add_tasks(auto_pipeline: ModuleType) -> None:
    """`AutoPipelineForText2Image` and `AutoPipelineForImage2Image` choose between the two pipelines."""
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", ours("UniWeTokPipeline"))
    auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", ours("UniWeTokEditPipeline"))


def add_modular_pipeline(modular_pipeline: ModuleType) -> None:
    """The class of `ModularPipeline` for what `AutoPipeline` calls "uniwetok"."""
    modular_pipeline.MODULAR_PIPELINE_MAPPING.setdefault("uniwetok", lambda config=None: "UniWeTokModularPipeline")


ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "diffusers.pipelines.pipeline_loading_utils": add_library,
    "diffusers.pipelines.auto_pipeline": add_tasks,
    "diffusers.modular_pipelines.modular_pipeline": add_modular_pipeline,
}


class _Finder(MetaPathFinder):
    """Finds the modules of `ENTRIES` as the other finders do, and sees to it that their entries are made."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in ENTRIES:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for one in others if (found := one.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """The loader that was found, and the entries afterwards."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # as if it had been found without us
        self.loader.exec_module(module)
        ENTRIES[module.__name__](module)


def register_with_diffusers() -> None:
    """Makes the entries, in each module now or when it is imported."""
    sys.meta_path.insert(0, _Finder())
    for name, add in ENTRIES.items():
        if name in sys.modules:
            add(sys.modules[name])


__all__ = ["register_with_diffusers"]
