"""The fuzzers' counts go into the reports of their tests; tests/conftest.py prints them."""

import pytest

from tests.helpers.fuzzing import PROPERTY, Counts, Fuzzer


@pytest.fixture
def fuzzer(request) -> Fuzzer:
    counts: Counts = {}
    request.node.user_properties.append((PROPERTY, counts))  # read when the test has ended
    return Fuzzer(counts)
