"""The wheel holds all of the project and names all that it imports; the folders shadow nobody's package."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

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


def test_wheel_requires_what_is_imported(wheel, root):
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    required = {canonical(re.split(r"[^\w.-]", line)[0]) for line in metadata_of(wheel)["Requires-Dist"]}
    distributions = importlib.metadata.packages_distributions()
    for path in (path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"audiox_trainer"}:
                offers = {canonical(name) for name in distributions.get(module, [module])}
                assert offers & required, f"{path.relative_to(root)}:{node.lineno} imports {module}: add it to setup.py"
