"""Check this machine: Python and packages, the configuration, the run directory."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from astra import __version__
from astra.config import profiles, settings
from astra.config.run_folder import check_folder
from astra.doctor.finding import Finding, failed, findings, of_error, ok, warning
from astra.errors import AstraError, ConfigError, nearest

#: Below it, logs and scripts may soon fill the disk.
_LITTLE_ROOM_GB = 1.0


def python() -> Iterator[Finding]:
    """Check Python, astra, and the versions of the packages that it needs."""
    from importlib.metadata import PackageNotFoundError, requires, version

    python_version = ".".join(map(str, sys.version_info[:3]))
    yield ok("python", f"Python {python_version}, astra {__version__} ({sys.executable})")
    try:
        requirements = [r for r in requires("sdss-astra") or [] if "extra ==" not in r]
    except PackageNotFoundError:
        return  # it runs from a folder, without having been installed
    versions = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield failed("python", f"{name} is not installed", f"pip install '{requirement}'")
            continue
        versions.append(f"{name} {installed}")
        least = re.search(r">=\s*([\d.]+)", requirement)
        if least and _numbers(installed) < _numbers(least[1]):
            problem = f"version {least[1]} of {name} is needed, and {installed} is installed"
            yield failed("python", problem, f"pip install --upgrade '{requirement}'")
    yield ok("python", ", ".join(versions))


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def configuration() -> Iterator[Finding]:
    """Check each file of the configuration, variables and profiles."""
    part = "configuration"
    for name in sorted(os.environ):
        if name.startswith("ASTRA_") and name not in (*settings.VARIABLES, "ASTRA_NIGHT_STATE"):
            hint = nearest(name, settings.VARIABLES)
            yield warning(
                part, f"no variable {name} is known; it is ignored", f"{hint} unset {name}"
            )
    try:
        used = settings.current().path
    except ConfigError as error:
        yield of_error(part, error)
        return
    yield ok(part, f"{used} is used" if used else "no file: defaults are used (astra init)")
    for file in settings.usual_files(os.environ, Path.cwd()):
        if file.is_file() and file != used:
            yield from _other_file(file)
    yield from findings(part, _profiles)


def _other_file(file: Path) -> Iterator[Finding]:
    try:
        settings.load(file)
        yield ok("configuration", f"{file} exists, and is not used")
    except ConfigError as error:
        yield warning("configuration", f"{file} is not used: {error}", f"correct or remove {file}")


def _profiles() -> Iterator[Finding]:
    """Check profiles as a submission does, and templates."""
    for name, error in wrong_profiles():
        yield failed("configuration", str(error), f"correct [profiles.{name}]")
    folder = settings.current().run.templates
    if folder is not None and not folder.is_dir():
        problem = f"[run] templates = {folder} is not a folder"
        yield failed("configuration", problem, f"mkdir -p {folder}, or leave the key out")


def wrong_profiles() -> list[tuple[str, AstraError]]:
    """Return the profiles that a submission would refuse, and why."""
    wrong: list[tuple[str, AstraError]] = []
    for name in settings.current().profiles:
        try:
            profiles.choose_profile(name, None)
        except AstraError as error:
            wrong.append((name, error))
    return wrong


def run_directory() -> Iterator[Finding]:
    """Check whether scripts and logs can be written, and have room."""
    part, folder = "run directory", Path(settings.current().run.dir).absolute()
    was_there = folder.exists()
    check_folder(folder)
    yield ok(part, f"{folder} can be written")
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not was_there:
        folder.rmdir()  # checking leaves nothing behind
    if free_gb < _LITTLE_ROOM_GB:
        problem = f"{free_gb:.1f} GB are free in {folder}"
        yield warning(part, problem, "astra clean, or set [run] dir to a folder with more room")
