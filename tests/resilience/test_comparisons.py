"""Which rank is named: of different weights the minority, of results the one that differs from itself, of times the
slow one."""

import pytest

from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.resilience.corruption import FaultyError, Repetitions, check_weights, deviating
from audiox_trainer.trainer.resilience.stragglers import Comparison, History

PARTS = ("data", "forward", "backward", "communication")
NAMES = [f"rank {rank} (n{rank // 4}, GPU {rank % 4})" for rank in range(16)]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([7], []),
        ([7, 7], []),
        ([7, 8], [0, 1]),
        ([7, 8, 7], [1]),
        ([8, 7, 7, 7], [0]),
        ([7, 7, 8, 8], [0, 1, 2, 3]),
        ([1, 2, 3], [0, 1, 2]),
        ([1, 7, 7, 3, 7], [0, 3]),
    ],
)
def test_the_minority_deviates(values, ranks):
    assert deviating(values) == ranks


def test_the_rank_with_other_weights_is_named():
    table = [[5, 9], [5, 9], [5, 9], [5, 9], [5, 9], [5, 8]]
    check_weights(["student", "fake"], [row[:1] * 2 for row in table], 3, NAMES)
    with pytest.raises(FaultyError) as error:
        check_weights(["student", "fake"], table, 12, NAMES)
    assert str(error.value).startswith(
        "silent corruption by step 12: the fake's weights of rank 5 (n1, GPU 1) differ from those of the other 5 ranks;"
    )
    assert exit_code_of(error.value) is ExitCode.FAULTY
    with pytest.raises(FaultyError, match=r"weights of rank 0 .*, rank 7 .* and 8 more differ, and no majority"):
        check_weights(["model"], [[rank] for rank in range(16)], 12, NAMES)


def test_the_rank_with_another_result_is_named():
    repetitions = Repetitions()
    same = [[1, 2, 1, 2], [3, 4, 3, 4], [5, 6, 5, 6]]
    assert repetitions.check(same, 9, NAMES) == ""
    with pytest.raises(
        FaultyError, match=r"in step 9: the gradient of the same micro-batch differed .* on rank 2 \(n0, GPU 2\);"
    ):
        repetitions.check([*same[:2], [5, 6, 5, 7]], 9, NAMES)
    with pytest.raises(FaultyError, match=r"the losses .* on rank 0 "):
        repetitions.check([[1, 2, 0, 2], *same[1:]], 9, NAMES)


def test_results_that_most_ranks_cannot_repeat_are_those_of_their_kernels():
    repetitions = Repetitions()
    said = repetitions.check([[1, 2, 1, 0], [3, 4, 3, 0], [5, 6, 5, 6]], 9, NAMES)
    assert "on 2 of 3 ranks, so it is the kernels" in said
    assert repetitions.check([[1, 2, 1, 0], [3, 4, 3, 4], [5, 6, 5, 6]], 19, NAMES) == "", "no more said"
    with pytest.raises(FaultyError, match=r"the losses"):
        repetitions.check([[1, 2, 0, 2], [3, 4, 3, 4], [5, 6, 5, 6]], 29, NAMES)


def test_a_rank_alone_knows_its_kernels_from_the_first_time():
    assert "it is the kernels" in Repetitions().check([[1, 2, 1, 0]], 9, NAMES)
    repetitions = Repetitions()
    assert repetitions.check([[1, 2, 1, 2]], 9, NAMES) == ""
    with pytest.raises(FaultyError, match=r"the gradient .* on rank 0 "):
        repetitions.check([[1, 2, 1, 0]], 19, NAMES)


def test_a_slow_rank_is_named():
    usual = [0.0, 1.0, 2.0, 1.0]
    assert Comparison(PARTS, [usual]).slow() == {} == Comparison(PARTS, [usual, [0.0, 1.1, 2.1, 0.8]]).slow()
    slow = Comparison(PARTS, [usual, usual, [0.0, 1.9, 2.0, 0.1]])
    assert slow.slow() == {2: "forward"}
    assert slow.sentence(NAMES) == (
        "rank 2 (n0, GPU 2) is slow: forward takes 1.9 s per step, 1.9 times the fastest rank's 1 s; the others wait "
        "for it"
    )
    values = slow.metrics()
    assert values["seconds/forward"] == 1.0 and values["seconds/forward_slowest"] == 1.9
    assert values["seconds/forward_slowest_rank"] == 2 and values["seconds/slow_ranks"] == 1
    assert values["seconds/communication_slowest_rank"] == 0
    assert Comparison(PARTS, [usual, [0.5, 1.0, 2.0, 0.1]]).slow() == {1: "data"}, "the fastest needs nothing"
    assert Comparison(PARTS, [[0.0, 1.0, 2.0, 1.0], [0.1, 1.0, 2.0, 0.9]]).slow() == {}, "it costs little"


def test_a_rank_that_waits_in_its_backward_pass_is_not_slow():
    """On a GPU a reduction parallel to the backward pass makes that of the faster rank longer."""
    assert Comparison(PARTS, [[0.0, 1.0, 5.0, 4.0], [0.0, 4.0, 2.0, 0.5]]).slow() == {1: "forward"}


def test_a_run_says_when_it_changes_and_how_often():
    history, usual = History(NAMES[:2]), [0.0, 1.0, 2.0, 1.0]
    quiet, slow = Comparison(PARTS, [usual, usual]), Comparison(PARTS, [usual, [0.0, 1.0, 3.0, 0.0]])
    said = [history.add(comparison) for comparison in (quiet, slow, slow, quiet)]
    assert [bool(text) for text in said] == [False, True, False, True]
    assert said[1].startswith("rank 1 (n0, GPU 1) is slow: backward") and said[3] == "no rank is slow any more"
    assert history.summary() == [
        "per step: data 0 s (at most 0, rank 0 (n0, GPU 0)), forward 1 s (at most 1, rank 0 (n0, GPU 0)), "
        "backward 2.25 s (at most 2.5, rank 1 (n0, GPU 1)), communication 0.75 s (at most 1, rank 0 (n0, GPU 0))",
        "rank 1 (n0, GPU 1) was slow in 2 of 4 comparisons, mostly in backward",
    ]
    assert History(NAMES).summary() == []
