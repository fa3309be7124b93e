"""The whole table, as Markdown.

    python -m benchmarks.all [--quick] [NAME ...]

Each script runs in a process of its own; what fails is said, and the others go on. The exit status
is 1 if a script failed. That a line is not reached fails nothing: it is written in the table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime

from benchmarks.lines import HEAD, ROOT, Line, say

SCRIPTS = ("write", "decorator", "planning", "start", "memory")


def lines_of(name: str, quick: bool) -> list[Line]:
    """The lines of one script.

    Raises
    ------
    RuntimeError
        If it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"benchmarks.{name} ended with status {done.returncode}")
    return [Line(**json.loads(line)) for line in done.stdout.splitlines()]


def machine() -> str:
    """What the numbers were measured on."""
    try:
        with open("/proc/cpuinfo") as file:
            model = next(row.split(":")[1].strip() for row in file if row.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}, load {load:.1f}"


def commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=SCRIPTS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small tables, no statement of speed")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, {machine()}\n")
    print(HEAD, flush=True)
    failed = []
    for name in given.names:
        say(f"benchmarks.{name}")
        try:
            for line in lines_of(name, given.quick):
                print(line.markdown(), flush=True)
        except RuntimeError as error:
            failed.append(str(error))
    print(f"\n{platform.uname().release}, load at the end {os.getloadavg()[0]:.1f}")
    for error in failed:
        print(error)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
