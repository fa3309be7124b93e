"""The whole table, as Markdown.

    python -m benchmarks.all [--quick] [--write] [NAME ...]

Each script runs in a process of its own; what fails is said, and the others go on. The exit status
is 1 if a script failed. That a line is not reached fails nothing: it is written in the table.
With ``--write`` the table takes the place of the last one in benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime

from benchmarks.lines import HEAD, ROOT, Line, say

SCRIPTS = (
    "write", "decorator", "planning", "start", "memory", "status", "submit", "connections",
    "throughput", "night", "simulation",
)  # fmt: skip


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


README = ROOT / "benchmarks" / "README.md"
LAST = "## The last table\n"


def keep(lines: list[str]) -> None:
    """Put the table into the README, in the place of the one before."""
    before = README.read_text().partition(LAST)[0]
    README.write_text(before + LAST + "\n" + "\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=SCRIPTS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small tables, no statement of speed")
    parser.add_argument("--write", action="store_true", help="keep the table in README.md")
    given = parser.parse_args()
    lines, failed = [], []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    began = time.monotonic()
    tell(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, {machine()}\n")
    tell(HEAD)
    for name in given.names:
        say(f"benchmarks.{name}")
        try:
            for found in lines_of(name, given.quick):
                tell(found.markdown())
        except RuntimeError as error:
            failed.append(str(error))
    minutes = (time.monotonic() - began) / 60
    load = os.getloadavg()[0]
    tell(f"\n{platform.uname().release}, load at the end {load:.1f}, {minutes:.0f} min in all")
    for error in failed:
        tell(error)
    if given.write:
        keep(lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
