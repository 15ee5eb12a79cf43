"""Reading the authors' released files: every tensor matched by name and shape, or the file is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...models.weights import FLOATS, is_finite
from .convert_encoders import unpickled

Shapes = Mapping[str, tuple[int, ...]]

DOCUMENT = "docs/released.md"
SECTIONS = ("state_dict", "model", "student", "student_state_dict")  # under which a file may have its tensors
MODEL, STUDENT = "model.", "student."
PREFIXES = ("", "module.", MODEL, STUDENT, STUDENT + MODEL, "diffusion.")  # of all names of a file
OTHER_ROLES = ("teacher.", "fake.", "discriminator_heads.")  # of a distillation, next to its student
CLIP = "conditioner.conditioners.video_prompt.visual_encoder_model."
AUTOENCODERS = ("pretransform.model.", "conditioner.conditioners.audio_prompt.pretransform.model.")
NO_WEIGHTS = (f"{CLIP}vision_model.embeddings.position_ids",)  # counts from 0; older transformers save it


@dataclass(frozen=True)
class ReleasedTensors:
    """A checkpoint's tensors by their names without prefix. What it may lack is empty."""

    network: dict[str, Tensor]
    clip: dict[str, Tensor]
    autoencoder: dict[str, Tensor]
    report: tuple[str, ...]  # of what was found, in words


def read_checkpoint(file: Path, network: Shapes, unused: Shapes, clip: Shapes, autoencoder: Shapes) -> ReleasedTensors:
    """The tensors of a released checkpoint, which has the network with some `unused` ones, and may have CLIP, and the
    autoencoder twice.

    Raises ValueError naming the file and the tensor that is missing, not known, of another shape or no float.
    """
    everything = read_tensors(file)
    parts = {"network": ("", network), "unused": ("", unused), "CLIP": (CLIP, clip)}
    parts |= {f"autoencoder {i}": (prefix, autoencoder) for i, prefix in enumerate(AUTOENCODERS, start=1)}
    known = {prefix + name for prefix, shapes in parts.values() for name in shapes}
    prefix = max(PREFIXES, key=lambda each: sum(each + name in everything for name in known))
    state = {n.removeprefix(prefix): x for n, x in everything.items() if n.startswith(prefix)}
    others = [n for n in everything if not n.startswith(prefix)]
    if prefix.startswith(STUDENT):
        others = [n for n in others if not n.startswith(OTHER_ROLES)]
    _refuse_extra(file, [*others, *(prefix + n for n in state if n not in known and n not in NO_WEIGHTS)])
    found = {}
    for part, (begin, shapes) in parts.items():
        own = {name: state[begin + name] for name in shapes if begin + name in state}
        if own or part in ("network", "unused"):
            check_tensors(file, own, shapes, prefix + begin)
        found[part] = own
    first, second = found["autoencoder 1"], found["autoencoder 2"]
    if first and second:
        one, two = (f"{prefix}{begin}" for begin in AUTOENCODERS)
        refuse_difference(second, first, f"{file}: {two}", f"{one}; the two autoencoders have to be the same")
    names = f"all names begin with {prefix!r}" if prefix else "names without a prefix"
    if left := len(everything) - len(state):
        names += f", but for {left} of other roles, which are left out"
    counts = "; ".join(f"{part}: {len(own) or 'no'} tensors" for part, own in found.items())
    report = f"{file}: {_summary(everything)}; {names}", counts
    return ReleasedTensors(found["network"], found["CLIP"], first or second, report)


def read_autoencoder(file: Path, shapes: Shapes) -> tuple[dict[str, Tensor], str]:
    """The tensors of the autoencoder's own file, and what was found. Raises as `read_checkpoint` does."""
    state = read_tensors(file)
    _refuse_extra(file, [name for name in state if name not in shapes])
    check_tensors(file, state, shapes, "")
    return state, f"{file}: {_summary(state)}"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file of safetensors, or of torch, of which nothing but tensors is read.

    Raises ValueError if it is not there, truncated, or holds something else.
    """
    if file.suffix != ".safetensors":
        return unpickled(file, SECTIONS, DOCUMENT)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; {DOCUMENT} says where the released weights are")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); take the file that {DOCUMENT} names") from None


def check_tensors(file: Path, tensors: Mapping[str, Tensor], shapes: Shapes, prefix: str) -> None:
    """Raises ValueError unless these are the tensors of `shapes`; messages name them with the prefix."""
    if missing := [name for name in shapes if name not in tensors]:
        raise ValueError(f"{file}: {len(missing)} tensors are missing, the first is {prefix}{missing[0]}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise ValueError(
                f"{file}: {prefix}{name} has the shape {tuple(tensor.shape)}; the released one has {shapes[name]}"
            )
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{file}: {prefix}{name} is {tensor.dtype}; expected {', '.join(map(str, FLOATS))}")
        if not is_finite(tensor):
            raise ValueError(f"{file}: {prefix}{name} is not finite; the file is damaged")


def refuse_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str, what: str) -> None:
    """Raises ValueError with the first name whose values differ, in the coarser of the two dtypes."""
    for name, tensor in ours.items():
        other = theirs[name]
        coarse = min(tensor.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        if not (tensor.is_meta or tensor.to(coarse).equal(other.to(coarse))):
            raise ValueError(f"{where}{name} has other values than {what}")


def _refuse_extra(file: Path, names: Iterable[str]) -> None:
    if extra := sorted(names):
        raise ValueError(
            f"{file}: {len(extra)} tensors are not known, the first is {extra[0]}; take the file that {DOCUMENT} names"
        )


def _summary(state: Mapping[str, Tensor]) -> str:
    dtypes = Counter(str(x.dtype).removeprefix("torch.") for x in state.values())
    numbers = sum(x.numel() for x in state.values())
    kinds = ", ".join(f"{kind} ({n})" if len(dtypes) > 1 else kind for kind, n in dtypes.most_common())
    return f"{len(state)} tensors with {numbers:,} numbers, in {kinds or 'no precision'}"
