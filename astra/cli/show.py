"""Print what commands return: the only module that uses rich."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from itertools import islice
from shlex import quote
from typing import TYPE_CHECKING

from rich.markup import escape as escape_markup

from astra import api
from astra.api import duration
from astra.cli import json_output
from astra.cli.listing import COLOURS, Listing, Terminal
from astra.config.secrets import hide
from astra.config.startup import printable
from astra.config.units import written_moment
from astra.errors import count
from astra.states import PageState

if TYPE_CHECKING:
    from pathlib import Path

    from astra.config.settings import Config
    from astra.doctor.finding import Finding
    from astra.element.page_outcome import PageOutcome
    from astra.plan.pages import PageStatus
    from astra.plan.plan import Planned
    from astra.plan.sizes import Estimate
    from astra.plan.spool import Recovered
    from astra.report.report import Report
    from astra.resume.cancel import Cancelled
    from astra.resume.pause_and_throttle import Control
    from astra.status.failures import FailedRow, FailureKind
    from astra.status.logs import Log
    from astra.status.plans import PlanLine
    from astra.status.status import PlanStatus
    from astra.status.verdict import Verdict
    from astra.submit.submit import Submitted

#: A terminal wraps; what goes to a file or another program keeps its columns.
console = Terminal(soft_wrap=True, width=None if sys.stdout.isatty() else 200)

_errors = Terminal(soft_wrap=True, stderr=True)


def as_json(value: object) -> None:
    """Print a dataclass, or a list of them, as JSON on standard output."""
    json_output.write(json.dumps(_plain(value), default=str, indent=2))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return hide(value) if isinstance(value, str) else value


def escape(text: str) -> str:
    """Escape a text so that rich prints it literally, without control characters."""
    return escape_markup(printable(text))


def line(text: str) -> None:
    console.print(escape(hide(text)))


def error(text: str) -> None:
    _errors.print(f"[bold red]astra:[/] {escape(hide(text))}")


def note(text: str) -> None:
    """Print a note on standard error, apart from the output that programs read."""
    _errors.print(escape(hide(text)))


def coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else escape(state)


def planned(plans: Iterable[Planned]) -> None:
    for plan in plans:
        if plan.plan is None:
            why = ", which has no rows" if plan.is_empty else ""
            line(f"{plan.task}: nothing is pending in {plan.input_model}{why}; no plan was made")
        else:
            line(
                f"plan {plan.plan}: {plan.task} on {plan.input_model}, "
                f"{count(plan.rows, 'row')} in {count(plan.pages, 'page')} of {plan.limit:,}"
            )
        if not plan.tracks_changes:
            line(
                f"  no column of {plan.input_model} says when a row was modified (Meta.modified): "
                "a row is pending until it has a result, and pages follow the order of the keys"
            )
        if plan.unknown_keys:
            n = count(len(plan.unknown_keys), "key")
            line(
                f"  {n} without a row in {plan.input_model}: {api.keys_as_text(plan.unknown_keys)}"
            )
        if plan.held:
            several = len(plan.live_plans) > 1
            name = "PLAN" if several else str(*plan.live_plans)
            line(
                f"  left out: {count(plan.held, 'row')} of active "
                f"{'plans' if several else 'plan'} {api.keys_as_text(plan.live_plans)}: see astra "
                f"status {name}; astra cancel {name} releases its rows"
            )
        if plan.failed or plan.no_result:
            ended = f" ({plan.quarantined:,} by ending their process)" if plan.quarantined else ""
            parts = [f"{count(plan.failed, 'row')} that failed{ended}"] if plan.failed else []
            nothing = f"{count(plan.no_result, 'row')} for which the task yielded no result"
            parts += [nothing] if plan.no_result else []
            line(f"  left out: {' and '.join(parts)}, not modified since (--again takes them)")
        if plan.plan is None and not plan.is_empty:
            line(
                "  --redo changed takes rows whose results were made with other arguments, files "
                "or code; --redo all also takes rows with an up-to-date result"
            )


def submitted(submission: Submitted) -> None:
    if submission.dry_run:
        for job in submission.jobs:
            line(f"# {' '.join(job.command)}   (array {job.array}, {count(job.pages, 'page')})")
            # Unchanged: a script that contains a password is never rendered.
            console.print(escape(job.text or ""))
        line(f"dry run: nothing was stored or submitted ({count(submission.pages, 'page')})")
        return
    for job in submission.jobs:
        line(f"job {job.job_id}: array {job.array}, {count(job.pages, 'page')}, {job.script}")
    for left in submission.left:
        line(f"{count(len(left.pages), 'page')} {left.state}: {left.explanation}; {left.remedy}")
    if submission.pages:
        line(
            f"plan {submission.plan}: {count(submission.pages, 'page')} submitted, "
            f"{count(submission.rows, 'row')} pending; astra status {submission.plan}"
        )
    else:
        line(f"plan {submission.plan}: nothing to submit")
        if submission.message and not submission.unsubmitted:
            line(f"  {submission.message}")
    if submission.skipped:
        states = ", ".join(f"{n:,} {state}" for state, n in sorted(submission.skipped.items()))
        line(f"  not touched: {states}")
    if PageState.UNKNOWN.value in submission.skipped:
        line(
            "  Slurm does not say whether the elements of pages that are unknown have ended: "
            f"astra resume {submission.plan}   again, when it answers"
        )
    if "held" in submission.skipped:
        line(f"  Slurm holds back the held pages: astra status {submission.plan}   says why")
    if submission.unsubmitted:
        line(f"  not submitted: {count(submission.unsubmitted, 'page')}: {submission.message}")


def nothing_submitted(planned: Planned | None) -> dict[str, object]:
    """Return a task without pending rows as a submission of no pages, for JSON."""
    return {"plan": None, "task": planned and planned.task, "pages": 0, "rows": 0, "jobs": []}


def cancelled(result: Cancelled) -> None:
    if result.whole:
        line(f"plan {result.plan}: every row has ended; there is nothing to cancel")
        return
    ended = [f"job {job}" for job in result.jobs] + [f"process {pid}" for pid in result.processes]
    nothing = "no element was running"
    if result.rows_held:
        nothing = "no element could be asked to stop from here; they end at their next checkpoint"
    line(f"plan {result.plan}: {', '.join(ended) if ended else nothing}")
    if ended:
        pages = ", ".join(map(str, result.pages))
        which = f" (page{'s' if len(result.pages) > 1 else ''} {pages})" if result.pages else ""
        stored = "" if result.rows_held else "; what they yielded is stored"
        line(f"  asked to stop{which}{stored}")
    elif result.pages:
        line(f"  page {result.pages[0]} belongs to no element any more: astra resume {result.plan}")
    if result.rows_freed:
        line(f"  {count(result.rows_freed, 'row')} can be planned again")
    if result.rows_held:
        then = f"they can be planned when it has; astra cancel {result.plan} checks again"
        if result.pages:
            then = f"astra status {result.plan} shows whether it has ended"
        held = count(result.rows_held, "row")
        line(f"  {held} in pages whose element has not recorded its end yet: {then}")


def controls(changed: Sequence[Control]) -> None:
    if not changed:
        line("no plan has pending rows: nothing was changed")
    for control in changed:
        state = f"paused ({control.reason})" if control.paused else "not paused"
        limit = control.throttle and f"; at most {count(control.throttle, 'element')} at once"
        line(f"plan {control.plan}: {state}{limit or ''}; {count(control.running, 'page')} running")
        new = control.submitted
        if new is not None and (new.pages or new.exit_status):
            submitted(new)


def counts(plan: PlanStatus) -> tuple[str, str]:
    """Return the rows and the pages of a plan by state, as markup."""
    rows = " + ".join(f"{n:,} {coloured(state)}" for state, n in plan.rows.items())
    pages = ", ".join(f"{n:,} {coloured(state)}" for state, n in sorted(plan.pages.items()))
    state = coloured(plan.state.value)
    return f"{state}: {rows} = {count(plan.n_rows, 'row')}", f"pages: {pages}"


def status(plan: PlanStatus, every_page: bool = False) -> None:
    line(f"plan {plan.plan}: {plan.task} on {plan.input_model}")
    rows, pages = counts(plan)
    console.print(f"  {rows}\n  {pages} of {plan.n_pages:,}")
    if every_page:
        page_table(plan.elements).print(console)
    elif n_shown := sum(n for s, n in plan.pages.items() if s not in ("done", "unsubmitted")):
        shown = set(PageState) - {PageState.DONE, PageState.UNSUBMITTED}
        page_table(islice(plan.in_states(shown), 20)).print(console)
        if n_shown > 20:
            line(f"  ... and {n_shown - 20:,} pages more (--pages)")
    if plan.refused:
        many = count(plan.refused, "further result")
        line(f"  {many} of rows that have one: astra failures {plan.plan}")
    for step in plan.steps:
        line(f"  {count(len(step.pages), 'page')} {step.state}: {step.explanation}")
    for note in plan.notes:
        console.print(f"  [magenta]note:[/] {escape(hide(note))}")
    next_commands(plan)


def next_commands(plan: PlanStatus) -> None:
    if plan.advice:
        line("next:")
        for advice in plan.advice:
            line(f"  {advice}")


def verdict(result: Verdict) -> None:
    word = "[bold green]consistent[/]" if result.sound else "[bold red]inconsistent[/]"
    line(f"plan {result.plan}: {result.task}")
    names = {"result": "done", "failure": "failed", "no_result": "no result"}  # as status has them
    rows = " + ".join(f"{n:,} {names.get(name, name)}" for name, n in result.rows.items() if n)
    of_all = f"{rows} of {count(result.n_rows, 'row')}" if rows else "no row was checked"
    sums = f"{of_all}, {count(result.n_pages, 'page')}, {count(result.n_attempts, 'attempt')}"
    console.print(f"  {word}: {sums}")
    if not result.whole:
        n_pending = result.n_rows - sum(n for name, n in result.rows.items() if name != "pending")
        pending = f"{count(n_pending, 'row')} pending" if rows else "its rows are not counted"
        line(f"  not whole: {pending} (astra status)")
    for n, condition in (
        (result.modified_since, "modified since the result, and pending again"),
        (
            result.of_others,
            "whose current result or failure comes from another plan or a direct call",
        ),
        (result.inputs_gone, "deleted since the result"),
    ):
        if n:
            line(f"  {count(n, 'row')} {condition}")
    for check, n in result.checks.items():
        known = api.CHECKS[check]
        console.print(f"[red]{check}[/]: {count(n, 'breach').replace('breachs', 'breaches')}")
        line(f"  {known['meaning']}")
        remedy = known["remedy"].replace("PLAN", str(result.plan)).replace("TASK", result.task)
        line(f"  what to do: {remedy}")
        shown = [b for b in result.breaches if b.check == check]
        for breach in shown:
            place = [f"page {breach.page}"] if breach.page is not None else []
            place += [f"key {breach.key}"] if breach.key is not None else []
            line(f"    {', '.join(place) or 'plan'}: {breach.problem}")
        if n > len(shown):
            line(f"    ... and {n - len(shown):,} more")


def page_table(pages: Iterable[PageStatus]) -> Listing:
    table = Listing(
        "page>", "state", "rows>", "left>", "element", "node", "slurm", "exit", "last seen",
        out="exit, rows, slurm, node, element", enough=60,
    )  # fmt: skip
    for p in pages:
        exit_code = "" if p.exit_code is None else f"{p.exit_code}:{p.signal or 0}"
        last_seen = written_moment(p.seen) if p.seen else ""
        state, reason = p.slurm_state, p.reason
        slurm = f"{state} ({reason})" if state and reason else state or reason
        if p.overdue:
            last_seen += " (overdue)"
        table.add(
            str(p.page), p.state, p.rows, p.pending, p.job, p.node, slurm, exit_code,
            f"{last_seen} {p.message or ''}".strip(),
        )  # fmt: skip
    return table


def no_plan_matches() -> None:
    line("no plan matches these options: astra plans")


def plans(listed: Sequence[PlanLine], as_csv: bool = False, filtered: bool = False) -> None:
    if not listed and not as_csv:
        no_plan_matches() if filtered else line("there is no plan yet: astra plan TASK")
        return
    table = Listing(
        "plan>", "task", "input", "created", "by", "pages>", "rows>", "done>", "failed>",
        "no result>", "left>", "", out="by, input, pages, no result, created, failed, done",
    )  # fmt: skip
    for p in listed:
        table.add(
            str(p.plan), p.task, p.input_model, p.created, p.by, p.pages,
            p.rows, p.done, p.failed, p.no_result, p.pending, "cancelled" if p.cancelled else "",
        )  # fmt: skip
    table.print(console, as_csv)


def failures(
    plan: int,
    kinds: Iterable[FailureKind],
    rows: Sequence[FailedRow],
    with_traceback: bool,
    as_csv: bool = False,
) -> None:
    if not rows and not as_csv:
        line(f"no row failed; if pages are broken, astra status {plan} shows why")
        return
    for kind in () if as_csv else kinds:
        keys = ", ".join(map(str, kind.keys[:10])) + (" ..." if len(kind.keys) > 10 else "")
        console.print(
            f"[red]{escape(kind.exception)}[/]: {escape(hide(_first_line(kind.message)))}"
        )
        line(f"  {count(kind.rows, 'row')}: {keys}")
        if kind.place:
            line(f"  {kind.place}")
        line(f"  astra try {plan} {quote(str(kind.keys[0]))}   runs the task on one of them here")
    table = Listing("key>", "page>", "exception", "times>", "message", out="times, page", enough=60)
    for row in rows:
        message = _first_line(f"{row.since or ''} {row.message}".strip())
        table.add(str(row.key), str(row.page or ""), row.exception, str(row.times), message)
    table.print(console, as_csv)
    if with_traceback:
        for row in rows:
            console.rule(f"{row.key}")
            line(row.traceback or "no traceback: the result was refused by the database")


def logs(listed: Iterable[Log], as_csv: bool = False) -> None:
    table = Listing("page>", "attempt>", "state", "element", "node", "log", out="node, element")
    for log in listed:
        table.add(str(log.page), str(log.attempt), log.state, log.job, log.host, log.path)
    table.print(console, as_csv)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def finding(checked: Finding) -> None:
    """Print a line of ``astra doctor``, and its remedy below it."""
    colour = {"ok": "green", "warning": "yellow", "failed": "bold red"}[checked.state]
    console.print(f"[{colour}]{checked.state:7}[/] {escape(f'{checked.part}: {checked.message}')}")
    if checked.remedy:
        line(f"        {checked.remedy}")


def configuration(settings: Config) -> None:
    table = Listing("key", "value", "from", out="from")
    for key, value, source in settings.rows():
        table.add(key, str(value), source)
    table.print(console)


def page_run(run: PageOutcome) -> None:
    for text in run.lines():
        line(text)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress as a bar on a terminal, and as lines in a file."""
    if not console.is_terminal:
        yield _line_progress(title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task(title, total=None)

    def report(ended: int, rows: int) -> None:
        bar.start()  # not before: what is refused leaves no empty bar
        bar.update(task, completed=ended, total=rows)

    try:
        yield report
    finally:
        bar.stop()


def _line_progress(title: str) -> Callable[[int, int], None]:
    last = [-1]

    def report(ended: int, rows: int) -> None:
        tenth = ended * 10 // rows if rows else 10
        if tenth != last[0]:
            last[0] = tenth
            print(f"{title}: {ended:,} of {rows:,} rows", flush=True)

    return report


def reported(report: Report, file: Path | str, size: int) -> None:
    console.print(f"{coloured(report.kind.value)}: {escape(report.verdict)}")
    line(f"{file} ({size / 1000:,.0f} kB)")
    for advice in report.next:
        line(f"  {advice}")


def recovered(result: Recovered) -> None:
    if not (result.files or result.set_aside or result.kept):
        line(f"plan {result.plan}: no spool file, nothing to store")
        return
    line(
        f"plan {result.plan}: {count(result.rows, 'row')} stored from "
        f"{count(result.files, 'spool file')}, {result.passed_over:,} not needed"
        + (f", {result.refused:,} refused: astra failures {result.plan}" if result.refused else "")
    )
    for path in result.set_aside:
        line(f"  no longer valid, its rows are computed again: {path}")
    for path in result.kept:
        line(f"  kept, because the table refuses its results: {path}")


def estimated(estimates: Iterable[Estimate]) -> None:
    for size in estimates:
        line(f"{size.task} on {size.input_model}: for elements of about {duration(size.target_s)}")
        each = f" x {size.pages_per_element} pages" if size.pages_per_element > 1 else ""
        expected = "" if size.element_s is None else f", expected {duration(size.element_s)} each"
        line(
            f"  rows per page  {size.limit:,}{each}: {count(size.pending, 'row')} pending in "
            f"{count(size.pages, 'page')}, {count(size.elements, 'element')}{expected}"
        )
        if past := size.experience:
            line(
                f"  --time         {size.time}: 1.25 x (start {duration(past.start_s_upper)} + "
                f"{duration(past.row_s_upper)} a row, 95 % of pages are below, + the slowest row "
                f"of 1,000, {duration(past.row_s_p999)})"
            )
            line(
                f"  --mem          {size.mem}: 1.25 x {past.mem_mb_upper:,.0f} MB, 95 % of "
                "processes are below, + 64 MB"
            )
            plans = ", ".join(map(str, past.plans[-5:]))
            line(
                f"  from           {size.source}: {count(past.attempts, 'attempt')} of "
                f"{'plan' if len(past.plans) == 1 else 'plans'} {plans}, "
                f"{count(past.rows, 'row')}"
            )
            line(
                f"  a row          {duration(past.row_s)} (the task: median "
                f"{duration(past.row_s_p50)}, 95 % {duration(past.row_s_p95)}; reading "
                f"{duration(past.read_s)}, writing {duration(past.write_s)})"
            )
            line(f"  a start        {duration(past.start_s)}")
        else:
            line("  --time, --mem  as the profile has them")
        for note in size.notes:
            line(f"  note: {note}")


def how_to_submit(plans: Iterable[tuple[Planned, Estimate | None]]) -> None:
    """Print the commands that submit plans, with the limits that were chosen for them."""
    local = ["--local"] if api.is_database_file(api.database_url()) else []
    for plan, size in plans:
        if plan.plan is not None:
            limits = [f"--time {size.time}", f"--mem {size.mem}"] if size and size.time else []
            line(f"  next: {' '.join(['astra submit', str(plan.plan), *limits, *local])}")
