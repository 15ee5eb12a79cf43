"""The rules of docs/architecture.md that a machine can check, by reading the sources without importing them."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAIRS = ("launch", "trainer", "models", "kernels")  # imports flow to the right only
ROOMS = (  # of trainer/; imports flow to the left only
    "core",
    "resilience",
    "workers",
    "media",
    "pages",
    "data",
    "scenes",
    "manifest",
    "prepare",
    "scorers",
    "stages",
    "captions",
    "losses",
    "cost",
    "engine",
    "checkpoint",
    "generation",
    "sound_evaluation",
    "self_test",
    "training",
    "distillation",
    "ablations",
    "evaluation",
    "sets",
    "paper",
    "benchmarks",
)
ROOM_FILES = 15
SOURCES = sorted(path for folder in STAIRS for path in (ROOT / folder).rglob("*.py"))
MODULES = {f"audiox_trainer.{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}": p for p in SOURCES}
LAUNCH_LINES = 150


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """-> line and absolute dotted name of each import; `from a import b` gives a.b, whether that is a module or not."""
    package, found = ("audiox_trainer", *path.relative_to(ROOT).parts[:-1]), list[tuple[int, str]]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(package), f"{name_of(path)}:{node.lineno} leaves the project"
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *([node.module] if node.module else []))
            found += [(node.lineno, ".".join((*module, alias.name))) for alias in node.names]
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_there_are_sources():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(STAIRS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_flow_down_the_stairs(path):
    own = STAIRS.index(path.relative_to(ROOT).parts[0])
    for line, name in imports(path):
        for above in STAIRS[:own]:
            assert not within(name, f"audiox_trainer.{above}"), f"{name_of(path)}:{line} imports {name}"


def modules(path: Path) -> Iterator[tuple[int, str]]:
    """-> line and file of each module of the project that a file imports, also inside functions and for types alone."""
    for line, name in imports(path):
        source = MODULES.get(name) or MODULES.get(name.rpartition(".")[0])
        if source and source != path:
            yield line, name_of(source)


def test_trainer_consists_of_rooms():
    """No file lies loose, every room is known, and none is so full that nothing is found in it."""
    folders = {path.relative_to(ROOT / "trainer").parts[0] for path in (ROOT / "trainer").rglob("*.py")}
    assert folders == set(ROOMS)
    for room in ROOMS:
        files = [path for path in (ROOT / "trainer" / room).iterdir() if path.is_file()]
        assert len(files) <= ROOM_FILES, f"trainer/{room} has {len(files)} files, {ROOM_FILES} are allowed"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "trainer")], ids=name_of)
def test_rooms_import_in_their_order(path):
    own = ROOMS.index(path.relative_to(ROOT).parts[1])
    for line, name in modules(path):
        if name.startswith("trainer/"):
            room = name.split("/")[1]
            assert ROOMS.index(room) <= own, f"{name_of(path)}:{line} imports {name}, of a room after its own"


def test_no_file_imports_itself_by_way_of_others():
    after = {name_of(path): {name for _, name in modules(path)} for path in SOURCES}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " imports ".join((*trail[trail.index(name) :], name))
        if name not in finished:
            for other in sorted(after[name]):
                visit(other, (*trail, name))
            finished.add(name)

    for name in after:
        visit(name, ())


def top_level_names(tree: ast.Module) -> set[str]:
    """Whatever another module can import, definitions under `if` and `try` included."""
    names: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            else:
                nodes.append(node)
    return names


def test_what_is_imported_from_the_project_exists():
    """mypy is told to pass over modules that it does not find, and does not read the tests."""
    files = MODULES | {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "tests").rglob("*.py")}
    defined = {name: top_level_names(ast.parse(path.read_text())) for name, path in files.items()}
    for path in files.values():
        for line, name in imports(path):
            if not (within(name, "audiox_trainer") or within(name, "tests")):
                continue
            module, _, last = name.rpartition(".")
            exists = name in files or last in defined.get(module, ()) or any(within(file, name) for file in files)
            assert exists, f"{name_of(path)}:{line} imports {name}, which does not exist"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"tests(\.\w+)+", str(node.value)):  # run with -m
                assert node.value in files, f"{name_of(path)}:{node.lineno} starts {node.value}, which does not exist"


def test_only_scripts_start_scripts():
    """A script that is started as a process is an import upward by another way."""
    for path in SOURCES:
        starts = any(within(name, "subprocess") or name.startswith("os.exec") for _, name in imports(path))
        if path.relative_to(ROOT).parts[0] == "launch" or not starts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                script = re.fullmatch(r"(\S*/)?launch(/\S*)?|\w+\.(py|sbatch)", node.value)
                assert not script, f"{name_of(path)}:{node.lineno} starts the script {node.value!r}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_folders_import_relatively_and_scripts_absolutely(path):
    script = path.relative_to(ROOT).parts[0] == "launch"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if script:
                assert node.level == 0, f"{name_of(path)}:{node.lineno} must import absolutely, as a script does"
            else:
                absolute = within(node.module or "", "audiox_trainer")
                assert not absolute, f"{name_of(path)}:{node.lineno} must import with leading dots"
    for line, name in imports(path):
        # A plain `models` is found from the repository's top folder only, and may be somebody else's.
        assert name.split(".")[0] not in STAIRS, f"{name_of(path)}:{line} imports {name}, not audiox_trainer.{name}"


def test_networks_and_kernels_know_nothing_of_ranks():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] not in ("models", "kernels"):
            continue
        for line, name in imports(path):
            for package in ("deepspeed", "torch.distributed"):
                assert not within(name, package), f"{name_of(path)}:{line} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            used = isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
            assert not used, f"{name_of(path)}:{node.lineno} uses torch.distributed"


def test_two_modules_import_deepspeed():
    """One joins the ranks, one holds the models."""
    found = {name_of(path) for path in SOURCES for _, name in imports(path) if within(name, "deepspeed")}
    assert found <= {"trainer/engine/process_group.py", "trainer/engine/zero.py"}


def test_folders_are_namespace_packages():
    """An __init__.py in kernels/ would shadow Hugging Face's package of that name, which transformers imports."""
    found = [name_of(path) for folder in (*STAIRS, "configs") for path in (ROOT / folder).rglob("__init__.py")]
    assert found == []


