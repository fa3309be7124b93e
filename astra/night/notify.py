"""Notify people of how a night ended: by mail, webhook or command.

Each channel is used once for each state of the night, and again if it failed. If a notification
fails, this is recorded with the night, and nothing else fails.
"""

import json
import logging
import netrc
import os
import shutil
import smtplib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from email.message import EmailMessage
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from astra.config import secrets
from astra.config.nights import NightSettings, Notify
from astra.config.startup import printable
from astra.config.units import written_moment
from astra.database.connection import connection
from astra.database.threads import in_thread
from astra.models.nights import Night
from astra.night.history import NightStatus, night_of

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The time limit of a connection, of an answer and of a command.
_TIMEOUT_S = 30

#: The time limit of a whole notification, for servers that answer byte by byte.
TOTAL_TIMEOUT_S = 45

NOTIFIED = "notified"

_BEGUN = "not sent yet, unless its process was killed as it sent it"


def notify(night: Night, settings: NightSettings) -> dict[str, str]:
    """Notify people of a closed night by every channel that has not done so; return the results."""
    try:
        status = night_of(night.name, str(night.pk))
        subject, text = compose(status)
        with connection():
            notified = Night.get_by_id(night.pk).notifications
        due = {
            channel: send
            for channel, send in _senders(settings.notify, status, subject, text).items()
            if notified.get(channel, {}).get("of") != subject
            or notified[channel]["result"] != NOTIFIED
        }
        moment = time.strftime("%Y-%m-%d %H:%M:%S %z")
        notified |= {channel: {"of": subject, "at": moment, "result": _BEGUN} for channel in due}
        _store(night, notified)
        for channel, send in due.items():
            notified[channel]["result"] = _tried(night, channel, send)
            _store(night, notified)  # at once: this process may be killed during the next one
    except Exception as error:  # an error here must not affect this night or the next one
        log.warning("nobody was notified of the night %s: %r", night.pk, error)
        return {}
    return {channel: entry["result"] for channel, entry in notified.items()}


def _store(night: Night, notified: Mapping[str, Mapping[str, str]]) -> None:
    with connection():
        Night.update(notified=json.dumps(notified)).where(Night.pk == night.pk).execute()


def compose(night: NightStatus) -> tuple[str, str]:
    """Return the subject and the text of a notification."""
    subject = f"astra: night {night.name} of {night.date} is {night.state}"
    numbers = (
        f"{night.results:,} results + {night.failures:,} failed + {night.no_result:,} without a "
        f"result + {night.pending:,} left = {night.rows:,} rows"
    )
    lines = [f"{subject} (night {night.night}).", numbers]
    if night.ended:
        began, ended = map(written_moment, (night.began, night.ended))
        lines.append(
            f"It ran from {began} to {ended}, with {night.retries:,} retries and "
            f"{night.cpu_h:,.2f} CPU hours."
        )
    lines += (night.message or "").split("; ") if night.message else []
    lines += [f"astra failures {plan.plan}" for plan in night.plans if plan.failures and plan.plan]
    lines.append(f"astra nights {night.name} {night.night}")
    return " ".join(printable(subject).split()), printable(secrets.hide("\n".join(lines)))


def _senders(
    settings: Notify, night: NightStatus, subject: str, text: str
) -> dict[str, Callable[[], object]]:
    senders: dict[str, Callable[[], object]] = {}
    if settings.mail:
        senders["mail"] = partial(_mail, settings, subject, text)
    if settings.webhook:
        senders["webhook"] = partial(_webhook, settings.webhook, night, text)
    if settings.command:
        senders["command"] = partial(_command, settings.command, night)
    return senders


def _tried(night: Night, channel: str, send: Callable[[], object]) -> str:
    """Send a notification; return `NOTIFIED`, or the reason why it could not be sent."""
    try:
        within(TOTAL_TIMEOUT_S, send)
    except Exception as error:  # whatever a mail server, a network or a script may do
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        log.warning(
            "night %s of %s: its notification by %s could not be sent: %s",
            night.pk, night.name, channel, reason,
        )  # fmt: skip
        return secrets.hide(reason)
    return NOTIFIED


def within(bound_s: float, send: Callable[[], T]) -> T:
    """Call `send` in a thread and return its result; abandon the thread after `bound_s` seconds.

    Raises
    ------
    TimeoutError
        If it takes longer.
    """
    sent = in_thread(send, "astra notification")
    wait([sent], bound_s)
    if not sent.done():
        raise TimeoutError(f"it took more than {bound_s} s")
    return sent.result()


def _mail(settings: Notify, subject: str, text: str) -> None:
    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = settings.sender or f"astra@{socket.getfqdn()}"
    message["To"] = ", ".join(settings.mail)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text + "\n")
    if settings.smtp is None:
        _sendmail(message)
    else:
        with mail_server(settings.smtp) as server:
            server.send_message(message)


def find_sendmail() -> str:
    """Find sendmail, whose folder is often missing from the PATH of cron and of nodes."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib"
    program = shutil.which("sendmail", path=path)
    if program is None:
        raise FileNotFoundError("this machine has no sendmail: set smtp as well as mail")
    return program


def _sendmail(message: EmailMessage) -> None:
    _run([find_sendmail(), "-i", "-t"], message.as_bytes())


@contextmanager
def mail_server(url: str, timeout_s: float = _TIMEOUT_S) -> Iterator[smtplib.SMTP]:
    """Connect to a mail server, and log in where the URL names a user."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    verified = ssl.create_default_context()  # by default, smtplib accepts any certificate
    kind: Callable[..., smtplib.SMTP] = smtplib.SMTP
    if parts.scheme == "smtps":
        kind = partial(smtplib.SMTP_SSL, context=verified)
    with kind(host, parts.port or 0, timeout=timeout_s) as server:
        if parts.scheme == "starttls":
            server.starttls(context=verified)
        if parts.username:
            server.login(parts.username, _password(host))
        yield server


def _password(host: str) -> str:
    with suppress(FileNotFoundError):
        if login := netrc.netrc().authenticators(host):
            return login[2] or ""
    raise LookupError(
        f"~/.netrc has no password for {host}: add a line for this machine (mode 600)"
    )


def _webhook(url: str, night: NightStatus, text: str) -> None:
    # Slack and Mattermost show "text"; a site's own program reads "night".
    body = json.dumps({"text": text, "night": asdict(night)}, default=str).encode()
    request = urllib.request.Request(  # noqa: S310 - the configuration takes http alone
        url, body, {"Content-Type": "application/json"}
    )
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()  # it keeps the connection open
        raise


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treat redirects as errors, since a redirected request arrives without its body."""

    def redirect_request(self, *args: object) -> None:
        return None


def _command(command: tuple[str, ...], night: NightStatus) -> None:
    _run(command, json.dumps(asdict(night), default=str).encode(), ASTRA_NIGHT_STATE=night.state)


def _run(words: Sequence[str], text: bytes, **variables: str) -> None:
    """Run a program that reads a text; raise with the last line that it printed if it fails."""
    process = subprocess.run(
        words, input=text, timeout=_TIMEOUT_S, capture_output=True,
        env={**os.environ, **variables}, check=False,
    )  # fmt: skip
    if process.returncode:
        printed = (process.stderr or process.stdout).decode(errors="replace").strip()
        last_line = "".join(printed.splitlines()[-1:])
        raise RuntimeError(f"exit status {process.returncode}{last_line and ': ' + last_line}")
