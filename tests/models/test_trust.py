"""What another role has planned runs only if it is trusted."""

from datetime import UTC, datetime
from pathlib import Path

import peewee
import pytest

from astra.config import settings
from astra.config.run_folder import run_folder
from astra.config.settings import Config, use
from astra.database.connection import connection
from astra.element.element import run_element
from astra.errors import NotAllowed, TaskError, Untrusted
from astra.models import BossVisitSpectrum
from astra.models.nights import Night
from astra.models.plans import Page, Plan, Submission
from astra.night.clean import clean
from astra.night.finalizer import folder_of
from astra.plan.lookup import find_modules, get_plan, revoke_trust, task_of, trust
from astra.plan.plan import create_plan
from astra.submit.intent import make_intent, new_submission
from tests.conftest import ROOT
from tests.roles import ROLES, Url, as_role, astra, planned
from tests.sample_tasks import measure

pytestmark = pytest.mark.postgres

_STRANGE = """
from pathlib import Path
from collections.abc import Iterable
from astra import task
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured

Path(__file__).with_name("ran").touch()

@task
def measure(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)
"""


def test_what_another_role_planned_is_imported_by_nobody_else(
    of: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ran = tmp_path / "theirs", tmp_path / "theirs" / "ran"
    theirs.mkdir()
    (theirs / "strange_task.py").write_text(_STRANGE)
    monkeypatch.chdir(theirs)
    done = astra(of, "plans", "plan", "strange_task.measure", "--page-size", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(tmp_path)
    as_role(of, "plans")
    plan = Plan.select().get()
    assert plan.role == ROLES["plans"]
    ran.unlink()
    for words in (
        ("resume", plan.pk, "--local"), ("submit", plan.pk, "--local"), ("verify", plan.pk),
        ("try", plan.pk, 1), ("retry", plan.pk, "--local"),
    ):  # fmt: skip
        done = astra(of, "owner", *words)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert repr(ROLES["plans"]) in done.stderr and str(theirs) in done.stderr
        assert "--trust" in done.stderr and "trusted_roots" in done.stderr
        assert not ran.exists(), words
    assert astra(of, "owner", "doctor").stdout and not ran.exists()
    done = astra(of, "owner", "resume", plan.pk, "--local", "--trust")
    assert done.returncode == 0 and ran.exists(), done.stdout + done.stderr
    (tmp_path / "astra.toml").write_text(f'[plan]\ntrusted_roots = ["{tmp_path}", "{ROOT}"]\n')
    assert astra(of, "owner", "verify", plan.pk).returncode == 0


@pytest.mark.parametrize("kind", ["plan", "night"])
def test_a_token_leads_to_no_other_folder(of: Url, tmp_path: Path, kind: str) -> None:
    """`clean`, and whoever writes scripts, stays below the run directory."""
    precious = tmp_path / "night-precious"
    precious.mkdir()
    like, long_ago = planned(of), datetime(2020, 1, 1, tzinfo=UTC)
    as_role(of, "plans")
    if kind == "plan":
        folder = run_folder(get_plan(like).folder)
        token = f"{get_plan(like).token}/../../{precious.name}"
        with connection():
            values = {**Plan.get_by_id(like).__data__, "token": token, "cancelled": long_ago}
            Plan.delete().where(Plan.pk == like).execute()
            Plan.insert({k: v for k, v in values.items() if k != "role"}).execute()
    else:
        folder = run_folder("night-1-x")
        token = f"x/../../{precious.name}"
        names = ("name", "date", "cwd", "host", "created_by")
        values = dict.fromkeys(names, "n") | {"pk": 1, "token": token, "ended": long_ago}
        with connection():
            Night.insert(values).execute()
    folder.mkdir(parents=True)
    as_role(of, "owner")
    cleaned = clean(keep_days=0, dry_run=False)
    assert precious.exists() and str(precious) not in str(cleaned)
    assert not Plan.select().exists() or kind == "night"


def test_a_night_of_another_role_says_not_where_its_finalizer_runs(
    of: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a configuration, or modules, that would run with the privileges of others."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    columns = {"name": "n", "date": "d", "host": "h", "created_by": "c"}
    for kind, cwd in (("plans", theirs), ("owner", ours)):
        as_role(of, kind)
        with connection():
            Night.insert({**columns, "cwd": str(cwd)}).execute()
    as_role(of, "plans")
    for change in ({"cwd": str(theirs)}, {"token": "x"}, {"name": "x"}, {"role": "astra"}):
        with pytest.raises(NotAllowed, match="permission denied"), connection():
            Night.update(change).execute()
    with pytest.raises(NotAllowed, match="permission denied"), connection():
        Night.insert({**columns, "cwd": str(theirs), "role": "astra"}).execute()
    as_role(of, "owner")
    with connection():
        strange, own = Night.select().order_by(Night.pk)
    assert folder_of(own) == str(ours)
    assert folder_of(strange) == str(Path.cwd()) != str(theirs)
    use(Config(plan=settings.Plan(trusted_roots=(str(tmp_path),))))
    assert folder_of(strange) == str(theirs)


def made_by_planner(of: Url, like: int, **values: object) -> Plan:
    """A plan as the planner writes it into the table by hand, like another."""
    as_role(of, "plans")
    with connection():
        data = {**Plan.get_by_id(like).__data__, **values}
        del data["role"]
        Plan.insert(data).execute()
        return Plan.get_by_id(data["pk"])


@pytest.mark.parametrize(
    ("path", "strange"), [("os:system", "os.py"), ("sys:exit", "sys"), ("xml.sax:parse", "xml")]
)
def test_whatever_is_installed_is_no_task_of_anybody(of: Url, path: str, strange: str) -> None:
    """Not from a root that is trusted either: the module is found elsewhere."""
    plan = made_by_planner(
        of, planned(of), pk=900, token="x", task_path=path, import_root=str(ROOT)
    )
    use(Config(plan=settings.Plan(trusted_roots=(str(ROOT),))))
    as_role(of, "owner")
    with pytest.raises(Untrusted, match=rf"in .*{strange} would run"):
        find_modules(plan)
    try:
        trust(plan)
        with pytest.raises(TaskError, match="is not a task: it lacks @task"):
            task_of(plan)
    finally:
        revoke_trust()


def test_a_plan_in_the_place_of_another_is_not_the_one_that_was_submitted(of: Url) -> None:
    as_role(of, "owner")
    plan = create_plan(measure, BossVisitSpectrum, limit=20)[0].plan
    assert plan is not None
    with connection():
        frozen, pages = Plan.get_by_id(plan), list(Page.select().where(Page.plan == plan))
        submission = new_submission(frozen, [1, 2], 0, 1, "slurm")
    make_intent(submission, pages)
    as_role(of, "plans")
    with connection():
        Plan.delete().where(Plan.pk == plan).execute()
        data = {name: value for name, value in frozen.__data__.items() if name != "role"}
        Plan.insert({**data, "import_root": "/tmp/theirs"}).execute()
        for row in (submission, *pages):
            data = {name: value for name, value in row.__data__.items() if name != "role"}
            type(row).insert(data).execute()
        Page.update(submission_pk=submission.pk).execute()
    as_role(of, "owner")
    (run,) = run_element(plan, 1, submission.token, planned_by=frozen.role)
    assert run.state == "broken" and "--trust" in run.message


@pytest.mark.parametrize(
    "change",
    [
        {Plan.import_root: "/tmp/x"}, {Plan.task_path: "x:y"}, {Plan.cwd: "/tmp/x"},
        {Plan.role: "astra"}, {Plan.arguments: "{}"}, {Plan.token: "../.."},
        {Submission.profile: "{}"}, {Submission.role: "astra"}, {Submission.log_folder: "/"},
    ],
    ids=lambda change: str(next(iter(change)).name),
)  # fmt: skip
def test_the_planner_changes_no_plan_into_another(of: Url, change: dict[peewee.Field, str]) -> None:
    as_role(of, "plans")
    (field,) = change
    with pytest.raises(NotAllowed, match="permission denied"), connection():
        field.model.update(change).execute()


def test_the_planner_says_not_who_it_is(of: Url) -> None:
    plan = planned(of)
    with connection():
        values = {**Plan.get_by_id(plan).__data__, "pk": 900, "role": "astra"}
    with pytest.raises(NotAllowed, match="permission denied"), connection():
        Plan.insert(values).execute()
