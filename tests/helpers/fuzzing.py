"""Hostile inputs by Hypothesis: how they are made from good ones, tried within limits, judged and counted."""

import json
import math
import resource
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from audiox_trainer.trainer.core.cli import sentence

CPU_SECONDS = 20  # of one input: time of this process, so that a busy machine changes nothing
MEMORY = 2 << 30  # bytes that one input may take above what the process has
LONGEST_MESSAGE = 8000  # characters

# As many as `make test` tries of a kind, and `make test-long`: the first ones are the same, whenever and wherever.
both = pytest.mark.parametrize(
    "share", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(3600)])], ids=["short", "long"]
)


PROPERTY = "hostile inputs"  # of a test's report, by which its counts come from a worker of pytest-xdist
Counts = dict[str, dict[str, int]]  # by kind and reason of refusal, "" for what was accepted; builtin types only


def summary(tests: Iterable[Counts]) -> list[str]:
    """Lines about the inputs of all these tests."""
    kinds = defaultdict[str, Counter[str]](Counter)
    for counts in tests:
        for kind, reasons in counts.items():
            kinds[kind].update(reasons)
    lines = []
    for kind, reasons in sorted(kinds.items()):
        accepted, tried = reasons.pop("", 0), reasons.total()
        lines.append(f"{kind}: {tried} refused, {accepted} accepted")
        lines += [f"  {count:6d}  {reason}" for reason, count in reasons.most_common(12)]
        kinds[kind][""] = accepted
    total = sum(reasons.total() for reasons in kinds.values())
    return [*lines, f"hostile inputs: {total} were refused with a reason, or accepted and right"]


class Fuzzer:
    """Tries inputs of one kind after another, and counts them."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def run(
        self, kind: str, inputs: st.SearchStrategy[Any], count: int, attempt: Callable[[Any], str]
    ) -> tuple[int, int]:
        """Tries `count` inputs, and returns how many were accepted and how many refused: with none of either the inputs
        try one side only. `attempt` returns "" for one that it accepts and finds right, the reason of its refusal for
        another, and raises for anything else."""

        @hypothesis.settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=count,
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
        )
        @hypothesis.seed(0)
        @hypothesis.given(inputs)
        def try_one(value: Any) -> None:
            with limits():
                reason = attempt(value)
            reasons[reason] = reasons.get(reason, 0) + 1

        reasons = self.counts.setdefault(kind, {})
        try_one()
        accepted, tried = reasons.get("", 0), sum(reasons.values())
        assert tried >= 0.95 * count, f"{kind}: only {tried} of {count} inputs were tried"
        return accepted, tried - accepted


@contextmanager
def limits() -> Iterator[None]:
    """Within, a process may compute for CPU_SECONDS and take MEMORY: more is an error."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {CPU_SECONDS} s for one input")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def refusal(error: Exception, reasons: Sequence[str], *places: str) -> str:
    """Why an input was refused, by an error that the command line prints as one sentence: the first of `reasons` in it,
    or else its beginning.

    Fails where it is no sentence: empty, a library's own, endless, not printable, or naming none of `places`.
    """
    text = sentence(error)
    assert type(error).__module__.startswith(("builtins", "audiox_trainer")), f"{type(error)} of a library: {text}"
    assert not isinstance(error, UnicodeError | json.JSONDecodeError | RecursionError), f"{type(error)}: {text}"
    assert text.strip() and len(text) <= LONGEST_MESSAGE and "\0" not in text, f"no sentence: {text[:300]!r}"
    assert text.replace("\n", "").isprintable(), f"characters that a terminal obeys: {text!r}"
    assert not places or any(place in text for place in places), f"names no place among {places}: {text}"
    return next((reason for reason in reasons if reason in text), text[:60])


# Values that mean trouble somewhere: too large, too small, of no kind, that look like something else.
NUMBERS = st.sampled_from(
    [
        0,
        -1,
        1,
        2,
        3,
        7,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        10**12,
        10**30,
        10**308,
        10**309,
        -(2**63),
        0.0,
        -0.0,
        0.5,
        1.5,
        1e-320,
        1e38,
        1e39,
        1e300,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
    ]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "\0",
                "a\0b",
                "\ud800",
                "\udfff",
                "\x1b[2J",
                "\u202e",
                "..",
                "../../etc/passwd",
                "/",
                "a" * 5000,
            ),
            *("1e999", "nan", "true", "null", "-0", "%s%n", "{0.__class__}", "{{ 7 * 7 }}", "$(touch x)", "auto"),
            *("file:///etc/passwd", "http://127.0.0.1/", "s3://b/k", "reference://x::file://y", "é" * 200),
        ]
    ),
)
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(TEXTS, SCALARS, max_size=3),
    st.sampled_from(["[]", "{}", "[[]]", "[{}]", '{"a": {}}', "[[[[1]]]]", '{"": null}']).map(json.loads),
)


@st.composite
def changed_json(draw: st.DrawFn, good: Any, most: int = 2) -> Any:
    """A good JSON value in which up to `most` places have another value, lack a key, or have one more."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, most))):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            inner = [key for key in keys if isinstance(node[key], dict | list) and node[key]]
            if not inner or draw(st.integers(0, 3)) == 0:
                break
            node = node[draw(st.sampled_from(inner))]
        change = draw(st.sampled_from(["value", "value", "value", "near", "remove", "add"])) if keys else "add"
        if change == "add" or not keys:
            extra = draw(VALUES)
            node.append(extra) if isinstance(node, list) else node.__setitem__(draw(TEXTS), extra)
            continue
        key = draw(st.sampled_from(keys))
        if change == "remove":
            del node[key]
        elif change == "near" and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = draw(
                st.sampled_from([node[key] + 1, node[key] * 2, -node[key], node[key] * 10**6, node[key] / 2])
            )
        else:
            node[key] = draw(VALUES)
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, good: bytes, most: int = 6, within: int | None = None) -> bytes:
    """Good bytes with up to `most` changes, in the first `within` of them if that is given: bits flipped, a number
    replaced, a part removed, doubled or moved, the end cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, most))):
        end = min(len(data), within or len(data))
        if not end:
            break
        at = draw(st.integers(0, end - 1))
        change = draw(
            st.sampled_from(["flip", "flip", "byte", "number", "number", "remove", "double", "swap", "cut", "add"])
        )
        size = draw(st.integers(1, 64))
        if change == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "byte":
            data[at] = draw(st.sampled_from([0, 1, 0x20, 0x7F, 0x80, 0xFF]))
        elif change == "number":
            number = draw(
                st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63])
            )
            width = draw(st.sampled_from([2, 4, 8]))
            data[at : at + width] = (number % 256**width).to_bytes(width, draw(st.sampled_from(["big", "little"])))
        elif change == "remove":
            del data[at : at + size]
        elif change == "double":
            data[at:at] = data[at : at + size]
        elif change == "swap":
            other = draw(st.integers(0, end - 1))
            data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
        elif change == "cut":
            del data[at:]
        else:
            data[at:at] = draw(st.binary(max_size=32))
    return bytes(data)
