"""Diff-Foley's networks take the names that the release has, and their parts give what other libraries give."""

import json
import re

import numpy as np
import pytest
import torch

from audiox_trainer.models.encoders.libraries import declare_torchvision, diffusers
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.scorers import alignment, cavp
from audiox_trainer.models.scorers.alignment import AlignmentClassifier, SpatialTransformer, TimedBlock
from audiox_trainer.models.scorers.cavp import Cavp
from audiox_trainer.models.weights import load_strict
from audiox_trainer.trainer.scorers.build import build_scorers
from audiox_trainer.trainer.scorers.config import ReleasedConfig
from audiox_trainer.trainer.scorers.picture_networks import AlignAccScorer
from tests.helpers.scorer_weights import probe_sound, random_state, save_released, shapes_of
from tests.scorers.reference_values import FILE, some

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = {"encoder": 32, "channels": 4, "width": 32, "embedding": 24, "context": 16, "places": 40}
# Of eval_classifier.ckpt and cavp_epoch66.ckpt, by their published classes and configurations.
RELEASED = {
    "model.time_embed.2.weight": (512, 512),
    "model.input_blocks.0.0.weight": (128, 4, 3, 3),
    "model.input_blocks.1.0.in_layers.0.weight": (128,),
    "model.input_blocks.2.0.op.weight": (128, 128, 3, 3),
    "model.input_blocks.3.0.emb_layers.1.weight": (256, 512),
    "model.input_blocks.3.0.skip_connection.weight": (256, 128, 1, 1),
    "model.input_blocks.3.1.transformer_blocks.0.attn1.to_out.0.bias": (256,),
    "model.input_blocks.5.0.out_layers.3.weight": (256, 256, 3, 3),
    "model.input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight": (256, 512),
    "model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (2048, 256),
    "model.middle_block.2.in_layers.2.weight": (256, 256, 3, 3),
    "model.out.2.weight": (128, 256, 3, 3),
    "model.classifier.weight": (1, 128),
    "cond_model.embedder.0.weight": (512, 512),
    "cond_model.pos_emb.weight": (40, 512),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "first_stage_model.encoder.conv_out.weight": (8, 512, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
}
RELEASED_VIDEO = {
    "video_encoder.conv1.conv.weight": (64, 3, 1, 7, 7),
    "video_encoder.layer1.0.downsample.bn.running_var": (256,),
    "video_encoder.layer2.3.conv1.conv.weight": (128, 512, 1, 1, 1),
    "video_encoder.layer3.5.conv1.conv.weight": (256, 1024, 3, 1, 1),
    "video_encoder.layer4.2.conv3.conv.weight": (2048, 512, 1, 1, 1),
    "video_project_head.weight": (512, 2048),
}


def small_classifier():
    return random_state(shapes_of(AlignmentClassifier(**SMALL).state_dict()))


def small_video():
    return random_state(shapes_of(Cavp(8, SMALL["embedding"]).state_dict()))


def loaded(model, state):
    model = model.eval()
    load_strict(model, state)
    return model


def test_they_have_the_names_of_the_release():
    with torch.device("meta"):
        networks = AlignmentClassifier(128, 4, 128, 512, 512, 40), Cavp()
    for network, table in zip(networks, (RELEASED, RELEASED_VIDEO), strict=True):
        own = shapes_of(network.state_dict())
        assert {name: own.get(name) for name in table} == table
    last = {re.sub(r"\d+", "N", name) for name in shapes_of(networks[0].state_dict())}
    assert not any("downsample" in name and ".down.N." not in name for name in last)
    assert "first_stage_model.encoder.down.3.downsample.conv.weight" not in shapes_of(networks[0].state_dict())


def test_the_spectrogram_is_that_of_the_release():
    mel = alignment.log_mel(torch.from_numpy(probe_sound(16000, 10.0))[None])
    assert mel.shape == (1, 128, 512)
    expected = json.loads(FILE.read_text())["alignacc"]["log_mel"]
    assert some(mel[0]) == pytest.approx(expected, rel=1e-4, abs=1e-2)


@pytest.mark.slow
def test_the_autoencoder_is_that_of_diffusers():
    state = small_classifier()
    model = loaded(AlignmentClassifier(**SMALL), state)
    library = (
        diffusers()
        .AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32,
        )
        .eval()
    )
    renames = (
        (r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        ("nin_shortcut", "conv_shortcut"),
        (r"\.mid\.block_1", ".mid_block.resnets.0"),
        (r"\.mid\.block_2", ".mid_block.resnets.1"),
        (r"\.mid\.attn_1\.norm", ".mid_block.attentions.0.group_norm"),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out", ".mid_block.attentions.0.to_out.0"),
        (r"\.norm_out", ".conv_norm_out"),
    )
    theirs = library.state_dict()
    for name, tensor in state.items():
        if name.startswith("first_stage_model."):
            key = name.removeprefix("first_stage_model.")
            for pattern, replacement in renames:
                key = re.sub(pattern, replacement, key)
            theirs[key] = tensor.reshape(theirs[key].shape)
    library.load_state_dict(theirs)
    spectrogram = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = 0.18215 * library.encode(spectrogram).latent_dist.mean
        torch.testing.assert_close(model.first_stage_model(spectrogram), expected, rtol=1e-4, atol=1e-5)


def test_the_blocks_are_those_of_diffusers():
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 64, 4, 6, generator=generator), torch.randn(2, 5, 16, generator=generator)
    ours = SpatialTransformer(64, 16)
    ours = loaded(ours, random_state(shapes_of(ours.state_dict())))
    theirs = Transformer2DModel(8, 8, 64, cross_attention_dim=16, norm_num_groups=32).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = theirs(x, encoder_hidden_states=context).sample
        torch.testing.assert_close(ours(x, context), expected, rtol=1e-4, atol=1e-4)
    block = TimedBlock(64, 32, 48)
    block = loaded(block, random_state(shapes_of(block.state_dict())))
    other = ResnetBlock2D(in_channels=64, out_channels=32, temb_channels=48, groups=32, eps=1e-5).eval()
    names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
    names |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    state = block.state_dict()
    other.load_state_dict({f"{a}.{k}": state[f"{b}.{k}"] for a, b in names.items() for k in ("weight", "bias")})
    level = torch.randn(2, 48, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(block(x, level), other(x, level), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_video_encoder_is_torchvisions_where_pictures_see_no_neighbours():
    declare_torchvision()
    from torchvision.models import resnet50

    state = random_state(shapes_of(Cavp(64, 24).state_dict()))
    model = loaded(Cavp(64, 24), state)
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 224, 224), dtype=np.uint8))
    with torch.no_grad():
        seen = model(pictures)
        # A picture's embedding depends on its neighbours, and on nothing farther than ten pictures away.
        assert not torch.allclose(model(pictures[:2])[1], seen[1], atol=1e-4)
    assert seen.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    for tensor in state.values():
        if tensor.ndim == 5 and tensor.shape[2] == 3:
            tensor[:, :, 0], tensor[:, :, 2] = 0, 0
    load_strict(model, state)
    library = resnet50(weights=None).eval()
    theirs = {"fc.weight": library.fc.weight, "fc.bias": library.fc.bias}
    for name, tensor in state.items():
        if name.startswith("video_encoder."):
            key = name.removeprefix("video_encoder.")
            key = re.sub(r"downsample\.conv", "downsample.0", re.sub(r"downsample\.bn", "downsample.1", key))
            key = re.sub(r"conv(\d)\.bn", r"bn\1", re.sub(r"conv(\d)\.conv", r"conv\1", key))
            theirs[key] = tensor[:, :, tensor.shape[2] // 2] if tensor.ndim == 5 else tensor
    library.load_state_dict(theirs)
    library.fc = torch.nn.Identity()
    with torch.no_grad():
        features = model.video_encoder((pictures.float() / 255).transpose(0, 1)[None])[0]
        torch.testing.assert_close(features, library(pictures.float() / 255), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_it_is_a_scorer_of_two_files(tmp_path):
    unused = ("first_stage_model.decoder.conv_in.weight", "betas", "scale_factor", "posterior_variance")
    classifier = {"state_dict": small_classifier() | {name: torch.ones(1) for name in unused}}
    video = {f"module.{n}": t for n, t in (small_video() | {"spec_encoder.bn.weight": torch.ones(1)}).items()}
    weights = save_released(tmp_path / "alignacc", "alignacc", classifier)
    pictures = save_released(tmp_path / "cavp", "cavp", {"state_dict": video | {"module.logit_scale": torch.ones(())}})
    scorer = AlignAccScorer(ReleasedConfig("alignacc", str(weights), video=str(pictures)), CPU)
    assert scorer.shortest == 8.192 and (scorer.pictures.rate, scorer.pictures.squeeze) == (4, True)
    heard = scorer.features([probe_sound(16000, seconds, i) for i, seconds in enumerate((10.0, 8.192))])
    assert [row["latents"].shape for row in heard] == [(4, 16, 64)] * 2
    rng = np.random.default_rng(0)
    videos = [torch.from_numpy(rng.integers(0, 255, (n, 3, 224, 224), dtype=np.uint8)) for n in (33, 32)]
    seen = scorer.picture_features(videos)
    assert [row["pictures"].shape for row in seen] == [(32, SMALL["embedding"])] * 2
    scores = scorer.compare_with_video(heard, seen)
    with torch.no_grad():
        expected = scorer.network.probabilities(
            torch.stack([row["latents"] for row in heard]), torch.stack([row["pictures"] for row in seen])
        )
    assert scores.tolist() == expected.round().tolist() and set(scores.tolist()) <= {0, 1}
    assert 0 < float(expected.min()) < float(expected.max()) < 1 and "cavp" in scorer.about["video"]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "alignacc", "weights": "a"}, r"scorers\[0\].*video: ''; alignacc needs its video encoder's weights"),
        ({"kind": "panns", "weights": "a", "video": "b"}, r"video: 'b'; .*others have none"),
        ({"kind": "alignacc", "weights": "nowhere", "video": "b"}, "nowhere is missing; download eval_classifier.ckpt"),
        ({"kind": "imagebind", "weights": "nowhere"}, "nowhere is missing; download imagebind_huge.pth.*commercial"),
        ({"kind": "avsync", "weights": "nowhere"}, "nowhere is missing; download synchformer_state_dict.pth"),
    ],
)
def test_a_judge_of_pairs_without_weights_is_refused(tmp_path, scorer, message):
    (tmp_path / "scorers.json").write_text(json.dumps({"scorers": [scorer]}))
    with pytest.raises(ValueError, match=message):
        build_scorers(tmp_path / "scorers.json", torch.device("cpu"))
    assert cavp.FRAMES * 8 == alignment.FRAMES
