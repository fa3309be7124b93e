"""The interface for programs, which the command line uses too: one function for each command.

::

    from astra.api import create_plan, submit, wait

    plans = create_plan("slam.slam", limit=2000)
    submissions = submit(plans, profile="debug", mem="4G")
    for plan_status in wait(submissions):
        print(plan_status.plan, plan_status.state, plan_status.rows)

A task that reads several tables has a plan for each of them, so :func:`create_plan` returns a list,
which :func:`submit` and :func:`wait` take as it is. Others take the number of a plan,
as in ``plans[0].plan``; those of several plans also take one number. Errors are those of
:mod:`astra.errors`; each message says what to do next.

Names that are not in ``__all__`` are for the command line: they may change in any version.
"""

from astra.api.explained import database_errors_explained, explained
from astra.lazy import on_first_use

TYPE_CHECKING = False  # type checkers assume True; an import here would delay every command
if TYPE_CHECKING:
    from astra.api.running import run_here
    from astra.api.sizing import estimate, plan_sized
    from astra.api.submitting import Execution, submit, submit_task
    from astra.api.waiting import wait
    from astra.config.settings import current as configuration
    from astra.database.connection import is_file as is_database_file
    from astra.database.connection import retrying
    from astra.database.connection import url as database_url
    from astra.doctor.environment import wrong_profiles
    from astra.doctor.job import write_answer
    from astra.element.trial import trial_of_plan, trial_of_task
    from astra.models.key_parsing import keys_as_text, keys_of
    from astra.models.scaffold import start_here
    from astra.models.schema import init_database
    from astra.models.schema import sql_of as sql_of_tables
    from astra.models.spectrum import every_spectrum_model
    from astra.models.table_checks import check_version
    from astra.night.clean import Cleaned, clean
    from astra.night.cron import check as check_cron
    from astra.night.cron import entry as cron_entry
    from astra.night.cron import install as install_cron
    from astra.night.cron import remove as remove_cron
    from astra.night.dashboard import Dashboard
    from astra.night.dashboard import keep_up_to_date as keep_dashboard
    from astra.night.doctor import examine, is_ready, on_a_node
    from astra.night.history import NightStatus, night_of, nights
    from astra.night.metrics import metrics
    from astra.night.nightly import Nightly, nightly, proceed
    from astra.night.nightly import heal_all as heal
    from astra.night.report import report_of_night
    from astra.plan.lookup import last_plan, revoke_trust, trust
    from astra.plan.ownership import rename_task
    from astra.plan.plan import Planned, create_plan, plan_at_most
    from astra.plan.sizes import Estimate
    from astra.plan.spool import Recovered
    from astra.report.format import duration
    from astra.report.page import html as report_html
    from astra.report.report import report_of as report
    from astra.resume.cancel import Cancelled, cancel
    from astra.resume.pause_and_throttle import (
        Control,
        continue_plans,
        live_plans,
        pause,
        recover,
        throttle,
    )
    from astra.resume.resume import resume, resume_local
    from astra.states import PlanState
    from astra.status.failures import FailedRow, failures
    from astra.status.failures import kinds as kinds_of_failures
    from astra.status.logs import Log, has_ended, logs
    from astra.status.logs import path_of as log_path
    from astra.status.logs import text_of as log_text
    from astra.status.plans import PlanLine
    from astra.status.plans import all_plans as plans
    from astra.status.results import StoredResults, json_value
    from astra.status.row_history import history_of as why
    from astra.status.status import PlanStatus, status, statuses
    from astra.status.verdict import CHECKS, Verdict
    from astra.status.verify import verify
    from astra.status.watch import Watched, watch
    from astra.submit.submit import Submitted
    from astra.tasks.signature import find_task, input_models, known_tasks, tasks_of_folder

__all__ = [
    "Cancelled",
    "Cleaned",
    "Control",
    "Estimate",
    "FailedRow",
    "Log",
    "NightStatus",
    "Nightly",
    "PlanLine",
    "PlanState",
    "PlanStatus",
    "Planned",
    "Recovered",
    "StoredResults",
    "Submitted",
    "Verdict",
    "Watched",
    "cancel",
    "clean",
    "continue_plans",
    "create_plan",
    "estimate",
    "examine",
    "failures",
    "heal",
    "init_database",
    "logs",
    "metrics",
    "night_of",
    "nightly",
    "nights",
    "pause",
    "plans",
    "recover",
    "rename_task",
    "report",
    "resume",
    "resume_local",
    "status",
    "statuses",
    "submit",
    "throttle",
    "verify",
    "wait",
    "watch",
    "why",
]

__getattr__, __dir__ = on_first_use(__name__, explained)
