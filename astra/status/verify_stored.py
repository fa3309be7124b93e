"""What is stored for the rows of a plan, as verification reads it."""

from typing import NamedTuple

from astra.states import Outcome

#: Represents the number of a result that is identified by another key than that of its row.
OF_ANOTHER_KEY = 2**31


class Result(NamedTuple):
    """What is read of a stored result; flags are 0 or 1."""

    attempt: int  # 0: none
    read_outside: int  # its input was read while its attempt did not run
    stored_before: int  # it was stored before its input was read
    input: int  # 1: modified since it was read; 2: deleted
    number: int  # within its row
    of_row: int  # how many its row has; 0: one, or it is not known
    bad_time: int  # one of its times is impossible
    bad_source: int  # it has another source than its input
    made_by: int
    read: object  # when its input was read


class Record(NamedTuple):
    """What is read of a failure, or of a record of no result; flags are 0 or 1."""

    of_plan: int
    refused: int  # a further result of a row that has one
    attempt: int  # 0: none
    page: int
    bad: int  # a time, a count or its provenance is impossible


class Row(NamedTuple):
    """What is stored for a row of the plan, or for many rows of a page: most are alike."""

    outcome: int
    results: tuple[Result, ...]  # by their numbers
    failure: Record | None
    nothing: Record | None
    writer: int  # the page of the plan whose attempt wrote the first result; 0: none

    @property
    def ends(self) -> list[Outcome]:
        """How the row ended by what this plan stored."""
        ends = [Outcome.RESULT] if self.writer else []
        if self.failure is not None and self.failure.of_plan and not self.failure.refused:
            ends.append(Outcome.FAILURE)
        if self.nothing is not None and self.nothing.of_plan:
            ends.append(Outcome.NO_RESULT)
        return ends

    @property
    def ended_elsewhere(self) -> bool:
        """Whether another plan or a direct call stored how it ended."""
        records = [r for r in (self.failure, self.nothing) if r is not None]
        return bool(self.results and not self.writer) or any(not r.of_plan for r in records)
