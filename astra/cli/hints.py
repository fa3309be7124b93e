"""Hints for users of the published package: the command here for what they typed."""

from collections.abc import Iterable

#: Commands of the published package that do not exist here, with their replacements.
COMMANDS = {
    "srun": "To run a task by Slurm: astra submit TASK --profile NAME",
    "version": "For the version: astra --version",
    "migrate": (
        "Tables are made and completed by astra initdb; spectra and sources are inserted by a "
        "program, as in BossVisitSpectrum.insert_many(rows).execute()"
    ),
}

#: Commands that take a task, and nothing after it.
TAKE_A_TASK = frozenset({"plan", "submit", "run"})


def of_arguments(command: str, task: str, arguments: Iterable[str]) -> str:
    """Describe the options that replace an input model or identifiers typed after a task."""
    arguments = list(arguments)
    if task.isdigit() and command == "submit":
        return (
            f"{' '.join(arguments)} after the plan: astra submit takes one plan, or one task: "
            f"astra submit {task}"
        )
    ids = ",".join(argument for argument in arguments if argument.isdigit())
    models = [argument for argument in arguments if not argument.isdigit()]
    options = [f"--input-model {models[0]}"] if models else []
    options += [f"--sdss-ids {ids}"] if ids else []
    return (
        f"{' '.join(arguments)} after the task: astra {command} takes the input model and sources "
        f"as options: astra {command} {task} {' '.join(options)}"
    )
