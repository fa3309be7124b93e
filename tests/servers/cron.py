"""Debian's cron daemon, which sees no crontab but ours: its folders are its own (unshare)."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
mount -t tmpfs -o mode=1730 cron /var/spool/cron/crontabs
chgrp crontab /var/spool/cron/crontabs 2>/dev/null
mount -t tmpfs cron /etc/cron.d
mount --bind /dev/null /etc/crontab
mount -t tmpfs run /run
{{
{before}
}} || exit 1
cron -f & daemon=$!
while [ ! -e {folder}/cron.stop ] && kill -0 $PPID; do sleep 0.5; done
kill $daemon
{after}
"""


_UNSHARE = ["unshare", "--mount", "--propagation", "private"]


def can_unshare() -> bool:
    """Whether a process can have mounts of its own here: it cannot in a bare chroot."""
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def cron_daemon(
    folder: Path, before: str, after: str = "true", cwd: Path | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """The daemon, with the crontabs that the shell commands `before` install; ended at the end."""
    script, stop = folder / "cron.script", folder / "cron.stop"
    script.write_text(_SCRIPT.format(before=before, after=after, folder=folder))
    daemon = subprocess.Popen(
        [*_UNSHARE, "sh", str(script)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield daemon
    finally:
        stop.touch()
        daemon.communicate(timeout=60)
