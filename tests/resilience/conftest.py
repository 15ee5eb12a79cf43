"""Shards, a teacher and undisturbed runs of two ranks, made once for all files of this folder."""

import pytest

from tests.helpers.supervised_runs import KINDS, prepare, reference


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def ready(base):
    prepare(base)


@pytest.fixture(scope="session")
def references(base, ready):
    """The results of undisturbed runs."""
    return {kind: reference(kind, base) for kind in KINDS}