def test_launch_files_only_parse_and_run():
    for path in (ROOT / "launch").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            lines = len(path.read_text().splitlines())
            assert lines <= LAUNCH_LINES, f"{name_of(path)} has {lines} lines, {LAUNCH_LINES} are allowed"


def test_no_file_depends_on_one_machine():
    """Package indexes belong into pip's own configuration, paths onto the command line."""
    forbidden = re.compile(
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|pypi\.nvidia\.com|index-url\s*=?\s*http"
        r"|/(?:home|Users)/\w|(?<![\w.])/[r]oot/"
    )
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):  # binary, or deleted and not yet committed
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            assert not forbidden.search(line), f"{name}:{number}: {line.strip()}"


def test_nothing_is_unpickled():
    """Weights, checkpoints and shards are safetensors, JSON and plain arrays; no file can run code.

    Released encoder weights that are pickles are turned into safetensors once, on being asked, in one place, which lets
    through nothing but tensors.
    """
    unpickling = []
    for path in SOURCES:
        for line, name in imports(path):
            for module in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
                assert not within(name, module), f"{name_of(path)}:{line} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "torch.load":
                    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    unpickling.append((name_of(path), options.get("weights_only")))
                assert called != "torch.save", f"{name_of(path)}:{node.lineno} calls {called}"
                allowed = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
                assert not allowed, f"{name_of(path)}:{node.lineno} allows pickles"
    assert unpickling == [("trainer/checkpoint/convert_encoders.py", "True")]
