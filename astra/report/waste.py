"""Find slow or wasteful parts: unused limits, repeated work, time outside of the task."""

from collections.abc import Iterator

import numpy as np

from astra.report.attempts import Attempts, Histogram
from astra.report.format import amount, count, percent, unbroken
from astra.report.usage import Efficiency, Gauge

#: Below these shares of what was asked for, asking for less is worth while.
_LITTLE = {"CPU": 0.5, "memory": 0.5, "time": 0.25}

_ASK_FOR_LESS = {
    "CPU": "fewer cpus_per_task leave more for other elements",
    "memory": "with less mem, more elements run at once",
    "time": "with a shorter time, elements start earlier",
}

#: Above this share an element may be ended by its limit.
_NEARLY_ALL = 0.9

#: Above this share of the time of attempts, reading and writing are worth a look.
_MUCH_TRANSFER = 0.3

#: If the slowest page takes this many times as long as the median, others wait for it.
_STRAGGLES = 4

#: What took less time than this is neither slow nor wasted.
_WORTH_S = 60.0


def wasted(
    used: Efficiency | None, attempts: Attempts, page_times: Histogram | None
) -> Iterator[str]:
    """Yield a sentence about each thing that was wasted, slow, or nearly failed."""
    for gauge in used.gauges if used else ():
        yield from _on_gauge(gauge)
    again = attempts.number > 1
    if n := int(np.count_nonzero(again)):
        were = ("were", "their", "they") if n > 1 else ("was", "its", "it")
        which = "{} not the first at {} page; {}".format(*were)
        spent = unbroken(float(attempts.task_s[again].sum()))
        yield f"{count(n)} of {count(attempts.n)} attempts {which} spent {spent} in the task."
    transfer, task = (
        float(attempts.read_s.sum() + attempts.write_s.sum()),
        float(attempts.task_s.sum()),
    )
    if transfer > _WORTH_S and transfer > _MUCH_TRANSFER * (transfer + task):
        yield (
            f"Reading and writing took {unbroken(transfer)}, "
            f"{percent(transfer / (transfer + task))} of the time of attempts; "
            f"the task took {unbroken(task)}."
        )
    longest = page_times.maximum if page_times and page_times.n > 2 else 0.0
    if page_times and longest > max(_WORTH_S, _STRAGGLES * page_times.median):
        yield (
            f"The slowest page took {unbroken(longest)}, the median page "
            f"{unbroken(page_times.median)}: with smaller pages the plan ends sooner."
        )


def _on_gauge(gauge: Gauge) -> Iterator[str]:
    name = gauge.name[0].upper() + gauge.name[1:]
    amounts = f"{amount(gauge.used, gauge.unit)} of {amount(gauge.requested, gauge.unit)}"
    if gauge.share < _LITTLE[gauge.name]:
        phrase = "were used" if gauge.name == "CPU" else "was the most that an element used"
        yield f"{name}: {percent(gauge.share)} ({amounts}) {phrase}; {_ASK_FOR_LESS[gauge.name]}."
    elif gauge.name != "CPU" and gauge.maximum > _NEARLY_ALL:
        yield (
            f"{name}: an element used {percent(gauge.maximum)} ({amounts}); request more, so that "
            "no element is ended by this limit."
        )
