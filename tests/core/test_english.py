"""Numbers, plurals, articles and enumerations."""

import pytest

from audiox_trainer.trainer.core.english import (
    amount,
    article,
    complaint_list,
    first,
    join,
    lines_wrong,
    number,
    plural,
)


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("dog bark", "dog barks"),
        ("small child", "small children"),
        ("bus", "buses"),
        ("toy", "toys"),
        ("fly", "flies"),
        ("wolf", "wolves"),
        ("MP3", "MP3s"),
        ("DJ", "DJs"),
        ("", "s"),
        ("\u2003", "\u2003s"),
    ],
)
def test_plural(noun, many):
    assert plural(noun) == many


@pytest.mark.parametrize(
    "name", ["a dog", "an hour", "a uniform", "an umbrella", "a ukulele", "a one-man band", "an MP3"]
)
def test_article_follows_the_sound(name):
    assert article(name.partition(" ")[2]) == name


def test_numbers_and_amounts():
    assert [number(count) for count in (0, 1, 10, 11, 1500)] == ["no", "one", "ten", "11", "1500"]
    assert number(3, digits=True) == "3"
    assert (amount(1, "rank"), amount(2, "rank"), amount(0, "rank")) == ("1 rank", "2 ranks", "0 ranks")


def test_join():
    assert [join(list("abc"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_the_first_of_many():
    assert [first(list("abc"[:n]), 2) for n in range(4)] == ["", "a", "a, b", "a, b and 1 more"]
    assert first(["a", "b", "c"], 2, "; ") == "a; b and 1 more"


def test_complaints():
    assert lines_wrong(3, 4) == "3 of 4 lines are wrong" and lines_wrong(1, 4) == "1 of 4 lines is wrong"
    assert complaint_list(["a", "b"], "title") == "title\n  a\n  b"
    assert complaint_list([str(i) for i in range(12)]).splitlines()[-2:] == ["  9", "  and 2 more"]
