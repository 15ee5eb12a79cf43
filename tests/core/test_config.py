"""Configurations: what is not allowed is refused with its dotted path, before a process group or a folder is made."""

import json
from dataclasses import replace

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import PretrainConfig, TimeoutsConfig, check_ranks, load_pretrain_config
from audiox_trainer.trainer.core.config_reader import apply_override, find_config, read_config
from tests.helpers.small_config import ROOT, small_json

CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.json") if not path.stem.startswith(("distill", "filters"))
)


def load(tmp_path, data, *overrides):
    file = tmp_path / "run.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return load_pretrain_config(file, overrides)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_that_come_along_parse(name):
    config = load_pretrain_config(ROOT / "configs" / f"{name}.json")
    assert strict.parse(PretrainConfig, strict.to_dict(config)) == config
    check_ranks(config.training, 1)


REFUSED = {  # override -> what the message says after the file's name
    "xyz=1": r"xyz: unknown key \(value 1\); allowed: model, data, training",
    "model.backbone.widht=64": r"model\.backbone\.widht: unknown key \(value 64\); did you mean width\? allowed: width",
    "data.streams.0.pth=x": r"data\.streams\[0\]\.pth: unknown key \(value 'x'\); did you mean path\? allowed: path",
    "data.dropout.txt=0.1": r"data\.dropout\.txt: unknown key",
    "training.steps=many": r"training\.steps: 'many' is not allowed; expected an integer",
    'zero={"stage": 0, "offload_optimizer": true}': r"zero\.offload_optimizer: true at stage 0, where DeepSpeed has",
    "training.checkpointing=true": r"training\.checkpointing: is called activation_checkpointing now",
    "zero.offload=true": r"zero\.offload: is called offload_optimizer now",
    "logging.samples_every=3": r"logging\.samples_every: is called preview_every now",
    "training.steps=1.5": r"training\.steps: 1\.5 is not allowed; expected an integer",
    "training.steps=true": r"training\.steps: True is not allowed; expected an integer",
    "training.steps=null": r"training\.steps: None is not allowed; expected an integer",
    "training.compile=1": r"training\.compile: 1 is not allowed; expected true or false",
    "training.precision=fp16": r"training\.precision: 'fp16' is not allowed; expected 'fp32' or 'bf16'",
    "zero.stage=4": r"zero\.stage: 4 must be at most 3",
    "zero.stage=true": r"zero\.stage: True is not allowed",
    "optimizer.lr=fast": r"optimizer\.lr: 'fast' is not allowed; expected a finite number",
    "optimizer.lr=NaN": r"optimizer\.lr: nan is not allowed; expected a finite number",
    "optimizer.lr=0": r"optimizer\.lr: 0 must be above 0",
    "optimizer.betas=0.9": r"optimizer\.betas: 0\.9 is not allowed; expected a list of finite numbers",
    'optimizer.betas=[0.9, "b"]': r"optimizer\.betas\[1\]: 'b' is not allowed",
    "optimizer.betas=[0.9]": r"optimizer\.betas: \[0\.9\] must be two numbers",
    "optimizer.betas=[0.9, 1.0]": r"optimizer\.betas: \[0\.9, 1\.0\] must be two numbers of at least 0 and below 1",
    "optimizer.max_grad_norm=-1": r"optimizer\.max_grad_norm: -1 must be at least 0",
    "schedule.warmup=1": r"schedule\.warmup: 1 must be below 1",
    "schedule.inv_gamma=0": r"schedule\.inv_gamma: 0 must be above 0",
    "schedule.cooldown=2": r"schedule\.cooldown: 2 must be at most 1",
    "ema.decay=1.1": r"ema\.decay: 1\.1 must be at most 1",
    "training.steps=0": r"training\.steps: 0 must be at least 1",
    "training.seed=-1": r"training\.seed: -1 must be at least 0",
    "training.micro_batch=-4": r"training\.micro_batch: -4 must be at least 1",
    "training.max_skipped_steps=0": r"training\.max_skipped_steps: 0 must be at least 1",
    "data.workers=-1": r"data\.workers: -1 must be at least 0",
    "data.canonical_nodes=0": r"data\.canonical_nodes: 0 must be at least 1",
    "data.dropout.text=1.5": r"data\.dropout\.text: 1\.5 must be at most 1",
    "data.inpainting_hole=[0.6, 0.2]": r"data\.inpainting_hole: \[0\.6, 0\.2\] must be two shares",
    "data.streams=[]": r"data\.streams: empty",
    "data.streams={}": r"data\.streams: \{\} is not allowed; expected a list of objects with keys path, tasks",
    "data.streams.1.tasks={}": r"data\.streams\[1\]\.tasks: empty",
    "data.streams.1.tasks.T2X=1": r"data\.streams\[1\]\.tasks\.T2X: weight 1\.0; allowed: T2A, ",
    "data.streams.0.tasks.T2A=0": r"data\.streams\[0\]\.tasks\.T2A: weight 0\.0; allowed: .*, each above 0",
    "checkpoint.every=0": r"checkpoint\.every: 0 must be at least 1",
    "logging.every=0": r"logging\.every: 0 must be at least 1",
    "logging.preview_prompts=bell": r"logging\.preview_prompts: 'bell' is not allowed; expected a list of strings",
    "model.codec.kind=mp3": r"model\.codec\.kind: 'mp3' is not allowed; expected 'logmel' or 'oobleck'",
    "model.backbone.heads=3": r"model\.backbone: width 32 over 3 heads must give an even head width",
    "model.backbone.heads=0": r"model\.backbone\.heads: 0 must be at least 1",
    "model.video.pool=3": r"model\.video: 8 steps are not a multiple of pool 3",
    "model=tiny": r"model: 'tiny' is not allowed; expected an object with keys codec, text",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_not_allowed_is_named(tmp_path, override):
    with pytest.raises(ValueError, match=r"run\.json: " + REFUSED[override]):
        load(tmp_path, small_json(), override)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model", r"model: missing; expected an object with keys codec, text"),
        ("model.fusion.queries", r"model\.fusion\.queries: missing; expected an integer"),
        ("training.steps", r"training\.steps: missing; expected an integer"),
        ("data.streams.1.tasks", r"data\.streams\[1\]\.tasks: missing; expected an object of finite numbers"),
    ],
)
def test_what_is_missing_is_named(tmp_path, path, message):
    data = node = small_json()
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    del node[last]
    with pytest.raises(ValueError, match=r"run\.json: " + message):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"run\.json:1:2: not JSON"),
        ('{"model": {},\n "data" 3}', r"run\.json:2:9: not JSON"),
        ("[]", r"run\.json: must be a JSON object, not list"),
        ('{"model": {"a": 1, "b": 2, "a": 3}}', r"run\.json: a: stands there 2 times"),
    ],
)
def test_what_is_no_configuration(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrain_config(tmp_path / "nowhere.json")
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"run\.json: .*utf-8"):
        load_pretrain_config(tmp_path / "run.json")


