"""A process learns its share from its launcher."""

import pytest

from audiox_trainer.trainer.workers.launch_rank import NAMES, LaunchRank


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for names in NAMES for name in names]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("names", NAMES)
def test_ranks_of_launchers(monkeypatch, names):
    assert LaunchRank.from_environment() == LaunchRank(0, 1, 0)
    for name, value in zip(names, ("9", "16", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert LaunchRank.from_environment() == LaunchRank(9, 16, 1)
    monkeypatch.delenv(names[2])
    assert LaunchRank.from_environment() == LaunchRank(9, 16, 0)


@pytest.mark.parametrize(
    ("rank", "ranks", "message"),
    [
        ("2", "2", "RANK must be from 0 to WORLD_SIZE - 1"),
        ("-1", "2", "RANK must be from 0"),
        ("one", "2", "RANK and WORLD_SIZE must be numbers"),
        ("1", "", "RANK='1', WORLD_SIZE='', LOCAL_RANK='0': RANK and WORLD_SIZE must be numbers"),
    ],
)
def test_variables_that_do_not_fit(monkeypatch, rank, ranks, message):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(ValueError, match=message):
        LaunchRank.from_environment()


def test_a_device_that_is_named_or_missing():
    assert LaunchRank(3, 4, 3).device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device: 'cuda:99' cannot be used"):
        LaunchRank().device("cuda:99")
