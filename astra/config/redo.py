"""``redo``: which rows that have ended are processed again, as commands and nights name it."""

from datetime import UTC, datetime


def split_redo(text: str) -> tuple[str, datetime | None]:
    """The kind, and the moment that ``older-than`` names; a date is its beginning, in UTC.

    >>> split_redo("changed"), split_redo("older-than 2026-01-31")[1].day
    (('changed', None), 31)

    Raises
    ------
    ValueError
        If it is none; it says what to write.
    """
    kind, _, rest = str(text).strip().partition(" ")
    if kind == "older-than":
        try:
            at = datetime.fromisoformat(rest.strip())
        except ValueError:
            raise ValueError("older-than needs a date, or a time: older-than 2026-01-31") from None
        return kind, at if at.tzinfo else at.replace(tzinfo=UTC)
    if kind not in ("all", "changed", "failed") or rest:
        raise ValueError("should be all, changed, failed, or older-than DATE")
    return kind, None
