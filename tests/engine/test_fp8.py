"""Products in 8-bit floats: which are converted, and that training stays close to full precision. Without a GPU the
rounding is emulated."""

import sys

import pytest
import torch

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.losses.flow_matching import flow_matching_loss, interpolate
from audiox_trainer.trainer.training import run_folder
from audiox_trainer.trainer.training.pretrain import configure_model
from tests.helpers.small_config import small_config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_the_blocks_products_are_converted_and_nothing_else():
    config = small_config(None, "training.fp8=true")
    plain, model = AudioX(config.model), configure_model(AudioX(config.model), config.training)
    converted = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    depth = config.model.backbone.depth
    # QKV, output projection and two of the MLP in each stream; the last condition stream ends at its QKV.
    assert len(converted) == depth * 8 - 3
    assert all(name.startswith("backbone.blocks.") and not name.endswith("modulation") for name in converted)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_norms_and_swiglu_write_8_bits_themselves():
    config = small_config(None, "training.fp8=true", "training.fp8_rows=true")
    plain, model = AudioX(config.model), configure_model(AudioX(config.model), config.training)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    ours = {name.rpartition(".")[2] for name, kind in kinds.items() if kind == "Fp8Linear"}
    assert ours == {"qkv", "up", "down"}
    assert {name.rpartition(".")[2] for name, kind in kinds.items() if kind == "Float8Linear"} == {"out"}
    depth = config.model.backbone.depth
    assert sum(kind == "Fp8Linear" for kind in kinds.values()) == depth * 6 - 2
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_8_bits_by_row_are_refused_alone_and_at_odd_widths(tmp_path):
    with pytest.raises(ValueError, match=r"training\.fp8_rows: true needs training\.fp8"):
        run_folder.check_start(small_config(None, "training.fp8_rows=true"), tmp_path / "run", resume=False)
    odd = small_config(None, "training.fp8=true", "training.fp8_rows=true", "model.backbone.mlp_hidden=56")
    with pytest.raises(ValueError, match=r"a product of 56 by 32; both have to be multiples of 16"):
        configure_model(AudioX(odd.model), odd.training)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["false", "true"])
def test_training_in_8_bits_keeps_up(rows):
    """The same samples, noise and start: over the last third of 60 steps the losses lie within 2 % of each other."""
    curves = {}
    for fp8 in ("false", "true"):
        config = small_config(None, f"training.fp8={fp8}", f"training.fp8_rows={rows}")
        torch.manual_seed(0)
        model = configure_model(AudioX(config.model), config.training).to(DEVICE)
        adamw = torch.optim.AdamW(model.parameters(), 2e-3)
        generator, losses = torch.Generator().manual_seed(1), []
        codec, video, text = config.model.codec, config.model.video, config.model.text
        pattern = torch.randn(codec.frames, codec.latent_channels, generator=generator)

        def normal(*shape, generator=generator):
            return torch.randn(shape, generator=generator)

        for _ in range(60):
            z0 = pattern * (1 + 0.3 * normal(16, 1, 1))  # something to learn
            z1, t = normal(*z0.shape), torch.rand(16, generator=generator)
            conditions = normal(16, video.steps, video.dim), normal(*z0.shape), normal(16, 5, text.dim)
            inputs = [x.to(DEVICE) for x in (interpolate(z0, z1, t), t, *conditions, torch.full((16,), 5))]
            loss = flow_matching_loss(model(*inputs), z0.to(DEVICE), z1.to(DEVICE)).mean()
            loss.backward()
            adamw.step()
            adamw.zero_grad()
            losses.append(loss.item())
        curves[fp8] = losses
    plain, rounded = (sum(curves[fp8][40:]) / 20 for fp8 in ("false", "true"))
    assert curves["true"] != curves["false"]
    assert plain < 0.7 * curves["false"][0]  # it has learnt
    assert rounded == pytest.approx(plain, rel=0.02)


def test_without_torchao_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"training\.fp8: needs torchao.*pip install"):
        run_folder.check_start(small_config(None, "training.fp8=true"), tmp_path / "run", resume=False)
