"""What the status of a plan says that needs somebody, with the command to type."""

from astra.api import run_here
from astra.models import BossVisitSpectrum
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.resume.controls import pause, throttle
from astra.states import PlanState
from astra.status.headline import headline_of
from astra.status.status import status
from astra.submit.intent import make_intent, new_submission
from tests.sample_tasks import fill, measure


def planned(n: int = 40, run: bool = True) -> int:
    fill(n)
    (made,) = create_plan(measure, BossVisitSpectrum, limit=10)
    if run:
        run_here(made.plan)
    return made.plan


def submitted(plan: int, *numbers: int, job: int | None) -> None:
    """Pages in an array of a cluster that cannot be asked from here, or in a lost one."""
    frozen, n = get_plan(plan), list(numbers)
    submission = new_submission(frozen, n, 0, 1, "slurm")
    make_intent(submission, list(Page.select().where((Page.plan == plan) & Page.number.in_(n))))
    if job is not None:
        Submission.update(state="submitted", job_id=job).where(
            Submission.pk == submission.pk
        ).execute()


def test_without_slurm_its_pages_are_unknown(sqlite_url):
    plan = planned(run=False)
    submitted(plan, 1, 2, job=4711)
    submitted(plan, 3, job=None)
    found = status(plan)
    assert found.pages == {"unknown": 3, "unsubmitted": 1}
    assert [page.job for page in found.elements[:3]] == ["4711_1", "4711_2", None]
    assert len(found.elements) == 4 and found.state is PlanState.ATTENTION
    (note,) = found.notes
    assert note.startswith("Slurm is not installed on this machine") and "login node" in note
    assert (
        f"astra resume {plan}   looks up the array of an sbatch without an answer" in found.advice
    )
    assert f"astra status {plan}   again, when Slurm answers" in found.advice
    assert headline_of([found]).text == (
        "40 of 40 rows have not ended; 1 page will not end without intervention; the state of "
        "3 pages is unknown, as Slurm did not answer."
    )


def test_rows_that_do_not_add_up_need_attention(sqlite_url):
    plan = planned()
    Plan.update(n_rows=1041).execute()
    found = status(plan)
    assert found.state is PlanState.ATTENTION
    assert f"the rows add up to 40, not 1,041: astra verify {plan} shows where" in found.notes


def test_a_throttle_and_a_pause_are_noted_until_all_is_done(sqlite_url):
    plan = planned(run=False)
    for n, many in ((1, "1 element takes"), (2, "2 elements take")):
        throttle(plan, n)
        assert status(plan).notes == (
            f"at most {many} further pages: astra throttle {plan} --off ends this",
        )
    pause([plan])
    assert [note[:18] for note in status(plan).notes] == [
        "the plan is paused",
        "at most 2 elements",
    ]
