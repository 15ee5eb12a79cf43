"""Samplings as graphs, without a GPU: a capture that keeps the call, and replays by calling it again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.trainer.generation import sampling_graphs
from audiox_trainer.trainer.generation.clip_request import ClipRequest
from audiox_trainer.trainer.generation.generator import Generator
from tests.helpers.random_weights import random_weights

FEW, GUIDED = SamplingConfig("renoise", 3, 1.0), SamplingConfig("euler", 2, 2.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("weights") / "w", FEW)


@pytest.fixture
def generator(weights):
    """With graphs, and a codec that decodes where the network computes, as on a GPU."""
    made = Generator(weights, "cpu")
    made._graphs.failed = False
    made.codec = SimpleNamespace(decode=lambda latents: latents.tanh().flatten(1).unsqueeze(1))
    made.model.config = replace(made.model.config, codec=replace(made.model.config.codec, kind="oobleck"))
    return made


@pytest.fixture
def captures(monkeypatch):
    """The pools of all captures; a replay computes again what was captured, from the tensors it was captured with."""
    pools = []

    def capture(make, inner, warmups, pool):
        call = make()
        for _ in range(warmups + inner):
            call()
        pools.append(pool)
        return call

    monkeypatch.setattr(sampling_graphs, "capture_graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return pools


def request(generator, text, given=False):
    codec = generator.model.config.codec
    make = torch.Generator().manual_seed(len(text))
    if not given:
        return ClipRequest([text, ""])
    mask = torch.ones(2, codec.frames)
    mask[:, 2:5] = 0
    audio = torch.randn(2, codec.frames, codec.latent_channels, generator=make)
    return ClipRequest([text, ""], audio=audio, given_mask=mask)


@pytest.mark.parametrize("sampling", [FEW, GUIDED])
@pytest.mark.parametrize("given", [False, True])
def test_every_call_gives_what_its_own_request_asks_for(generator, captures, sampling, given):
    for number, text in enumerate(("a bell", "a kick", "a bell", "a hiss")):
        one = request(generator, text, given)
        latents, waves = generator._batch(one, [number, number + 7], sampling)
        expected = torch.cat([generator.latents(one.rows(slice(i, i + 1)), number + 7 * i, sampling) for i in range(2)])
        assert torch.allclose(latents, expected, atol=1e-5)
        assert torch.allclose(waves, generator.waves(expected), atol=1e-5)
        assert len(captures) == min(number, 1), "the second call is captured, and replayed from then on"


def test_other_shapes_are_other_graphs_in_the_same_memory(generator, captures):
    for one in (request(generator, "a bell"), request(generator, "a bell", given=True), ClipRequest(["a bell"])):
        for _ in range(3):
            generator._batch(one, list(range(len(one.texts))), FEW)
    assert len(captures) == 3 and len(set(map(id, captures))) == 1


def test_the_graph_that_was_used_longest_ago_makes_room(generator, captures):
    samplings = [SamplingConfig("renoise", steps, 1.0) for steps in range(1, sampling_graphs.MAX_GRAPHS + 2)]
    for sampling in samplings:
        for _ in range(2):
            generator._batch(ClipRequest(["a bell"]), [0], sampling)
    assert [key[0] for key in generator._graphs.graphs] == samplings[1:]
    generator._batch(ClipRequest(["a bell"]), [0], samplings[1])
    assert [key[0] for key in generator._graphs.graphs] == [*samplings[2:], samplings[1]]


def test_what_a_graph_cannot_hold_is_computed_without_one(generator, monkeypatch, capsys):
    def fail(make, inner, warmups, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(sampling_graphs, "capture_graph", fail)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    one = ClipRequest(["a bell"])
    first, *others = (generator._batch(one, [3], FEW)[0] for _ in range(4))
    assert all(torch.equal(first, other) for other in others)
    assert capsys.readouterr().err == (
        "sampling without a CUDA graph: operation not permitted when stream is capturing\n"
    )
