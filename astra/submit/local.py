"""The local executor: run the elements that Slurm would run as processes of this machine."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from peewee import fn

from astra.config import settings as config
from astra.config.run_folder import check_folder, open_to_append, run_folder, umask_without_write
from astra.database.connection import connection, retrying, tuples, url
from astra.errors import DatabaseError, Interrupted, count
from astra.models.plans import Page, Plan, Submission
from astra.plan.pages import pages_without_keys
from astra.processes import signal_name
from astra.submit.intent import make_intent, new_submission
from astra.submit.render import element_arguments, environment
from astra.submit.submit import Submitted

log = logging.getLogger(__name__)


#: How often the processes are checked, and progress is reported.
_POLL_S = 0.1

#: Beyond the grace of a row, how long processes that were asked to stop may take to store.
_STORING_S = 20.0


def start_local(plan: Plan, pages: list[Page]) -> Submission:
    """Store a submission of pages to this process; the plan is locked."""
    check_folder(run_folder(plan.folder) / "logs")
    submission = new_submission(plan, [page.number for page in pages], 0, 1, "local", pulls=True)
    make_intent(submission, pages)
    return submission


def interrupted(plan: Plan) -> Interrupted:
    return Interrupted(
        f"plan {plan.pk} was interrupted; its yielded results are stored: "
        f"astra resume {plan.pk} --local"
    )


def _failed_elements(statuses: dict[int, int], log_path: str) -> str:
    """Describe which elements failed, and where to look.

    >>> _failed_elements({3: 77}, "logs/local-a1")
    '1 element failed: element 3 (exit status 77); see logs/local-a1_3.log'
    >>> _failed_elements({3: -9, 4: 77}, "logs/local-a1")
    '2 elements failed, first element 3 (killed by SIGKILL); see logs/local-a1_3.log'
    """
    element, status = next(iter(statuses.items()))
    how = f"killed by {signal_name(-status)}" if status < 0 else f"exit status {status}"
    number = count(len(statuses), "element")
    which = ":" if len(statuses) == 1 else ", first"
    return f"{number} failed{which} element {element} ({how}); see {log_path}_{element}.log"


def end_submission(submission: Submission) -> None:
    """Note that no further process will be started for a local submission."""
    query = Submission.update(state="ended").where(Submission.token == submission.token)
    try:
        retrying(query.execute, bound_s=30)
    except DatabaseError as error:
        # Nothing depends on it: a status finds that the processes are gone.
        log.warning("the end of the local run could not be recorded: %s", error)


class LocalRun:
    """A run of pages by processes that this process starts, and no others.

    Parameters
    ----------
    plan, submission : from :func:`start_local`; no lock is held while elements run.
    pages : the pages to run. At most one element starts for each; an element takes any free page.
    row_timeout : longest time for a row, in seconds; without it the configured one.
    setup : lines of shell that each process runs first; the first that fails ends it.
    """

    def __init__(
        self,
        plan: Plan,
        submission: Submission,
        pages: list[Page],
        row_timeout: float | None,
        setup: tuple[str, ...],
    ) -> None:
        self.plan, self.submission, self.pages = plan, submission, pages
        self.log_path = f"{run_folder(plan.folder)}/logs/local-{submission.token}"
        lines = "\n".join(["set -e", *setup, "set +e", 'exec "$@"'])
        self.command = [
            *(["bash", "-c", lines, "astra"] if setup else []), sys.executable, "-P", "-m", "astra",
            *element_arguments(plan, submission.token, row_timeout),
        ]  # fmt: skip
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.n_signals = 0  # the first asks the elements to stop, the second kills them
        self.failed: dict[int, int] = {}  # element: exit status

    def run(self, n_processes: int, progress: Callable[[int, int], None]) -> Submitted:
        """Run elements in `n_processes` processes at a time, until no page is free.

        `progress` is called regularly with the numbers of ended rows and of all rows of the plan.

        Raises
        ------
        Interrupted
            After Ctrl-C or SIGTERM: the processes have been asked to stop, and have stored their
            rows.
        """
        # Only the main thread may set handlers; in another, the caller decides what a signal does.
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            self._run_elements(n_processes, progress)
        finally:
            self._end()
            end_submission(self.submission)
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.n_signals:
            raise interrupted(self.plan)
        message = _failed_elements(self.failed, self.log_path) if self.failed else None
        rows = sum(page.n_pending for page in self.pages)
        return Submitted(self.plan.pk, self.plan.task, len(self.pages), rows, message=message)

    def _on_signal(self, number: int, frame: object) -> None:
        self.n_signals += 1
        self.ask_to_stop()

    def _run_elements(self, n_processes: int, progress: Callable[[int, int], None]) -> None:
        """Start elements, `n_processes` at a time, until all have ended or no page is free."""
        queue = [page.number for page in self.pages]
        shown = 0.0
        while (queue or self.running) and not self.n_signals:
            while queue and len(self.running) < n_processes and not self.n_signals:
                self._start(queue.pop(0))
            if self._reap():  # an element that succeeds has found no free page
                queue.clear()
            if time.monotonic() - shown > 0.5:
                _report_progress(self.plan, progress)
                shown = time.monotonic()
            if self.running:
                time.sleep(_POLL_S)
        _report_progress(self.plan, progress)

    def _start(self, element: int) -> None:
        """Start the process of an element; its output goes to a log of its own."""
        command = [*self.command, "--element", str(element)]
        # The process runs in the plan's folder: the paths among these variables are absolute.
        variables = {**os.environ, **environment(), "ASTRA_DATABASE_URL": url()}
        variables["PYTHONUNBUFFERED"] = "1"
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            variables.setdefault(name, "1")
        for name in [key for key in variables if key.startswith(("SLURM_", "SLURMD_"))]:
            del variables[name]
        cwd = self.plan.cwd if Path(self.plan.cwd).is_dir() else None
        with open_to_append(Path(f"{self.log_path}_{element}.log")) as log_file:
            # In a session of its own: Ctrl-C reaches only this process, which passes it on.
            self.running[element] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT,
                env=variables, cwd=cwd, start_new_session=True, umask=umask_without_write(),
            )  # fmt: skip

    def _reap(self) -> bool:
        """Collect ended elements; return whether one of them succeeded."""
        succeeded = False
        for element, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[element]
                if process.returncode:
                    self.failed[element] = process.returncode
                else:
                    succeeded = True
        return succeeded

    def ask_to_stop(self) -> None:
        """Send SIGTERM to all processes that run."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _end(self) -> None:
        """Terminate all elements that still run."""
        self.ask_to_stop()
        deadline = time.monotonic() + config.current().element.grace_s + _STORING_S
        while self.running and time.monotonic() < deadline and self.n_signals < 2:
            self._reap()
            time.sleep(_POLL_S / 2)
        for process in self.running.values():
            process.kill()
            process.wait()
        self.running.clear()


def _report_progress(plan: Plan, progress: Callable[[int, int], None]) -> None:
    """Report the progress of the plan; an unavailable database is ignored."""
    ended = fn.SUM(Page.n_done + Page.n_failed + Page.n_no_result)
    query = Page.select(ended, fn.SUM(Page.n_rows)).where(Page.plan == plan.pk)
    try:
        n_ended, n_rows = retrying(lambda: next(tuples(query)), bound_s=0)
    except DatabaseError as error:
        log.info("progress is unknown: %s", error)
        return
    progress(int(n_ended or 0), int(n_rows or 0))


def pages_to_run(plan: Plan) -> list[Page]:
    """Return the pages that belong to no submission and have rows left."""
    with connection():
        return [p for p in pages_without_keys(plan) if p.submission_pk is None and p.n_pending]
