"""Blocks are recorded while addresses give answers, and some are wrong; not in an outage."""

import pytest

from audiox_trainer.trainer.workers.unanswered import AnsweredBlocks

ROW = [("gone",), (), ("gone",), (), ("gone", "")]


@pytest.mark.parametrize(("most", "written"), [(4, [1, 3, 0, 2, 4]), (0, [0, 1, 2, 3, 4])])
def test_only_blocks_that_may_be_made_again_for_want_of_answers_wait(most, written):
    found = []
    blocks = AnsweredBlocks(most, found.append)
    for number, answers in enumerate(ROW):
        blocks.add(number, "node 1", answers)
    assert found == written


def test_an_outage_is_one_maker_s_row_and_records_none_of_it():
    found = []
    blocks = AnsweredBlocks(2, found.append)
    for number, maker in enumerate(("node 1", "node 2")):
        blocks.add(number, maker, ["gone"])
    with pytest.raises(ConnectionError, match=r"2 addresses in a row gave no answer, the last one: away \(--unreach"):
        blocks.add(2, "node 1", ["away"])
    assert found == []
