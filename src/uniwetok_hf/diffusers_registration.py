# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Makes diffusers' own loaders find the pipelines: `DiffusionPipeline`, `ModularPipeline` and the `AutoPipeline`s.

diffusers has no function to register another package's pipelines, so tables of its modules get entries of ours; none
of its own is changed. A module that is not imported yet gets them right after its import: a program that never uses
diffusers does not import it, and the order of the two imports does not matter. Our pipelines are imported when
diffusers asks for one of them. Where a later diffusers has other tables, a warning says so and its import goes on.
"""

import importlib
import sys
import warnings
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


def add_names(diffusers: ModuleType) -> None:
    """Pipelines, which diffusers looks for by name in its own namespace only; what `add_tasks` left while diffusers
    was imported whole (`DIFFUSERS_SLOW_IMPORT`)."""
    before = vars(diffusers).get("__getattr__")

    def find_pipeline(name: str):
        if name in NAMES:
            return ours(name)
        if before is not None:
            return before(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    if not hasattr(before, "finds_uniwetok"):
        find_pipeline.finds_uniwetok = True  # ty: ignore[unresolved-attribute]
        diffusers.__getattr__ = find_pipeline  # a module's, as in PEP 562: asked before diffusers' lazy imports
    if not is_being_imported("uniwetok_hf.pipelines"):
        choose_pipelines()


def add_library(pipeline_loading_utils: ModuleType) -> None:
    """Components, which `model_index.json` names `["uniwetok_hf", "UniWeTokForCausalLM"]`: they load without trusting
    remote code, and modules can move without breaking saved pipelines. The top level of the package exposes the
    libraries' base classes that diffusers looks for beside them."""
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("uniwetok_hf", {})


def add_tasks(auto_pipeline: ModuleType) -> None:
    """[`choose_pipelines`], but for imports that our pipelines have to wait for: it is called again after them."""
    if not any(map(is_being_imported, ("diffusers", "uniwetok_hf.pipelines"))):
        choose_pipelines()


def choose_pipelines() -> None:
    """`AutoPipelineForText2Image` and `AutoPipelineForImage2Image`, if they are imported, choose between the two
    pipelines."""
    if auto_pipeline := sys.modules.get("diffusers.pipelines.auto_pipeline"):
        auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING["uniwetok"] = ours("UniWeTokPipeline")
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING["uniwetok"] = ours("UniWeTokEditPipeline")


def add_modular_pipeline(modular_pipeline: ModuleType) -> None:
    """The class of `ModularPipeline` for what `AutoPipeline` calls "uniwetok"."""
    modular_pipeline.MODULAR_PIPELINE_MAPPING.setdefault("uniwetok", lambda config=None: "UniWeTokModularPipeline")


ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "diffusers": add_names,
    "diffusers.pipelines.pipeline_loading_utils": add_library,
    "diffusers.pipelines.auto_pipeline": add_tasks,
    "diffusers.modular_pipelines.modular_pipeline": add_modular_pipeline,
}


def is_being_imported(name: str) -> bool:
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


def make_entry(name: str) -> None:
    try:
        ENTRIES[name](sys.modules[name])  # not what its loader made: diffusers replaces itself
    except Exception as error:
        warnings.warn(
            f"UniWeTok's pipelines are not registered with {name} ({type(error).__name__}: {error}); "
            "`UniWeTokPipeline.from_pretrained` loads them.",
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Finds the modules of `ENTRIES` as the other finders do, and sees to it that their entries are made."""

    finds_uniwetok = True

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in ENTRIES:
            return None
        finders = [find for one in sys.meta_path if one is not self and (find := getattr(one, "find_spec", None))]
        spec = next((found for find in finders if (found := find(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """The loader that was found, and the entries afterwards."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __getattr__(self, name: str):
        if name == "loader":  # of a copy that is still empty
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # as if it had been found without us
        self.loader.exec_module(module)
        make_entry(module.__name__)


def register_with_diffusers() -> None:
    """Makes the entries, in each module now or when it is imported. May be called again, as when this package is
    imported anew."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "finds_uniwetok")]
    sys.meta_path.insert(0, _Finder())
    for name in ENTRIES:
        if sys.modules.get(name) is not None:  # None makes an import fail
            importlib.import_module(name)  # waits for another thread that imports it
            make_entry(name)


__all__ = ["choose_pipelines", "register_with_diffusers"]
