"""Deliberate bugs, each a patch of astra, that show that the judge can fail.

python -m tests.faults --bug no-fence --seeds 50 --stop
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent

NAMES = sorted(path.stem for path in HERE.glob("*.patch"))


@contextmanager
def planted(name: str) -> Iterator[Path]:
    """A copy of this checkout with one bug in it."""
    with tempfile.TemporaryDirectory(prefix=f"astra-bug-{name}-") as folder:
        for part in ("astra", "tests", "slurm_templates", "config"):
            shutil.copytree(
                ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__")
            )
        patch = HERE / f"{name}.patch"
        subprocess.run(["git", "apply", "--whitespace=nowarn", str(patch)], cwd=folder, check=True)
        yield Path(folder)


def run_with(name: str, words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run seeds with a bug; its output says which one found it."""
    with planted(name) as folder:
        return subprocess.run(
            [sys.executable, "-m", "tests.faults", *words],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
