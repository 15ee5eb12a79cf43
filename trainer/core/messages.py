"""Sentences that say what is wrong, for a person to read."""

SHOWN = 10  # of many complaints


def listed(complaints: list[str], title: str | None = None) -> str:
    """One a line, the first of them where there are many."""
    rest = [f"and {len(complaints) - SHOWN} more"] if len(complaints) > SHOWN else []
    return "\n  ".join([*([title] if title else []), *complaints[:SHOWN], *rest])
