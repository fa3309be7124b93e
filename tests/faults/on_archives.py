"""Faults done to the identity of a database: it is moved, copied, or not alone in its run directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.faults.kinds import Fault, kind
from tests.faults.world import Neighbour, World

if TYPE_CHECKING:
    from tests.faults.nemesis import Nemesis


@kind(2)
def move(nemesis: Nemesis, fault: Fault) -> str:
    """Restore the database in another place, which takes over its name."""
    world = nemesis.world
    server, name = world.server, world.name
    with server.closed_database(name):
        server.copy_database(name, f"{name}_new", world.tablespace)
        server.sql(f"ALTER DATABASE {name} RENAME TO {name}_old")
        server.sql(f"ALTER DATABASE {name}_new RENAME TO {name}")
    server.drop_database(f"{name}_old")
    _refuses(nemesis, world, nemesis.plan, "--moved")
    nemesis.over.wait(fault.lasts_s)
    nemesis.command("initdb", "--moved")
    return f"for {fault.lasts_s} s"


@kind(2)
def copy(nemesis: Nemesis, fault: Fault) -> str:
    """Copy the database, declare it a copy, and run what is pending in it in the same directory."""
    world = nemesis.world
    with world.server.closed_database(world.name):
        other = world.another(copied=True)
    _refuses(nemesis, other, nemesis.plan, "--copied")
    folders = _run_folders(world)
    nemesis.command("initdb", "--copied", world=other)
    nemesis.command("clean", "--keep-days", 0, "--yes", world=other)
    if missing := folders - _run_folders(world):
        nemesis.breaches.append(f"astra clean of a copy removed {sorted(missing)}")
    return _begun(nemesis, other)


@kind(2)
def neighbour(nemesis: Nemesis, fault: Fault) -> str:
    """Run a plan of another archive, of the same number, in the same run directory."""
    return _begun(nemesis, nemesis.world.another())


def _begun(nemesis: Nemesis, other: World) -> str:
    """Plan what is pending in another archive and begin to run it; the runner judges its end."""
    said = nemesis.command(
        "plan", "tests.faults.tasks.endure", "--page-size", other.scenario.limit, "--json",
        *(f"--set={name}={value}" for name, value in other.arguments().items()), world=other,
    )  # fmt: skip
    plan = json.loads(said)["plan"] if said else None
    nemesis.world.neighbours.append(Neighbour(other, plan, plan and other.resume(plan)))
    return f"plan {plan} of {other.name}"


def _refuses(nemesis: Nemesis, world: World, plan: int, remedy: str) -> None:
    for _ in range(3):  # a fault that lasts still may take its connection
        exit_status = world.resume(plan).wait(60)
        said = world.log.read_text(errors="replace")
        if exit_status == 0 or remedy in said:
            break
    if exit_status == 0 or remedy not in said:
        nemesis.breaches.append(
            f"astra resume of {world.name} did not ask for {remedy}: status {exit_status}, it said "
            f"{said[-300:]!r}"
        )


def _run_folders(world: World) -> set[str]:
    return {str(path) for path in (world.folder / "runs").glob("*/*") if path.is_dir()}
