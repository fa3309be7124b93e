"""Compare how rows ended with a serial run, and what was computed again with the audit."""

from collections import defaultdict
from typing import Any

from astra.database.connection import database
from astra.models.plans import Page, Plan
from astra.states import Outcome
from astra.status.verify import verify
from tests.faults.scenario import Scenario
from tests.faults.tasks import n_of, value_of
from tests.faults.world import World

_POISON = ("exits", "segfaults", "aborts", "hangs")
_ENDS = {"raises": Outcome.FAILURE, "nothing": Outcome.NO_RESULT}
_ENDS |= {fate: Outcome.FAILURE for fate in _POISON}


def breaches(world: World, plan: int) -> list[str]:
    """Return every breach of a plan that was run to its end."""
    found = verify(plan, max_listed=5)
    database.close()
    said = [f"verify: {b.check}: page {b.page} key {b.key}: {b.problem}" for b in found.breaches]
    if not found.whole:
        said.append(f"not whole: {found.rows}")
    said += _ends(world, plan) + _values(world) + _again(world)
    return said + _overtaken(world) + _late(world)


def blamed(world: World, plan: int) -> list[int]:
    """Return innocent rows that were given up: they were in progress at max_deaths crashes."""
    rows = world.sql(
        "SELECT key_text::bigint FROM failure WHERE plan_pk = %s "
        "AND exception IN ('KilledProcess', 'RowTimeout')", plan,
    )  # fmt: skip
    return [key for (key,) in rows if world.scenario.fates.get(key) not in _POISON]


def _ends(world: World, plan: int) -> list[str]:
    said, excused = [], _excused(world)
    for page in Page.select().join(Plan).where(Plan.pk == plan):
        for key, outcome in zip(page.keys, bytes(page.outcomes), strict=True):
            fate = world.scenario.fates.get(key)
            wanted = _ENDS.get(fate or "", Outcome.RESULT)
            if outcome != wanted and not (outcome == Outcome.FAILURE and key in excused):
                said.append(f"row {key} ({fate}) ended as {Outcome(outcome).name}")
    database.close()
    return said[:10]


def _excused(world: World) -> set[int]:
    """Return rows that failed as expected because of a fault of their table."""
    failed = world.sql("SELECT key_text::bigint, exception FROM failure")
    return {key for key, exception in failed if exception in world.excused.get(key, ())}


def _values(world: World) -> list[str]:
    """Check that each result is that of the version of its row which it names as its input."""
    said = []
    for key, value, n, extra, modified, at in world.sql(
        "SELECT o.spectrum_pk, o.value, o.n::float8, o.extra, extract(epoch FROM o.input_modified)"
        "::float8, (SELECT extract(epoch FROM min(a.at))::float8 FROM audit a "
        "WHERE a.key = o.spectrum_pk AND a.input_modified = o.input_modified) FROM ordeal o"
    ):
        snr = world.history.get(key, {}).get(round(modified, 6))
        yielded = value_of(key, snr or 0), n_of(key), -key
        if snr is None:
            said.append(f"row {key} was read as of {modified}, which it never was")
        elif abs(value - yielded[0]) > abs(value) * 1e-6:
            said.append(f"row {key} is {value}, a serial run has {yielded[0]}")
        elif (n, extra) != yielded[1:] and not (extra is None and at < world.dropped):
            said.append(f"row {key} has {(n, extra)}, a serial run has {yielded[1:]}")
    return said[:10]


def _again(world: World) -> list[str]:
    """Report rows that an attempt which still held their page computed after they were stored,
    and whether more was computed in all than expected."""
    stored: dict[tuple[int, float], float] = {}
    for key, modified, at in world.sql(
        "SELECT key, extract(epoch FROM input_modified)::float8, "
        "extract(epoch FROM min(at))::float8 FROM audit GROUP BY 1, 2"
    ):
        stored[key, round(modified, 6)] = at
    overtaken = {pid for (pid,) in world.sql("SELECT pid FROM attempt WHERE state = 'superseded'")}
    said, lines = [], world.computings()
    for key, pid, at, modified in lines:
        done = stored.get((int(key), round(float(modified), 6)))
        if done is not None and float(at) > done and int(pid) not in overtaken:
            said.append(f"row {key} was computed {float(at) - done:.3f} s after it was stored")
    most = _most(world)
    if len(lines) > most:
        said.append(f"{len(lines)} rows were computed, {most} at most were expected")
    return said[:10]


def _overtaken(world: World) -> list[str]:
    """Report attempts that were alive, and continued to compute after their page was taken over.

    On another node, a missing heartbeat is the only evidence, so an attempt without one is not
    reported. On a cluster, the processes of an element that Slurm ended may live for a moment, so
    that an attempt is reported only if another one has begun.
    """
    if world.scenario.elsewhere and world.cluster is None:
        return []
    taken = {
        (pid, key): (ended if world.cluster is None else began) or float("inf")
        for pid, ended, began, keys in world.sql(
            "SELECT a.pid, extract(epoch FROM a.ended)::float8, extract(epoch FROM b.began)::float8, "
            "p.keys FROM attempt a JOIN page p ON p.pk = a.page_pk LEFT JOIN attempt b "
            "ON b.page_pk = a.page_pk AND b.number = a.number + 1 WHERE a.state = 'superseded' "
            # A process repeats its own claim if the answer to it was lost.
            "AND (a.pid, a.pid_began) IS DISTINCT FROM (b.pid, b.pid_began)"
        )
        for key in keys
    }
    # It may go on with another page.
    went_on = {
        pid
        for key, pid, at, _ in world.computings()
        if float(at) > taken.get((int(pid), int(key)), float("inf")) + 0.1
    }
    return [f"process {pid} lived when its page was given to another" for pid in went_on]


def _late(world: World) -> list[str]:
    """Checkpoints that an attempt wrote although another had taken its page.

    Both times are of the database's clock, with the page locked: they are in the order of what
    was committed.
    """
    return [
        f"attempt {old} wrote a checkpoint after attempt {new} had taken its page"
        for old, new in world.sql(
            "SELECT DISTINCT w.attempt_pk, c.attempt_pk FROM written w JOIN claimed c "
            "ON c.page_pk = w.page_pk AND c.attempt_pk > w.attempt_pk AND c.at < w.at"
        )
    ]


def _most(world: World) -> int:
    """Return how many rows may be computed at most: all rows, and for each attempt that another
    one followed, those that it may have had in progress or not yet stored."""
    s: Scenario = world.scenario
    attempts: dict[int, int] = defaultdict(int)
    for page, n in world.sql("SELECT page_pk, count(*) FROM attempt GROUP BY 1"):
        attempts[page] = n
    n_modified = sum(len(versions) - 1 for versions in world.history.values())
    # Rows that wait for a checkpoint, those of a failing one, and those that a zombie computes.
    waits_s = s.write_frequency + 3 + s.lease_s
    lost = min(s.limit, 5 * s.batch_size + int(waits_s / s.row_s) if s.row_s else s.limit)
    # Rows without result stay open until the task ends or raises; those are then run once more.
    n_open = 2 * sum(fate in _ENDS for fate in s.fates.values())
    return s.rows + n_modified + n_open + sum((n - 1) * lost for n in attempts.values())


def state(world: World) -> dict[str, Any]:
    """Return the tables that help to understand why a seed failed."""
    return {
        "attempts": world.sql(
            "SELECT number, page_pk, state, pid, n_done, n_failed, n_no_result, n_found, message "
            "FROM attempt ORDER BY pk"
        ),
        "pages": world.sql("SELECT number, n_rows, n_done, n_failed, n_no_result FROM page"),
    }
