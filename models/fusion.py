"""Multimodal Adaptive Fusion (section IV-A, Eq. 1)."""

import torch
from torch import Tensor, nn

from .blocks import CrossAttention, TransformerBlock
from .config import FusionConfig
from .embeddings import RopeTable


class Gate(nn.Module):
    """Filters and reweights a modality's tokens, channel by channel: x · 2σ(W·LN(x) + b), the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * torch.sigmoid(self.linear(self.norm(x))))


class Fusion(nn.Module):
    """Gate each modality, let a set of learnable queries for each attend to all of them, consolidate the queries by
    self-attention, and give each set back to its modality as a residual.

    [video (B, V, W), audio (B, A, W), text (B, T, W)] -> H_c (B, V+A+T, W); without video the two others. Padded text,
    which is the last, is attended by no query.
    """

    def __init__(self, config: FusionConfig, modalities: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.enabled and config.gates:
            self.gates = nn.ModuleList(Gate(width) for _ in range(modalities))
        if config.enabled and config.attention:
            self.queries = nn.Parameter(torch.randn(modalities * config.queries, width) * 0.02)
            # The queries are a set: they have no positions, so nothing is rotated.
            nowhere = torch.full((modalities * config.queries,), torch.nan, device="cpu")
            self.rope = RopeTable(nowhere, 1.0, width // config.heads)
            self.gather = CrossAttention(width, config.heads)
            self.blocks = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.depth))
            self.dispatch = CrossAttention(width, config.heads)

    def forward(self, tokens: list[Tensor], text_length: Tensor) -> Tensor:
        if self.config.enabled and self.config.gates:
            tokens = [gate(x) for gate, x in zip(self.gates, tokens, strict=True)]
        if self.config.enabled and self.config.attention:
            tokens = self._attend(tokens, text_length)
        return torch.cat(tokens, dim=1)

    def _attend(self, tokens: list[Tensor], text_length: Tensor) -> list[Tensor]:
        context = torch.cat(tokens, dim=1)
        length = text_length + sum(x.shape[1] for x in tokens[:-1])
        queries = self.queries.to(context.dtype).expand(context.shape[0], -1, -1)
        queries = queries + self.gather(queries, context, length)
        rope = self.rope()
        for block in self.blocks:
            queries = block(queries, rope)
        sets = queries.chunk(len(tokens), dim=1)
        return [x + self.dispatch(x, q) for x, q in zip(tokens, sets, strict=True)]
