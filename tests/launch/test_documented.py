"""What documents, docstrings and batch scripts show is true: every command is parsed by its own script, its
configuration is loaded, its ranks divide the batch, and what one command reads another one makes."""

import ast
import importlib
import re
import shlex
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from audiox_trainer.launch.plan import gpu_named
from audiox_trainer.models import strict
from audiox_trainer.models.config import ModelConfig
from audiox_trainer.trainer.core.config import BaseConfig, check_ranks, load_pretrain_config
from audiox_trainer.trainer.core.config_reader import parse_file
from audiox_trainer.trainer.core.distill_config import DistillConfig, load_distill_config, load_training_config
from audiox_trainer.trainer.evaluation.held_out import check_embedded
from audiox_trainer.trainer.manifest.manifest import read_manifest
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from tests.helpers.documents import (
    COMMAND,
    DOCUMENTS,
    FENCE,
    SCRIPTS,
    SOURCES,
    Command,
    batch_script,
    blocks,
    commands,
    name_of,
    prose,
    sbatch_ranks,
    spans,
    strings,
)
from tests.helpers.media_files import film
from tests.helpers.small_config import ROOT
from tests.test_architecture import ROOMS

OURS = [command for command in commands() if command.script]
WHOLE = [command for command in OURS if not command.partial]
OTHERS = """--nodes --ntasks-per-node --time --partition --account --signal --exclude --export --batch --requeue
    --hostfile --num_gpus --master_addr --master_port --ssh_port --no_ssh_check --no_ssh --node_rank --local-dir
    --include --nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --no-build-isolation --editable --help
    --logdir --mount""".split()
PYTHONS = "Python 3.11 or 3.12"


def script_of(command: Command) -> tuple[str, list[str]]:
    assert command.script
    return command.script


def config_of(name: str, a: Namespace) -> BaseConfig | None:
    """The run's configuration that a script loads with these arguments."""
    if name == "preflight" and a.of:
        of, *rest = a.of
        return config_of(Path(of).stem, parse(Path(of).stem, rest))
    if name == "demo":
        load_distill_config(ROOT / a.student, a.set_student)
    if name == "ablate":
        load_distill_config(ROOT / a.config, a.set)
        return load_pretrain_config(ROOT / a.pretraining, a.set)
    if not getattr(a, "config", None):
        return None
    distils = name in ("distill", "pairs") or (name == "bench" and a.command == "distill")
    load = load_distill_config if distils else load_training_config if name == "plan" else load_pretrain_config
    return load(ROOT / a.config, a.set)


@cache
def user_files(folder: Path) -> None:
    """The media and lists that the documents' examples read, in the working directory of their commands."""
    for name in ("clip.mp4", "clips/7.mp4", "in.wav", "start.wav", "song.flac"):
        (folder / name).parent.mkdir(exist_ok=True)
        film(folder / name, 1) if name.endswith("mp4") else (folder / name).write_bytes(b"")
    listed = [block for block in blocks(ROOT / "docs/generation.md", "json") if '"text"' in block]
    (folder / "prompts.jsonl").write_text(listed[0])


def parse(name: str, arguments: list[str]) -> Namespace:
    found: Namespace = importlib.import_module(f"audiox_trainer.launch.{name}").parse(arguments)
    return found


@pytest.fixture
def user(tmp_path_factory, monkeypatch):
    """A shell in which the examples' files lie, on a rank of a launcher."""
    folder = tmp_path_factory.getbasetemp() / "user"
    folder.mkdir(exist_ok=True)
    user_files(folder)
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")


def ranks(command: Command) -> int:
    """How many a launcher starts; 1 where the documents leave it to the machine."""
    words = list(command.arguments)
    if command.program == "torchrun":
        asked = get_args_parser().parse_args(words)
        return int(asked.nnodes.split(":")[0]) * int(asked.nproc_per_node)
    if command.program == "deepspeed" and "--num_gpus" in words:
        return int(words[words.index("--num_gpus") + 1])
    return 1


@pytest.mark.parametrize("command", WHOLE, ids=str)
def test_its_script_takes_it(command, user):
    """The arguments are known and complete, its configuration has these keys, and its ranks divide the batch."""
    name, arguments = script_of(command)
    parsed = parse(name, arguments)
    config = config_of(name, parsed)
    if config and name != "plan":
        assert check_ranks(config.training, ranks(command)) >= 1
    if name == "plan":
        gpu_named(parsed.gpu)
        assert not parsed.samples_per_gpu or len(parsed.gpus) > 1


@pytest.mark.parametrize("command", [c for c in commands() if c.program == "make"], ids=str)
def test_make_has_its_target(command, user):
    target, *settings = command.arguments or ("help",)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{command}: no such target"
    words = [shlex.split(value) for name, _, value in (s.partition("=") for s in settings) if name == "ARGS"]
    if target == "demo":
        assert config_of("demo", parse("demo", words[0] if words else []))


