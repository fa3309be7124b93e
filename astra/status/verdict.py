"""What :func:`astra.status.verify.verify` checks, and what it found."""

import tomllib
from dataclasses import field
from pathlib import Path

from astra.models.keys import RowKey
from astra.records import dataclass

#: What is checked: what a breach means, and what to do about it.
CHECKS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("checks.toml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Breach:
    """A rule that does not hold for a plan, a page or a row."""

    check: str  # one of CHECKS
    page: int | None
    key: RowKey | None
    problem: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of verifying a plan; :func:`astra.api.verify` returns it.

    Examples
    --------
    >>> from astra.api import verify
    >>> verify(1).n_breaches
    0
    """

    plan: int  #: number of the plan
    task: str  #: name of the task
    n_pages: int  #: number of pages
    n_rows: int  #: number of rows
    sound: bool  #: True: no check found anything
    whole: bool  #: sound or not: every row of the plan has ended
    rows: dict[str, int]  #: rows by how they ended, of pages that could be read
    n_attempts: int  #: attempts that were checked
    modified_since: int  #: results whose input was modified after they were computed: pending again
    of_others: int  #: rows whose present result or end comes from another plan or a direct call
    inputs_gone: int  #: results whose input row no longer exists
    n_breaches: int  #: number of breaches
    breaches: tuple[Breach, ...] = ()  #: the first ones of each check
    checks: dict[str, int] = field(default_factory=dict)  #: breaches by check

    @property
    def exit_status(self) -> int:
        return 0 if self.sound else 4
