"""The result of running a page in an element, as its log shows it."""

from collections.abc import Iterator

from astra.records import dataclass


@dataclass(frozen=True)
class PageOutcome:
    """How a page ended in this element, and its counts."""

    page: int
    state: str
    rows: int
    done: int
    failed: int
    no_result: int
    message: str | None = None
    exit_status: int = 0

    def lines(self) -> Iterator[str]:
        """Yield the lines that the log shows about the page."""
        if self.state == "refused":  # this element has no part in the page, and no counts of it
            yield f"page {self.page}: refused; {self.message}"
            return
        yield (
            f"page {self.page}: {self.state}; {self.done:,} done + {self.failed:,} failed + "
            f"{self.no_result:,} no result of {self.rows:,} row{'' if self.rows == 1 else 's'}"
        )
        if self.message:
            yield f"  {self.message}"
