"""Packaging of uniwetok-hf: what it needs and what goes into the wheel. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent


def read_version() -> str:
    """Return the version of the package without importing it (an import would need torch at build time)."""
    source = (ROOT / "src" / "uniwetok_hf" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('src/uniwetok_hf/version.py has no line of the form __version__ = "X.Y.Z"')
    return match.group(1)


# Each lower bound is the lowest version on which the tests were run. So far they were run on one set only, the one
# in constraints.txt; a bound goes down when the tests pass on an older version, never on trust.
CORE = [
    "accelerate>=1.15.0",
    "diffusers>=0.42.1",
    "huggingface_hub>=2.4.0",
    "jinja2>=3.1.6",  # chat template of the processor, model cards
    "numpy>=2.4.6",
    "pillow>=12.3.0",
    "safetensors>=0.8.0",
    "torch>=2.13.0",
    "tqdm>=4.70.1",
    "transformers>=5.23.0",
]
EXTRAS = {
    "train": [
        "datasets>=5.2.0",
        "peft>=0.21.2",
        "pyyaml>=6.0.3",
        "scikit-image>=0.26.0",  # SSIM of validation pictures
    ],
    # What examples/emoji draws its data with.
    "emoji": ["datasets>=5.2.0", "python-avatars>=1.4.1", "resvg-py>=0.5.0"],
    "eval": ["datasets>=5.2.0", "evaluate>=0.4.6", "scikit-image>=0.26.0"],
    # Text that is read back from reconstructions; its models come inside its wheel.
    "ocr": ["onnxruntime>=1.32.0", "rapidocr>=3.10.0"],
    "app": ["gradio>=6.31.0"],
    "docs": ["mkdocs>=1.6.1", "mkdocs-material>=9.8.2", "mkdocstrings[python]>=1.0.8"],
    # What docs/deployment.md needs; large, so not part of `dev` (`make test-all` installs them).
    "onnx": ["onnx>=1.23.2", "onnxruntime>=1.32.0", "onnxscript>=0.7.2"],
    "quantize": ["torchao>=0.18.0"],
    # ZeRO in place of FSDP; it compiles what it needs when it first runs.
    "deepspeed": ["deepspeed>=0.19.8"],
    # Encoding and serving on a cluster (`--engine ray`); Ray Data needs pandas and pyarrow, which datasets brings.
    "ray": ["datasets>=5.2.0", "ray[data,serve]>=2.60.0"],
    # `uniwetok serve`; httpx2 comes with huggingface_hub.
    "serve": ["fastapi>=0.165.0", "prometheus-client>=0.26.0", "python-multipart>=0.0.34", "uvicorn>=0.54.0"],
    # Real photographs to reconstruct; they come inside the scikit-image wheel, so the demo downloads nothing.
    "demo": ["scikit-image>=0.26.0"],
}
TEST_TOOLS = [
    "build>=1.6.1",
    "hypothesis>=6.170.17",
    "import-linter>=2.17",
    "matplotlib>=3.11.2",  # figures of the benchmarks
    "openai>=3.57.0",  # client of `uniwetok serve`
    "parameterized>=0.9.0",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
    "transformers-mlinter>=0.1.5",
    "trl>=1.16.0",  # docs/trl.md
    "ty>=0.0.108",
]
EXTRAS["browser"] = ["playwright>=1.65.2"]  # drives the web page in the tests
EXTRAS["dev"] = sorted(
    {*TEST_TOOLS, *EXTRAS["train"], *EXTRAS["emoji"], *EXTRAS["eval"], *EXTRAS["demo"], *EXTRAS["serve"]}
)

setup(
    name="uniwetok-hf",
    version=read_version(),
    description="UniWeTok: images as 128-bit binary codes, and one language model that reads, makes and edits them",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The uniwetok-hf contributors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="image tokenizer, binary codes, multimodal, text-to-image, image editing, transformers, diffusers",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_dir={"": "src"},
    packages=find_packages("src"),
    py_modules=["uniwetok_entry"],  # the command, which parses before the package is imported
    # Listed here and nowhere else: with include_package_data the wheel would depend on MANIFEST.in as well.
    include_package_data=False,
    package_data={
        "uniwetok_hf": ["py.typed", "model_card.md", "embedded/**/*", "training/configs/**/*.yaml", "conversion/*.txt"]
    },
    exclude_package_data={"": ["*.pyc"]},
    zip_safe=False,
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["uniwetok = uniwetok_entry:main"],
        "lmms_eval.models": ["uniwetok = uniwetok_hf.evaluation.lmms:manifest"],
        "vllm.general_plugins": ["uniwetok = uniwetok_hf.integrations.vllm:register"],
    },
)
