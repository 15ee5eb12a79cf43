"""Latency by the paper's protocol, of weights and of random ones. The times mean nothing here."""

import json
from dataclasses import replace

import pytest
import torch

from audiox_trainer.launch import bench
from audiox_trainer.models import strict
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.evaluation.latency import PARTS
from audiox_trainer.trainer.generation.clip_request import ClipRequest
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.paper import latency
from audiox_trainer.trainer.paper.tables import build_tables
from audiox_trainer.trainer.paper.tables_file import read_tables_file
from tests.helpers.random_weights import random_weights
from tests.helpers.small_config import small_config

pytestmark = pytest.mark.slow

RELEASED_ENCODERS = (
    'model.codec={"kind": "oobleck", "sample_rate": 8000, "audio_channels": 2, "hop": 2048, "frames": 4, '
    '"latent_channels": 4}',
    'model.text={"kind": "t5", "dim": 64, "max_tokens": 8}',
)


def check(rows):
    for row in rows:
        parts = [row[f"{part}_s_mean"] for part in PARTS]
        assert min(parts) > 0 and sum(parts) == pytest.approx(row["latency_s_mean"])
        assert row["latency_s_std"] >= 0 and row["rtf"] > 0


def test_weights_are_timed_at_any_steps_and_the_table_takes_the_result(tmp_path, capsys):
    weights = random_weights(tmp_path / "small", SamplingConfig(steps=3, guidance=2.0))
    arguments = bench.parse(["latency", "--weights", str(weights), "--steps", "1", "2", "--dtype", "fp32"])
    result = bench.measure(arguments)
    rows = result["efficiency"]
    assert [(row["model"], row["steps"], row["nfe"]) for row in rows] == [("small", 1, 2), ("small", 2, 4)]
    check(rows)
    assert result["protocol"]["runs"] == 20 and result["protocol"]["warm_ups"] == 5 and "host" in result
    said = capsys.readouterr().out
    assert "text encoder" in said and "codec" in said and "RTF" in said
    (tmp_path / "latency.json").write_text(json.dumps(result))
    row = {"table": "II", "dataset": "scenes", "method": "small", "steps": 2, "reports": ["latency.json"]}
    (tmp_path / "tables.json").write_text(json.dumps({"rows": [row]}))
    (table,) = build_tables(read_tables_file(tmp_path / "tables.json"), tmp_path)
    assert table.rows[0].keys["nfe"] == 4 and table.rows[0].figures["RTF"].value == rows[1]["rtf"]


def test_a_configuration_is_timed_with_random_weights(tmp_path, capsys):
    (tmp_path / "own.json").write_text(json.dumps(strict.to_dict(small_config(None, *RELEASED_ENCODERS))))
    result = bench.measure(bench.parse(["latency", "--config", str(tmp_path / "own.json"), "--steps", "1"]))
    found = [(row["model"], row["steps"], row["nfe"]) for row in result["efficiency"]]
    assert found == [("own", 1, 2), ("own student", 4, 4)]
    check(result["efficiency"])
    assert result["weights"] == "random" and result["dtype"] == "bfloat16"
    assert "own student" in capsys.readouterr().out


def test_random_weights_make_sound_as_other_weights_do():
    config = small_config(None, *RELEASED_ENCODERS)
    generator = latency.random_generator(config)
    wave = generator.generate(text="a bell, then two kicks", steps=2)
    assert wave.shape == (2, config.model.codec.samples) and wave.isfinite().all() and wave.any()
    tokens, length = generator.encode_text(["one two three", "one " * 50])
    assert length.tolist() == [4, 8] and tokens.shape == (2, 8, 64) and not tokens[0, 4:].any()
    hop = replace(config.model.codec, hop=256)
    with pytest.raises(ValueError, match=r"model\.codec\.hop: 256, but Oobleck as it was released has 2048"):
        latency.random_generator(replace(config, model=replace(config.model, codec=hop)))


def test_the_velocity_in_two_steps_is_that_in_one(tmp_path):
    generator = Generator(random_weights(tmp_path / "small", SamplingConfig(steps=2, guidance=2.0)))
    request, sampling = ClipRequest(["a bell"]), generator.sampling
    conditions = generator.conditions(request)
    z = torch.randn(1, generator.model.config.latent_frames, generator.model.config.codec.latent_channels)
    t = torch.ones(1)
    with torch.inference_mode():
        one = generator.velocity(request, sampling)(z, t)
        two = generator.velocity_under(conditions, request, sampling)(z, t)
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["single_gpu", "2p7b"])
def test_configurations_of_full_size_can_be_named(name):
    """Their networks are too large for this machine's tests: parts are checked to fit each other without memory."""
    config = load_pretrain_config(name)
    assert bench.parse(["latency", "--config", name]).config.stem == name
    assert (config.model.codec.kind, config.model.text.kind) == ("oobleck", "t5")
    with torch.device("meta"):
        network = latency.build_network(config.model)
    assert network.config.codec.seconds == pytest.approx(9.985, abs=0.001)


def test_two_weights_of_one_name_are_refused(tmp_path):
    paths = [str(random_weights(tmp_path / folder / "same", SamplingConfig(steps=1))) for folder in "ab"]
    with pytest.raises(ValueError, match="two are called same"):
        latency.measure(None, "", paths, [], None, torch.float32)
