"""Show a running plan live."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from astra.cli.listing import Terminal
from astra.cli.show import (
    _COLOURS,
    _page_table,
    _sum,
    coloured,
    console,
    count,
    error,
    escape,
    line,
)
from astra.config.secrets import hide
from astra.states import PageState

if TYPE_CHECKING:
    from astra.night.dashboard import Dashboard, Look
    from astra.status.status import PlanStatus
    from astra.status.watch import Watched


def watched(looks: Iterator[Watched]) -> PlanStatus:
    """Show each look at a plan until there are no more, or Ctrl-C; the last one.

    In a terminal on a screen of its own, which leaves what was there as it was; elsewhere a line
    whenever something has changed.
    """
    last, said = None, None
    try:
        with _stopped_by_signals(), _screen() as draw:
            for look in looks:
                last = look
                if draw is not None:
                    draw(look)
                elif (now := _watched_line(look)) != said:
                    said = now
                    line(f"{datetime.fromtimestamp(look.at):%H:%M:%S} {now}")
    except KeyboardInterrupt:
        pass
    if last is None:
        sys.exit(130)
    return last.status


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: the terminal is left as it was."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_pages(dashboard: Dashboard, every_s: float) -> None:
    """Look after a folder of pages until Ctrl-C or SIGTERM, which the index says then."""
    from astra.api import keep_dashboard

    def wait() -> bool:
        time.sleep(every_s)
        return True

    try:
        with _stopped_by_signals():
            for look in keep_dashboard(dashboard, wait):
                pages(look)
    except KeyboardInterrupt:
        at = datetime.now().astimezone()
        dashboard.say(f"Nobody looks after these pages since {at:%Y-%m-%d %H:%M:%S %Z}.")


def pages(look: Look) -> None:
    """Print what a look at a folder of pages changed, if anything."""
    for what, names in (("written", look.written), ("removed", look.removed)):
        if names:
            line(f"{datetime.now():%H:%M:%S} {what}: {', '.join(names)}")
    for problem in look.problems:
        error(problem)


@contextmanager
def _screen() -> Iterator[Callable[[Watched], None] | None]:
    """Yield a function that draws a look; None without a terminal."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    from rich.live import Live

    own = Terminal(highlight=False)
    with Live(console=own, screen=True, auto_refresh=False, transient=True) as live:
        yield lambda look: live.update(_watched(look, own), refresh=True)


def _watched_line(look: Watched) -> str:
    found = look.status
    rows = " + ".join(f"{n:,} {state}" for state, n in found.rows.items())
    return f"plan {found.plan} {found.state.value}: {rows} = {count(found.n_rows, 'row')}"


def _watched(look: Watched, own: Terminal) -> Group:
    """Lay out one look as a screen that is not higher than the terminal."""
    found, width = look.status, own.width
    rate = "" if look.rows_per_s is None else f"{look.rows_per_s:,.1f} rows/s"
    left = "" if look.left_s is None else f", {timedelta(seconds=round(look.left_s))} to go"
    parts: list[RenderableType] = [
        Text.from_markup(
            f"[bold]plan {found.plan}: {escape(found.task)}[/] on {escape(found.input_model)}"
        ),
        Text.from_markup(f"{coloured(found.state.value)}: {_sum(found)}"),
        _bar(found.rows, found.n_rows, width),
        Text.from_markup(
            "pages: " + ", ".join(f"{n:,} {coloured(s)}" for s, n in sorted(found.pages.items()))
        ),
        _bar(found.pages, found.n_pages, width),
        Text(f"{rate}{left}"),
    ]
    foot: list[RenderableType] = [
        Text.from_markup(f"[magenta]note:[/] {escape(hide(n))}") for n in found.notes
    ]
    foot += [Text(f"next: {hide(advice)}") for advice in found.advice]
    at = f"{datetime.fromtimestamp(look.at):%H:%M:%S}"
    foot.append(Text(f"{at}  Ctrl-C leaves; the plan goes on", style="dim"))
    room = own.height - len(parts) - len(foot) - 4
    quiet = {PageState.DONE, PageState.UNSUBMITTED, PageState.WAITING}
    shown = list(found.in_states(set(PageState) - quiet))
    shown.sort(key=lambda page: page.state.value == "running")  # what is stuck comes first
    if room > 0 and shown:
        parts.append(_page_table(shown[:room], own.width))
        if len(shown) > room:
            parts.append(Text(f"... and {len(shown) - room:,} pages more", style="dim"))
    for part in [parts[0], *parts[2:], *foot]:  # the sum of the rows may take two lines
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts, *foot)


def _bar(counts: Mapping[str, int], total: int, width: int) -> Text:
    """Return a bar of this width, divided by state; no state is left out."""
    bar, at = Text(), 0
    known = sorted((s for s, n in counts.items() if n), key=lambda s: (s != "done", s))
    for place, state in enumerate(known):
        ahead = len(known) - place - 1
        share = round(counts[state] / max(total, 1) * width)
        n = width - at if not ahead else min(max(share, 1), width - at - ahead)
        bar.append("█" * n, style=_COLOURS.get(state, "white"))
        at += n
    return bar
