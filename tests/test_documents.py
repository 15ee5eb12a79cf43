"""Documents are right in what they say besides commands: options, keys, files, messages, licences, the order of
rooms."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from functools import cache

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import StreamConfig, load_pretrain_config
from audiox_trainer.trainer.core.config_reader import parse_file
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.stages.filter_config import read_filters
from audiox_trainer.trainer.stages.separators import SeparatorConfig
from tests.helpers.documents import (
    COMMAND,
    DOCUMENTS,
    FENCE,
    SOURCES,
    blocks,
    name_of,
    prose,
    spans,
    strings,
)
from tests.helpers.small_config import ROOT
from tests.test_architecture import ROOMS

OTHERS = """--nodes --ntasks-per-node --time --partition --account --signal --exclude --export --batch --requeue
    --hostfile --num_gpus --master_addr --master_port --ssh_port --no_ssh_check --no_ssh --node_rank --local-dir
    --include --nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --no-build-isolation --editable --help
    --logdir --mount""".split()
PYTHONS = "Python 3.11 or 3.12"


@cache
def options() -> set[str]:
    """Every option of a script, and those of other programs that are mentioned."""
    ours = {option for path in SOURCES if "launch" in path.parts for text in strings(path) for option in _options(text)}
    return ours | set(OTHERS)


def _options(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][\w-]*", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_options_exist(document):
    mentioned = {option for span in spans(prose(document)) for option in _options(span)}
    tests = {o for path in (ROOT / "tests/resilience").glob("*.py") for text in strings(path) for o in _options(text)}
    assert mentioned <= options() | tests, sorted(mentioned - options() - tests)


@cache
def keys() -> set[str]:
    """Dotted keys of a pretraining and of a distillation, those of their sections too."""

    def walk(tree: object, path: str) -> Iterator[str]:
        yield path
        for name, inner in tree.items() if isinstance(tree, dict) else ():
            yield from walk(inner, f"{path}.{name}" if path else name)

    trees = load_pretrain_config("2p7b"), load_distill_config("distill_2p7b"), load_pretrain_config("finetune_lora")
    return {key for tree in trees for key in walk(strict.to_dict(tree), "")}


def unknown_keys(texts: list[str]) -> list[str]:
    """The unknown ones among the keys that stand in full in these texts, or begin so."""
    sections = {key for key in keys() if "." not in key and key} - {"deepspeed"}
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(sections)})\.[a-z0-9_.]+\w)", "\n".join(texts))
    others = re.compile(r"\.(streams\.|md|json|py|safetensors|to\b)")
    return [key for key in named if not any(known.startswith(key) for known in keys()) and not others.search(key)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_keys_exist(document):
    assert not unknown_keys(spans(prose(document)))


def test_messages_name_keys_that_exist():
    assert not {name_of(path): found for path in SOURCES if (found := unknown_keys(strings(path)))}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_exist(document):
    """Files of the repository that a document names, and links to other documents and to their headings."""
    text = document.read_text()
    named = re.findall(r"\b(?:launch|trainer|models|kernels|configs|tests|docs)/[\w./*-]*\.\w+", text)
    folders = re.findall(r"`((?:launch|trainer|models|kernels|configs|tests|docs)/[\w/]*)`", text)
    for path in {*named, *folders}:
        if "weights/" not in path:
            assert list(ROOT.glob(path.rstrip("."))), f"{path} does not exist"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (document.parent / link).exists(), f"a link leads to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_stand_in_fences(document):
    """A command that is indented or in another kind of block would not be checked."""
    loose = [line for line in prose(document).splitlines() if COMMAND.fullmatch(line.strip())]
    assert not loose, loose
    kinds = {language for _, language, _ in FENCE.findall(document.read_text())}
    assert kinds <= {"bash", "sh", "json", "python", ""}
    shown = [
        line for block in blocks(document, "") for line in block.splitlines() if re.match(r"(python|sbatch) ", line)
    ]
    assert not shown, shown


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=name_of)
def test_python_imports_what_there_is(document):
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_lines_of_a_manifest_and_filters_are_read(tmp_path):
    manifest, separator, streams, filters = blocks(ROOT / "docs/data.md", "json")
    assert all(strict.parse(StreamConfig, json.loads(line)).captions for line in streams.splitlines())
    (tmp_path / "clips.jsonl").write_text(manifest)
    assert len(read_entries(tmp_path / "clips.jsonl")) == 4
    (tmp_path / "filters.json").write_text(filters)
    assert len(read_filters(tmp_path / "filters.json").scorers) == 4
    (tmp_path / "separator.json").write_text(separator)
    assert parse_file(SeparatorConfig, tmp_path / "separator.json").stems == ("music", "speech")


def test_messages_are_those_of_the_sources():
    """Each piece of a message in docs/troubleshooting.md between two gaps is a piece of a string of some source."""
    said = "\n".join(text for path in SOURCES for text in strings(path)) + (ROOT / "Makefile").read_text()
    rows = [line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    shown = [span for row in rows for span in spans(row.split(" | ")[0])]
    others = ("No module named", "CUDA out of memory", "OUT")
    pieces = [piece.strip(" :;,.") for text in shown if not text.startswith(others) for piece in text.split("…")]
    lost = [piece for piece in pieces if len(piece) > 8 and piece not in said]
    assert not lost, lost


def test_the_demo_prints_what_readme_shows():
    """Each step of the expected output is one of the demo's, with options that exist."""
    (shown,) = [block for block in blocks(ROOT / "README.md", "") if block.startswith("-- shards")]
    names = {word for text in strings(ROOT / "launch/demo.py") for word in text.split()}
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("-- ")} <= names
    assert set(_options(shown)) <= options()


def test_results_stay_short():
    """The results that decide fit on two screens, in tables of at most ten rows; the rest goes to docs/lab/."""
    lines = (ROOT / "docs/results.md").read_text().splitlines()
    assert len(lines) <= 100
    assert all(len(table.splitlines()) <= 12 for table in re.findall(r"(?:^\|.*\n)+", "\n".join(lines), re.MULTILINE))


def test_extras_exist():
    """Optional dependencies are those of setup.py."""
    extras = set(re.findall(r'^ {8}"(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    shown = {
        extra for path in DOCUMENTS for extra in re.findall(r"(?:audiox-trainer|\s'?`?\.)\[(\w+)\]", path.read_text())
    }
    assert shown <= extras and len(shown) > 3


def test_the_rooms_stand_in_their_order():
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert tuple(row for row in rows if row in ROOMS) == ROOMS


def test_every_dependency_is_listed_with_its_licence():
    required = set(re.findall(r'^ +"([\w-]+)(?:\[\w+\])?[<>=]', (ROOT / "setup.py").read_text(), re.MULTILINE))
    rows = re.findall(r"^\| ([\w, -]+)[ (|].*\|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    listed = {name.strip() for row in rows for name in row.split(",")}
    assert required <= listed, sorted(required - listed)


def test_python_versions_are_alike():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs/start.md", ROOT / "Makefile"):
        assert PYTHONS in path.read_text(), name_of(path)
    assert 'python_requires=">=3.11,<3.13"' in (ROOT / "setup.py").read_text()
