"""Known faults of DeepSpeed that make gradients wrong without an error: which versions and settings they concern."""

from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class TrainingSetup:
    """What a known fault may depend on."""

    stage: int
    precision: str
    accumulation: int
    checkpointing: bool


@dataclass(frozen=True)
class KnownFault:
    """A fault of DeepSpeed from version `first` on, up to but not including `fixed`; "" means not fixed yet."""

    name: str
    what: str
    first: str
    fixed: str
    concerns: Callable[[TrainingSetup], bool]

    def fits(self, version: str, setup: TrainingSetup) -> bool:
        since, before = (
            Version(version) >= Version(self.first),
            not self.fixed or Version(version) < Version(self.fixed),
        )
        return since and before and self.concerns(setup)


KNOWN_FAULTS = (
    KnownFault(
        "DeepSpeed #7718",
        "ZeRO-2 overwrites gradients that are still being reduced",
        "0.17.6",
        "0.18.3",
        lambda setup: setup.stage == 2,
    ),
    KnownFault(
        "DeepSpeed #7985",
        "ZeRO-1 in bf16 leaves the last micro-batch out of the mean over the ranks",
        "0.18.6",
        "0.19.0",
        lambda setup: setup.stage == 1 and setup.precision == "bf16",
    ),
    KnownFault(
        "DeepSpeed #8224",
        "with accumulation, gradients through engine.module are not divided by the number of micro-batches",
        "0.18.3",
        "0.19.6",
        lambda setup: setup.accumulation > 1,
    ),
    KnownFault(
        "reentrant checkpointing",
        "at ZeRO-3 it loses gradients of a block that is used twice in a backward pass; use_reentrant=False does not",
        "0",
        "",
        lambda setup: setup.stage == 3 and setup.checkpointing,
    ),
)


def describe_known_faults(version: str, setup: TrainingSetup) -> str:
    """The faults of this version that fit a wrong gradient, and the remedy, as a sentence without a full stop."""
    faults = [fault for fault in KNOWN_FAULTS if fault.fits(version, setup)]
    if not faults:
        return (
            f"no known fault of DeepSpeed {version} fits: install the versions of constraints.txt (make setup), or "
            f"train at another ZeRO stage"
        )
    named = " or ".join(f"{fault.name} ({fault.what})" for fault in faults)
    fixed = [Version(fault.fixed) for fault in faults if fault.fixed]
    remedy = f": install deepspeed>={max(fixed)}" if fixed else ""
    return f"DeepSpeed {version} has a known fault that fits, {named}{remedy}"
