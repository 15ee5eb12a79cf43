"""English that programs write: numbers, plurals, articles, enumerations, lists of complaints."""

import re
from collections.abc import Mapping, Sequence

import inflect

LAST_WORD = 10  # larger numbers are written in digits
SHOWN = 10  # of many complaints
_ENGINE = inflect.engine()
_LAST_LETTERS = re.compile(r"(.*?)([a-zA-Z]*)", re.DOTALL)


def number(count: int, digits: bool = False) -> str:
    """ "three", "12"; in digits from 11 on, or always. Zero is "no"."""
    if digits or count > LAST_WORD:
        return str(count)
    return str(_ENGINE.number_to_words(count, zero="no"))


def plural(noun: str) -> str:
    """The noun with its last word in the plural: "dog barks", "children", "DJs"."""
    before, word = _LAST_LETTERS.fullmatch(noun).groups()  # type: ignore[union-attr]  # it matches every text
    lower = word.lower()
    many = _ENGINE.plural_noun(lower) if word else "s"
    return before + (word + many[len(word) :] if many.startswith(lower) else many)


def article(noun: str) -> str:
    """The noun with "a" or "an" before it, chosen by sound: "an hour", "a uniform"."""
    return f"{_ENGINE.a(noun).partition(' ')[0]} {noun}"


def join(things: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(things[:-1]), *things[-1:])))


def first(things: Sequence[str], count: int, separator: str = ", ") -> str:
    """The first of many: "a, b and 3 more"; all of few: "a, b"."""
    more = f" and {len(things) - count} more" if len(things) > count else ""
    return separator.join(things[:count]) + more


def amount(count: int, noun: str) -> str:
    """ "1 sound", "2 sounds"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def lines_wrong(wrong: int, lines: int) -> str:
    """ "3 of 4 lines are wrong"."""
    return f"{wrong} of {amount(lines, 'line')} {'is' if wrong == 1 else 'are'} wrong"


def complaint_list(complaints: Sequence[str], title: str | None = None) -> str:
    """One complaint per line, below a title; of many only the first ones."""
    more = [f"and {len(complaints) - SHOWN} more"] if len(complaints) > SHOWN else []
    return "\n  ".join([*([title] if title else []), *complaints[:SHOWN], *more])


def amounts_sentence(amounts: Mapping[str, float]) -> str:
    """A list such as "2 missing, 1 silent"; "nothing" if there is nothing."""
    return ", ".join(f"{amount:.12g} {name}" for name, amount in sorted(amounts.items()) if amount) or "nothing"
