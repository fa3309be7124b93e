"""The same checks from a node: a job of a minute that writes what it finds to the run directory."""

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from astra.config import settings as config
from astra.config.profiles import Profile, Value
from astra.config.run_folder import check_folder, write_whole
from astra.doctor.finding import Finding, failed, ok
from astra.slurm import client
from astra.slurm.parse import JobId
from astra.submit.render import render_job

#: Options that make the job a small one, whatever the profile's elements are.
_SMALL: dict[str, Value] = {"time": "00:01:00", "mem": "500M", "ntasks": 1, "cpus_per_task": 1}

_LEFT_OUT = {"signal", "mem_per_cpu", "mem_per_gpu", "time_min", "begin", "dependency"}

_POLL_S = 1.0


def from_a_node(profile: Profile, wait_s: float) -> Iterator[Finding]:
    """Submit a job that runs the checks on a node, and pass on its findings.

    Parameters
    ----------
    wait_s : longest wait for the job. One that has not started then is cancelled.
    """
    folder = Path(config.current().run.dir).absolute() / "doctor"
    check_folder(folder)
    name = f"astra-doctor-{secrets.token_hex(4)}"
    answer, path = folder / f"{name}.json", folder / f"{name}.sh"
    options = {k: v for k, v in profile.options.items() if k not in _LEFT_OUT} | _SMALL
    about = "to see how the run directory and the database look from a node"
    text = render_job(
        replace(profile, options=options), name, str(Path.cwd()), folder, about,
        ["doctor", "--answer", str(answer)],
    )  # fmt: skip
    write_whole(path, text, 0o700)
    job = replace(client.submit(path), name=name)
    until = time.monotonic() + wait_s
    while not answer.exists() and time.monotonic() < until and _alive(job) is not None:
        time.sleep(_POLL_S)
    if answer.exists():
        yield from _read(answer)
        answer.unlink()
        return
    if (alive := _alive(job)) is not None:
        client.cancel(job)
        state = f" (Slurm: {alive})" if alive else ""
        problem = f"job {job.job_id} did not end within {wait_s:g} s{state}, and was cancelled"
        yield failed("node", problem, "choose another --profile, or wait longer with --wait")
        return
    log = next(iter(folder.glob(f"{name}-*.log")), None)
    if log is not None and (text := log.read_text(errors="replace").strip()):
        problem = f"job {job.job_id} ended before it found anything: {text.splitlines()[-1]}"
        yield failed("node", problem, f"correct the profile {profile.name}; the job's log is {log}")
        return
    problem = f"job {job.job_id} ended, and what it found cannot be seen in {folder}"
    yield failed("node", problem, "set [run] dir to a folder that the nodes share")


def _alive(job: JobId) -> str | None:
    """Return why the job waits, or its state in Slurm; None if it has ended."""
    execution = client.elements([job]).of(job.key, None)
    if execution.state is None:
        return ""  # Slurm gives no answer
    if not execution.state.alive:
        return None
    return execution.reason or execution.state.value


def write_answer(answer: Path, check: Callable[[], Iterable[Finding]]) -> None:
    """Write the findings of this node to a file in the run directory."""
    entries = [asdict(finding) for finding in check()]
    write_whole(answer, json.dumps({"node": socket.gethostname(), "findings": entries}))


def _read(answer: Path) -> Iterator[Finding]:
    text = json.loads(answer.read_text())
    yield ok("node", f"{text['node']} sees the run directory, and writes to it")
    for entry in text["findings"]:
        yield Finding(**{**entry, "part": f"node: {entry['part']}"})
