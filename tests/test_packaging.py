"""The wheel holds all of the project and names all that it imports; the folders shadow nobody's package."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BUILD_TOOLS = ("setuptools", "wheel", "ninja", "packaging")
# Which of its declared requirements mosaicml-streaming imports here, besides our own.
STREAMING_IMPORTS = ("boto3", "brotli", "catalogue", "python-snappy", "zstd")
FOLDERS = ("trainer", "models", "kernels", "launch")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build/ folder in the checkout, and takes up what lies in an old one."""
    top = tmp_path_factory.mktemp("packaging")
    for folder in (*FOLDERS, "configs"):
        shutil.copytree(root / folder, top / "source" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(root / name, top / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", top, top / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = top.glob("*.whl")
    return built


def metadata_of(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        message = message_from_string(archive.read(name).decode())
    return {key: message.get_all(key, []) for key in message.keys()}


def test_wheel_holds_every_module_script_and_config(wheel, root):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    wanted = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    wanted += (root / "trainer" / "pages" / "templates").iterdir()
    wanted += [*(root / "trainer" / "paper").glob("*.json"), *(root / "kernels").glob("*.json")]
    wanted += [*(root / "configs").rglob("*.json"), *(p for p in (root / "launch" / "slurm").glob("*") if p.is_file())]
    assert names == {f"audiox_trainer/{path.relative_to(root).as_posix()}" for path in wanted}


def test_wheel_imports(wheel, tmp_path):
    """With -S no installed copy can stand in: path hooks of an editable install are not read."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import importlib.resources, sys\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "import audiox_trainer.models.config, audiox_trainer.models.encoders.base\n"
        "print(audiox_trainer.models.config.__file__)\n"
        "print(sum(f.name.endswith('.json') for f in importlib.resources.files('audiox_trainer.configs').iterdir()))\n"
    )
    libraries = [path for path in sys.path if path.endswith("-packages")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, tmp_path / "site", *libraries],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, configs = done.stdout.split()
    assert Path(place) == tmp_path / "site" / "audiox_trainer" / "models" / "config.py"
    assert int(configs) > 0


def test_installed_wheel_generates_from_any_folder(wheel, tmp_path, monkeypatch):
    """Into its own environment, whose other packages are those of this one; the checkout is not among them."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--ignore-installed"]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def call(*command: object) -> str:
        done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(*pip, wheel)
    script = (
        "from pathlib import Path\n"
        "import audiox_trainer.models.audiox as audiox\n"
        "from audiox_trainer.trainer.core.config import load_pretrain_config\n"
        "audiox.AudioX(load_pretrain_config(Path('tiny'), []).model).save_pretrained('weights')\n"
        "print(audiox.__file__)\n"
    )
    assert call(python, "-c", script).strip() == str(packages / "audiox_trainer/models/audiox.py")
    generate = tmp_path / "venv/bin/audiox-generate"
    call(generate, "--weights", "weights", "--text", "a bell", "--steps", 1, "--out", "bell.wav")
    wave, rate = soundfile.read(folder / "bell.wav")
    assert rate == 8000 and len(wave) > 0 and np.isfinite(wave).all()


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_shadow_no_package(folder, root, tmp_path):
    """From the top folder of the repository too, where Python looks first."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("HERE = 'another package'\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}; print({folder}.HERE)"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "another package\n", done.stderr


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_pinned_set_is_complete_and_agrees(wheel, root, python):
    """`make setup` installs it without resolving, so nothing else finds a missing package or a conflict."""
    pinned = {r.name: r.specifier for r in map(Requirement, read_pins(root))}
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    needed = {"audiox-trainer": {"dev"}, **{name: set() for name in (*BUILD_TOOLS, *STREAMING_IMPORTS)}}
    pending = list(needed)
    while pending:
        name = pending.pop()
        if name == "mosaicml-streaming":
            continue  # its declared requirements are what `make setup` leaves out
        own = name == "audiox-trainer"
        declared = metadata_of(wheel)["Requires-Dist"] if own else importlib.metadata.requires(name) or []
        for requirement in map(Requirement, declared):
            extras = needed[name] | {""}
            if requirement.marker and not any(requirement.marker.evaluate(environment | {"extra": e}) for e in extras):
                continue
            other = canonicalize_name(requirement.name)
            assert other in pinned, f"{name} requires {requirement}: add it to constraints.txt"
            (pin,) = pinned[other]
            assert pin.version in requirement.specifier, f"{name} requires {requirement}, constraints.txt has {pin}"
            if other not in needed or not needed[other] >= requirement.extras:
                needed[other] = needed.get(other, set()) | requirement.extras
                pending.append(other)
    assert set(pinned) == set(needed) - {"audiox-trainer"}


def test_pinned_set_is_installed(root):
    for requirement in map(Requirement, read_pins(root)):
        if requirement.name != "triton":  # a CPU build of torch runs with any
            installed = importlib.metadata.version(requirement.name)
            assert installed in requirement.specifier, f"{requirement.name} {installed} is installed: make setup"


def test_lock_has_the_hashes_of_all_pins(root):
    locked = {}
    for line in (root / "constraints.lock").read_text().splitlines():
        if line[:1].isalnum():
            pin = Requirement(line.removesuffix("\\"))
            locked[pin.name] = pin.specifier, []
        elif line.startswith(" "):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            locked[pin.name][1].append(line)
    assert all(hashes for _, hashes in locked.values())
    pins = {pin.name: pin.specifier for pin in map(Requirement, read_pins(root))}
    assert {name: specifier for name, (specifier, _) in locked.items()} == pins, "make lock"


def read_pins(root: Path) -> list[str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_wheel_requires_what_is_imported(wheel, root):
    required = {canonicalize_name(re.split(r"[^\w.-]", line)[0]) for line in metadata_of(wheel)["Requires-Dist"]}
    distributions = importlib.metadata.packages_distributions()
    for path in (path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"audiox_trainer"}:
                offers = {canonicalize_name(name) for name in distributions.get(module, [module])}
                assert offers & required, f"{path.relative_to(root)}:{node.lineno} imports {module}: add it to setup.py"
