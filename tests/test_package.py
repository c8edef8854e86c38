"""What `import uniwetok_hf` does and costs, and what the package is made of."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny_pipeline
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

import uniwetok_hf


FOLDER = Path(uniwetok_hf.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(uniwetok_hf.__path__, "uniwetok_hf."))
TRAINING_PROGRAMS = [
    f"uniwetok_hf.training.{name}"
    for name in (
        "agreement",
        "checkpoints",
        "lora",
        "resume",
        "run",
        "sharded_start",
        "sharding",
        "stage",
        "status",
        "trackers",
        "train_class_to_image",
        "train_mllm",
        "train_uniwetok",
    )
]
SERVER_PROGRAMS = [
    f"uniwetok_hf.serving.{name}"
    for name in ("api", "door", "errors", "formats", "metrics", "ray_app", "server", "service")
]
SERVER_PROGRAMS.append("uniwetok_hf.cli.ray_app")
HEAVY = ["diffusers", "datasets", "peft", "evaluate", "accelerate", "skimage", "matplotlib", "yaml", "torchvision"]
OPTIONAL = {"datasets", "peft", "evaluate", "accelerate", "skimage", "matplotlib", "gradio", "lpips"}
OPTIONAL |= {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "ray"}


def run(code: str) -> str:
    """Standard output of `code` in a new Python that finds this very package."""
    path = f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r})\n"
    return subprocess.run([sys.executable, "-c", path + code], check=True, capture_output=True, text=True).stdout


def test_import_needs_nothing_optional():
    """Compared with transformers alone, which looks at some of them on its own account; diffusers comes with the first
    pipeline."""
    code = f"""
def loaded():
    print(*(name for name in {HEAVY} if name in sys.modules))

from transformers import PreTrainedModel, ProcessorMixin
loaded()
import uniwetok_hf
loaded()
uniwetok_hf.UniWeTokPipeline
loaded()
"""
    theirs, ours, with_pipeline = run(code).splitlines()
    assert ours == theirs
    assert "diffusers" not in ours
    assert "diffusers" in with_pipeline


def test_models_work_without_diffusers():
    """Conversion, training and a Hub copy of `modeling/` need torch and transformers only; the import of the package
    is enough for the Auto classes."""
    code = """
sys.modules["diffusers"] = None  # importing it fails
import torch, uniwetok_hf
from transformers import AutoModel
model = AutoModel.from_pretrained(uniwetok_hf.embedded_path("uniwetok-emoji") / "mllm")
print(type(model).__name__, type(model.vision_model).__name__)
config = uniwetok_hf.UniWeTokHeadConfig(num_bits=8, condition_size=8, hidden_size=8, head_dim=8, num_hidden_layers=2)
head = uniwetok_hf.UniWeTokBinaryHead(config)
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow
print(head.sample(torch.zeros(1, 1, 8), BinaryFlow()).shape)
try:
    uniwetok_hf.UniWeTokPipeline
except ImportError as error:
    print("ImportError")
