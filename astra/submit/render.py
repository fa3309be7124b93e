"""Render the script of a submission and write it to the run directory."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from astra.config import profiles, secrets
from astra.config import settings as config
from astra.config.profiles import Profile
from astra.config.run_folder import run_folder
from astra.database.connection import url
from astra.errors import UsageError
from astra.models.plans import Plan, Submission
from astra.slurm import script
from astra.submit.arrays import Slice
from astra.submit.night_hours import ALWAYS, Hours


def element_arguments(
    plan: Plan, token: str, row_timeout: float | None, hours: Hours = ALWAYS
) -> list[str]:
    """Return the arguments of ``astra`` that run an element of a submission, except its number."""
    options = {
        "plan": plan.pk, "job": token, "planned-by": plan.role, "row-timeout": row_timeout,
        "start-until": hours.start_until, "stop-at": hours.stop_at,
    }  # fmt: skip
    arguments = ["run-page"]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", f"{value:.15g}" if isinstance(value, float) else str(value)]
    return arguments


def render(plan: Plan, piece: Slice, profile: Profile, submission: Submission, hours: Hours) -> str:
    """Render the script of the array that runs a slice of a plan's pages."""
    how = "taken by its elements one after the other"
    if not profile.pull:
        how = f"{profile.pages_per_element} for each element"
    about = f"for plan {plan.pk} of {plan.task}: pages {script.array_spec(piece.pages)}, {how}"
    arguments = element_arguments(plan, submission.token, profile.row_timeout, hours)
    log = run_folder(plan.folder) / "logs" / "%A_%a.log"
    made = _script(profile, submission.job_name, plan.cwd, log, about, arguments)
    array = script.array_spec(piece.indices(), profile.throttle)
    return script.render(profile.template, replace(made, array=array, offset=piece.offset))


def render_job(
    profile: Profile,
    job_name: str,
    cwd: str,
    logs: Path,
    about: str,
    arguments: Sequence[str],
    path: Path | None = None,
) -> str:
    """Render the script of a job of one process, which runs ``astra`` with some arguments.

    With the `path` of the script, a node that cannot run it submits it again for other nodes.
    """
    made = _script(profile, job_name, cwd, logs / f"{job_name}-%j.log", about, arguments)
    excluded = f"{profile.options['exclude']}," if "exclude" in profile.options else ""
    return script.render(
        "job.sh.j2", replace(made, path=str(path) if path else None, exclude=excluded)
    )


def _script(
    profile: Profile, job_name: str, cwd: str, log: Path, about: str, arguments: Sequence[str]
) -> script.Script:
    """Return what the scripts of all jobs have in common."""
    return script.Script(
        job_name=job_name, about=about, arguments=arguments,
        log_path=script.log_pattern(log.parent, log.name),
        chdir=cwd if Path(cwd).is_dir() else Path.cwd(), python=profile.python,
        directives=tuple(profiles.directives(profile)), setup=profile.setup,
        environment=environment(),
    )  # fmt: skip


def check_export(profile: Profile) -> None:
    """Refuse a profile that would keep the password of the database from its elements.

    Raises
    ------
    UsageError
        If a password is in the environment, and ``export`` or ``export_file`` keeps it there.
    """
    export = profile.options.get("export")
    if profile.options.get("export_file") is None and export is None:
        return
    names = {word.partition("=")[0].strip() for word in str(export or "NONE").split(",")}
    needed = ["ASTRA_DATABASE_URL"] if _is_in_environment_alone() else []
    needed += ["PGPASSWORD"] if os.environ.get("PGPASSWORD") else []
    missing = [name for name in needed if name not in names]
    if "ALL" in names or not missing:
        return
    raise UsageError(
        f"export={export or 'FILE'} keeps {' and '.join(missing)} from the elements, and a "
        f"password is never written to a script: leave export out, give export=ALL or "
        f"export={','.join(missing)}, or keep the password in ~/.pgpass"
    )


def _is_in_environment_alone() -> bool:
    settings = config.current()
    return settings.source("database.url") != str(settings.path) and secrets.has_password(url())


#: Other variables on which it depends what a job finds, among them those of libpq that choose a
#: server, and how to log in there.
_PASSED_ON = (
    "PYTHONPATH", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE",
    "PGSERVICEFILE", "PGSYSCONFDIR", "PGTARGETSESSIONATTRS", "PGPASSFILE", "PGOPTIONS", "PGSSLMODE",
    "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGGSSENCMODE", "PGKRBSRVNAME",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return the variables with which a job finds the same configuration; never a secret."""
    variables: dict[str, str] = {}
    settings = config.current()
    if settings.path:
        variables["ASTRA_CONFIG"] = str(settings.path)
    # A URL with a password is in the environment that sbatch passes on, not in the script.
    from_file = settings.source("database.url") == str(settings.path)
    if not from_file and not _is_in_environment_alone():
        variables["ASTRA_DATABASE_URL"] = url()
    variables["ASTRA_RUN_DIR"] = str(Path(settings.run.dir).absolute())
    return variables | {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
