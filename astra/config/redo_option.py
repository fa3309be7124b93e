"""Parse ``redo``, the option of commands and nights for rows that are processed again."""

from datetime import UTC, datetime


def split_redo(text: str) -> tuple[str, datetime | None]:
    """Return the kind, and the moment of ``older-than``; a date means its beginning, in UTC.

    >>> split_redo("changed"), split_redo("older-than 2026-01-31")[1].day
    (('changed', None), 31)

    Raises
    ------
    ValueError
        If it is not valid; the message says what to write.
    """
    kind, _, rest = str(text).strip().partition(" ")
    if kind == "older-than":
        try:
            at = datetime.fromisoformat(rest.strip())
            return kind, at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError("older-than needs a date, or a time: older-than 2026-01-31") from None
    if kind not in ("all", "changed", "failed") or rest:
        raise ValueError("should be all, changed, failed, or older-than DATE")
    return kind, None
