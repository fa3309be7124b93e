"""Show nights on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from astra.cli.listing import Listing
from astra.cli.show import coloured, console, escape, line
from astra.config.units import written_moment
from astra.errors import count

if TYPE_CHECKING:
    from astra.night.clean import Cleaned
    from astra.night.history import NightStatus
    from astra.night.nightly import Nightly


def nightly(result: Nightly) -> None:
    night = f"night {result.night} of {result.name}" if result.night else f"night {result.name}"
    parts = [f"{night}: {result.state}"]
    if result.plans:
        numbers = ", ".join(map(str, result.plans))
        parts.append(
            f"plan{'s' if len(result.plans) > 1 else ''} {numbers}, {count(result.rows, 'row')}"
        )
    if result.finalizer and result.state in ("begun", "joined", "running"):
        parts.append(f"finalizer {result.finalizer}")
    line("; ".join(parts))
    if result.message:
        line(f"  {result.message}")


def healed(nights: Sequence[Nightly]) -> None:
    if not nights:
        line("every night that is open has a finalizer")
    for night in nights:
        found = f"it has a new finalizer, job {night.finalizer}"
        if night.state == "without a finalizer":
            found = f"it could not be given a finalizer: {night.message}"
        line(f"night {night.night} of {night.name}: {found}")


def nights(listed: Sequence[NightStatus], as_csv: bool = False) -> None:
    if not listed and not as_csv:
        line("no night has begun yet: astra nightly NAME")
        return
    table = Listing(
        "night>", "name", "state", "began", "ended", "rows>", "results>", "failures>",
        "no result>", "left>", "retries>", "CPU hours>",
        out="CPU hours, retries, no result, ended, results, failures, left",
    )  # fmt: skip
    for n in listed:
        table.add(
            str(n.night), n.name, n.state, n.began, n.ended, n.rows, n.results,
            n.failures, n.no_result, n.pending, n.retries, n.cpu_h,
        )  # fmt: skip
    table.print(console, as_csv)
    latest = {n.name: n for n in reversed(listed)}.values()
    commands = [
        f"astra nights {n.name} {n.night}   shows what to type"
        for n in latest
        if n.state not in ("whole", "running")
    ]
    if commands and not as_csv:
        line("\n  ".join(["next:", *commands]))


def night(shown: NightStatus) -> None:
    ended = written_moment(shown.ended) if shown.ended else "now"
    console.print(
        f"night {shown.night} of {escape(shown.name)}, {written_moment(shown.began)} to {ended}: "
        f"{coloured(shown.state)}"
    )
    line(
        f"  {shown.results:,} results + {shown.failures:,} failed + {shown.no_result:,} no result "
        f"+ {shown.pending:,} left = {count(shown.rows, 'row')}; {shown.retries:,} retries in "
        f"{count(shown.rounds, 'round')}; {shown.cpu_h:,.2f} CPU hours"
    )
    table = Listing("plan>", "task", "rows>", "results>", "failed>", "no result>", "left>", "", "",
                    out="no result, results, failed")  # fmt: skip
    for p in shown.plans:
        result = p.message or ("whole" if p.whole else "not whole" if p.pending else "failed rows")
        note = "" if p.kept or p.plan is None else "cleaned away"
        table.add(
            str(p.plan or ""), p.task, p.rows, p.results, p.failures, p.no_result, p.pending,
            result, "of an earlier night" if p.leftover else note,
        )  # fmt: skip
    table.print(console)
    for way, result in shown.notified.items():
        line(f"  notification by {way}: {result}")
    if shown.message:
        if shown.ended:
            line("when it ended:")
        for part in shown.message.split("; "):
            line(f"  {part}")
        if shown.ended and all(p.whole for p in shown.plans):
            line("since then, every row has ended, and none failed")
    if shown.state == "whole":
        return
    plans = [p for p in shown.plans if p.kept]
    commands = [
        f"astra status {p.plan}   shows its pages" for p in plans if p.pending and not p.message
    ]
    commands += [f"astra failures {p.plan}   shows which rows failed" for p in plans if p.failures]
    if shown.state == "without a finalizer":
        commands.insert(0, f"astra nights {shown.name} --heal   gives it a new finalizer")
    if commands:
        line("\n  ".join(["next:", *commands]))


def cleaned(result: Cleaned) -> None:
    parts = (
        f"{count(len(result.plans), 'plan')} ({count(result.pages, 'page')}, "
        f"{count(result.attempts, 'attempt')}), {count(len(result.nights), 'night')}, "
        f"{count(len(result.folders), 'folder')} of {result.mb:,.1f} MB"
    )
    removed = "would be removed" if result.dry_run else "removed"
    line(f"inactive since {written_moment(result.before)}: {parts} {removed}")
    for reason in result.kept:
        line(f"  kept: {reason}")
    if result.compressed:
        were = "was" if len(result.compressed) == 1 else "were"
        packed = f"{count(len(result.compressed), 'folder')} of plans that stay"
        line(f"{packed} {'would be' if result.dry_run else were} packed")
    if result.dry_run and (result.plans or result.nights or result.folders or result.compressed):
        line("nothing was changed; add --yes to do this")
