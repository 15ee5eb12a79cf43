"""The authors' files: converted with every tensor in its place, or refused in a sentence that names what is wrong."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.encoders.libraries import diffusers, transformers
from audiox_trainer.models.released.audiox import ReleasedAudioX
from audiox_trainer.trainer.checkpoint.convert_released import (
    BASE,
    TURBO,
    ReleasedLayout,
    ReleasedSizes,
    convert_released,
)
from audiox_trainer.trainer.checkpoint.licences import CC_BY_NC, FILE
from audiox_trainer.trainer.checkpoint.released_file import AUTOENCODERS, CLIP
from audiox_trainer.trainer.checkpoint.verify import verify
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from tests.helpers.released_weights import SIZES, released_autoencoder, released_state, save_checkpoint

BLOCK = "model.model.transformer.layers.1.attn.qkv.weight"
TO_Q = "model.model.transformer.layers.0.cross_attn.to_q.weight"  # which nothing is computed with


@pytest.fixture(scope="module")
def state():
    return released_state()


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    vae = save_checkpoint(folder / "vae.ckpt", released_autoencoder(), "state_dict")
    report = convert_released(save_checkpoint(folder / "turbo.ckpt", state), vae, folder / "out", sizes=SIZES)
    return folder / "out", report


def convert(tmp_path, state, section="", vae=None, **options):
    file = save_checkpoint(tmp_path / "turbo.ckpt", state, section)
    return convert_released(file, vae, tmp_path / "out", sizes=SIZES, **options)


def test_every_tensor_arrives(state, converted):
    folder, report = converted
    network = load_weights(folder)
    assert isinstance(network, ReleasedAudioX) and network.sampling == TURBO and network.license == CC_BY_NC
    stored = load_file(folder / "model.safetensors")
    assert stored.pop("silence").shape == (32, 8)
    unused = ReleasedLayout(SIZES).unused
    assert stored.keys() == {n for n in state if not n.startswith((CLIP, *AUTOENCODERS)) and n not in unused}
    assert all(torch.equal(x, state[name].view(x.shape)) for name, x in stored.items())
    assert network.config.codec.weights == str(folder / "vae")
    assert network.config.video.image_weights == str(folder / "clip")
    clip, info = transformers().CLIPVisionModel.from_pretrained(folder / "clip", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    patch = clip.state_dict()[next(n for n in clip.state_dict() if n.endswith("patch_embedding.weight"))]
    assert torch.equal(patch, state[CLIP + "vision_model.embeddings.patch_embedding.weight"])
    vae = diffusers().AutoencoderOobleck.from_pretrained(folder / "vae").state_dict()
    first = vae["encoder.conv1.weight_v"]
    assert torch.equal(first, state[AUTOENCODERS[0] + "encoder.layers.0.weight_v"])
    verify(folder, lambda line: None)
    assert f"{len(state)} tensors with" in report[0] and "in float32; names without a prefix" in report[0]
    assert "by-nc/4.0" in (folder / FILE).read_text() and CC_BY_NC in report[-1]


@pytest.mark.parametrize(
    ("prefix", "section", "dtype"),
    [
        ("module.", "", torch.float32),
        ("student.", "state_dict", torch.float16),
        ("student.model.", "model", torch.bfloat16),
        ("diffusion.", "state_dict", torch.float32),
        ("model.", "student_state_dict", torch.float16),
    ],
)
def test_prefix_section_and_precision_are_found_out(state, tmp_path, prefix, section, dtype):
    given = {prefix + name: x.to(dtype) for name, x in state.items()}
    others = {"teacher.x": torch.zeros(2), "discriminator_heads.0.net.0.bias": torch.zeros(2)}
    student = prefix.startswith("student.")
    report = convert(tmp_path, given | (others if student else {}), section, base=True, dtype="fp32")
    assert f"{str(dtype)[6:]}" in report[0] and f"all names begin with {prefix!r}" in report[0]
    assert ("but for 2 of other roles" in report[0]) == student
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored[BLOCK], state[BLOCK].to(dtype).float())
    assert load_weights(tmp_path / "out").sampling == BASE


def test_without_clip_and_autoencoder(state, tmp_path):
    bare = {name: x for name, x in state.items() if not name.startswith((CLIP, *AUTOENCODERS))}
    with pytest.raises(ValueError, match=r"turbo\.ckpt has no autoencoder; give its own file as --vae"):
        convert(tmp_path, bare)
    save_file(released_autoencoder(), tmp_path / "vae.safetensors")
    convert(tmp_path, bare, vae=tmp_path / "vae.safetensors", dtype="bf16", encoders={"t5": "weights/other"})
    config = json.loads((tmp_path / "out" / "config.json").read_text())["model"]
    assert config["video"]["image_weights"] == "openai/clip-vit-base-patch32"
    assert config["text"]["weights"] == "weights/other"
    assert {x.dtype for x in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def without(state, name):
    return {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, BLOCK), rf"1 tensors are missing, the first is {BLOCK}"),
        (lambda s: without(s, TO_Q), rf"1 tensors are missing, the first is {TO_Q}"),
        (lambda s: without(s, f"{CLIP}visual_projection.weight"), rf"the first is {CLIP}visual_projection\.weight"),
        (
            lambda s: without(s, f"{AUTOENCODERS[1]}decoder.layers.0.bias"),
            r"missing, the first is .*decoder\.layers\.0",
        ),
        (
            lambda s: s | {"model.model.other": torch.zeros(1)},
            r"1 tensors are not known, the first is model\.model\.oth",
        ),
        (lambda s: s | {"teacher.x": torch.zeros(1)}, r"1 tensors are not known, the first is teacher\.x"),
        (lambda s: s | {BLOCK: s[BLOCK].T.contiguous()}, rf"{BLOCK} has the shape \(32, 96\); .* has \(96, 32\)"),
        (lambda s: s | {BLOCK: s[BLOCK].long()}, rf"{BLOCK} is torch\.int64; expected torch\.float32"),
        (lambda s: s | {BLOCK: s[BLOCK] / 0}, rf"{BLOCK} is not finite"),
        (
            lambda s: s | {f"{AUTOENCODERS[1]}decoder.layers.0.bias": torch.ones(16)},
            r"audio_prompt\S+decoder\.layers\.0\.bias has other values than pretransform\.model\..*to be the same",
        ),
        (lambda s: {}, r"tensors are missing"),
        (lambda s: s | {"hook": print}, r"cannot be read as tensors alone \(.*print"),
        (lambda s: s | {"steps": 3}, r"steps is a int, not a tensor"),
        (lambda s: [*s.values()], r"holds list, not named tensors"),
    ],
)
def test_what_does_not_fit_is_named(state, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(tmp_path, change(dict(state)))
    assert str(tmp_path / "turbo.ckpt") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["turbo.ckpt"]


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_files_that_are_cut_off(state, tmp_path, ending):
    file = tmp_path / f"turbo.{ending}"
    (torch.save if ending == "ckpt" else save_file)(state, file)
    os.truncate(file, file.stat().st_size - 2000)
    with pytest.raises(ValueError, match=rf"turbo\.{ending}"):
        convert_released(file, None, tmp_path / "out", sizes=SIZES)
    file.unlink()
    with pytest.raises(ValueError, match=rf"turbo\.{ending} is not a file; docs/released\.md says"):
        convert_released(file, None, tmp_path / "out", sizes=SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "encoder.layers.0.bias"), r"the first is encoder\.layers\.0\.bias"),
        (lambda s: s | {"encoder.layers.9.bias": torch.zeros(1)}, r"not known, the first is encoder\.layers\.9\.bias"),
        (lambda s: s | {"encoder.layers.0.bias": torch.ones(16)}, r"0\.bias has other values than .*leave --vae out"),
    ],
)
def test_another_autoencoder_than_the_checkpoints(state, tmp_path, change, message):
    vae = save_checkpoint(tmp_path / "vae.ckpt", change(released_autoencoder()), "state_dict")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, state, vae=vae)
    assert not (tmp_path / "out").exists()


def test_the_full_size_has_the_released_names_and_shapes(root):
    lines = (root / "tests/models/released/keys_turbo.txt").read_text().splitlines()
    released = {name: json.loads(shape) for name, shape in (line.split("\t")[:2] for line in lines if line[:1] != "#")}
    layout = ReleasedLayout(ReleasedSizes())
    found = layout.network | layout.unused | {CLIP + name: shape for name, shape in layout.clip.items()}
    found |= {prefix + name: shape for prefix in AUTOENCODERS for name, shape in layout.vae.items()}
    assert {name: list(shape) for name, shape in found.items()} == released
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 2_710_741_752
