"""Synchformer's visual branch: names and sizes of the released weights, numbers of a plain reference, segments."""

import ast
import re
import subprocess
from dataclasses import replace
from math import erf, prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiox_trainer.models.conditioner import video_seconds
from audiox_trainer.models.config import VideoConfig
from audiox_trainer.models.encoders.released import from_released, released_names
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.encoders.synchformer import SyncEncoder, Synchformer, SynchformerConfig, segments_in
from audiox_trainer.trainer.checkpoint.convert_encoders import convert_synchformer
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.data.batches import nearest_images
from tests.helpers.encoder_weights import SYNCHFORMER, random_frames, save_synchformer
from tests.helpers.warm_python import python

CPU = Runtime(torch.device("cpu"), torch.float32)


def released() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released file, noted from it."""
    lines = (Path(__file__).parent / "synchformer_keys.txt").read_text().splitlines()
    found = [re.fullmatch(r"(\S+) (\(.*\))", line) for line in lines if not line.startswith("#")]
    return {match[1]: ast.literal_eval(match[2]) for match in found}


def fabricated(config: SynchformerConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict under the released names with random weights, larger than at the start of a training so that every
    term shows in the result, and the two tensors that nothing uses."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in Synchformer(config).state_dict().items()}
    unused = {"weight": (config.width, 3, config.patch, config.patch), "bias": (config.width,)}
    state = {}
    for theirs, ours in released_names(config.depth).items():
        shape = shapes[ours] if ours else unused[theirs.rpartition(".")[2]]
        scale = 0.3 if len(shape) == 1 else 1.5 / prod(shape[1:]) ** 0.5
        state[theirs] = torch.randn(shape, generator=generator) * scale
    return state


def reference(state: dict[str, torch.Tensor], segment: np.ndarray, config: SynchformerConfig) -> np.ndarray:
    """One segment (16, 3, size, size) of pixels to (8, W), by the released names: float64, loops over tokens, softmax
    written out."""
    w = {name.removeprefix("vfeat_extractor."): tensor.double().numpy() for name, tensor in state.items()}
    side = config.size // config.patch
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / 2**0.5)))

    def norm(x, name):
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return (x - x.mean(-1, keepdims=True)) / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, weight, bias):
        return np.einsum("...i,oi->...o", x, w[weight]) + w[bias]

    def attended(query, keys, values):
        heads = (np.split(x, config.heads, axis=-1) for x in (query, keys, values))
        out = []
        for q, k, v in zip(*heads, strict=True):
            scores = np.exp(np.einsum("d,nd->n", q, k) / q.shape[-1] ** 0.5)
            out.append(np.einsum("n,nd->d", scores / scores.sum(), v))
        return np.concatenate(out)

    def attention(x, name, group):
        q, k, v = np.split(linear(x, f"{name}.qkv.weight", f"{name}.qkv.bias"), 3, axis=-1)
        out = [attended(q[0], k, v)]
        for i in range(1, len(x)):
            seen = [0, *(j for j in range(1, len(x)) if group(i - 1) == group(j - 1))]
            out.append(attended(q[i], k[seen], v[seen]))
        return linear(np.stack(out), f"{name}.proj.weight", f"{name}.proj.bias")

    def mlp(x, first, second):
        return linear(gelu(linear(x, f"{first}.weight", f"{first}.bias")), f"{second}.weight", f"{second}.bias")

    pixels = (segment.astype(np.float64) / 255 - 0.5) / 0.5
    p, tokens = config.patch, [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for t in range(8):
        for y in range(side):
            for x in range(side):
                tube = pixels[2 * t : 2 * t + 2, :, y * p : (y + 1) * p, x * p : (x + 1) * p]
                patch = (
                    np.einsum("tcyx,octyx->o", tube, w["patch_embed_3d.proj.weight"]) + w["patch_embed_3d.proj.bias"]
                )
                tokens.append(patch + w["pos_embed"][0, 1 + y * side + x] + w["temp_embed"][0, t])
    h = np.stack(tokens)
    for b in (f"blocks.{i}" for i in range(config.depth)):
        h = h + attention(norm(h, f"{b}.norm3"), f"{b}.timeattn", lambda i: i % side**2)
        h = h + attention(norm(h, f"{b}.norm1"), f"{b}.attn", lambda i: i // side**2)
        h = h + mlp(norm(h, f"{b}.norm2"), f"{b}.mlp.fc1", f"{b}.mlp.fc2")
    h = norm(h[1:], "norm").reshape(8, side**2, -1)
    a, features = "spatial_attn_agg", []
    for step in h:
        x = np.concatenate((w[f"{a}.cls_token"][0], step))
        qkv = linear(norm(x, f"{a}.norm1"), f"{a}.self_attn.in_proj_weight", f"{a}.self_attn.in_proj_bias")
        q, k, v = np.split(qkv, 3, axis=-1)
        heard = np.stack([attended(row, k, v) for row in q])
        x = x + linear(heard, f"{a}.self_attn.out_proj.weight", f"{a}.self_attn.out_proj.bias")
        x = x + mlp(norm(x, f"{a}.norm2"), f"{a}.linear1", f"{a}.linear2")
        features.append(x[0])
    return np.stack(features)


def loaded(config: SynchformerConfig, state: dict[str, torch.Tensor], runtime: Runtime = CPU) -> SyncEncoder:
    model = Synchformer(config)
    model.load_state_dict(from_released(state, config), strict=True)
    return SyncEncoder(model, runtime)


def test_the_key_table_is_that_of_the_released_file():
    names, config = released_names(12), SynchformerConfig()
    assert names.keys() == released().keys()
    with torch.device("meta"):
        ours = Synchformer(config).state_dict()
    assert sorted(name for name in names.values() if name) == sorted(ours)
    for theirs, name in names.items():
        if name:
            assert tuple(ours[name].shape) == released()[theirs], theirs
    assert [theirs for theirs, name in names.items() if name is None] == [
        "vfeat_extractor.patch_embed.proj.weight",
        "vfeat_extractor.patch_embed.proj.bias",
    ]


def test_parameter_count():
    total = sum(prod(shape) for shape in released().values())
    unused = 768 * 3 * 16 * 16 + 768
    with torch.device("meta"):
        ours = sum(p.numel() for p in Synchformer(SynchformerConfig()).parameters())
    assert round(total / 1e6, 2) == 122.44
    assert ours == total - unused


@pytest.mark.parametrize(
    "config",
    [SynchformerConfig(width=12, depth=2, heads=2, size=32), SynchformerConfig(width=8, depth=1, heads=2, size=48)],
    ids=["four patches", "nine patches"],
)
def test_numbers_of_a_plain_reference(config):
    state, frames = fabricated(config), random_frames(1, 24, 3, config.size, config.size)
    features = loaded(config, state)(frames)[0]
    for segment in range(2):
        wanted = reference(state, frames[0, 8 * segment : 8 * segment + 16].numpy(), config)
        np.testing.assert_allclose(features[8 * segment : 8 * segment + 8].numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.3


def test_each_part_of_the_released_layer_of_torch_agrees():
    """The gathering layer is torch's own TransformerEncoderLayer with a token before the patches."""
    config, width = SYNCHFORMER, SYNCHFORMER.width
    state, prefix = fabricated(config), "vfeat_extractor.spatial_attn_agg."
    layer = torch.nn.TransformerEncoderLayer(
        width, config.heads, 4 * width, 0.0, torch.nn.GELU(), 1e-6, batch_first=True, norm_first=True
    ).eval()
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    token = theirs.pop("cls_token")
    layer.load_state_dict(theirs, strict=True)
    patches = torch.randn(24, config.patches, width)
    wanted = layer(torch.cat((token.expand(24, -1, -1), patches), dim=1))[:, 0]
    torch.testing.assert_close(loaded(config, state).model.gather(patches), wanted, rtol=1e-4, atol=1e-5)


