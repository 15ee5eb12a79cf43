"""Launches of one, two and four ranks, each made once for all the files of this folder."""

import pytest

from tests.training.launches import FOUR_RANKS, ONE_RANK, TWO_RANKS, TWO_RANKS_LONG, Launch


@pytest.fixture(scope="session")
def two(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("training"), TWO_RANKS)


@pytest.fixture(scope="session")
def two_long(scenes, tmp_path_factory):
    return Launch(2, scenes, tmp_path_factory.mktemp("training"), TWO_RANKS_LONG)


@pytest.fixture(scope="session")
def four(scenes, two):
    return Launch(4, scenes, two.base, FOUR_RANKS)


@pytest.fixture(scope="session")
def one(scenes, two):
    return Launch(1, scenes, two.base, ONE_RANK)
