"""The scorers of an evaluation: a JSON file.

{"scorers": [{"kind": "panns", "weights": "weights/panns"},
             {"kind": "clap", "weights": "laion/clap-htsat-unfused", "name": "CLAP"},
             {"kind": "network", "name": "loudness", "file": "net.onnx", "rate": 16000, "seconds": 2.0,
              "gives": "scores", "columns": ["loud"]}],
 "pad_to": 1.0}
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from ...models import strict
from ...models.strict import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from ..core.config_reader import read_json

RELEASED_KINDS = ("panns", "passt", "vggish", "clap", "audiobox", "imagebind", "avsync", "alignacc", "judge")


@dataclass(frozen=True)
class ReleasedConfig:
    """A network with its own class here, or one of transformers. `weights` is a folder or a file that launch/convert.py
    made, for "audiobox" the folder of its release, for "clap" also a name on the hub, for "judge" the folder of one."""

    kind: Literal["panns", "passt", "vggish", "clap", "audiobox", "imagebind", "avsync", "alignacc", "judge"]
    weights: str
    name: str = ""  # in tables; default: the kind
    parts: Positive = 10  # of an inception score; the field's tools take 10
    video: str = ""  # for "alignacc": the weights of its video encoder

    def __post_init__(self) -> None:
        if bool(self.video) != (self.kind == "alignacc"):
            raise ValueError(f"video: {self.video!r}; alignacc needs its video encoder's weights, others have none")


@dataclass(frozen=True)
class NetworkConfig:
    """Any network in TorchScript, or in ONNX if its file ends in .onnx: one channel (B, n) float32 to (B, columns)."""

    kind: Literal["network"]
    name: str
    file: str
    rate: Positive  # Hz
    gives: Literal["embedding", "logits", "probabilities", "scores"]
    seconds: NonNegativeFloat = 0.0  # of the window that it takes; 0: a whole sound of any length
    columns: tuple[str, ...] = ()  # names of the scores
    better: Literal["higher", "lower"] = "higher"  # scores

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: empty; it stands in tables")
        if (self.gives == "scores") != bool(self.columns):
            raise ValueError(f"columns: {list(self.columns)}; scores need the name of each, other outputs have none")


@dataclass(frozen=True)
class PairConfig:
    """A judge of sound with pictures, as files in TorchScript or ONNX: `sound` takes one channel (B, n) float32,
    `video` pictures (B, M, 3, size, size) float32 in [0, 1], and `pair` what these give and returns one number per row.
    Without `pair` the number is the cosine of the two."""

    kind: Literal["pair"]
    name: str  # of the metric too
    sound: str
    video: str
    rate: Positive  # Hz
    seconds: PositiveFloat  # of sound and of pictures, from their beginnings; shorter ones are refused
    frames: PositiveFloat  # pictures per second
    size: Positive  # pixels, height and width
    pair: str = ""
    round: bool = False  # the number to 0 or 1, so that its mean is the share of sounds above one half
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: empty; it stands in tables")
        if self.round and not self.pair:
            raise ValueError("round: true; a cosine is not rounded, give `pair`")


@dataclass(frozen=True)
class PicturesConfig:
    """A judge of pictures alone, a file in TorchScript or ONNX: pictures (M, 3, size, size) float32 in [0, 1] to a row
    for each or one for all, (rows,) or (rows, columns), of which the mean of one column counts."""

    kind: Literal["pictures"]
    name: str  # of the metric too
    file: str
    size: Positive  # pixels, height and width
    frames: PositiveFloat = 1.0  # pictures per second
    column: NonNegative = 0
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: empty; it stands in tables")


OWN_CONFIGS: dict[str, type[Any]] = {"network": NetworkConfig, "pair": PairConfig, "pictures": PicturesConfig}


def _class_name(raw: Any) -> str:
    kind = raw.get("kind") if isinstance(raw, dict) else getattr(raw, "kind", None)
    return OWN_CONFIGS.get(str(kind), ReleasedConfig).__name__


ScorerConfig = Annotated[
    Annotated[ReleasedConfig, Tag("ReleasedConfig")]
    | Annotated[NetworkConfig, Tag("NetworkConfig")]
    | Annotated[PairConfig, Tag("PairConfig")]
    | Annotated[PicturesConfig, Tag("PicturesConfig")],
    Discriminator(_class_name),
]
KINDS = (*RELEASED_KINDS, *OWN_CONFIGS)
FILE_FIELDS = ("weights", "file", "sound", "video", "pair")


@dataclass(frozen=True)
class ScorersConfig:
    """`pad_to`: seconds to which shorter sounds get silence at their end, references too; they are counted."""

    scorers: list[dict[str, Any]]
    pad_to: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class ScorerSet:
    scorers: list[ScorerConfig] = field(default_factory=list)
    pad_to: float = 0.0


def read_scorers(path: Path) -> ScorerSet:
    """Relative paths start from the file's folder, if they exist there, or else from here.

    Raises ValueError where the file is missing or a key is wrong, with its path.
    """
    try:
        file = strict.parse(ScorersConfig, read_json(path))
        scorers = [_parse(raw, f"scorers[{i}]") for i, raw in enumerate(file.scorers)]
        if not scorers:
            raise ValueError("scorers: empty; give at least one")
        names = [name_of(scorer) for scorer in scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers: two share a name, of {', '.join(names)}; give one another `name`")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return ScorerSet([located(scorer, path.parent) for scorer in scorers], file.pad_to)


def name_of(scorer: ScorerConfig) -> str:
    return scorer.name or scorer.kind


def _parse(raw: dict[str, Any], path: str) -> ScorerConfig:
    if raw.get("kind") not in KINDS:
        raise ValueError(f"{path}.kind: {raw.get('kind')!r}; expected one of {', '.join(KINDS)}")
    parsed: ScorerConfig = strict.parse(OWN_CONFIGS.get(raw["kind"], ReleasedConfig), raw, path)
    return parsed


def located(scorer: ScorerConfig, folder: Path) -> ScorerConfig:
    """With paths from `folder`, where they exist there."""
    paths = {name: getattr(scorer, name) for name in FILE_FIELDS if getattr(scorer, name, "")}
    found: dict[str, Any] = {name: str(folder / path) for name, path in paths.items() if (folder / path).exists()}
    return replace(scorer, **found)
