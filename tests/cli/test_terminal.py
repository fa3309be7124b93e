"""What others wrote never controls the terminal of who looks at it, wherever it is shown."""

import io
import logging
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from astra.cli import show
from astra.cli.group import main
from astra.cli.listing import Terminal
from astra.config.startup import _Hiding, printable
from astra.database.connection import connection
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.plans import Plan
from astra.night.history import NightStatus
from astra.night.notify import compose
from astra.plan.plan import create_plan
from astra.report.page import html
from astra.report.report import report_of
from astra.resume.resume import resume_local
from tests.sample_tasks import fill, measure

#: Clears the screen, sets its title, goes back in the line, turns the text round; markup of rich.
EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\u2066[/nothing][bold red]"
CONTROLS = set("\x1b\x07\r\x9b\u202e\u2066")


def harmless(text: str) -> None:
    assert text and not CONTROLS & set(text), repr(text)


def test_every_command_that_shows_a_plan(sqlite_url: str) -> None:
    fill(4)
    plan = create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 2})[0].plan
    resume_local(plan)
    evil = {"message": EVIL, "traceback": EVIL, "exception": EVIL, "place": EVIL}
    with connection():
        Failure.update(evil).execute()
        Attempt.update(message=EVIL, host=EVIL, state=EVIL).execute()
        Plan.update(created_by=EVIL, task=EVIL, pause_reason=EVIL, paused=Plan.created).execute()
    for line in (
        "failures 1 --traceback", "failures 1 --csv", "logs 1", "logs 1 --csv", "logs 1 1", "plans",
        "plans --csv", "status 1", "status 1 --pages", "status 1 --json", "verify 1", "report 1 -o -",
    ):  # fmt: skip
        done = CliRunner().invoke(main, line.split())
        assert done.exception is None or isinstance(done.exception, SystemExit), (line, done)
        harmless(done.output)
    harmless(html(report_of([plan])))


def test_the_mail_of_a_night_has_no_control_characters() -> None:
    now, name = datetime.now(UTC), EVIL + "\nBcc: all@example.org"
    night = NightStatus(
        1, name, "2026-01-01", "not whole", now, now, *[0] * 7, 0.0, 0.0, "h", "me",
        message=f"{EVIL}; second",
    )  # fmt: skip
    subject, text = compose(night)
    harmless(subject)
    harmless(text)
    assert "\n" not in subject


def test_what_is_logged_and_what_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("a", 40, "", 0, f"said: {EVIL}", (), None)
    harmless(_Hiding("%(message)s").format(record))
    show.error(EVIL)
    harmless(capsys.readouterr().err)
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, color_system="standard").print("[red]x[/]")
    assert "\x1b[31m" in file.getvalue()  # colours of its own


def test_texts_of_people_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "λ Å é\tzwei\n日本語 🙂"
    assert printable(text) == text
    show.error("no row 12:on:3 [red]")
    assert "no row 12:on:3 [red]" in capsys.readouterr().err
