"""Networks that hear and see take the released names and shapes, and give what other libraries give."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.encoders.libraries import quiet_logging, transformers
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.encoders.synchformer import SyncEncoder
from audiox_trainer.models.scorers import avsync, imagebind
from audiox_trainer.models.scorers.build import network_of, under_own_names
from audiox_trainer.models.weights import load_strict
from audiox_trainer.trainer.checkpoint.convert_encoders import convert_scorer
from audiox_trainer.trainer.scorers.config import ReleasedConfig
from audiox_trainer.trainer.scorers.picture_networks import AvSyncScorer, ImageBindScorer
from tests.helpers.scorer_weights import (
    avsync_sound_shapes,
    probe_sound,
    released_avsync,
    released_imagebind,
    save_released,
    shapes_of,
)
from tests.scorers.reference_values import FILE, some

VALUES = json.loads(FILE.read_text())
CPU = Runtime(torch.device("cpu"), torch.float32)
VISUAL_KEYS = Path(__file__).parents[1] / "models/encoders/synchformer_keys.txt"


def shapes(table):
    return {name: tuple(shape) for name, shape in table.items()}


def network(kind, released):
    state = under_own_names(kind, released)
    model = network_of(kind, state).eval()
    load_strict(model, state)
    return model


def test_imagebind_takes_the_released_keys():
    keys = shapes(VALUES["imagebind"]["keys"])
    with torch.device("meta"):
        model = network_of("imagebind", {name: torch.empty(shape) for name, shape in keys.items()})
    assert shapes_of(model.state_dict()) == keys
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 719_065_089


def test_imagebind_gives_what_its_package_gives():
    table = VALUES["imagebind"]
    model = network("imagebind", released_imagebind())
    wave = torch.from_numpy(probe_sound(16000, 2.0))
    mel = imagebind.log_mel(wave[None])
    assert some(mel[0, 0]) == pytest.approx(table["log_mel"], rel=1e-4, abs=1e-3)
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 2, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        assert some(model._embeddings("audio", mel)) == pytest.approx(table["audio"], rel=1e-4, abs=1e-4)
        assert some(model._embeddings("vision", pictures).mean(dim=0)) == pytest.approx(
            table["vision"], rel=1e-4, abs=1e-4
        )


def test_imagebind_hears_three_windows_and_sees_neighbours():
    wave = torch.arange(10 * 16000, dtype=torch.float32)
    windows = imagebind.sound_windows(wave)
    assert windows[:, 0].tolist() == [0, 4 * 16000, 8 * 16000] and windows.shape == (3, 32000)
    short = imagebind.sound_windows(torch.ones(16000))
    assert short.shape == (3, 32000) and float(short.sum()) == 3 * 16000
    pictures = torch.zeros(4, 3, 3, 224, 224, dtype=torch.uint8)
    pictures[:, :, 0] = torch.arange(4)[:, None, None, None].to(torch.uint8)
    pairs = imagebind.picture_pairs(pictures)
    assert pairs.shape == (9, 3, 2, 224, 224)
    levels = (pairs[::3, 0, :, 0, 0] * imagebind.PICTURE_SPREAD[0] + imagebind.PICTURE_MEAN[0]) * 255
    torch.testing.assert_close(levels, torch.tensor([[0.0, 1], [1, 2], [2, 3]]), atol=1e-3, rtol=0)
    assert imagebind.picture_pairs(pictures[:1]).shape == (3, 3, 2, 224, 224)  # a still picture, twice


def test_synchformer_takes_the_released_keys():
    lines = [re.fullmatch(r"(\S+) (\(.*\))", line) for line in VISUAL_KEYS.read_text().splitlines() if line[0] != "#"]
    keys = {match[1]: ast.literal_eval(match[2]) for match in lines} | avsync_sound_shapes(768, 12)
    with torch.device("meta"):
        state = under_own_names("avsync", {name: torch.empty(shape) for name, shape in keys.items()})
        model = network_of("avsync", state)
    assert shapes_of(model.state_dict()) == shapes_of(state)
    assert model.visual.config.size == 224 and model.visual.config.heads == 12


def test_synchformer_hears_what_transformers_hears(tmp_path):
    released = released_avsync()
    model = network("avsync", released)
    segments = torch.from_numpy(np.stack([probe_sound(16000, 0.64, seed) for seed in range(2)]))
    mel = avsync.log_mel(segments)
    assert some(mel) == pytest.approx(VALUES["avsync"]["log_mel"], rel=1e-4, abs=1e-3)
    # transformers' AST, and torch's layer with a token before the frequencies of a moment.
    prefix = "afeat_extractor.ast."
    save_file(
        {n.removeprefix(prefix): t for n, t in released.items() if n.startswith(prefix)}, tmp_path / "model.safetensors"
    )
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "num_hidden_layers": 2}
    transformers().ASTConfig(**sizes, max_length=66, hidden_dropout_prob=0.0).save_pretrained(tmp_path)
    with quiet_logging():
        library, info = transformers().ASTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    layer = torch.nn.TransformerEncoderLayer(
        64, 1, 256, 0.0, torch.nn.GELU(), 1e-6, batch_first=True, norm_first=True
    ).eval()
    gather = {n.removeprefix("afeat_extractor.freq_attn_agg."): t for n, t in released.items() if "freq_attn_agg" in n}
    token = gather.pop("cls_token")
    layer.load_state_dict(gather)
    with torch.no_grad():
        states = library.eval()(mel.transpose(1, 2)).last_hidden_state[:, 2:].unflatten(1, (12, 6))
        moments = states.transpose(1, 2).flatten(0, 1)  # (2 · 6, 12, 64)
        expected = layer(torch.cat((token.expand(12, -1, -1), moments), dim=1))[:, 0].unflatten(0, (2, 6))
        torch.testing.assert_close(model.audio(mel), expected, rtol=1e-4, atol=1e-4)


def test_synchformer_compares_as_torchs_layers_do():
    released = released_avsync()
    model = network("avsync", released)
    generator = torch.Generator().manual_seed(0)
    seen, heard = (torch.randn(2, 14, n, 64, generator=generator) for n in (8, 6))
    w = {name.removeprefix("transformer."): tensor for name, tensor in released.items()}

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (64,), w[f"{name}.weight"], w[f"{name}.bias"])

    def projected(x, name):
        return torch.nn.functional.linear(x.flatten(1, 2), released[f"{name}.weight"], released[f"{name}.bias"])

    parts = [w["OFF_tok"].expand(2, -1, -1), norm(projected(seen, "vproj"), "vis_in_lnorm")]
    parts += [w["MOD_tok"].expand(2, -1, -1), norm(projected(heard, "aproj"), "aud_in_lnorm")]
    x = torch.cat(parts, dim=1) + w["pos_emb_cfg.pos_emb"]
    assert x.shape[1] == 198
    for i in range(3):
        b = f"blocks.{i}"
        layer = torch.nn.TransformerEncoderLayer(64, 8, 256, 0.0, "gelu", batch_first=True, norm_first=True).eval()
        pairs = {"self_attn.out_proj": "attn.proj", "linear1": "mlp.0", "linear2": "mlp.2"}
        pairs |= {"norm1": "ln1", "norm2": "ln2"}
        state = {f"{a}.{k}": w[f"{b}.{c}.{k}"] for a, c in pairs.items() for k in ("weight", "bias")}
        for kind in ("weight", "bias"):
            qkv = [w[f"{b}.attn.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(qkv)
        layer.load_state_dict(state)
        with torch.no_grad():
            x = layer(x)
    with torch.no_grad():
        expected = torch.nn.functional.linear(norm(x, "ln_f")[:, 0], w["off_head.weight"], w["off_head.bias"])
        torch.testing.assert_close(model.offset_logits(seen, heard), expected, rtol=1e-4, atol=1e-4)


def test_the_sizes_of_offsets_are_those_of_both_ends(tmp_path):
    scorer = AvSyncScorer(
        ReleasedConfig("avsync", str(save_released(tmp_path / "sync", "avsync", released_avsync()))), CPU
    )
    assert (scorer.rate, scorer.shortest, scorer.pictures.rate, scorer.pictures.size) == (16000, 4.8, 25, 32)
    rng = np.random.default_rng(0)
    videos = [torch.from_numpy(rng.integers(0, 255, (n, 3, 32, 32), dtype=np.uint8)) for n in (120, 160)]
    seen = scorer.picture_features(videos)
    heard = scorer.features([probe_sound(16000, seconds) for seconds in (6.0, 4.79999)])
    assert [len(row["segments"]) for row in seen] == [14, 19]
    assert [row["segments"].shape for row in heard] == [(17, 6, 64), (14, 6, 64)]  # the last one, rounded, is padded
    # The visual features are those of the encoder that conditions the model.
    encoder = SyncEncoder(scorer.network.visual, CPU)
    torch.testing.assert_close(encoder(videos[1][None])[0], seen[1]["segments"].flatten(0, 1), rtol=1e-4, atol=1e-5)
    sizes = scorer.compare_with_video([heard[0], heard[0]], seen)
    for row, video in zip(sizes, seen, strict=True):
        count = min(17, len(video["segments"]))
        logits = [
            scorer.network.offset_logits(video["segments"][None, i : i + 14], heard[0]["segments"][None, i : i + 14])
            for i in (0, count - 14)
        ]
        found = [abs(-2 + 0.2 * int(x.argmax())) for x in logits]
        assert float(row) == pytest.approx(sum(found) / 2, abs=1e-5)


def test_imagebind_as_a_scorer(tmp_path):
    small = released_imagebind()
    folder = save_released(tmp_path / "imagebind", "imagebind", small)
    kept = load_file(folder / "model.safetensors")
    assert len(kept) < len(small) and not any(".text." in name for name in kept)
    scorer = ImageBindScorer(ReleasedConfig("imagebind", str(folder)), CPU)
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 3, 224, 224), dtype=np.uint8))
    heard, seen = scorer.features([probe_sound(16000, 3.0)] * 2), scorer.picture_features([video])
    scores = scorer.compare_with_video(heard, seen * 2)
    assert scores.shape == (2,) and scores[0] == scores[1] and -1 < float(scores[0]) < 1
    expected = torch.cosine_similarity(heard[0]["embedding"], seen[0]["embedding"])
    assert float(scores[0]) == pytest.approx(float(expected), abs=1e-6)
    assert [m.name for m in scorer.metrics] == ["AV"] and "NC" in scorer.about["license"]


@pytest.mark.parametrize("kind", ["avsync", "imagebind"])
def test_another_file_is_refused(tmp_path, kind):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth: no weights of {kind}, they lack"):
        convert_scorer(tmp_path / "other.pth", tmp_path / "out", kind)
    state = released_avsync() if kind == "avsync" else released_imagebind()
    extra = "transformer.more.weight" if kind == "avsync" else "modality_heads.audio.5.weight"
    torch.save(state | {extra: torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=rf"more\.pth: the weights do not fit the model.*{re.escape(extra)}"):
        convert_scorer(tmp_path / "more.pth", tmp_path / "out", kind)
