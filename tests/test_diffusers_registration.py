"""diffusers' own loaders find our pipelines. Most of it is tried in processes of their own: what matters is which
module is imported when."""

import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines import auto_pipeline, pipeline_loading_utils
from tiny_models import build_tiny_class_pipeline, build_tiny_pipeline

import uniwetok_hf
from uniwetok_hf.diffusers_registration import register_with_diffusers


def run(code: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    path = f"import sys; sys.path.insert(0, {str(Path(uniwetok_hf.__file__).parents[1])!r})\n"
    command = [sys.executable, "-W", "ignore", "-c", path + code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


LOADS = """
def load(loader, place):
    found = type(getattr(diffusers, loader).from_pretrained(place))
    return f"{found.__module__.split('.')[0]}.{found.__name__}"

loaders = "DiffusionPipeline", "AutoPipelineForText2Image", "AutoPipelineForImage2Image", "ModularPipeline"
for place in FOLDER, "org/pipe":
    print(*(load(loader, place) for loader in loaders))
print(load("DiffusionPipeline", "org/classes"))
"""
LOADED = "uniwetok_hf.UniWeTokPipeline uniwetok_hf.UniWeTokPipeline uniwetok_hf.UniWeTokEditPipeline "
LOADED += "uniwetok_hf.UniWeTokModularPipeline"
ORDERS = {
    "ours first": """
import uniwetok_hf
assert "diffusers" not in sys.modules
import diffusers
""",
    "diffusers first, not used yet": """
import diffusers, uniwetok_hf
assert "uniwetok_hf.pipelines" not in sys.modules
""",
    "diffusers first and used": """
import diffusers
diffusers.AutoPipelineForText2Image, diffusers.ModularPipeline
import uniwetok_hf
""",
    "imported again": """
import importlib, uniwetok_hf
importlib.reload(uniwetok_hf)
for name in [name for name in sys.modules if name.startswith("uniwetok_hf")]:
    del sys.modules[name]
import diffusers, uniwetok_hf
""",
    "our pipelines first": """
import uniwetok_hf.pipelines, diffusers
assert "diffusers.pipelines.auto_pipeline" not in sys.modules  # all pipelines of diffusers, which nobody asked for
""",
}


@pytest.fixture
def served(hub, tmp_path) -> tuple[Path, dict[str, str]]:
    """A folder, which is on the Hub as org/pipe, too, and the environment of a process that uses that Hub."""
    build_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    build_tiny_class_pipeline().save_pretrained(tmp_path / "classes")
    hub.add("org/pipe", tmp_path / "pipe")
    hub.add("org/classes", tmp_path / "classes")
    return tmp_path / "pipe", hub.environ(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_loaded_in_any_order_of_imports(served, order):
    folder, env = served
    process = run(order + f"FOLDER = {str(folder)!r}\n" + LOADS, env)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [LOADED, LOADED, "uniwetok_hf.UniWeTokClassToImagePipeline"]


@pytest.mark.slow
def test_without_our_import_diffusers_names_what_it_does_not_know(served):
    """Nothing of ours runs then; docs/troubleshooting.md says what these messages mean."""
    folder, env = served
    for place, words in ((folder, "UniWeTokPipeline"), ("org/pipe", "uniwetok_hf")):
        process = run(f"import diffusers; diffusers.DiffusionPipeline.from_pretrained({str(place)!r})", env)
        assert process.returncode == 1 and words in process.stderr.splitlines()[-1], process.stderr


def test_other_tables_of_a_later_diffusers_are_a_warning(monkeypatch):
    monkeypatch.delattr(pipeline_loading_utils, "LOADABLE_CLASSES")
    with pytest.warns(UserWarning, match=r"not registered with diffusers\.pipelines\.pipeline_loading_utils"):
        register_with_diffusers()


def test_modules_of_diffusers_are_as_without_us():
    for module in (auto_pipeline, pipeline_loading_utils):
        assert type(module.__loader__).__module__ == type(module.__spec__.loader).__module__ != uniwetok_hf.__name__
        assert "uniwetok" not in type(module.__loader__).__module__
    assert diffusers.UniWeTokPipeline is uniwetok_hf.UniWeTokPipeline
    assert diffusers.DDIMScheduler.__module__.startswith("diffusers.")
    with pytest.raises(AttributeError, match="no_such_name"):
        diffusers.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        exec("from diffusers import no_such_name")
