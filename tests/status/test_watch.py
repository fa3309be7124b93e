"""Status, watched: live in a terminal, which is left as it was; lines elsewhere."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from astra.api import run_here
from astra.cli import show
from astra.cli.group import main
from astra.database.connection import connection
from astra.element.claiming import ElementProcess, claim_page
from astra.models.attempts import Attempt
from astra.models.plans import Page, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.processes import is_running, process_began
from astra.resume.resume import resume
from astra.states import PageState
from astra.status.status import status
from astra.status.watch import watch
from astra.submit.local import end_submission, pages_to_run, start_local
from astra.submit.submit import submit
from tests.conftest import ROOT
from tests.sample_tasks import fill, measure
from tests.servers import wait_for


def planned(n: int, limit: int, **arguments) -> int:
    fill(n)
    (found,) = create_plan(measure, "BossVisitSpectrum", limit=limit, arguments=arguments)
    return found.plan


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "astra", "status", *map(str, words)]


class Terminal:
    """`astra status` in a terminal of its own: what it writes, and the terminal's modes."""

    def __init__(self, *words: object, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.slave, self.before, self.text = slave, termios.tcgetattr(slave), ""
        self.process = subprocess.Popen(
            command(*words), cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def read_until(self, pattern: str, timeout_s: float = 60) -> None:
        until = time.monotonic() + timeout_s
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, self.text[-2000:]
            self._read(0.5)

    def _read(self, wait_s: float) -> None:
        if select.select([self.master], [], [], wait_s)[0]:
            self.text += os.read(self.master, 65536).decode(errors="replace")

    def end(self) -> int:
        while self.process.poll() is None:
            self._read(0.1)
        self._read(0.1)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        os.close(self.master)
        return self.process.returncode


ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.slurm
@pytest.mark.postgres
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_is_left_as_it_was(slurm, how):
    plan = planned(200, 100, row_s=0.5)
    submit(plan)
    wait_for(lambda: Attempt.select().where(Attempt.state == "running").count(), "an attempt", 60)
    terminal = Terminal(plan, "--watch", "--every", 1)
    terminal.read_until(r"(?s)Ctrl-C exits.*Ctrl-C exits")  # it was drawn twice
    assert terminal.text.index(ALTERNATE) < terminal.text.index("Ctrl-C exits")
    if how == signal.SIGINT:
        os.write(terminal.master, b"\x03")
    else:
        terminal.process.send_signal(how)
    assert terminal.end() == 3
    screen, after = terminal.text.split(BACK)
    assert screen.count(ALTERNATE) == 1 and terminal.text.rindex(
        SHOW_CURSOR
    ) > terminal.text.rindex(HIDE_CURSOR)
    assert f"plan {plan}: tests.sample_tasks.measure" in after and "Traceback" not in terminal.text


@pytest.mark.slurm
@pytest.mark.postgres
def test_it_ends_with_the_plan_and_asks_once_a_look(slurm, tmp_path, monkeypatch):
    """A plan in several arrays; not in a terminal, a line for each change."""
    fast = tmp_path / "fast"
    plan = planned(200, 50, row_s=0.5, slow_until=str(fast))
    slurm.set_max_submit(3)
    submit(plan, options={"pull": False})
    slurm.set_max_submit(None)
    resume(plan)
    assert len({s.job_id for s in Submission.select().where(Submission.state == "submitted")}) > 1
    counted = tmp_path / "counted"
    counted.mkdir()
    for name in ("squeue", "sacct", "scontrol"):
        (counted / name).write_text(
            f'#!/bin/sh\necho {name} >>{counted}/calls\nexec {shutil.which(name)} "$@"\n'
        )
        (counted / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{counted}:{os.environ['PATH']}")
    watching = subprocess.Popen(
        command(plan, "--watch", "--every", 1),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = ""
    while printed.count("running:") < 2:  # it was seen to change
        line = watching.stdout.readline()
        assert line, printed
        printed += line
    fast.touch()
    printed += watching.communicate(timeout=120)[0]
    assert watching.returncode == 0, printed
    assert "\x1b" not in printed
    lines = [line for line in printed.splitlines() if re.match(r"\d\d:\d\d:\d\d \S+ plan", line)]
    assert "running:" in lines[0] and "whole: 200 done = 200 rows" in lines[-1]
    calls = (counted / "calls").read_text().split()
    # The last look finds the plan whole, and asks nothing.
    n_asked = len(lines) - 1
    assert calls.count("squeue") == calls.count("sacct") >= n_asked and "scontrol" not in calls


def test_a_plan_that_is_whole_is_shown_once(sqlite_url, tmp_path):
    plan = planned(20, 10)
    run_here(plan)
    done = subprocess.run(
        command(plan, "--watch"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "whole: 20 done = 20 rows" in done.stdout
    wrong = subprocess.run(
        command(plan, "--watch", "--json"), cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "leave one of them out" in wrong.stderr


def test_a_screen_is_no_higher_than_the_terminal(sqlite_url, monkeypatch):
    from astra.cli.show_watch import _watched

    plan = planned(300, 3)
    Page.update(n_done=1).where(Page.number % 2 == 0).execute()
    (look,) = watch(plan, 1)
    stuck = [
        replace(
            page, state=PageState.LOST if page.page > 50 else PageState.RUNNING, message="x " * 200
        )
        for page in look.status.elements
    ]
    look = replace(look, status=replace(look.status, elements=tuple(stuck)))
    for columns, rows in ((40, 12), (80, 24), (200, 60)):
        own = Console(file=StringIO(), width=columns, height=rows, force_terminal=True)
        own.print(_watched(look, own))
        lines = own.file.getvalue().splitlines()
        assert 6 < len(lines) <= rows and "Ctrl-C exits" in lines[-1]
        assert rows < 24 or "lost" in lines[8]  # what is stuck comes first


def test_a_rate_is_given_however_rarely_the_status_is_looked_at(sqlite_url, monkeypatch):
    plan = planned(40, 10)
    clock = iter(range(0, 10_000, 300))
    monkeypatch.setattr("astra.status.watch.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("astra.status.watch.time.sleep", lambda s: None)
    monkeypatch.setattr("astra.status.watch.may_continue", lambda current: True)
    watching = watch(plan, every_s=600)
    assert next(watching).rows_per_s is None
    Page.update(n_done=10, outcomes=b"\x01" * 10).where(Page.number == 1).execute()
    # Two times are taken for each status: when it began, and how long it took.
    assert next(watching).rows_per_s == 10 / 600
    assert (third := next(watching)).rows_per_s == 0, "the rows ended before the last two"
    assert third.left_s is None


def test_ctrl_c_before_the_first_status_is_known_is_an_interruption(sqlite_url, monkeypatch):
    def press(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    plan = planned(10, 10)
    monkeypatch.setattr("astra.status.watch.status", press)
    done = CliRunner().invoke(main, ["status", str(plan), "--watch"])
    assert (done.exit_code, done.output) == (130, "")


def test_progress_is_a_bar_in_a_terminal(monkeypatch):
    screen = Console(file=StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(show, "console", screen)
    with show.progress("plan 7") as report:
        report(150, 200)
    assert "plan 7" in screen.file.getvalue() and "150/200" in screen.file.getvalue()


def test_local_processes_that_end_while_the_status_is_made_are_not_lost(url, monkeypatch):
    plan = get_plan(planned(10, 10))
    submission = start_local(plan, pages_to_run(plan))
    process = subprocess.Popen(["sleep", "600"])
    began = process_began(process.pid)
    with connection():
        where = ElementProcess(socket.gethostname(), process.pid, began)
        claim_page(plan, 1, submission, 1, where)
        end_submission(submission)
    assert status(plan.pk).pages == {"running": 1}

    def end(pid, began):
        """Its last checkpoint, and its end, after its page was read and before it is looked at."""
        with connection():
            Page.update(n_done=10, outcomes=b"\x01" * 10).execute()
            Attempt.update(state="done").execute()
        process.kill()
        process.wait()
        return is_running(pid, began)

    monkeypatch.setattr("astra.status.page_states.is_running", end)
    found = status(plan.pk)
    assert (found.state, found.pages) == ("whole", {"done": 1})
