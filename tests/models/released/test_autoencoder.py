"""The released autoencoder under diffusers' names."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiox_trainer.models.encoders.libraries import diffusers
from audiox_trainer.models.released.autoencoder import diffusers_name, to_diffusers
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
    model.load_state_dict(to_diffusers(state, stages=3))
    with torch.no_grad():
        moments = model.encoder(given["in.audio"])
        mean, s = moments.chunk(2, dim=1)
        decoded = model.decoder(mean + (F.softplus(s) + 1e-4) * given["in.eps"])
    for name, value in (("out.moments", moments), ("out.decoded", decoded)):
        assert (value - given[name]).abs().max() <= 1e-4 * given[name].abs().max(), name
    with pytest.raises(ValueError, match=r"encoder\.layers\.9\.bias: no tensor of an autoencoder with 3 stages"):
        diffusers_name("encoder.layers.9.bias", 3)
