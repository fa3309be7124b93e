"""Show the sizes that were estimated for pages and elements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from astra import api
from astra.cli.show import count, line

if TYPE_CHECKING:
    from astra.plan.plan import Planned
    from astra.plan.sizes import Estimate


def estimated(estimates: Iterable[Estimate]) -> None:
    for size in estimates:
        line(f"{size.task} on {size.input_model}: for elements of about {_duration(size.target_s)}")
        each = f" x {size.pages_per_element} pages" if size.pages_per_element > 1 else ""
        expected = "" if size.element_s is None else f", expected {_duration(size.element_s)} each"
        line(
            f"  rows per page  {size.limit:,}{each}: {count(size.pending, 'row')} pending in "
            f"{count(size.pages, 'page')}, {count(size.elements, 'element')}{expected}"
        )
        if past := size.experience:
            line(
                f"  --time         {size.time}: 1.25 x (start {_duration(past.start_s_upper)} + "
                f"{_duration(past.row_s_upper)} a row, 95 % of pages are below, + the slowest row "
                f"of 1,000, {_duration(past.row_s_p999)})"
            )
            line(
                f"  --mem          {size.mem}: 1.25 x {past.mem_mb_upper:,.0f} MB, 95 % of "
                "processes are below, + 64 MB"
            )
            plans = ", ".join(map(str, past.plans[-5:]))
            line(
                f"  from           {size.source}: {count(past.attempts, 'attempt')} of plan "
                f"{plans}, {count(past.rows, 'row')}"
            )
            line(
                f"  a row          {_duration(past.row_s)} (the task: median "
                f"{_duration(past.row_s_p50)}, 95 % {_duration(past.row_s_p95)}; reading "
                f"{_duration(past.read_s)}, writing {_duration(past.write_s)})"
            )
            line(f"  a start        {_duration(past.start_s)}")
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


def _duration(seconds: float) -> str:
    """Write a duration with its unit.

    >>> _duration(0.00012), _duration(0.25), _duration(12.34), _duration(5400), _duration(200000)
    ('120 us', '250 ms', '12.3 s', '1 h 30 min', '55 h 33 min')
    """
    for bound, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s")):
        if seconds < bound:
            return f"{seconds * factor:.3g} {unit}"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
