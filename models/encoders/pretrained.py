"""Frozen weights from a local folder or, where there is a network, from a hub: nothing missing, no other shape.

Weights that cannot be loaded are refused in one sentence with the key of the configuration and the remedy.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .libraries import quiet_logging


@dataclass(frozen=True)
class PretrainedWeights:
    """The location of an encoder's weights, and the words of messages about them."""

    key: str  # of the configuration, as model.text.weights
    location: str  # a folder, or a name on the hub
    remedy: str  # what to do where there are none

    @property
    def local(self) -> bool:
        return Path(self.location).is_dir()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn every error of a library about absent, damaged or wrong weights into one ValueError."""
        if not self.location:
            raise ValueError(f"{self.key}: empty, and this encoder has weights; {self.remedy}")
        try:
            with quiet_logging():
                yield
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:200] if lines else type(error).__name__
            what = "cannot be read" if self.local else "is no folder here, and no hub gave it"
            raise ValueError(f"{self.key}: {self.location!r} {what} ({reason}); {self.remedy}") from error

    def check_sizes(self, configured: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Raises ValueError with both values if a size of the configuration differs from that of the weights."""
        section = self.key.rpartition(".")[0]
        wrong = [name for name in configured if configured[name] != found[name]]
        if wrong:
            ours, theirs = (", ".join(f"{n} {side[n]!r}" for n in wrong) for side in (configured, found))
            raise ValueError(
                f"{section}: the configuration says {ours}, the weights in {self.location!r} have {theirs}; correct "
                f"the configuration, or give other weights as {self.key}"
            )

    def load(self, cls: Any, **options: Any) -> Any:
        """`cls.from_pretrained`, from safetensors only.

        Raises ValueError if a weight is missing, or has another shape than the folder's own config.json says.
        """
        with self.reading():
            model, info = cls.from_pretrained(
                self.location, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        for wrong in info["mismatched_keys"]:
            # transformers 4 gives names alone; transformers 5 and diffusers give both shapes too.
            name = wrong if isinstance(wrong, str) else wrong[0]
            theirs = self._stored_shape(name) if isinstance(wrong, str) else tuple(wrong[1])
            raise ValueError(
                f"{self.key}: {self.location!r} holds {name} of shape {theirs}, its own config.json says "
                f"{tuple(model.state_dict()[name].shape)}; {self.remedy}"
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"{self.key}: {self.location!r} lacks {len(missing)} weights, the first is {missing[0]}; {self.remedy}"
            )
        return model

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        for file in Path(self.location).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                if name in tensors.keys():
                    return tuple(tensors.get_slice(name).get_shape())
        return ()
