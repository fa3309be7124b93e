"""Show the sizes that were estimated for pages and elements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from astra.cli.show import count, line

if TYPE_CHECKING:
    from astra.plan.plan import Planned
    from astra.plan.sizes import Estimate


def estimated(found: Iterable[Estimate]) -> None:
    for one in found:
        line(f"{one.task} on {one.input_model}: for elements of about {_duration(one.target_s)}")
        each = f" x {one.pages_per_element} pages" if one.pages_per_element > 1 else ""
        expected = "" if one.element_s is None else f", expected {_duration(one.element_s)} each"
        line(
            f"  rows per page  {one.limit:,}{each}: {count(one.pending, 'row')} pending in "
            f"{count(one.pages, 'page')}, {count(one.elements, 'element')}{expected}"
        )
        if had := one.experience:
            line(
                f"  --time         {one.time}: 1.25 x (start {_duration(had.start_s_upper)} + "
                f"{_duration(had.row_s_upper)} a row, 95 % of pages are below, + the slowest row "
                f"of 1,000, {_duration(had.row_s_p999)})"
            )
            line(
                f"  --mem          {one.mem}: 1.25 x {had.mem_mb_upper:,.0f} MB, 95 % of processes "
                "are below, + 64 MB"
            )
            plans = ", ".join(map(str, had.plans[-5:]))
            line(
                f"  from           {one.source}: {count(had.attempts, 'attempt')} of plan {plans}, "
                f"{count(had.rows, 'row')}"
            )
            line(
                f"  a row          {_duration(had.row_s)} (the task: median "
                f"{_duration(had.row_s_p50)}, 95 % {_duration(had.row_s_p95)}; reading "
                f"{_duration(had.read_s)}, writing {_duration(had.write_s)})"
            )
            line(f"  a start        {_duration(had.start_s)}")
        else:
            line("  --time, --mem  as the profile has them")
        for note in one.notes:
            line(f"  note: {note}")


def sized(plans: Iterable[tuple[Planned, Estimate]]) -> None:
    """Print the commands that submit plans whose sizes were chosen."""
    for plan, found in plans:
        if plan.plan is not None:
            options = [f"--time {found.time}", f"--mem {found.mem}"] if found.time else []
            line(f"  {' '.join(['astra submit', str(plan.plan), *options])}")


def _duration(seconds: float) -> str:
    """
    >>> _duration(0.00012), _duration(0.25), _duration(12.34), _duration(5400), _duration(200000)
    ('120 us', '250 ms', '12.3 s', '1 h 30 min', '55 h 33 min')
    """
    for bound, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s")):
        if seconds < bound:
            return f"{seconds * factor:.3g} {unit}"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