def test_a_clip_is_the_same_alone_and_in_a_batch():
    encode = loaded(SYNCHFORMER, fabricated(SYNCHFORMER))
    frames = random_frames(5, 50, 3, 32, 32)  # 25 segments: more than are encoded together
    together = encode(frames)
    assert together.shape == (5, 40, 32)
    for i in range(5):
        torch.testing.assert_close(encode(frames[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near():
    state, frames = fabricated(SYNCHFORMER), random_frames(1, 16, 3, 32, 32)
    exact = loaded(SYNCHFORMER, state)(frames)
    rough = loaded(SYNCHFORMER, state, replace(CPU, dtype=torch.bfloat16))(frames)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.long
def test_compiled_blocks_agree():
    state, frames = fabricated(SYNCHFORMER), random_frames(2, 24, 3, 32, 32)
    exact = loaded(SYNCHFORMER, state)(frames)
    compiled = loaded(SYNCHFORMER, state, replace(CPU, compile=True))(frames)
    torch.testing.assert_close(compiled, exact, rtol=1e-4, atol=1e-5)


def test_segments_and_times_of_ten_seconds(root):
    """250 frames of 10 s give 30 segments of 16, 8 frames apart, and 240 features; each stands for two frames."""
    config = load_pretrain_config(root / "configs/2p7b.json", []).model
    assert segments_in(250) == 30
    assert config.video.steps == 8 * segments_in(250)
    seconds = video_seconds(config.video)
    for segment in (0, 1, 29):
        for i in range(8):
            frames = [8 * segment + 2 * i, 8 * segment + 2 * i + 1]
            begin, end = frames[0] / 25, (frames[1] + 1) / 25
            assert seconds[8 * segment + i].item() == pytest.approx((begin + end) / 2)
    assert [segments_in(n) for n in (16, 23, 24, 249)] == [1, 1, 2, 30]
    with pytest.raises(ValueError, match=r"15 motion frames are fewer than the 16"):
        segments_in(15)


def test_each_motion_feature_is_given_the_image_nearest_in_time(root):
    """Images are seen at i / 5 s, frames at j / 25 s, and a feature is made from two neighbouring frames."""
    config = load_pretrain_config(root / "configs/2p7b.json", []).model
    nearest = nearest_images(config.video)
    for step in range(240):
        frames = [8 * (step // 8) + 2 * (step % 8) + k for k in (0, 1)]
        away = [round(abs(i / 5 - sum(frames) / 50), 6) for i in range(50)]
        assert nearest[step] == away.index(min(away))


def test_a_feature_hears_of_its_own_segment_only():
    encode = loaded(SYNCHFORMER, fabricated(SYNCHFORMER))
    frames = random_frames(1, 32, 3, 32, 32)
    changed = frames.clone()
    changed[:, 20] = 255 - changed[:, 20]  # in the segments that begin at 8 and 16, not in the first
    before, after = encode(frames)[0], encode(changed)[0]
    same = (before == after).all(dim=1)
    assert same[:8].all() and not same[8:].any()


class TestConversion:
    def test_round_trip(self, tmp_path):
        config = SYNCHFORMER
        state = fabricated(config)
        torch.save({**state, "afeat_extractor.cls_token": torch.zeros(3)}, tmp_path / "released.pth")
        count = convert_synchformer(tmp_path / "released.pth", tmp_path / "sync", config)
        assert count == sum(p.numel() for p in Synchformer(config).parameters())
        video = VideoConfig("clip_sync", 32, 5, 25, 32, 8, 2, motion_weights=str(tmp_path / "sync"))
        encode, frames = SyncEncoder.load(video, CPU), random_frames(1, 16, 3, 32, 32)
        assert torch.equal(encode(frames), loaded(config, state)(frames))

    def test_half_precision_and_a_training_checkpoint_are_taken(self, tmp_path):
        state = {name: tensor.half() for name, tensor in fabricated(SYNCHFORMER).items()}
        torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pt")
        convert_synchformer(tmp_path / "checkpoint.pt", tmp_path / "sync", SYNCHFORMER)
        written = load_file(tmp_path / "sync" / "model.safetensors")
        expected = from_released(state, SYNCHFORMER)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name].half(), expected[name]) for name in expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("vfeat_extractor.norm.bias"), r"1 are missing \['vfeat_extractor.norm.bias'\]"),
            (lambda s: s.update({"vfeat_extractor.head.weight": torch.zeros(2)}), "1 are not known"),
            (
                lambda s: s.update({"vfeat_extractor.norm.bias": torch.zeros(7)}),
                r"norm.bias: the weights have \(7,\), the model \(32,\)",
            ),
        ],
    )
    def test_another_file_is_refused(self, tmp_path, change, message):
        state = fabricated(SYNCHFORMER)
        change(state)
        torch.save(state, tmp_path / "released.pth")
        with pytest.raises(ValueError, match=message):
            convert_synchformer(tmp_path / "released.pth", tmp_path / "sync", SYNCHFORMER)
        assert [path.name for path in tmp_path.iterdir()] == ["released.pth"]

    def test_a_file_that_would_run_code_is_refused_unrun(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"vfeat_extractor.norm.bias": Harmful()}, tmp_path / "released.pth")
        with pytest.raises(ValueError, match=r"cannot be read as tensors alone"):
            convert_synchformer(tmp_path / "released.pth", tmp_path / "sync")
        assert not (tmp_path / "ran").exists()

    def test_damage_and_absence_are_named(self, tmp_path):
        (tmp_path / "broken.pth").write_bytes(b"PK\3\4 not a checkpoint")
        with pytest.raises(ValueError, match=r"broken.pth: cannot be read as tensors alone"):
            convert_synchformer(tmp_path / "broken.pth", tmp_path / "sync")
        with pytest.raises(ValueError, match=r"is not a file"):
            convert_synchformer(tmp_path / "nothing.pth", tmp_path / "sync")
        (tmp_path / "there").mkdir()
        with pytest.raises(ValueError, match=r"exists already and is left as it is"):
            convert_synchformer(tmp_path / "broken.pth", tmp_path / "there")


