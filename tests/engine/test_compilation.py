"""The limit of compiled versions of a block's code, and the warning at the limit."""

from functools import partialmethod

import pytest
import torch

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.trainer.engine import compilation
from tests.helpers.small_config import small_config

LIMIT = 2  # stands for torch's of 8


@pytest.mark.slow
def test_the_limit_is_raised_and_reaching_it_is_said(monkeypatch):
    """Each text has another length here, and each length a version of its own."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    model = AudioX(small_config(None, "model.backbone.depth=1").model)
    with torch._dynamo.config.patch(recompile_limit=LIMIT, automatic_dynamic_shapes=False), torch.no_grad():
        compilation.compile_blocks(model)
        assert torch._dynamo.config.recompile_limit == compilation.RECOMPILE_LIMIT >= 32
        config = model.config
        for tokens in range(1, LIMIT + 2):
            latents = torch.zeros(1, config.codec.frames, config.codec.latent_channels)
            video, text = torch.zeros(1, config.video.steps, config.video.dim), torch.zeros(1, tokens, config.text.dim)
            model(latents, torch.ones(1), video, latents, text, torch.tensor([tokens]))
            assert compilation.compiled_versions() == tokens
            assert compilation.compilation_warnings() == []
    monkeypatch.setattr(compilation, "RECOMPILE_LIMIT", tokens)
    assert "versions of a block are compiled, which is the limit" in compilation.compilation_warnings()[0]
    torch._dynamo.reset()
