"""What :func:`astra.status.verify.verify` checks, and what it found."""

from dataclasses import dataclass, field

from astra.models.keys import RowKey

#: What is checked: what a breach means, and what to do about it.
CHECKS = {
    "values": (
        "a table is missing, or a column holds NULL or a type of value that it must not hold",
        "somebody dropped the table or wrote by hand: correct that; nothing else was checked",
    ),
    "pages": (
        "the plan's pages are not numbered 1 to n_pages, or do not have its n_rows rows",
        "somebody deleted or changed pages: cancel the plan, and plan again",
    ),
    "shape": (
        "a page does not have one key and one outcome, from 0 to 3, for each of its rows",
        "somebody changed the page by hand: cancel the plan, and plan again",
    ),
    "counts": (
        "a page's numbers of ended rows differ from its outcomes",
        "somebody changed the page by hand: status and resume rely on these numbers",
    ),
    "key-twice": (
        "a key is in the plan more than once",
        "its row may be computed twice, but is stored once: report it",
    ),
    "result-missing": (
        "a row counts as done, but no result is stored for it",
        "somebody deleted the result: plan again, since its row is pending",
    ),
    "failure-missing": (
        "a row counts as failed, but no failure is recorded for it",
        "somebody deleted the failure: astra resume PLAN --failed processes the row again",
    ),
    "no-result-missing": (
        "a row counts as without result, but no record says so",
        "somebody deleted the record: plan again, since its row is pending",
    ),
    "ended-twice": (
        "a row ended in more than one way",
        "trust the result if there is one, and report it",
    ),
    "not-counted": (
        "an attempt stored how a row ended, but its page does not say so",
        "astra resume PLAN processes the row again; report it, since progress was lost",
    ),
    "wrong-page": (
        "a row's result was written by an attempt at another page",
        "do not trust this result; report it",
    ),
    "read-too-early": (
        "a result's input was read before the attempt that wrote it began, or after the result "
        "was stored",
        "a clock was set, or the result is older than its input: modify the row to process it "
        "again",
    ),
    "attempts": (
        "an earlier attempt of a page is running, or the page does not belong to its last attempt",
        "two processes may write the page: terminate them, then astra resume PLAN",
    ),
    "sums": (
        "the rows that a page's attempts ended do not add up to the page",
        "two attempts wrote the same page, or somebody changed the tables: report it",
    ),
    "written-unseen": (
        "an attempt stored more results than it counted",
        "two attempts wrote the same rows, or results were stored without progress: report it",
    ),
    "done-too-early": (
        "the last attempt recorded the page as done, but rows are pending",
        "astra resume PLAN processes them; report it",
    ),
    "guards": (
        "a table lacks a key, a constraint or a trigger that an invariant relies on, or has a "
        "trigger that may undo what astra writes",
        "astra initdb creates indexes and triggers again, once no row has two results; add the "
        "rest, and drop triggers that others created on astra's own tables",
    ),
    "orphans": (
        "records belong to no plan, page or row",
        "somebody deleted or changed what they belong to: restore it, or delete them",
    ),
    "records": (
        "the plan, or one of its submissions, pages or attempts, holds impossible values",
        "somebody changed it by hand, or a clock was set: cancel the plan, and plan again",
    ),
    "given-away": (
        "a failure, or a record of no result, belongs to another attempt, page or plan than its "
        "row",
        "somebody changed the record: astra resume PLAN --failed processes a failed row again",
    ),
    "attempt-unknown": (
        "a result was computed by this plan, but names no attempt of it, or another origin",
        "somebody changed the result: modify its input row to process it again",
    ),
    "result-twice": (
        "a row has two results of the same number at one version",
        "the unique index was lost: delete one of them, then astra initdb",
    ),
    "result-mixed": (
        "the results of a row are not numbered from 0 upwards, or two attempts wrote them",
        "somebody deleted or changed some of them: modify the input row to process it again",
    ),
    "wrong-source": (
        "a result has another source_pk than its spectrum",
        "somebody changed the result: modify its input row to process it again",
    ),
    "moments": (
        "a result was written in the future, or created after it was last written",
        "a clock was set, or somebody changed the result",
    ),
}  # fmt: skip


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
