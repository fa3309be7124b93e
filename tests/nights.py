"""Plans and nights on a real cluster: how tests begin them, and wait for their ends."""

import time

from click.testing import CliRunner

from astra.cli.group import main
from astra.config.nights import NightSettings, checked
from astra.database.connection import connection
from astra.models.nights import Night, NightPlan
from astra.night.totals import entries_of, totals_of
from astra.plan.plan import create_plan
from tests.sample_tasks import Measured, fill, measure
from tests.servers import Slurm, wait_for


def astra(*words: str, status: int = 0) -> str:
    """The output of one of astra's commands, called in this process."""
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == status, (words, done.exit_code, done.output)
    return done.output if status else done.stdout


def last() -> Night:
    with connection():
        return Night.select().order_by(Night.pk.desc()).get()


def totals(night: Night) -> NightPlan:
    return totals_of(entries_of(night))


def closed(slurm) -> Night:
    def is_closed() -> bool:
        time.sleep(0.3)  # each look is a connection
        return last().ended is not None

    wait_for(is_closed, "the end of the night", 150)
    return last()


def plan_of(n: int, limit: int, **arguments) -> int:
    fill(n)
    (planned, _) = create_plan(measure, limit=limit, arguments=arguments)
    return planned.plan


def counts() -> tuple[int, int]:
    keys = [k for (k,) in Measured.select(Measured.spectrum_pk).tuples()]
    return len(keys), len(set(keys))


def run_out(slurm: Slurm, timeout_s: float = 120) -> None:
    wait_for(slurm.idle, "the end of the arrays", timeout_s)


def a_night(name: str = "survey") -> Night:
    made = Night.create(name=name, date="2026-01-02", cwd="/", host="h", created_by="u")
    return Night.get_by_id(made.pk)


def settings_of_tasks(*tasks: str) -> NightSettings:
    found = [{"task": f"tests.sample_tasks.{t}", "input_model": "BossVisitSpectrum"} for t in tasks]
    return checked({"survey": {"tasks": found}})["survey"]
