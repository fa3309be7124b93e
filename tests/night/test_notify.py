"""People are notified of a night by mail, webhook and command; what fails is kept."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from click.testing import CliRunner

from astra.cli.group import main
from astra.config import settings as config
from astra.config.nights import checked
from astra.database.connection import connection
from astra.errors import ConfigError
from astra.models.nights import Night, NightPlan
from astra.night.doctor import _notified
from astra.night.history import night_of
from astra.night.nightly import _notify_of_earlier
from astra.night.notify import NOTIFIED, compose, notify
from tests.configuration import configure
from tests.conftest import ROOT
from tests.servers import wait_for
from tests.servers.server import Ports


class Inbox:
    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content)))
        return "250 kept"


@pytest.fixture
def inbox():
    kept = Inbox()
    ports = Ports()
    server = Controller(kept, hostname="127.0.0.1", port=ports.one())
    server.start()
    try:
        yield kept, f"smtp://127.0.0.1:{server.port}"
    finally:
        server.stop()
        ports.release()


@contextmanager
def listening(status: int):
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self):  # as one that is sent elsewhere does
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield got, f"http://127.0.0.1:{server.server_port}/hooks/geheimnis"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(**ways):
    return checked({"survey": {"tasks": ["tests.sample_tasks.measure"], "notify": ways}})["survey"]


def a_night(whole: bool = True) -> Night:
    with connection():
        message = None if whole else "plan 7 of slam: 3 rows are left: astra status 7"
        made = Night.create(
            name="survey", date="2026-01-02", ended="2026-01-03 05:00:00",
            state="whole" if whole else "not whole", message=message, cwd="/", host="h",
            created_by="u",
        )  # fmt: skip
        NightPlan.create(
            night=made.pk, task="slam", plan_pk=7, n_rows=10, n_done=9 if whole else 6, n_failed=1,
            has_ended=whole,
        )  # fmt: skip
        return made


def test_each_channel_is_notified_once_and_again_on_change(url, inbox, tmp_path):
    kept, smtp = inbox
    with listening(200) as (hooks, hook):
        ways = settings(
            mail=["a@example.org", "b@example.org"], sender="astra@example.org", smtp=smtp,
            webhook=hook, command=["sh", "-c", f"cat >>{tmp_path}/got; echo >>{tmp_path}/got"],
        )  # fmt: skip
        night = a_night(whole=False)
        assert notify(night, ways) == dict.fromkeys(("mail", "webhook", "command"), NOTIFIED)
        notify(night, ways)
        assert {f.state for f in _notified("night survey", ways)} == {"ok"} and len(hooks) == 1
        ((to, mail),) = kept.mails
        assert to == ["a@example.org", "b@example.org"]
        assert mail["Subject"] == "astra: night survey of 2026-01-02 is not whole"
        text = mail.get_payload(decode=True).decode()
        assert "astra status 7" in text and "astra failures 7" in text
        assert hooks[0]["text"].startswith(mail["Subject"]) and hooks[0]["night"]["pending"] == 3
        assert json.loads((tmp_path / "got").read_text())["failures"] == 1
        with connection():
            Night.update(state="whole", message=None).execute()
        notify(night, ways)
        assert [m["Subject"][-8:] for _, m in kept.mails] == ["ot whole", "is whole"]
        assert len(hooks) == 2 and len((tmp_path / "got").read_text().splitlines()) == 2


def test_a_failed_notification_is_retried_and_fails_nothing_else(url, inbox, tmp_path, monkeypatch):
    kept, smtp = inbox
    night = a_night()
    with listening(500) as (hooks, hook):
        ways = settings(
            mail="a@example.org", webhook=hook, command="sh -c 'echo no pager >&2; exit 3'"
        )
        monkeypatch.setattr("astra.night.notify.shutil.which", lambda *a, **k: None)
        found = notify(night, ways)
        assert "no sendmail" in found["mail"] and "500" in found["webhook"]
        assert found["command"] == "RuntimeError: exit status 3: no pager"
        assert "no pager" in night_of("survey").notified["command"]
        better = settings(
            mail="a@example.org", smtp=smtp, command=["touch", f"{tmp_path}/notified"]
        )
        for _ in range(2):  # as the next night begins, and the one after it
            _notify_of_earlier(better)
            assert night_of("survey").notified["mail"].startswith(NOTIFIED)
            assert len(kept.mails) == 1 and len(hooks) == 1 and (tmp_path / "notified").exists()


def test_a_process_that_is_killed_repeats_no_notification(url, tmp_path, monkeypatch):
    """It is killed while the second channel hangs, which the next process tries again."""
    log, passes = tmp_path / "log", tmp_path / "passes"
    command = f"echo begun >>{log}; test -e {passes} || exec sleep 60"
    a_night()
    with listening(200) as (hooks, hook):
        text = '[nights.survey]\ntasks = ["tests.sample_tasks.measure"]\n[nights.survey.notify]\n'
        text += f'webhook = "{hook}"\ncommand = ["sh", "-c", "{command}"]\n'
        configure(tmp_path, text, monkeypatch)
        call = "from astra.night import nightly; nightly._notify_of_earlier({}('survey'))"
        words = [sys.executable, "-c", call.format("nightly.settings_of")]
        with subprocess.Popen(words, start_new_session=True) as killed:
            wait_for(log.exists, "the second channel", 20)
            os.killpg(killed.pid, signal.SIGKILL)
        passes.touch()
        _notify_of_earlier(config.settings_of("survey"))
        assert len(hooks) == 1 and log.read_text() == "begun\n" * 2
    assert {how[:8] for how in night_of("survey").notified.values()} == {NOTIFIED}


def test_a_finalizer_that_is_requeued_as_it_notifies_people_does_so_again(
    pg_url, tmp_path, monkeypatch
):
    """The night is closed by then."""
    log, passes = tmp_path / "log", tmp_path / "passes"
    command = f"echo begun >>{log}; test -e {passes} || exec sleep 60"
    text = '[nights.survey]\ntasks = ["tests.sample_tasks.measure"]\n[nights.survey.notify]\n'
    configure(tmp_path, f'{text}command = ["sh", "-c", "{command}"]\n', monkeypatch)
    night = a_night()
    Night.update(ended=None, finalizer="token").execute()
    NightPlan.delete().execute()
    words = ["nightly", "survey", "--continue", str(night.pk), "--job", "token"]
    words = [sys.executable, "-m", "astra", *words]
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as killed:
        wait_for(log.exists, "the notification", 20)
        os.killpg(killed.pid, signal.SIGKILL)
    passes.touch()
    subprocess.run(words, cwd=ROOT, check=True)
    assert log.read_text() == "begun\n" * 2
    assert night_of("survey").notified["command"].startswith(NOTIFIED)


def test_a_webhook_that_sends_elsewhere_was_not_notified(url):
    with listening(302) as (_, hook):
        assert "302" in notify(a_night(), settings(webhook=hook))["webhook"]


def test_a_webhook_that_answers_byte_by_byte_holds_no_night(url, monkeypatch):
    monkeypatch.setattr("astra.night.notify.TOTAL_TIMEOUT_S", 0.2)
    ended = threading.Event()

    class Drips(BaseHTTPRequestHandler):
        def do_POST(self):
            while not ended.wait(0.02):
                self.wfile.write(b"H")

    with HTTPServer(("127.0.0.1", 0), Drips) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ways = settings(webhook=f"http://127.0.0.1:{server.server_port}/hook")
        assert "TimeoutError" in notify(a_night(), ways)["webhook"]
        ended.set()
        thread.join()


def test_a_damaged_record_of_notifications_keeps_no_night_open(url):
    night = a_night()
    with connection():
        Night.update(notified="damaged").execute()
    assert notify(night, settings(command="true")) == {"command": NOTIFIED}


def test_sendmail_gets_the_whole_message(url, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "sendmail"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\ncat >{tmp_path}/mail\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert notify(a_night(), settings(mail="a@example.org")) == {"mail": NOTIFIED}
    assert (tmp_path / "words").read_text() == "-i -t\n"
    assert "To: a@example.org\n" in (tmp_path / "mail").read_text()


def test_a_password_is_never_in_the_configuration_or_shown(tmp_path):
    night = '[nights.x]\ntasks = ["a"]\n[nights.x.notify]\n'
    file = tmp_path / "astra.toml"
    file.write_text(night + 'smtp = "smtp://me:geheim@h"\n')
    with pytest.raises(ConfigError, match=r"netrc") as error:
        config.load(file)
    assert "geheim" not in str(error.value)
    file.write_text(night + 'smtp = "smtp://me@h"\n')
    with pytest.raises(
        ConfigError, match="starttls:// or smtps://, as smtp:// would send the pass"
    ):
        config.load(file)
    file.write_text(night + 'webhook = "https://h/services/geheimnis"\n')
    rows = {key: value for key, value, _ in config.load(file).rows()}
    assert rows["nights.x.notify.webhook"] == "https://h/***"
    for line, words in (
        ('mail = "me"', "addresses"), ('webhook = "ftp://h"', "https://"), ("to = 1", "no such key")
    ):  # fmt: skip
        file.write_text(night + line)
        with pytest.raises(ConfigError, match=words):
            config.load(file)


def test_a_night_in_which_the_clocks_go_back_says_which_time_is_meant(sqlite_url, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        began = datetime(2026, 10, 25, 0, 50, tzinfo=UTC)
        made = a_night()
        with connection():
            moments = {"began": began, "ended": began + timedelta(minutes=20)}
            Night.update(**moments, state="whole").where(Night.pk == made.pk).execute()
        said = compose(night_of("survey"))[1]
        assert "ran from 2026-10-25 02:50:00 CEST to 2026-10-25 02:10:00 CET, with" in said
        shown = CliRunner().invoke(main, ["nights"]).output
        assert "2026-10-25 02:50:00 CEST  2026-10-25 02:10:00 CET" in shown
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("scheme", ["starttls", "smtps"])
def test_a_mail_server_gets_no_password_before_its_certificate_is_verified(
    sqlite_url, tmp_path, monkeypatch, scheme
):
    kept, ports, logins, certificate = Inbox(), Ports(), [], tmp_path / "certificate"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", certificate]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run(["openssl", "req", "-x509", *key, *name], capture_output=True, check=True)
    certificate.write_bytes(certificate.read_bytes() + made.stdout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def log_in(server, session, envelope, mechanism, data):
        logins.append((data.login, data.password))
        return AuthResult(success=True)

    of_scheme = {
        "starttls": {"tls_context": context, "auth_required": True, "authenticator": log_in},
        "smtps": {"ssl_context": context},
    }
    server = Controller(kept, hostname="127.0.0.1", port=ports.one(), **of_scheme[scheme])
    server.start()
    user = "me@" if scheme == "starttls" else ""
    ways = settings(mail="a@example.org", smtp=f"{scheme}://{user}localhost:{server.port}")
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        night = a_night()
        assert "certificate verify failed" in notify(night, ways)["mail"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        if user:
            for text in (None, "machine other login me password geheim\n"):
                if text:
                    (tmp_path / ".netrc").write_text(text)
                    (tmp_path / ".netrc").chmod(0o600)
                assert "~/.netrc has no password for localhost" in notify(night, ways)["mail"]
            (tmp_path / ".netrc").write_text("machine localhost login me password geheim\n")
        assert not logins and not kept.mails
        assert notify(night, ways) == {"mail": NOTIFIED} and len(kept.mails) == 1
        assert logins == ([(b"me", b"geheim")] if user else [])
        (checked_,) = _notified("night survey", ways)
        assert (checked_.state, checked_.message) == ("ok", "mail: localhost answers")
    finally:
        server.stop()
        ports.release()


def test_the_reason_is_kept_for_which_sendmail_refuses_a_mail(url, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "sendmail"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'the mail queue is full' >&2\nexit 75\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    (result,) = notify(a_night(), settings(mail="a@example.org")).values()
    assert result == "RuntimeError: exit status 75: the mail queue is full"
