"""Networks in TorchScript and ONNX give the same, and a file that is none is refused with a sentence."""

import pytest
import torch

from audiox_trainer.models.exported_network import load_network
from tests.helpers.exported import Loudness, export

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ts", "onnx"])
def test_a_network_in_a_file(tmp_path, ending):
    run = load_network(export(Loudness(), tmp_path / f"loud.{ending}", 2, 8000), CPU)
    waves = torch.stack([torch.full((300,), level) for level in (0.1, 0.5, 1.0)])
    torch.testing.assert_close(run(waves), waves[:, :2].square() * torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=rf"loud\.{ending}: does not accept float32 \(8,\) \("):
        run(torch.zeros(8))


class Breaks(torch.nn.Module):
    """Says what a failed GPU says. TorchScript makes a RuntimeError of it."""

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        if wave.shape[0] > 0:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return wave


def test_of_a_failed_gpu_the_file_is_not_to_blame(tmp_path, monkeypatch):
    torch.jit.script(Breaks()).save(tmp_path / "breaks.ts")
    with pytest.raises(torch.AcceleratorError, match="uncorrectable ECC"):
        load_network(str(tmp_path / "breaks.ts"), CPU)(torch.zeros(8))

    def broken(tensor, device):
        raise torch.AcceleratorError("the device is gone")

    monkeypatch.setattr(torch.Tensor, "to", broken)
    with pytest.raises(torch.AcceleratorError, match="the device is gone"):
        load_network(str(tmp_path / "breaks.ts"), CPU)(torch.zeros(8))


@pytest.mark.parametrize("name", ["a.onnx", "a.ts"])
def test_a_file_that_is_no_network(tmp_path, name):
    with pytest.raises(ValueError, match="no such file"):
        load_network(str(tmp_path / name), CPU)
    (tmp_path / name).write_bytes(b"not a network")
    with pytest.raises(ValueError, match=f"{name}: not a network in "):
        load_network(str(tmp_path / name), CPU)