@pytest.mark.parametrize("command", [c for c in commands() if c.program == "sbatch" and not c.partial], ids=str)
def test_its_job_divides_the_batch(command, user):
    """As many ranks as the batch script and sbatch's own options ask for."""
    _, script, (config, *arguments) = batch_script(command)
    if script.stem in ("pretrain", "distill"):
        own = arguments if script.stem == "pretrain" else ["--teacher", *arguments]
        loaded = config_of(script.stem, parse(script.stem, ["--config", config, *own]))
        assert loaded and check_ranks(loaded.training, sbatch_ranks(command)) >= 1
    if "PREFLIGHT" in command.variables:
        parse("preflight", shlex.split(command.variables["PREFLIGHT"]))


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*2p7b*.json")), ids=lambda f: f.stem)
def test_every_configuration_of_full_size_runs_as_the_scripts_ask(config):
    kind = "distill" if isinstance(load_training_config(config), DistillConfig) else "pretrain"
    script = Command("", "sbatch", (f"launch/slurm/{kind}.sbatch",))
    assert check_ranks(load_training_config(config).training, sbatch_ranks(script)) >= 1


@cache
def trained() -> dict[str, ModelConfig]:
    """Folders of runs and of weights, with the model that the documents' commands train there."""
    found = {f"{demo}/weights/{name}": load_pretrain_config(ROOT / "configs/tiny.json").model
             for demo in ("runs/demo", "runs/long") for name in ("teacher", "student")}  # fmt: skip
    steps = [script_of(command) for command in WHOLE]
    for name, arguments in steps:
        if name in ("pretrain", "distill"):
            parsed = parse(name, arguments)
            config = config_of(name, parsed)
            assert config
            found[str(parsed.output or f"runs/{parsed.config.stem}")] = config.model
    for name, arguments in steps:
        parsed = parse(name, arguments) if name == "convert" else None
        if parsed and str(parsed.run) in found:
            found[str(parsed.out)] = found[str(parsed.run)]
    return found


def located(model: ModelConfig) -> ModelConfig:
    """Without the places of its encoders' weights, which are no part of what a model is."""
    video = replace(model.video, image_weights="", motion_weights="")
    return replace(model, codec=replace(model.codec, weights=""), text=replace(model.text, weights=""), video=video)


def refusal_of(weights: str) -> str:
    try:
        check_embedded(trained()[weights], weights)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", [c for c in WHOLE if script_of(c)[0] == "evaluate"], ids=str)
def test_the_judge_can_judge_these_weights(command):
    """Only sounds of the procedural scenes can be judged: a command with other weights would always be refused."""
    judged = [str(weights) for weights in parse(*script_of(command)).weights if str(weights) in trained()]
    assert [refusal for weights in judged if (refusal := refusal_of(weights))] == []


def test_the_judge_refuses_what_it_cannot_judge():
    assert refusal_of("weights/2p7b").startswith("weights/2p7b: its codec makes")


@pytest.mark.parametrize("command", [c for c in WHOLE if script_of(c)[0] in ("distill", "pairs")], ids=str)
def test_the_student_has_its_teachers_model(command):
    name, arguments = script_of(command)
    parsed = parse(name, arguments)
    config = config_of(name, parsed)
    assert config and located(config.model) == located(trained()[str(parsed.teacher)])


def test_what_is_trained_on_was_prepared(user):
    """Every folder that a shown training reads is one that a shown preparation makes, with the same encoders."""
    prepared = defaultdict(list)
    for name, arguments in map(script_of, WHOLE):
        if name == "prepare" and (parsed := parse(name, arguments)).kind in ("scenes", "files"):
            prepared[str(parsed.out)].append(located(load_pretrain_config(ROOT / parsed.config, parsed.set).model))
    for name, arguments in map(script_of, WHOLE):
        config = config_of(name, parse(name, arguments)) if name in ("pretrain", "distill") else None
        for stream in config.data.streams if config else ():
            folder = str(Path(stream.path).parent)
            assert folder in prepared, f"{name} {arguments}: nothing shown prepares {folder}"
            model = located(config.model)
            same = [(made.codec, made.video) == (model.codec, model.video) for made in prepared[folder]]
            assert any(same), f"{name} {arguments}: {folder} is prepared for other encoders"


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

    trees = load_pretrain_config("2p7b"), load_distill_config("distill_2p7b")
    return {key for tree in trees for key in walk(strict.to_dict(tree), "")}


def unknown_keys(texts: list[str]) -> list[str]:
    """Of the keys that stand in full in these texts, or begin so."""
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
    """What is indented or in another kind of block would not be checked."""
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
    manifest, filters = blocks(ROOT / "docs/data.md", "json")
    (tmp_path / "clips.jsonl").write_text(manifest)
    assert len(read_manifest(tmp_path / "clips.jsonl")) == 4
    (tmp_path / "filters.json").write_text(filters)
    assert len(parse_file(FiltersConfig, tmp_path / "filters.json", ()).classifiers) == 3
    assert parse_file(FiltersConfig, ROOT / "configs/filters.json", ())


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
    """What decides fits on two screens, in tables of at most ten rows; the rest goes to docs/lab/."""
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


def test_every_script_and_configuration_is_shown():
    """A document shows each script at work, and README has every configuration."""
    shown = {script_of(command)[0] for command in OURS if command.where.startswith(("README", "docs"))}
    scripts = {path.stem for path in SCRIPTS if re.search(r"^def parse\(", path.read_text(), re.MULTILINE)}
    assert scripts - shown <= {"demo", "config_schema"}  # by make
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in (ROOT / "configs").glob("*.json") if f"configs/{path.name}" not in readme] == []