@pytest.mark.slow
def test_true_size_from_the_command_line(root, tmp_path):
    """A file with the released names and shapes through launch/convert.py, and one segment through what it makes."""
    values = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    state = {name: values[: prod(shape) % 997 + 1].sum() * torch.ones(1) for name, shape in released().items()}
    expanded = {name: tensor.expand(released()[name]) for name, tensor in state.items()}  # a few bytes on the disk
    expanded["vfeat_extractor.patch_embed_3d.proj.weight"] = values[: 768 * 512].repeat(3).view(768, 3, 2, 16, 16)
    torch.save(expanded, tmp_path / "synchformer_state_dict.pth")
    command = [*python(), "launch/convert.py", tmp_path / "synchformer_state_dict.pth", "--encoder", "synchformer"]
    done = subprocess.run([*command, "--out", tmp_path / "sync"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "121.9 M parameters" in done.stdout
    video = load_pretrain_config(root / "configs/2p7b.json", []).model.video
    encode = SyncEncoder.load(replace(video, motion_weights=str(tmp_path / "sync")), CPU)
    weight = encode.model.blocks[11].mlp[2].bias
    assert torch.equal(weight, expanded["vfeat_extractor.blocks.11.mlp.fc2.bias"])
    features = encode(random_frames(1, 16, 3, 224, 224))
    assert features.shape == (1, 8, 768)
    assert features.isfinite().all()


def test_weights_of_another_size_are_refused_with_both(tmp_path):
    save_synchformer(tmp_path / "sync")
    video = VideoConfig("clip_sync", 768, 5, 25, 224, 240, 2, motion_weights=str(tmp_path / "sync"))
    with pytest.raises(ValueError, match=r"model.video: .* says dim 768, size 224, .*sync' have dim 32, size 32"):
        SyncEncoder.load(video, CPU)
    save_synchformer(tmp_path / "other", replace(SYNCHFORMER, depth=3))
    (tmp_path / "other" / "config.json").write_text((tmp_path / "sync" / "config.json").read_text())
    video = replace(video, dim=32, size=32, motion_weights=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"motion_weights: .*not known \['blocks.2"):
        SyncEncoder.load(video, CPU)


def test_absent_weights_name_the_key_and_the_remedy():
    video = VideoConfig("clip_sync", 32, 5, 25, 32, 8, 2, motion_weights="weights/none")
    with pytest.raises(ValueError, match=r"model.video.motion_weights: 'weights/none' is no folder.*launch/convert.py"):
        SyncEncoder.load(video, CPU)
    with pytest.raises(ValueError, match=r"model.video.motion_weights: empty"):
        SyncEncoder.load(replace(video, motion_weights=""), CPU)
