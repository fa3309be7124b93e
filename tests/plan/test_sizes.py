"""Sizes chosen by experience, and what came of them."""

import json
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner

from astra.api import Execution, estimate, submit_task
from astra.cli.group import main
from astra.config import profiles, settings
from astra.config.units import time_limit_s
from astra.errors import TaskError
from astra.models.attempts import Attempt
from astra.models.plans import Submission
from astra.plan.plan import create_plan
from astra.plan.sizes import Estimate, Experience, sizes, time_limit
from astra.resume.cancel import cancel
from astra.slurm.limits import PartitionLimits, obstacles, parse_maintenance, profile_limits
from tests.conftest import ROOT
from tests.sample_tasks import costly, fill
from tests.servers import wait_for

BOUNDS = PartitionLimits()
HAD = Experience(
    attempts=40, rows=4000, plans=(1,), same_arguments=True,
    row_s=2.0, row_s_upper=2.4, row_s_p50=1.8, row_s_p95=4.0, row_s_p999=20.0,
    row_s_deviation=1.0, start_s=30.0, start_s_upper=50.0, read_s=0.01, write_s=0.01,
    mem_mb=900.0, mem_mb_upper=1000.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sized(target_s=7200.0, had=HAD, known=BOUNDS, each=1, pending=10**6) -> Estimate:
    chosen = profiles.get("general", settings.current()).with_options(pages_per_element=each)
    return sizes("t", "M", had, "history", target_s, pending, chosen, known)


def test_rows_fill_the_time_and_limits_have_a_margin():
    found = sized()
    assert found.limit == (7200 - 30) / 2 and found.element_s == 7200
    # 1.25 x (50 s + 3585 x 2.4 s + 20 s) = 10842.5 s
    assert found.time == "03:01:00" and found.mem == f"{64 * 21}M"  # 1.25 x 1000 + 64
    assert found.pages == found.elements == 279
    four = sized(each=4)
    assert four.limit == (1800 - 30) / 2 and four.element_s == 7200 and four.elements == 283


def test_without_attempts_the_defaults_are_used():
    found = sized(had=None)
    assert (found.limit, found.time, found.mem, found.element_s) == (1000, None, None, None)
    assert "--probe" in found.notes[0]


def test_pages_are_cut_to_fit_the_partition_and_maintenance():
    for known, said in (
        (PartitionLimits(max_time_s=3600), "at most"),
        (
            PartitionLimits(maintenance="maint", maintenance_in_s=3910.0),
            "maintenance (maint) begins in",
        ),
    ):
        found = sized(known=known)
        assert time_limit_s(found.time) == 3600 == time_limit(HAD, found.limit, 1)
        assert time_limit(HAD, found.limit + 1, 1) > 3600
        assert said in found.notes[0] and f"{found.limit:,} rows per page" in found.notes[0]
    late = sized(known=PartitionLimits(maintenance="maint", maintenance_in_s=60.0))
    assert late.limit == 3585 and "wait until it is over" in late.notes[0]
    none = sized(known=PartitionLimits(max_time_s=60, max_mem_mb=512))
    assert (none.limit, none.time, none.mem) == (1, "00:01:00", "512M")
    assert "not even one row fits" in none.notes[0] and "more than the 512M" in none.notes[1]


def test_a_target_shorter_than_a_row_gives_pages_of_one_row():
    found = sized(10.0)
    assert found.limit == 1 and "one row alone" in found.notes[0]


@pytest.mark.parametrize("target_s", [float("inf"), float("nan"), 0, -1.0, "1h"])
def test_a_target_that_is_no_time_is_refused(sqlite_url, target_s):
    with pytest.raises(TaskError, match="target_s"):
        estimate(costly, target_s=target_s)


def test_reservations_are_read():
    text = (
        "ReservationName=maint StartTime=2026-11-25T08:00:00 EndTime=2026-11-25T18:00:00 "
        "Duration=10:00:00 Nodes=n[1-4] NodeCnt=4 PartitionName=(null) "
        "Flags=MAINT,IGNORE_JOBS,SPEC_NODES TRES=cpu=64 Users=root State=INACTIVE\n"
        "ReservationName=course StartTime=2026-11-25T08:00:00 EndTime=2026-11-25T09:00:00 "
        "Nodes=n1 Flags=SPEC_NODES Users=me State=INACTIVE\n"
    )
    (reservation,) = parse_maintenance(text)
    assert (reservation.name, reservation.nodes) == ("maint", "n[1-4]")
    assert datetime.fromtimestamp(reservation.begins) == datetime(2026, 11, 25, 8)
    assert parse_maintenance("No reservations in the system\n") == []


@pytest.mark.parametrize(("partition", "maintenance"), [("main", "maint"), ("mian", None)])
def test_no_maintenance_is_named_for_a_partition_that_has_no_nodes(
    monkeypatch, partition, maintenance
):
    answers = {
        "partition": "PartitionName=main MaxTime=UNLIMITED Nodes=n1\n",
        "reservation": "ReservationName=maint StartTime=2100-01-01T08:00:00 Nodes=n1 Flags=MAINT\n",
        "%R|%N|%m": "main|n1|16000\n",
        "n1": "n1\n",
    }
    monkeypatch.setattr("astra.slurm.limits.available", lambda: True)
    monkeypatch.setattr("astra.slurm.limits.run", lambda args: answers[args[-1]])
    chosen = profiles.choose_profile(None, {"partition": partition, "time": "1:00:00"})
    assert profile_limits(chosen).maintenance == maintenance


def test_a_probe_is_a_plan_of_its_own(pg_url):
    fill(200)
    arguments = {"row_s": 0.02, "load_s": 0.2}
    (blind,) = estimate(costly, arguments=arguments)
    assert blind.source == "defaults" and Attempt.select().count() == 0
    (found,) = estimate(costly, target_s=60, arguments=arguments, probe=True)
    assert found.source == "probe" and found.experience.rows == 20 and found.pending == 180
    (attempt,) = Attempt.select()
    assert attempt.state == "done" and attempt.n_done == 20
    assert found.limit == round((60 - attempt.t_start_s) / (attempt.t_rows_s / 20))
    (again,) = estimate(costly, arguments=arguments, probe=True)  # it is known now
    assert again.source == "history" and Attempt.select().count() == 1
    (other,) = estimate(costly, arguments={"row_s": 9})
    assert not other.experience.same_arguments and "had these arguments" in other.notes[0]


def test_a_time_and_a_page_size_exclude_each_other(pg_url):
    fill(60)
    words = ["estimate", "tests.sample_tasks.costly", "--time", "90s", "--set", "row_s=0.01"]
    told = CliRunner().invoke(main, [*words, "--probe"], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    for word in ("rows per page", "--time", "--mem", "probe: 1 attempt of plan 1, 20 rows"):
        assert word in told.output
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert found["source"] == "history" and found["target_s"] == 90
    made = CliRunner().invoke(
        main, ["plan", "tests.sample_tasks.costly", "--set", "row_s=0.01", "--time", "1s"]
    )
    assert "astra submit 2 --time 00:05:00 --mem " in made.output
    refused = CliRunner().invoke(
        main, ["plan", "tests.sample_tasks.costly", "--limit", "5", "--time", "2h"]
    )
    assert refused.exit_code == 2 and "--limit" in refused.output
    assert "02:00:00" in CliRunner().invoke(main, [*words[:3], "long"]).output


@pytest.mark.slurm
@pytest.mark.postgres
def test_an_element_takes_the_time_asked_for(slurm):
    """On real Slurm: a task of known cost, sized by a probe, ends within 25 % of the target."""
    fill(900)
    arguments, target_s = {"row_s": 0.1, "load_s": 1.0, "mb": 100}, 25.0
    (found,) = estimate(costly, target_s=target_s, arguments=arguments, probe=True)
    ((planned, _),) = submit_task(
        "tests.sample_tasks.costly", {"arguments": arguments, "max_rows": 2 * found.limit},
        Execution(options={"throttle": 2}), target_s,
    )  # fmt: skip
    assert planned.limit == found.limit and 150 <= planned.limit < 250
    wait_for(slurm.idle, "the array", 240)
    attempts = list(Attempt.select().where(Attempt.submission_pk > 1))
    took = [a.t_start_s + a.t_rows_s for a in attempts]
    print("rows per page", planned.limit, "target", target_s, "took", took)
    assert len(attempts) == 2 and all(0.75 < t / target_s < 1.25 for t in took)
    options = json.loads(Submission.get_by_id(attempts[0].submission_pk).profile)["options"]
    assert options["time"] == "00:05:00" and found.mem == options["mem"]
    assert 100 < attempts[0].max_rss_mb < int(options["mem"].rstrip("M"))


@pytest.mark.slurm
@pytest.mark.postgres
def test_limits_of_slurm_are_reported_before_submission(slurm, caplog):
    general = profiles.get("general", settings.current())
    short = general.with_options(partition="short")
    known = profile_limits(short)
    assert (known.max_time_s, known.max_mem_mb, known.maintenance) == (300, 16000, None)
    (words,) = obstacles(short, known)
    assert "04:00:00 is more than partition short allows (00:05:00)" in words
    begins = datetime.now() + timedelta(hours=1)
    slurm.run(
        "scontrol", "create", "reservation", "ReservationName=maint", f"StartTime={begins:%FT%T}",
        "Duration=60", "Nodes=ALL", "Users=root", "Flags=MAINT,IGNORE_JOBS",
    )  # fmt: skip
    try:
        known = profile_limits(general)
        assert known.maintenance == "maint" and 3500 < known.maintenance_in_s <= 3600
        cut = sized(known=known)
        assert time_limit_s(cut.time) <= 3600 and cut.limit < 3585
        fill(10)
        (planned,) = create_plan(costly)
        submit_task(str(planned.plan), {}, Execution(options={"hold": True}))
        assert "maintenance (maint) begins in 01:00:00" in caplog.text
        cancel(planned.plan)
        (planned,) = create_plan(costly)
        Execution(options={"hold": True, "partition": "short"}).resume(planned.plan, False, [])
        assert "04:00:00 is more than partition short allows (00:05:00)" in caplog.text
    finally:
        slurm.run("scontrol", "delete", "ReservationName=maint")