"""
    assert run(code).splitlines() == ["UniWeTokMLLMModel UniWeTokModel", "torch.Size([1, 1, 8])", "ImportError"]


def test_public_names_resolve():
    assert len(uniwetok_hf.__all__) == len(set(uniwetok_hf.__all__))
    assert list(uniwetok_hf.__all__) == sorted(uniwetok_hf.__all__)
    for name in uniwetok_hf.__all__:
        assert getattr(uniwetok_hf, name) is not None, name
    namespace = {}
    exec("from uniwetok_hf import *", namespace)
    assert set(uniwetok_hf.__all__) <= set(namespace)


def test_public_names_are_listed():
    assert set(uniwetok_hf.__all__) <= set(dir(uniwetok_hf))


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        uniwetok_hf.no_such_name  # noqa: B018
    assert not hasattr(uniwetok_hf, "UniWeTokTokenizer")


def test_library_base_classes_stand_beside_the_components():
    """diffusers looks for them in the library that `model_index.json` names."""
    from diffusers import SchedulerMixin
    from diffusers.pipelines import pipeline_loading_utils

    assert issubclass(uniwetok_hf.UniWeTokForCausalLM, uniwetok_hf.PreTrainedModel)
    assert uniwetok_hf.PreTrainedModel is PreTrainedModel
    assert uniwetok_hf.ProcessorMixin is ProcessorMixin
    assert uniwetok_hf.SchedulerMixin is SchedulerMixin
    assert uniwetok_hf.UniWeTokPipeline is not None  # importing it registers us
    assert "uniwetok_hf" in pipeline_loading_utils.LOADABLE_CLASSES


def test_auto_classes_load_the_parts(tmp_path):
    pipeline = build_tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    pipeline.mllm.vision_model.save_pretrained(tmp_path / "vision")
    pipeline.mllm.image_head.save_pretrained(tmp_path / "head")
    pipeline.processor.image_processor.save_pretrained(tmp_path / "vision")
    loaded = {
        uniwetok_hf.UniWeTokMLLMConfig: AutoConfig.from_pretrained(tmp_path / "mllm"),
        uniwetok_hf.UniWeTokForCausalLM: AutoModelForCausalLM.from_pretrained(tmp_path / "mllm"),
        uniwetok_hf.UniWeTokMLLMModel: AutoModel.from_pretrained(tmp_path / "mllm"),
        uniwetok_hf.UniWeTokModel: AutoModel.from_pretrained(tmp_path / "vision"),
        uniwetok_hf.UniWeTokBinaryHead: AutoModel.from_pretrained(tmp_path / "head"),
        uniwetok_hf.UniWeTokConfig: AutoConfig.from_pretrained(tmp_path / "vision"),
        uniwetok_hf.UniWeTokHeadConfig: AutoConfig.from_pretrained(tmp_path / "head"),
        uniwetok_hf.UniWeTokImageProcessor: AutoImageProcessor.from_pretrained(tmp_path / "vision"),
        uniwetok_hf.UniWeTokProcessor: AutoProcessor.from_pretrained(tmp_path / "processor"),
    }
    for wanted, part in loaded.items():
        assert type(part) is wanted
    chat = AutoModelForImageTextToText.from_pretrained(tmp_path / "mllm")
    assert type(chat) is uniwetok_hf.UniWeTokForCausalLM
    own = pipeline.mllm.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in chat.state_dict().items())


@pytest.mark.parametrize("name", MODULES)
def test_names_do_not_contain_tokenizer(name):
    """transformers takes any class or module called so for a text tokenizer, and remote code then fails."""
    assert "tokenizer" not in name.lower()
    tree = ast.parse(module_path(name).read_text())
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [found for found in classes if "tokenizer" in found.lower()]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    path = module_path(name)
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or len(tree.body) == 0 or path.name == "version.py", f"{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_modules_import_without_the_extras(name):
    """What needs an optional dependency imports it when it is used."""
    if name in TRAINING_PROGRAMS:
        pytest.skip("the training programs need the extra `train` as a whole")
    if name in SERVER_PROGRAMS:
        pytest.skip("the server's programs need the extra `serve` as a whole")
    if name == "uniwetok_hf.evaluation.lmms":
        pytest.skip("lmms-eval loads this module itself")
    if name.startswith("uniwetok_hf.evaluation.uniwetok_metrics."):
        pytest.skip("a module for `evaluate.load` needs the package evaluate")
    tree = ast.parse(module_path(name).read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(node.module.split(".")[0])
    assert not imported & OPTIONAL
    if "pipelines" not in name and "schedulers" not in name:
        assert "diffusers" not in imported
    importlib.import_module(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("uniwetok_hf.modeling.")])
def test_modeling_imports_only_its_siblings(name):
    """The folder travels to the Hub as remote code, which is copied flat and follows `from .x import y` only."""
    for node in ast.walk(ast.parse(module_path(name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not [n for n in names if n.split(".")[0] in ("uniwetok_hf", "diffusers")], ast.unparse(node)


def test_processors_name_only_text_tokenizers_so():
    """transformers takes every argument of a processor whose name contains "tokenizer" for a text tokenizer."""
    arguments = inspect.signature(uniwetok_hf.UniWeTokProcessor.__init__).parameters
    assert [name for name in arguments if "tokenizer" in name] == ["tokenizer"]


def module_path(name: str) -> Path:
    path = FOLDER.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
