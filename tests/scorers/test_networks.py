"""The networks take the released names and shapes and give on random weights what the original libraries give."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiox_trainer.models.encoders.libraries import transformers
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.scorers import passt, vggish
from audiox_trainer.models.scorers.audiobox import AXES, Audiobox, renamed
from audiox_trainer.models.scorers.build import network_of
from audiox_trainer.models.weights import load_strict
from audiox_trainer.trainer.checkpoint.convert_encoders import convert_scorer
from audiox_trainer.trainer.scorers.audiobox import AudioboxScorer
from audiox_trainer.trainer.scorers.build import build_scorers
from audiox_trainer.trainer.scorers.clap import ClapScorer
from audiox_trainer.trainer.scorers.config import ReleasedConfig
from audiox_trainer.trainer.scorers.released_networks import PannsScorer, VggishScorer
from tests.helpers.scorer_weights import probe_sound, random_state, save_clap, small_panns, small_vggish
from tests.scorers.reference_values import FILE, some

VALUES = json.loads(FILE.read_text())
CPU = Runtime(torch.device("cpu"), torch.float32)


def shapes(table):
    return {name: tuple(shape) for name, shape in table["keys"].items()}


@pytest.mark.parametrize("rate", ["32000", "16000"])
def test_cnn14_takes_the_released_keys(rate):
    keys = shapes(VALUES["panns"][rate])
    with torch.device("meta"):
        model = network_of("panns", {name: torch.empty(shape) for name, shape in keys.items()})
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == keys
    assert model.front_end.rate == int(rate)


@pytest.mark.slow
def test_cnn14_gives_what_panns_gives():
    table = VALUES["panns"]["16000"]
    state = random_state(shapes(table))
    model = network_of("panns", state).eval()
    load_strict(model, state)
    waves = torch.from_numpy(np.stack([probe_sound(16000, 0.9, seed) for seed in range(2)]))
    with torch.inference_mode():
        embedding, logits = model(waves)
    assert some(embedding) == pytest.approx(table["embedding"], rel=1e-4, abs=1e-5)
    assert some(logits.sigmoid()) == pytest.approx(table["probabilities"], rel=1e-4, abs=1e-5)


def test_vggish_takes_the_released_keys():
    keys = shapes(VALUES["vggish"])
    with torch.device("meta"):
        model = network_of("vggish", {name: torch.empty(shape) for name, shape in keys.items()})
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == keys


@pytest.mark.slow
def test_vggish_gives_what_torchvggish_gives():
    table = VALUES["vggish"]
    windows = vggish.log_mel_windows(torch.from_numpy(probe_sound(16000, 2.0)))
    assert windows.shape == (2, 1, 96, 64)
    assert some(windows) == pytest.approx(table["windows"], rel=1e-4, abs=1e-4)
    state = random_state(shapes(table))
    model = network_of("vggish", state).eval()
    load_strict(model, state)
    with torch.inference_mode():
        assert some(model(windows)) == pytest.approx(table["embedding"], rel=1e-4, abs=1e-4)


def test_passt_takes_the_released_keys():
    keys = shapes(VALUES["passt"])
    with torch.device("meta"):
        model = network_of("passt", {name: torch.empty(shape) for name, shape in keys.items()})
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == keys


def test_passt_gives_what_hear21passt_gives():
    waves = torch.from_numpy(np.stack([probe_sound(32000, 2.0, seed) for seed in range(2)]))
    table = VALUES["passt"]
    assert some(passt.log_mel(waves)) == pytest.approx(table["log_mel"], rel=1e-4, abs=1e-4)
    model = passt.Passt(width=128, depth=2).eval()
    load_strict(model, random_state({name: tuple(t.shape) for name, t in model.state_dict().items()}))
    with torch.inference_mode():
        embedding, logits = model(waves)
    assert some(embedding) == pytest.approx(table["embedding"], rel=1e-4, abs=1e-4)
    assert some(logits) == pytest.approx(table["logits"], rel=1e-4, abs=1e-4)


def test_audiobox_takes_the_released_keys():
    keys = shapes(VALUES["audiobox"])
    with torch.device("meta"):
        model = Audiobox(keys)
        ours = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        assert {n: tuple(t.shape) for n, t in renamed({n: torch.empty(s) for n, s in keys.items()}).items()} == ours


def test_audiobox_gives_what_its_package_gives(tmp_path):
    table = VALUES["audiobox"]
    state = random_state({name: tuple(shape) for name, shape in table["small"].items()})
    model = Audiobox({name: tuple(tensor.shape) for name, tensor in state.items()}).eval()
    load_strict(model, renamed(state))
    waves, lengths = torch.zeros(2, 32000), torch.tensor([32000, 20000])
    for i, length in enumerate(lengths.tolist()):
        waves[i, :length] = torch.from_numpy(probe_sound(16000, 2.0, i)[:length])
    with torch.inference_mode():
        scores = model(waves, lengths)
    torch.testing.assert_close(scores.T.double(), torch.tensor(table["scores"]).double(), rtol=1e-4, atol=1e-4)
    # As a scorer: windows of ten seconds, weighted by their lengths, and the shift and scale of the release.
    save_file(state, tmp_path / "model.safetensors")
    transform = {axis: {"mean": 5.0 + i, "std": 2.0} for i, axis in enumerate(AXES)}
    (tmp_path / "config.json").write_text(json.dumps({"target_transform": transform}))
    scorer = AudioboxScorer(ReleasedConfig("audiobox", str(tmp_path)), CPU)
    long = probe_sound(16000, 12.5)
    (row,) = scorer.features([long])
    first, rest = (scorer.features([part])[0]["scores"] for part in (long[:160000], long[160000:]))
    torch.testing.assert_close(row["scores"], 0.8 * first + 0.2 * rest, rtol=1e-4, atol=1e-4)
    assert [metric.name for metric in scorer.metrics] == ["CE", "CU", "PC", "PQ"]


def test_sounds_of_different_lengths_are_scored_as_if_alone(tmp_path):
    panns = PannsScorer(ReleasedConfig("panns", str(small_panns(tmp_path / "panns"))), CPU)
    vgg = VggishScorer(ReleasedConfig("vggish", str(small_vggish(tmp_path / "vggish"))), CPU)
    for scorer, windows in ((panns, [1, 1, 1]), (vgg, [1, 3, 1])):
        sounds = [probe_sound(scorer.rate, seconds, i) for i, seconds in enumerate((1.0, 3.0, 1.0))]
        together = scorer.features(sounds)
        assert [len(row["embedding"]) for row in together] == windows
        for sound, row in zip(sounds, together, strict=True):
            (alone,) = scorer.features([sound])
            for name, values in alone.items():
                torch.testing.assert_close(row[name], values, rtol=1e-4, atol=1e-5)
    assert float(panns.features([sounds[0]])[0]["probabilities"].sum()) == pytest.approx(1)


def test_clap_compares_sound_with_text(tmp_path):
    scorer = ClapScorer(ReleasedConfig("clap", str(save_clap(tmp_path / "clap"))), CPU)
    texts = scorer.text_embeddings(["a bell, then two kicks", "a dog barks"])
    sounds = [probe_sound(48000, seconds) for seconds in (0.5, 1.0, 2.6)]  # the window of these weights is 1 s
    rows = scorer.features(sounds)
    assert all(row["embedding"].shape == (1, texts.shape[1]) for row in rows)
    assert all(float(row["embedding"].norm()) == pytest.approx(1, abs=1e-5) for row in rows)
    # The library's own way, for a sound of one window.
    library = transformers()
    model = library.ClapModel.from_pretrained(tmp_path / "clap").eval()
    inputs = library.ClapFeatureExtractor.from_pretrained(tmp_path / "clap")(sounds[1], sampling_rate=48000)
    mel = torch.as_tensor(np.stack(inputs["input_features"])).float()
    pooled = model.audio_model(input_features=mel, is_longer=torch.zeros(1, 1, dtype=torch.bool)).pooler_output
    expected = torch.nn.functional.normalize(model.audio_projection(pooled), dim=-1)
    torch.testing.assert_close(rows[1]["embedding"], expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(scorer.features(sounds)[2]["embedding"], rows[2]["embedding"])  # no random crop


def test_a_release_is_converted_and_read(tmp_path):
    state = random_state(shapes(VALUES["panns"]["16000"]) | {})
    small = {name: t for name, t in state.items() if not name.startswith("conv_block")}
    torch.save({"model": small}, tmp_path / "release.pth")
    with pytest.raises(ValueError, match=r"release\.pth: no weights of panns"):
        convert_scorer(tmp_path / "release.pth", tmp_path / "out", "panns")
    weights = small_panns(tmp_path / "small")
    from safetensors.torch import load_file

    torch.save({"model": load_file(weights / "model.safetensors")}, tmp_path / "release.pth")
    assert convert_scorer(tmp_path / "release.pth", tmp_path / "out", "panns") > 1000
    scorer = PannsScorer(ReleasedConfig("panns", str(tmp_path / "out")), CPU)
    assert scorer.rate == 16000


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "panns", "weights": "nowhere"}, "nowhere is missing; download Cnn14"),
        ({"kind": "vggish", "weights": "nowhere"}, "nowhere is missing; download vggish"),
        ({"kind": "clap", "weights": "nowhere"}, "scorer clap: 'nowhere' is no folder here.*hf download"),
        ({"kind": "audiobox", "weights": "nowhere"}, "nowhere lacks model.safetensors or config.json; .*hf download"),
        ({"kind": "passt", "weights": "nowhere"}, "nowhere is missing; download passt"),
        ({"kind": "judge", "weights": "nowhere"}, "judge.json is missing; evaluate weights"),
        (
            {"kind": "network", "name": "x", "file": "x.onnx", "rate": 8000, "gives": "embedding"},
            "x.onnx: no such file",
        ),
        ({"kind": "passt2", "weights": "x"}, r"scorers\[0\].kind: 'passt2'; expected one of panns"),
        ({"kind": "panns"}, r"scorers\[0\].weights: missing"),
        ({"kind": "panns", "weights": "x", "rate": 1}, r"scorers\[0\].rate: unknown key"),
        ({"kind": "network", "name": "x", "file": "x", "rate": 8000, "gives": "scores"}, "columns: .*need the name"),
    ],
)
def test_a_scorer_without_weights_is_refused_with_how_to_get_them(tmp_path, scorer, message):
    (tmp_path / "scorers.json").write_text(json.dumps({"scorers": [scorer]}))
    with pytest.raises(ValueError, match=message):
        build_scorers(tmp_path / "scorers.json", torch.device("cpu"))


def test_weights_of_another_network_are_refused(tmp_path):
    folder = small_panns(tmp_path / "panns")
    with pytest.raises(ValueError, match=r"no weights of vggish.*vggish-10086976"):
        VggishScorer(ReleasedConfig("vggish", str(folder)), CPU)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: no weights of panns"):
        PannsScorer(ReleasedConfig("panns", str(tmp_path / "other.safetensors")), CPU)