def test_overrides(tmp_path):
    config = load(
        tmp_path,
        small_json(),
        "optimizer.lr=2e-4",
        "data.streams.1.path=a=b",
        "data.streams.0.tasks.V2A=0.5",
        "zero.stage=3",
        "training.precision=bf16",
        'logging.preview_prompts=["a bell", "2"]',
        "deepspeed.zero_optimization.reduce_bucket_size=1000",
        "optimizer.lr=3e-4",
    )
    assert config.optimizer.lr == 3e-4  # the last one counts
    assert config.data.streams[1].path == "a=b"
    assert config.data.streams[0].tasks["V2A"] == 0.5
    assert (config.zero.stage, config.training.precision) == (3, "bf16")
    assert config.logging.preview_prompts == ("a bell", "2")
    assert config.deepspeed == {"zero_optimization": {"reduce_bucket_size": 1000}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", r"--set optimizer\.lr: expected key\.path=value"),
        ("=3", r"--set =3: expected key\.path=value"),
        ("training.steps.x=1", r"--set training\.steps\.x=1: 'x' leads nowhere in 'training\.steps\.x'"),
        ("training.steps.x.y=1", r"'x' leads nowhere"),
        ("data.streams.2.path=x", r"'2' leads nowhere"),
        ("data.streams.-1.path=x", r"'-1' leads nowhere"),
        ("data.streams.first.path=x", r"'first' leads nowhere"),
        ("data.streams.5=x", r"'5' leads nowhere"),
    ],
)
def test_an_override_that_leads_nowhere(override, message):
    with pytest.raises(ValueError, match=message):
        apply_override(small_json(), override)


