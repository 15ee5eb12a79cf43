"""T5's encoder by transformers, frozen: captions to features.

B batch, T text tokens, D feature width.
"""

from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

from ..config import TextConfig
from .libraries import transformers
from .pretrained import PretrainedWeights
from .runtime import Runtime

REMEDY = (
    "give a folder with config.json, model.safetensors and tokenizer.json, made on a machine with a network by "
    "`hf download google-t5/t5-base --local-dir weights/t5` (docs/encoders.md)"
)


class T5TextEncoder:
    """One token per word piece. It is not compiled: it is 1 to 2 % of a training step, and runs in another thread than
    the one that compiles the model."""

    def __init__(self, config: TextConfig, model: Any, tokenizer: Any, runtime: Runtime) -> None:
        self.config, self.tokenizer, self.runtime = config, tokenizer, runtime
        self.model = runtime.frozen(model)
        self.lock = Lock()  # a tokenizer sets its padding and truncation again in every call

    @classmethod
    def load(cls, config: TextConfig, runtime: Runtime) -> Self:
        """Raises ValueError where there are no weights, or others than the configuration says."""
        pretrained = check_t5(config)
        model = pretrained.load(transformers().T5EncoderModel)
        with pretrained.reading():
            tokenizer = transformers().AutoTokenizer.from_pretrained(config.weights, trust_remote_code=False)
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"{pretrained.key}: the tokenizer in {config.weights!r} has {len(tokenizer)} tokens, the weights know "
                f"{model.config.vocab_size}; they do not belong together: {REMEDY}"
            )
        return cls(config, model, tokenizer, runtime)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """-> features (B, T, D) on the encoder's device, zero past each text's end, and lengths (B,) on the CPU.

        The last token of every text says that it ends, also where the text is cut.
        """
        limit = self.config.max_tokens
        with self.lock:
            rows: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        lengths = torch.tensor([len(row) for row in rows])
        rounded = -(-int(lengths.max()) // self.config.pad_to_multiple_of) * self.config.pad_to_multiple_of
        ids = torch.zeros(len(rows), min(rounded, limit), dtype=torch.long)
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row)] = torch.tensor(row)
        return self.features(ids, lengths), lengths

    @torch.no_grad()  # not inference_mode: what trains on the features saves them for its backward pass
    def features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Word pieces (B, T) and their numbers (B,) -> (B, T, D) float32."""
        mask = (torch.arange(ids.shape[1], device=lengths.device) < lengths[:, None]).to(self.runtime.device)
        with self.runtime.autocast():
            hidden = self.model(input_ids=ids.to(self.runtime.device), attention_mask=mask.long()).last_hidden_state
        return hidden.float() * mask.unsqueeze(-1)


def check_t5(config: TextConfig) -> PretrainedWeights:
    """Looks at sizes alone, before anything large is read. Raises what `T5TextEncoder.load` does."""
    pretrained = PretrainedWeights("model.text.weights", config.weights, REMEDY)
    with pretrained.reading():
        found = transformers().AutoConfig.from_pretrained(config.weights, trust_remote_code=False)
        if found.model_type != "t5":
            raise ValueError(f"weights of {found.model_type!r}, not of 't5'")
    pretrained.check_sizes({"dim": config.dim}, {"dim": found.d_model})
    return pretrained
