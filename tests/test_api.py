"""The functions for programs, and what --json prints against its published schemas."""

import importlib
import importlib.resources
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

import astra.api
from astra.api import (
    cancel,
    continue_plans,
    create_plan,
    failures,
    logs,
    pause,
    report,
    resume,
    resume_local,
    status,
    statuses,
    submit,
    verify,
    wait,
)  # fmt: skip
from astra.cli.group import main
from astra.database.connection import database
from astra.errors import DatabaseError, UsageError
from tests.conftest import ROOT
from tests.json_schemas import PRINTED, text
from tests.sample_tasks import fill, measure
from tests.servers import wait_for


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_every_name_of_the_facade_is_documented_and_loads():
    imported = set(dir(astra.api)) - set(vars(astra.api))
    assert set(astra.api.__all__) <= imported and "Estimate" in imported
    for name in imported:
        assert getattr(astra.api, name).__doc__, name
    assert astra.api.log_text.__wrapped__ is astra.status.logs.text_of
    assert not hasattr(astra.api, "no_such_name")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import astra", {"astra.api", "peewee"}),
        ("import astra.api, astra.cli", {"peewee", "psycopg2", "astra.config.settings"}),
        ("from astra.api import failures", {"astra.status.status", "astra.submit.submit"}),
        ("from astra.api import verify", {"astra.status.status", "astra.submit.submit"}),
        ("from astra.api import status", {"astra.element.element", "astra.api.submitting"}),
        ("from astra.api import submit, wait", {"astra.element.element"}),
        (
            "from astra import task; from astra.api import submit",
            {"astra.resume.resume", "astra.results.writer", "astra.results.checkpoint"},
        ),
    ],
)
def test_a_name_loads_only_what_it_needs(statement, heavy):
    heavy |= {"numpy", "jinja2"}
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("given", [None, "1", [None]])
@pytest.mark.parametrize(
    "function",
    [status, verify, resume, cancel, failures, logs, wait, submit, pause, continue_plans, report],
)
def test_what_is_not_the_number_of_a_plan_is_refused(sqlite_url, function, given):
    with pytest.raises(UsageError, match="is not the number of a plan"):
        function(given)


def test_functions_of_several_plans_take_one_too(sqlite_url):
    fill(1)
    plan = np.int64(create_plan(measure)[0].plan)
    assert [one.plan for one in statuses(plan)] == [plan] == [one.plan for one in statuses([plan])]
    assert report(plan).n_rows == report([plan]).n_rows == 1
    assert [one.paused for one in pause(plan) + continue_plans([plan])] == [True, False]


@pytest.mark.slurm
@pytest.mark.postgres
def test_plan_submit_wait(slurm):
    fill(40)
    plans = create_plan(measure, limit=10)
    assert [p.plan is None for p in plans] == [False, True]  # it reads two tables, one is empty
    submissions = submit(plans, profile="debug", mem="300M")
    assert [s.pages for s in submissions] == [4] and submissions[0].profile == "debug"
    looks: list[str] = []
    (found,) = wait(submissions, timeout_s=240, every_s=5, notify=lambda s: looks.append(s.state))
    assert found.state == "whole" and found.rows == {"done": 40} and looks[-1] == "whole"
    for one in (submissions[0], plans[0], plans[0].plan):
        assert wait(one).rows == found.rows == status(found.plan).rows
    assert verify(found.plan).sound
    with pytest.raises(UsageError, match="nothing is pending"):
        submit(plans[1])


@pytest.mark.slurm
@pytest.mark.postgres
def test_an_error_of_the_database_is_raised_as_one_that_says_what_to_do(sqlite_url):
    fill(1)
    plan, *_ = create_plan(measure)
    database.execute_sql("ALTER TABLE attempt RENAME COLUMN state TO other")
    for function in status, verify, lambda number: list(wait(number)):
        with pytest.raises(DatabaseError, match=r"differ from what astra .* astra initdb"):
            function(plan.plan)


def test_waiting_is_bounded(slurm):
    fill(5)
    plan, _ = create_plan(measure)
    submission = submit(plan, begin="now+1hour")
    with pytest.raises(TimeoutError, match=f"astra status {plan.plan}"):
        wait(submission, timeout_s=0.1, every_s=0.05)
    astra.api.cancel(submission.plan)
    assert wait(submission, timeout_s=60).state == "cancelled"


# ---------------------------------------------------------------------------------------- --json


def schema(command: str) -> dict:
    folder = importlib.resources.files("astra") / "schemas"
    return json.loads((folder / f"{command}.json").read_text())


def strict(part):
    """As published, without room for keys that the schema does not name."""
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: strict(value) for key, value in part.items()}
    return {**made, "additionalProperties": False} if "properties" in made else made


def printed(*words: str):
    done = CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code in (0, 4, 8), done.output
    found = json.loads(done.stdout)
    jsonschema.Draft202012Validator(strict(schema(words[0]))).validate(found)
    return found


def test_every_json_has_a_schema_that_is_up_to_date():
    commands = {
        name
        for name, command in main.commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert commands == PRINTED.keys(), "say in tests/json_schemas.py what these print"
    for name in PRINTED:
        published = importlib.resources.files("astra") / "schemas" / f"{name}.json"
        assert published.read_text() == text(name), "python -m tests.json_schemas"
        jsonschema.Draft202012Validator.check_schema(schema(name))


def test_what_is_printed_fits(sqlite_url):
    fill(30)
    task = ("tests.sample_tasks.costly", "--set", "raise_every=10")
    printed("initdb")  # tables of models that other tests have loaded
    assert printed("initdb")["new"] == []
    printed("config")
    printed("estimate", *task)
    plan = str(printed("plan", *task, "--limit", "10", "--max-rows", "20")["plan"])
    assert printed("status", plan)["rows"]["unsubmitted"] == 20
    printed("submit", plan, "--local")
    assert printed("run", *task)["rows"] == {"done": 9, "failed": 1}
    assert printed("run", *task)["plan"] is None
    assert printed("submit", *task, "--local")["plan"] is None
    assert printed("estimate", *task)["experience"]["rows"] == 30
    assert len(printed("failures", plan)) == 2
    printed("resume", plan, "--local")
    printed("retry", plan, "--local")
    printed("recover", plan)
    assert printed("verify", plan)["sound"]
    printed("cancel", plan)
    assert {row["state"] for row in printed("logs", plan)} == {"done"}
    assert [row["failed"] for row in printed("plans")] == [1, 2]
    printed("report", plan)
    assert isinstance(printed("plan", "tests.sample_tasks.measure"), list)


@pytest.mark.slurm
@pytest.mark.postgres
def test_what_slurm_adds_fits(slurm):
    fill(20)
    done = printed("submit", "tests.sample_tasks.costly", "--limit", "10", "--profile", "debug")
    (job,) = done["jobs"]
    assert job["pages"] == 2 and job["job_id"]
    assert wait(done["plan"], timeout_s=240).state == "whole"
    wait_for(slurm.idle, "the end of the array", 60)
    pages = printed("status", str(done["plan"]))["elements"]
    assert [page["slurm_state"] for page in pages] == ["COMPLETED"] * 2
    printed("report", str(done["plan"]))


def test_local_runs_for_programs(sqlite_url):
    fill(10)
    plan, _ = create_plan(measure)
    resume_local(plan.plan)
    assert wait(plan).state == "whole"
