"""Three nights from real cron, unattended, with a node that dies and rows that fail.

    sudo python -m benchmarks.three_nights [FOLDER]

Debian's cron calls `astra nightly` every minute, in folders of its own (unshare), on a PostgreSQL,
a Slurm cluster and a mail server that are started for it. This script is the world around: it adds
5,000 rows when a night is over, and does the harm; it calls no command of astra's until the three
nights have ended. Then it shows what became of them. It takes about six minutes.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

from aiosmtpd.controller import Controller

from astra.database.connection import connection, database
from astra.models import BossVisitSpectrum, Source
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.nights import Night
from astra.models.plans import Plan
from tests.servers import Postgres, Slurm, cron_daemon, wait_for
from tests.servers.server import Ports

ROOT = Path(__file__).resolve().parent.parent
ROWS, FAIL, SLOW = 5000, 30, 250  # of the third night: rows that fail; rows of one slow page

_TASKS = '''
import time
from collections.abc import Iterable

from peewee import FloatField

from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel


class Brightness(PipelineOutputModel):
    value = FloatField()


class Quality(PipelineOutputModel):
    value = FloatField()


@task
def brightness(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Brightness]:
    """Takes as many ms for a row as its snr says; below 0 it fails."""
    for spectrum in spectra:
        if spectrum.snr < 0:
            raise ValueError(f"spectrum {spectrum.spectrum_pk} has no light")
        time.sleep(spectrum.snr / 1000)
        yield Brightness.from_spectrum(spectrum, value=spectrum.snr)


@task
def quality(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Quality]:
    for spectrum in spectra:
        yield Quality.from_spectrum(spectrum, value=1.0)
'''

_CONFIG = """
[database]
url = "{url}"
[run]
dir = "runs"
[element]
write_frequency = 2
[profiles.survey]
extends = "general"
time = "00:01:00"
[nights.survey]
profile = "survey"
limit = {limit}
start_until = "{until}"
[[nights.survey.tasks]]
task = "archive.brightness"
[[nights.survey.tasks]]
task = "archive.quality"
after = ["archive.brightness"]
[nights.survey.notify]
mail = ["observers@example.org"]
smtp = "smtp://127.0.0.1:{smtp}"
"""


class Inbox:
    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
        mail = message_from_bytes(envelope.content)  # type: ignore[attr-defined]
        text = mail.get_payload(decode=True).decode()  # type: ignore[union-attr]
        self.mails.append(f"Subject: {mail['Subject']}\n{text}")
        return "250 kept"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def wait(condition: Callable[[], bool], what: str) -> None:
    wait_for(condition, what, 900)
    say(what)


def new_rows(third: bool) -> None:
    """5,000 spectra; in the third night some are bad, and one page is slow."""
    with connection(), database.atomic():
        source = Source.get_or_create(sdss_id=1)[0].pk
        ms = [10.0] * (ROWS - SLOW) + ([400.0] if third else [10.0]) * SLOW
        if third:
            ms[:: (ROWS - SLOW) // FAIL] = [-1.0] * len(ms[:: (ROWS - SLOW) // FAIL])
            bad = [place for place, value in enumerate(ms) if value < 0]
            for place in bad[FAIL:]:
                ms[place] = 10.0
        for start in range(0, ROWS, 1000):
            some = [{"source": source, "snr": value} for value in ms[start : start + 1000]]
            BossVisitSpectrum.insert_many(some).execute()
    say(f"{ROWS:,} new rows{', 30 of them bad, and a page of slow ones' if third else ''}")


def kill_node(cluster: Slurm) -> None:
    """A node dies, with all that runs on it, in the middle of a page."""

    def at_work() -> list[Attempt]:
        with connection():
            query = Attempt.select().where(
                (Attempt.state == "running") & (Attempt.n_checkpoints > 0)
            )
            return list(query)

    wait(lambda: bool(at_work()), "elements are at work")
    there: list[int] = []
    while not there:  # who is at work may end before it is stopped
        node = at_work()[0].host if at_work() else "n1"
        chains = [chain_of(a.pid) for a in at_work() if a.host == node]
        # Stopped first, so that they live when their slurmd dies.
        there = [pid for chain in chains for pid in chain if sent(pid, signal.SIGSTOP)]
    cluster.kill_slurmd(node)
    for pid in there:
        sent(pid, signal.SIGKILL)
    say(f"node {node} has died")


def sent(pid: int, number: int) -> bool:
    """Whether the process was there to be signalled."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def chain_of(pid: int) -> list[int]:
    """A process and those above it, up to slurmstepd."""
    found = []
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            break
        text = stat.read_text()
        found.append(pid)
        if "slurmstepd" in text[: text.rindex(")")]:
            break
        pid = int(text[text.rindex(")") + 2 :].split()[1])
    return found[::-1]


def ended() -> int:
    with connection():
        return Night.select().where(Night.ended.is_null(False) & Night.told.is_null(False)).count()


def show(folder: Path, inbox: Inbox) -> None:
    """Only now is anything asked of astra."""

    def astra(*words: str) -> None:
        print(f"\n$ astra {' '.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", "astra", *words], cwd=folder, check=False)

    astra("nights", "survey")
    for number in ("1", "2", "3"):
        astra("nights", "survey", number)
    with connection():
        plans = [plan.pk for plan in Plan.select().order_by(Plan.pk)]
    for plan in plans:
        astra("verify", str(plan))
    print("\nreports:", *sorted(str(p) for p in (folder / "runs" / "nights").glob("*.html")))
    print(f"\n{len(inbox.mails)} mails:")
    for mail in inbox.mails:
        print("-" * 70, mail, sep="\n")
    with connection():
        n_failed = Failure.select().count()
        timed_out = Attempt.select().where(Attempt.slurm_state == "TIMEOUT").count()
        lost = Attempt.select().where(Attempt.state == "superseded").count()
    print(f"{n_failed} failures; {timed_out} attempts timed out; {lost} were taken over")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="three-nights-"))
    folder.mkdir(exist_ok=True, mode=0o700)
    if os.geteuid() or not shutil.which("cron"):
        raise SystemExit("it needs root, and Debian's cron: apt-get install cron")
    inbox, ports = Inbox(), Ports()
    mail = Controller(inbox, hostname="127.0.0.1", port=ports.one())
    mail.start()
    with Postgres() as server, Slurm(nodes=4, cpus=4, extra=["SlurmdTimeout=15"]) as cluster:
        url = server.create_database("archive")
        until = time.strftime("%H:%M", time.localtime(time.time() + 12 * 3600))
        text = _CONFIG.format(url=url, limit=SLOW, smtp=mail.port, until=until)
        (folder / "astra.toml").write_text(text)
        (folder / "archive.py").write_text(_TASKS)
        os.environ |= {
            "ASTRA_CONFIG": str(folder / "astra.toml"), "SLURM_CONF": str(cluster.conf),
            "PYTHONPATH": f"{ROOT}:{folder}",
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "astra", "initdb", "archive"], cwd=folder, check=True)
        before = f"{sys.executable} -m astra cron survey --at '* * * * *' --install"
        with cron_daemon(folder, before, cwd=folder):
            for number in (1, 2, 3):
                new_rows(third=number == 3)
                if number == 2:
                    kill_node(cluster)
                wait(lambda n=number: ended() >= n, f"night {number} is over and told")  # type: ignore[misc]
        show(folder, inbox)
    mail.stop()
    ports.release()


if __name__ == "__main__":
    main()
