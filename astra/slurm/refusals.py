"""Explain the messages with which Slurm refuses a job, and what to do about each."""

import re

from astra.errors import SlurmRefused

_SUBMIT_LIMIT = re.compile(r"SubmitJob|MaxSubmit|MaxJobCount|Resource temporarily unavailable")

_POLICY = re.compile(r"violates accounting/QOS policy")

_OTHER_LIMIT = re.compile(r"\b(QOS|Assoc|Part)\w*(Limit|Min\w+|Max\w+)\b")

_CLOSED = re.compile(r"partition not available \(inactive or drain\)")

# Slurm's messages (slurm_errno of 22.05; each was tried), and what to do about it.
_ADVICE = [
    ("account", "choose an account that `sacctmgr show assoc user=$USER` lists for the partition"),
    ("partition", "choose a partition that `sinfo -s` lists and you may use"),
    ("qos", "choose a qos that `sacctmgr show assoc user=$USER format=account,qos` lists"),
    ("array", "an index may not reach MaxArraySize of `scontrol show config`"),
    ("time", 'choose a time within the limit that `sinfo -o "%P %l"` shows for the partition'),
    (
        "node configuration|memory|cpu count|node count|more processors",
        "request no more than one node has: `sinfo -Nel`",
    ),
    ("permission|not permitted", "choose a partition, account or reservation that you may use"),
    ("authentication", "Slurm does not accept this machine's credentials: munge may be down here"),
]


#: The message of sbatch while it sleeps and tries again because slurmctld has MaxJobCount jobs.
_FULL = re.compile(r"temporarily unable to accept job")


def at_limit(message: str) -> SlurmRefused | None:
    """Return a refusal because of the limit on all jobs, from the messages of a waiting sbatch."""
    if not _FULL.search(message):
        return None
    return SlurmRefused(
        "Slurm accepts no more jobs from anyone at the moment (MaxJobCount of `scontrol show "
        "config`); submit again when some have ended",
        limit=True,
    )


def refusal(message: str) -> SlurmRefused:
    """Turn the message of a refusal into an error that says what to change."""
    limit = bool(_SUBMIT_LIMIT.search(message))
    other = _OTHER_LIMIT.search(message)
    if not limit and _POLICY.search(message):
        limit = not other  # old versions do not name the limit, usually the number of jobs
    reason = re.sub(r"Batch job submission failed: ", "", message)
    closed = bool(_CLOSED.search(message))
    if closed:
        advice = "submit again when `sinfo -s` shows the partition as up, or choose another one"
    elif limit:
        advice = "Slurm accepts no more jobs at the moment: submit again when some have ended"
    elif other:
        advice = "ask for less, or for another qos: `sacctmgr show qos` has the limits"
    elif option := re.search(r"Invalid --(\S+) specification", reason):
        advice = f"change {option[1].replace('-', '_')} in the profile"
    else:
        hints = (hint for key, hint in _ADVICE if re.search(key, reason, re.IGNORECASE))
        advice = next(hints, "change the profile or its template accordingly")
    return SlurmRefused(f"Slurm refused: {reason}; {advice}", limit, closed)
