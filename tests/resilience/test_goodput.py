"""A run under faults of every kind ends bitwise like one without."""

import pytest

from tests.resilience.goodput import soak

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.timeout(3 * 3600)  # for hangs alone
def test_half_an_hour_of_faults_and_half_an_hour_without(tmp_path):
    summary, lines = soak(tmp_path, minutes=30, every=300, seed=0)
    assert summary["differing"] == []
    assert summary["faults"] == len(lines) >= 3
    assert all("trains_s" in line for line in lines[:-1]), lines
