"""The released autoencoder under diffusers' names."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiox_trainer.models.encoders.libraries import diffusers
from audiox_trainer.models.released.autoencoder import autoencoder_shapes, to_diffusers
from tests.helpers.released_fixtures import GOLDEN


def test_the_autoencoder_by_diffusers():
    given = load_file(GOLDEN / "vae.safetensors")
    model = diffusers().AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4, 8],
        channel_multiples=[1, 2, 4],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
    )
    state = {name[8:]: x for name, x in given.items() if name.startswith("weights.")}
    assert autoencoder_shapes(model, stages=3) == {name: tuple(x.shape) for name, x in state.items()}
    model.load_state_dict(to_diffusers(state, model, stages=3))
    with torch.no_grad():
        moments = model.encoder(given["in.audio"])
        mean, s = moments.chunk(2, dim=1)
        decoded = model.decoder(mean + (F.softplus(s) + 1e-4) * given["in.eps"])
    for name, value in (("out.moments", moments), ("out.decoded", decoded)):
        assert (value - given[name]).abs().max() <= 1e-4 * given[name].abs().max(), name