@pytest.mark.parametrize("other", ["activation_checkpointing", "fp8_rows"])
def test_swiglu_is_not_recomputed_twice(small, other):
    with pytest.raises(ValueError, match=rf"^recompute_swiglu: true with {other}, which"):
        replace(small.training, recompute_swiglu=True, **{other: True})


def test_the_released_network_has_no_swiglu_of_ours():
    with pytest.raises(ValueError, match=r"training\.recompute_swiglu: true; the released network has other blocks"):
        load_pretrain_config(ROOT / "configs" / "finetune_released.json", ["training.recompute_swiglu=true"])


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(8, 4, 3), (8, 4, 4), (8, 3, 1), (4, 8, 1)])
def test_a_batch_that_the_ranks_cannot_share(small, batch, micro, ranks):
    training = strict.parse(type(small.training), {"steps": 1, "global_batch": batch, "micro_batch": micro})
    message = rf"global_batch: {batch} is not a multiple of {ranks} ranks x micro_batch {micro} = {ranks * micro}"
    with pytest.raises(ValueError, match=message):
        check_ranks(training, ranks)
    assert check_ranks(small.training, 2) == 1 and check_ranks(small.training, 1) == 2


class TestExtends:
    """A file that changes another one."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(name, **keys):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(keys))
            return tmp_path / name

        return write

    def test_objects_are_merged_and_lists_replaced(self, write):
        write("base/a.json", a={"b": 1, "c": {"d": 2}}, e=[1, 2], f=3)
        write("b.json", **{"$schema": "x.json", "extends": "base/a.json", "a": {"c": {"g": 4}}, "e": [5]})
        child = write("c.json", extends="b.json", f={"h": 6})
        assert read_config(child) == {"a": {"b": 1, "c": {"d": 2, "g": 4}}, "e": [5], "f": {"h": 6}}

    def test_one_that_comes_along_may_be_extended_from_anywhere(self, write):
        config = load_pretrain_config(write("mine.json", extends="tiny", training={"steps": 7}))
        tiny = load_pretrain_config("tiny")
        assert config == replace(tiny, training=replace(tiny.training, steps=7))

    def test_a_circle(self, write):
        write("a.json", extends="b.json")
        write("b.json", extends="c.json")
        write("c.json", extends="b.json")
        with pytest.raises(ValueError, match=r"extends: a circle, b\.json extends c\.json extends b\.json; break it"):
            read_config(write("a.json", extends="b.json"))

    @pytest.mark.parametrize("value", [3, "", None, ["tiny"]])
    def test_what_names_no_file(self, write, value):
        with pytest.raises(ValueError, match=r"a\.json: extends: .* is not allowed; expected the path"):
            read_config(write("a.json", extends=value))

    def test_a_base_that_is_not_there(self, write):
        with pytest.raises(FileNotFoundError, match=r"tinny\.json: no such configuration \(did you mean tiny\?\)"):
            read_config(write("a.json", extends="tinny.json"))

    def test_a_key_of_the_base_is_refused_as_its_own(self, write):
        with pytest.raises(ValueError, match=r"mine\.json: model\.backbone\.widht: unknown key"):
            load_pretrain_config(write("mine.json", extends="tiny", model={"backbone": {"widht": 3}}))


@pytest.mark.parametrize("name", ["2p7b", "2p7b.json", "configs/2p7b.json"])
def test_a_configuration_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / "2p7b.json"
    (tmp_path / "2p7b").mkdir()
    assert find_config(name) == ROOT / "configs" / "2p7b.json", "a folder is no configuration"
    (tmp_path / "configs").mkdir()
    own = tmp_path / name
    own.rmdir() if own.is_dir() else None
    own.write_text("{}")
    assert find_config(name).resolve() == own, "a file comes first"


def test_a_name_that_is_misspelt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"distil_2p7b: no such configuration \(did you mean distill_2p7b\?\); give a file, or one of 2p7b, "
    with pytest.raises(FileNotFoundError, match=message):
        find_config("distil_2p7b")


@pytest.mark.parametrize("phase", ["start", "first_step", "step", "save"])
def test_a_collective_operation_may_take_longer_than_any_phase(phase):
    assert TimeoutsConfig(**{phase: 5000.0}).collective == 10000
