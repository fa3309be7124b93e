"""What a seed determines: a task, its rows and settings, and a schedule of faults."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

from tests.faults.kinds import KINDS, Fault

#: Rows of a scenario, at most.
MAX_ROWS = 120

#: One row may be in progress at so many deaths, and is still not given up (max_deaths is one more).
MAX_KILLS = 2


@dataclass(frozen=True)
class Scenario:
    seed: int
    rows: int
    limit: int
    row_s: float
    jobs: int
    batch_size: int
    write_frequency: float
    lease_s: float
    retry_for_s: float
    grace_s: float
    row_timeout_s: float
    elsewhere: bool  # each resume is done on another node, so that silence is all that tells
    fates: dict[int, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    answer_timeout_s: float = 2.0
    clock_h: float | None = None  # by how much astra's clock is ahead of the database's
    small_disk: bool = False  # its database lies on a disk that can be filled
    pooled: bool = False  # by PgBouncer, in transaction mode
    rows_wait: bool = False  # the last rows, until all faults were done


def draw(seed: int, slurm: bool = False) -> Scenario:
    dice = random.Random(seed)
    rows = dice.randint(20, MAX_ROWS)
    hangs = dice.random() < 0.12
    fates = _fates(dice, rows, hangs)
    faults = _faults(dice, hangs, slurm)
    kinds = {fault.kind for fault in faults}
    settings: dict[str, Any] = {
        "limit": max(4, rows // dice.randint(1, 5)),
        "row_s": dice.choice([0.0, 0.01, 0.02, 0.04, 0.06]),
        "jobs": dice.randint(1, 3),
        "batch_size": dice.choice([1, 3, 10, 1000]),
        "write_frequency": dice.choice([0.05, 0.2, 0.5, 2.0]),
        "lease_s": dice.choice([1.0, 2.0]),
        "retry_for_s": dice.choice([1.0, 30.0]),
        "grace_s": dice.choice([0.3, 1.0]),
        "row_timeout_s": 3.0 if hangs else 0.0,
        "elsewhere": "zombie" in kinds or dice.random() < 0.15,
        "pooled": dice.random() < 0.15,
        "clock_h": dice.choice([None, None, None, None, 0.0, -1.0, 1.0]) if not slurm else None,
    }
    if "zombie" in kinds and dice.random() < 0.75:
        # It has much to write when it wakes, and time to try.
        settings |= {
            "limit": rows, "row_s": 0.06, "batch_size": dice.choice([1, 3, 10]),
            "write_frequency": 0.05, "lease_s": 1.0, "retry_for_s": 30.0,
        }  # fmt: skip
        faults = _early("zombie", faults, longer_s=1.0)
    elif "kill resume" in kinds and dice.random() < 0.75:
        # Its elements have long to go, and do not look at the database meanwhile.
        settings |= {
            "limit": rows, "row_s": 0.3, "batch_size": 1000, "write_frequency": 2.0,
            "elsewhere": False,
        }  # fmt: skip
        faults = _early("kill resume", faults)
    return Scenario(seed=seed, rows=rows, fates=fates, faults=faults, **settings)


def _early(kind: str, faults: tuple[Fault, ...], longer_s: float = 0.0) -> tuple[Fault, ...]:
    """Return it with faults of a kind in the first third, when rows are left that can be lost."""
    return tuple(
        replace(f, after=round(f.after / 3, 2), lasts_s=f.lasts_s + longer_s)
        if f.kind == kind else f
        for f in faults
    )  # fmt: skip


def _fates(dice: random.Random, rows: int, hangs: bool) -> dict[int, str]:
    fates = {}
    raising, nothing = dice.choice([0, 0, 0.05, 0.2]), dice.choice([0, 0, 0.1])
    for key in range(1, rows + 1):
        lot = dice.random()
        if lot < raising:
            fates[key] = "raises"
        elif lot < raising + nothing:
            fates[key] = "nothing"
    if dice.random() < 0.25:
        for key in dice.sample(range(1, rows + 1), dice.randint(1, 2)):
            fates[key] = dice.choice(["exits", "segfaults", "aborts"])
    if hangs:
        fates[dice.randint(1, rows)] = "hangs"
    return fates


def _faults(dice: random.Random, hangs: bool, slurm: bool) -> tuple[Fault, ...]:
    weights = {name: k.slurm_weight if slurm else k.weight for name, k in KINDS.items()}
    if hangs:  # a process that is stopped looks like one that hangs
        weights["zombie"] = 0
    faults = []
    for _ in range(dice.randint(1, 4)):
        if sum(KINDS[f.kind].kills for f in faults) >= MAX_KILLS:
            weights |= {name: 0 for name, kind in KINDS.items() if kind.kills}
        kind = dice.choices(list(weights), list(weights.values()))[0]
        inside = dice.choice([None, "results", "progress"]) if KINDS[kind].inside else None
        after, lasts_s = round(dice.uniform(0, 0.9), 2), round(dice.uniform(0.2, 3.0), 2)
        faults.append(Fault(kind, after, inside, lasts_s, dice.choice([15, 2, 10])))
    return tuple(sorted(faults, key=lambda fault: fault.after))


def _directed(
    *kinds: str, inside: str | None = None, lasts_s: float = 0.5, **more: Any
) -> Scenario:
    """Return a scenario of one fault, or a few, at a page that takes long enough to be affected."""
    after, number = more.pop("after", 0.3), more.pop("number", 15)
    faults = tuple(Fault(kind, after, inside, lasts_s, number) for kind in kinds)
    settings: dict[str, Any] = {
        "seed": 0, "rows": 80, "limit": 40, "row_s": 0.05, "jobs": 2, "batch_size": 5,
        "write_frequency": 0.2, "lease_s": 1.0, "retry_for_s": 30.0, "grace_s": 0.5,
        "row_timeout_s": 0.0, "elsewhere": "zombie" in kinds, "faults": faults,
    }  # fmt: skip
    return Scenario(**{**settings, **more})


#: Each fault by itself, and inside of a checkpoint: what is told by a test that fails is plain.
DIRECTED = {
    "kill child": _directed("kill child"),
    "kill child inside results": _directed("kill child", inside="results"),
    "kill child inside progress": _directed("kill child", inside="progress"),
    "kill parent": _directed("kill parent"),
    "kill resume": _directed(
        "kill resume", after=0.05, rows=60, limit=30, row_s=0.3, write_frequency=5.0,
        batch_size=1000,
    ),
    # One of four elements has ended its page, and watches over the others.
    "refuse while one watches": _directed(
        "refuse", after=0.3, lasts_s=2.5, rows=120, limit=23, row_s=0.4, write_frequency=5.0,
        batch_size=1000, jobs=6,
    ),
    "SIGTERM": _directed("signal"),
    "SIGINT": _directed("signal", number=2),
    "SIGUSR1 inside progress": _directed("signal", inside="progress", number=10),
    "zombie": _directed("zombie", lasts_s=4.0),
    "zombie inside results": _directed("zombie", inside="results", lasts_s=4.0),
    "suspend": _directed(
        "suspend", lasts_s=4.0, row_timeout_s=2.0, rows=8, limit=4, row_s=0.8,
        grace_s=0.1,
    ),
    "terminate inside results": _directed("terminate", inside="results"),
    "terminate inside progress": _directed("terminate", inside="progress"),
    "read-only": _directed("read-only", lasts_s=1.5),
    "restart": _directed("restart", lasts_s=1.5),
    "crash inside progress": _directed("crash", inside="progress"),
    "away for longer than the bound": _directed("restart", lasts_s=3.0, retry_for_s=0.5),
    "silence": _directed("silence", lasts_s=1.0),
    "silence inside results": _directed("silence", inside="results", lasts_s=1.0),
    "silence inside progress": _directed("silence", inside="progress", lasts_s=1.0),
    "terminate behind pgbouncer": _directed("terminate", inside="progress", pooled=True),
    "restart behind pgbouncer": _directed("restart", lasts_s=1.0, pooled=True),
    "refuse": _directed("refuse", lasts_s=1.0),
    "pg_hba": _directed("pg_hba", lasts_s=1.0),
    "too many": _directed("too many", lasts_s=1.0),
    "slow": _directed("slow", lasts_s=1.5),
    "slower than the answer timeout": _directed("slow", lasts_s=2.5, answer_timeout_s=0.3),
    "statement timeout": _directed("statement timeout", lasts_s=1.5),
    "idle timeouts": _directed("idle timeouts", lasts_s=1.5),
    "idle timeouts behind pgbouncer": _directed("idle timeouts", lasts_s=1.5, pooled=True),
    "serialisation": _directed("serialisation", lasts_s=2.0),
    "disk full": _directed("disk full", after=0.05, lasts_s=1.5, small_disk=True),
    "disk full for longer than the bound": _directed(
        "disk full", after=0.05, lasts_s=2.5, small_disk=True, retry_for_s=0.5
    ),
    "clock ahead": _directed("modify", clock_h=1.0, write_frequency=1.0),
    "clock behind": _directed("modify", clock_h=-1.0, write_frequency=1.0),
    "clock jumps back": _directed("clock", clock_h=0.0, write_frequency=1.0, number=2),
    "clock jumps ahead": _directed("clock", clock_h=0.0, write_frequency=1.0),
    "locks": _directed("locks", lasts_s=1.5),
    "deadlock": _directed("deadlock", lasts_s=2.0),
    "modify": _directed("modify", write_frequency=2.0, batch_size=100),
    "columns": _directed("retype", "demand", "rename", "drop", rows=120, limit=60),
    "keep out": _directed("keep out", lasts_s=1.5),
    "guards": _directed("unguard", "unwatch"),
    "archives": _directed(
        "neighbour", "restart", "move", "copy", after=0.05, rows=100, limit=50, row_s=0.25,
        retry_for_s=0.2, rows_wait=True,
    ),
    "segfault": _directed("modify", fates={11: "segfaults", 50: "raises", 51: "nothing"}),
    "hang": _directed("modify", fates={11: "hangs"}, row_timeout_s=1.0),
}  # fmt: skip
