"""The commands in documents, docstrings and batch scripts work: every command is parsed by its own script, its
configuration is loaded, its ranks divide the batch, and what one command reads another one makes."""

import importlib
import re
import shlex
from argparse import Namespace
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from audiox_trainer.launch.plan import gpu_named
from audiox_trainer.models.config import AnyModelConfig
from audiox_trainer.trainer.checkpoint.convert_released import ReleasedSizes
from audiox_trainer.trainer.core.config import BaseConfig, check_ranks, load_pretrain_config
from audiox_trainer.trainer.core.distill_config import DistillConfig, load_distill_config, load_training_config
from audiox_trainer.trainer.evaluation.held_out import check_embedded
from tests.helpers.documents import (
    SCRIPTS,
    Command,
    batch_script,
    blocks,
    commands,
    sbatch_ranks,
)
from tests.helpers.media_files import film
from tests.helpers.small_config import ROOT

OURS = [command for command in commands() if command.script]
WHOLE = [command for command in OURS if not command.partial]


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
    for name in ("t2a/prompts", "sets/t2a/prompts", "sets/audiocaps/T2A", "sets/audiotime/T2A"):  # made by commands
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text('{"text": "a bell"}\n')


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
    """The number of ranks that a launcher starts; 1 where the documents leave it to the machine."""
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
    """The batch script and sbatch's own options say how many ranks there are."""
    _, script, (config, *arguments) = batch_script(command)
    if script.stem in ("pretrain", "distill"):
        own = arguments if script.stem == "pretrain" else ["--teacher", *arguments]
        loaded = config_of(script.stem, parse(script.stem, ["--config", config, *own]))
        assert loaded and check_ranks(loaded.training, sbatch_ranks(command)) >= 1
    if "PREFLIGHT" in command.variables:
        parse("preflight", shlex.split(command.variables["PREFLIGHT"]))


# Adapters are for one GPU.
FULL_SIZE = [file for file in sorted((ROOT / "configs").glob("*2p7b*.json")) if "lora" not in file.stem]


@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda file: file.stem)
def test_every_configuration_of_full_size_runs_as_the_scripts_ask(config):
    kind = "distill" if isinstance(load_training_config(config), DistillConfig) else "pretrain"
    script = Command("", "sbatch", (f"launch/slurm/{kind}.sbatch",))
    assert check_ranks(load_training_config(config).training, sbatch_ranks(script)) >= 1


@cache
def trained() -> dict[str, AnyModelConfig]:
    """Folders of runs and of weights, with the model that the documents' commands train or convert there."""
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
        if parsed and parsed.out and str(parsed.run) in found:
            found[str(parsed.out)] = found[str(parsed.run)]
        elif parsed and parsed.released:
            found[str(parsed.out)] = ReleasedSizes().model
    return found


def located(model: AnyModelConfig) -> AnyModelConfig:
    """Without the places of its encoders' weights, which are no part of what a model is."""
    video = model.video and replace(model.video, image_weights="", motion_weights="")
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
    judged = [str(weights) for weights in parse(*script_of(command)).weights or () if str(weights) in trained()]
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


def test_every_script_and_configuration_is_shown():
    """A document shows each script at work, and README has every configuration."""
    shown = {script_of(command)[0] for command in OURS if command.where.startswith(("README", "docs"))}
    scripts = {path.stem for path in SCRIPTS if re.search(r"^def parse\(", path.read_text(), re.MULTILINE)}
    assert scripts - shown <= {"demo", "finetune", "config_schema", "sbom"}  # by make
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in (ROOT / "configs").glob("*.json") if f"configs/{path.name}" not in readme] == []
