"""The columns of the paper's tables.

The text of the paper has the columns of Table II, and of III, A.5 and A.6 by name; those of I, A.4, A.7 and A.8, which
it shows as pictures, are taken to be the quality measures of Table II.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A measure: its names in reports, of which the first that a report has counts."""

    heading: str
    better: str  # "lower", "higher", "zero" (the nearer to it the better), or "" for what is not compared
    metrics: tuple[str, ...]
    digits: int = 2

    @property
    def title(self) -> str:
        return f"{self.heading} { ({'lower': '↓', 'higher': '↑', 'zero': '→ 0'}.get(self.better, '')) }".strip()


@dataclass(frozen=True)
class Layout:
    """A table. `keys` are the fields that a row needs besides its method; rows with the same `group` are compared."""

    title: str
    keys: tuple[str, ...]
    group: tuple[str, ...]
    columns: tuple[Column, ...]


KL, IS = Column("KL", "lower", ("KL",)), Column("IS", "higher", ("IS",))
FD, FAD = Column("FD", "lower", ("FD",)), Column("FAD", "lower", ("FAD",))
IMAGE_TO_AUDIO = "A.8"
AESTHETICS = (Column("PC", "higher", ("PC",)), Column("PQ", "higher", ("PQ",)))
ALIGN = "Align."  # of sound with text or video, by the task of the row
QUALITY = (KL, IS, FD, FAD, *AESTHETICS, Column(ALIGN, "higher", ()))
ALIGNED_WITH = {"text": ("CLAP",), "video": ("AV", "ImageBind")}
LATENCY = (Column("Latency (s)", "lower", ("Latency",)), Column("RTF", "lower", ("RTF",)))
ACCURACIES = tuple(Column(name, "higher", (name,), 3) for name in ("Cat-acc", "Cnt-acc", "Ord-acc", "TS-acc"))
STEAM = (
    *(Column(name, "lower", (name,), 3) for name in ("Ordering", "Duration", "Frequency")),
    Column("Timestamp", "higher", ("Timestamp",), 3),
)
CORRESPONDENCE = (
    Column("AlignAcc", "higher", ("AlignAcc",)),
    Column("AVSync", "zero", ("AVSync", "DeSync")),
)

LAYOUTS = {
    "I": Layout("Quality by task and set", ("task", "dataset"), ("task", "dataset"), QUALITY),
    "II": Layout("Quality and latency by sampling steps", ("dataset", "steps"), ("dataset",), (*LATENCY, *QUALITY)),
    "III": Layout("Following instructions: T2A-bench and AudioTime", (), (), (*ACCURACIES, *STEAM)),
    "A.4": Layout("AVVP", ("task",), ("task",), QUALITY),
    "A.5": Layout("Correspondence of sound and video on VGGSound", (), (), (KL, IS, FD, FAD, *CORRESPONDENCE)),
    "A.6": Layout("Inpainting", ("dataset", "conditions"), ("dataset",), (IS, FAD)),
    "A.7": Layout("Music completion", ("conditions",), (), QUALITY),
    IMAGE_TO_AUDIO: Layout("Image to audio", (), (), QUALITY),
}
