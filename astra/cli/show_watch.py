"""Show a running plan live."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from astra import api
from astra.cli.listing import COLOURS, Terminal
from astra.cli.show import (
    console,
    counts,
    error,
    escape,
    line,
    page_table,
)
from astra.config.secrets import hide
from astra.errors import count
from astra.states import PageState

if TYPE_CHECKING:
    from astra.night.dashboard import Dashboard, Update
    from astra.status.status import PlanStatus
    from astra.status.watch import Watched


def watched(updates: Iterator[Watched]) -> PlanStatus:
    """Show each update of a plan until the last one, or Ctrl-C; return the last status.

    In a terminal, updates are drawn on the alternate screen; elsewhere a line is printed whenever
    something has changed.
    """
    last, printed = None, None
    try:
        with _stopped_by_signals(), _screen() as draw:
            for update in updates:
                last = update
                if draw is not None:
                    draw(update)
                elif (now := _watched_line(update)) != printed:
                    printed = now
                    line(f"{_clock(update.at)} {now}")
    except KeyboardInterrupt:
        pass
    if last is None:
        sys.exit(130)
    return last.status


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that the terminal is restored."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_pages(dashboard: Dashboard, every_s: float) -> None:
    """Keep a folder of pages up to date until Ctrl-C or SIGTERM."""
    with suppress(KeyboardInterrupt), _stopped_by_signals():
        for update in api.keep_dashboard(dashboard):
            pages(update)
            time.sleep(every_s)


def pages(update: Update) -> None:
    """Print which pages an update has changed, if any."""
    for action, names in (("written", update.written), ("removed", update.removed)):
        if names:
            line(f"{_clock(time.time())} {action}: {', '.join(names)}")
    for problem in update.problems:
        error(problem)


@contextmanager
def _screen() -> Iterator[Callable[[Watched], None] | None]:
    """Yield a function that draws an update; None without a terminal."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    from rich.live import Live

    screen = Terminal()
    with Live(console=screen, screen=True, auto_refresh=False, transient=True) as live:
        yield lambda update: live.update(_watched(update, screen), refresh=True)


def _watched_line(update: Watched) -> str:
    status = update.status
    rows = " + ".join(f"{n:,} {state}" for state, n in status.rows.items())
    return f"plan {status.plan} {status.state.value}: {rows} = {count(status.n_rows, 'row')}"


def _watched(update: Watched, screen: Terminal) -> Group:
    """Lay out one update as a screen that is not higher than the terminal."""
    status, width = update.status, screen.width
    rate = "" if update.rows_per_s is None else f"{update.rows_per_s:,.1f} rows/s"
    time_left = (
        "" if update.left_s is None else f", {timedelta(seconds=round(update.left_s))} to go"
    )
    title = f"[bold]plan {status.plan}: {escape(status.task)}[/] on {escape(status.input_model)}"
    rows, pages = counts(status)
    parts: list[RenderableType] = [
        screen.render_str(title),
        screen.render_str(rows),
        _bar(status.rows, status.n_rows, width),
        screen.render_str(pages),
        _bar(status.pages, status.n_pages, width),
        Text(f"{rate}{time_left}"),
    ]
    foot = [screen.render_str(f"[magenta]note:[/] {escape(hide(note))}") for note in status.notes]
    foot += [Text(f"next: {hide(advice)}") for advice in status.advice]
    foot.append(Text(f"{_clock(update.at)}  Ctrl-C exits; the plan continues", style="dim"))
    room = screen.height - len(parts) - len(foot) - 4
    quiet = {PageState.DONE, PageState.UNSUBMITTED, PageState.WAITING}
    shown = list(status.in_states(set(PageState) - quiet))
    shown.sort(key=lambda page: page.state.value == "running")  # what is stuck comes first
    if room > 0 and shown:
        parts.append(page_table(shown[:room]).fitted(width)[0])
        if len(shown) > room:
            parts.append(Text(f"... and {len(shown) - room:,} pages more", style="dim"))
    for part in [parts[0], *parts[2:], *foot]:  # the sum of the rows may take two lines
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts, *foot)


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S %Z}"


def _bar(counts: Mapping[str, int], total: int, width: int) -> Text:
    """Return a bar of this width, divided by state; no state is left out."""
    bar, at = Text(), 0
    known = sorted((s for s, n in counts.items() if n), key=lambda s: (s != "done", s))
    for place, state in enumerate(known):
        ahead = len(known) - place - 1
        share = round(counts[state] / max(total, 1) * width)
        n = width - at if not ahead else min(max(share, 1), width - at - ahead)
        bar.append("█" * n, style=COLOURS.get(state, "white"))
        at += n
    return bar
