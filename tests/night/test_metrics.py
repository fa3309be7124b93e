"""Metrics in Prometheus' text format."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.database.connection import connection, writing
from astra.element.claiming import claim_page, this_process
from astra.models.attempts import Attempt
from astra.models.nights import Night, NightPlan
from astra.models.plans import Plan
from astra.night.metrics import metrics
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.submit.local import pages_to_run, start_local
from tests.sample_tasks import fill, measure

#: One line of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
_VALUE = r'"(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(
    rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{((?:[a-zA-Z_]\w*={_VALUE})(?:,[a-zA-Z_]\w*={_VALUE})*)\}})?"
    r" ([+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf|NaN))"
)


def samples(text: str) -> dict[str, float]:
    """The samples of a text in the format, each line of which has to be right."""
    assert text.endswith("\n") and "\n\n" not in text
    found: dict[str, float] = {}
    helped: list[str] = []
    typed: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.append(line.split()[2])
        elif line.startswith("# TYPE "):
            typed.append(line.split()[2])
            assert typed[-1] == helped[-1] and line.split()[3] == "gauge"
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == typed[-1]  # the samples of a metric stand together
            key = line.rpartition(" ")[0]
            assert key not in found
            found[key] = float(sample[3])
    assert len(set(typed)) == len(typed)
    return found


def test_metrics_count_nights_and_rows_by_state(url):
    empty = samples(metrics())
    assert empty['astra_plans{state="running"}'] == 0
    assert not any(name.startswith(("astra_night", "astra_rows")) for name in empty)
    fill(20)
    (ended,) = create_plan(measure, "BossVisitSpectrum", limit=10, arguments={"raise_every": 7})
    run_here(ended.plan)
    fill(30)
    (made,) = create_plan(measure, "BossVisitSpectrum", limit=10)
    common = {"cwd": "/", "host": "h", "created_by": "me", "date": "2026-11-24"}
    closed = {"ended": datetime.now(UTC), **common}
    for of_night, of_plan in (
        ({"name": "survey", "state": "whole", **closed}, {"n_done": 20}),
        ({"name": "survey", **common}, {"n_done": 9, "n_failed": 1, "n_retries": 3}),
        ({"name": 'odd "name"\\\n', "state": "not whole", **closed}, {}),
    ):
        pk = Night.create(**of_night).pk
        NightPlan.create(night=pk, task="t", plan_pk=1000, n_rows=20, **of_plan)
    found = samples(metrics())
    assert found['astra_night_state{night="survey",state="without a finalizer"}'] == 1
    assert found['astra_night_state{night="survey",state="whole"}'] == 0
    assert found[r'astra_night_state{night="odd \"name\"\\\n",state="not whole"}'] == 1
    rows = {o: found[f'astra_night_rows{{night="survey",outcome="{o}"}}'] for o in (
        "results", "failures", "no_result", "pending")}  # fmt: skip
    assert rows == {"results": 9, "failures": 1, "no_result": 0, "pending": 10}
    assert found['astra_night_retries{night="survey"}'] == 3
    task = f'task="{Plan.get_by_id(made.plan).task}"'
    assert found[f'astra_rows{{{task},state="unsubmitted"}}'] == 30
    assert found['astra_plans{state="attention"}'] == 1  # the other has ended
    assert 0 <= found[f"astra_oldest_plan_age_seconds{{{task}}}"] < 600
    assert found[f"astra_retries{{{task}}}"] == 0
    assert abs(found["astra_collected_timestamp_seconds"] - datetime.now(UTC).timestamp()) < 600


def test_the_longest_time_since_a_heartbeat_of_a_running_attempt(url):
    fill(30)
    (made,) = create_plan(measure, "BossVisitSpectrum", limit=10)
    frozen = get_plan(made.plan)
    submission = start_local(frozen, pages_to_run(frozen))
    here = this_process("local", Path())
    with connection(), writing():
        claims = [claim_page(frozen, number, submission, number, here) for number in (1, 2, 3)]
    for claim, age_s, state in zip(
        claims, (400, 300, 500), ("running", "running", "lost"), strict=True
    ):
        seen = datetime.now(UTC) - timedelta(seconds=age_s)
        Attempt.update(seen=seen, state=state).where(Attempt.pk == claim.attempt.pk).execute()
    age_s = samples(metrics())['astra_heartbeat_age_seconds{task="tests.sample_tasks.measure"}']
    assert 400 <= age_s < 500


def test_the_command_replaces_a_file(sqlite_url, tmp_path):
    printed = CliRunner().invoke(main, ["metrics"])
    assert printed.exit_code == 0 and samples(printed.output)
    file = tmp_path / "astra.prom"
    file.write_text("what was there before")
    was = file.stat().st_ino
    assert CliRunner().invoke(main, ["metrics", "--output", str(file)]).exit_code == 0
    assert samples(file.read_text()) and file.stat().st_mode & 0o777 == 0o644
    assert file.stat().st_ino != was  # whole, or not at all
    missing = CliRunner().invoke(main, ["metrics", "-o", str(tmp_path / "no" / "astra.prom")])
    assert missing.exit_code == 2 and "cannot be written" in missing.output


def test_a_plan_whose_model_was_removed_is_counted_all_the_same(sqlite_url):
    fill(4)
    create_plan(measure, "BossVisitSpectrum")
    Plan.update(input_model="tests.sample_tasks:Removed").execute()
    labels = 'task="tests.sample_tasks.measure",state="unsubmitted"'
    assert samples(metrics())[f"astra_rows{{{labels}}}"] == 4
