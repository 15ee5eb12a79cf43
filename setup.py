"""Packages the top-level folders as `audiox_trainer.<folder>`.

The folders are namespace packages (no `__init__.py`), so that a plain `kernels` or `models` on the path never shadows a
package of that name in site-packages: transformers imports Hugging Face's `kernels`.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = ("trainer", "models", "kernels", "launch")
SCRIPTS = (  # of launch/; each becomes a command, as audiox-generate
    "prepare", "pretrain", "pairs", "distill", "convert", "generate", "evaluate", "listen", "plan", "preflight",
    "verify", "bench", "check_goals", "ablate", "classify", "demo", "finetune", "app", "tables", "testset",
    "t2a_bench", "steam",
)  # fmt: skip

packages = ["audiox_trainer.configs"]
for folder in FOLDERS:
    packages.append(f"audiox_trainer.{folder}")
    below = find_namespace_packages(folder, exclude=["*__pycache__*"])
    packages.extend(f"audiox_trainer.{folder}.{sub}" for sub in below)

setup(
    name="audiox-trainer",
    version="0.1.0",
    description="Pretraining and four-step distillation of multimodal audio generators with DeepSpeed",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=packages,
    package_dir={f"audiox_trainer.{folder}": folder for folder in (*FOLDERS, "configs")},
    package_data={
        "audiox_trainer.configs": ["*.json", "base/*.json", "schema/*.json"],
        "audiox_trainer.kernels": ["*.json"],
        "audiox_trainer.launch.slurm": ["*"],
        "audiox_trainer.trainer.pages": ["templates/*"],
        "audiox_trainer.trainer.paper": ["*.json"],
    },
    entry_points={
        "console_scripts": [f"audiox-{name.replace('_', '-')} = audiox_trainer.launch.{name}:main" for name in SCRIPTS]
    },
    # Ranges that work. mosaicml-streaming 0.13 declares transformers < 5 and numpy < 2.2, so pip alone installs the
    # older stack (transformers 4.57, numpy 2.1); constraints.txt is the newer one, which `make setup` installs.
    install_requires=[
        "torch>=2.11,<2.14",
        "torchvision>=0.26,<0.29",
        "triton>=3.6; platform_system == 'Linux'",
        "deepspeed>=0.19.6,<0.20",  # older ones accumulate wrongly through engine.module (their #8224)
        "mosaicml-streaming==0.13.0",
        "transformers>=4.57,<6",
        "diffusers>=0.37,<1",
        "huggingface-hub>=0.34,<3",
        "safetensors>=0.5",
        "einops>=0.8",
        "numpy>=2.1,<3",
        "pillow>=10",
        "av>=18.1",  # whose frames have metadata: loudness
        "soxr>=0.5",
        "soundfile>=0.13",
        "tensorboard>=2.18",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "packaging>=24",
        "matplotlib>=3.9",
        "tabulate>=0.9",
        "tqdm>=4.66",
        "xxhash>=3,<4",
        "fsspec[http]>=2026.9",
        "aiohttp>=3.12",
        "jsonschema>=4.20",
        "pydantic>=2.10,<3",
        "typing-extensions>=4.12",
        "filelock>=4.2.11",
        "openai>=1.50",
        "tenacity>=9",
        "markupsafe>=3",
        "typing-extensions>=4.12",
        "inflect>=5.6,<6",  # later ones check their own types at import, which takes two seconds
    ],
    extras_require={
        "flash": ["flash-attn>=2.8"],
        "fp8": ["torchao>=0.14"],
        "onnx": ["onnxruntime>=1.18"],
        "s3": ["s3fs>=2026.9"],  # manifests that name media as s3://
        "gs": ["google-cloud-storage>=2.9,<3.3"],  # shards in gs:// buckets
        "oci": ["oci>=2.88,<3"],  # shards in oci:// buckets
        "wandb": ["wandb>=0.18"],  # logging.trackers
        "mlflow": ["mlflow-skinny>=2.14", "sqlalchemy>=2", "alembic>=1.13"],  # logging.trackers
        "separate": ["demucs>=4.1,<5", "pyyaml>=6"],  # launch/prepare.py separate
        "cluster": ["ray>=2.55,<3"],  # preparation on many nodes
        "page": ["gradio>=6,<7", "gradio_client>=2,<3", "fastapi>=0.115.2,<1", "uvicorn>=0.30"],  # launch/app.py
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.130",
            "cyclonedx-python-lib>=11",
            "packageurl-python>=0.15",
            "packaging>=24",
            "torchao>=0.14",
            "ruff>=0.12",
            "mypy>=1.15",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "moto[s3]>=5",
            "s3fs>=2024.6",
            "flask>=3",
            "flask-cors>=5",
            "gradio>=6,<7",
            "fastapi>=0.115.2,<1",
            "uvicorn>=0.30",
            "playwright>=1.50",
            "ray>=2.55,<3",
            "psutil>=6",
        ],
    },
)
