"""Deliberate bugs, each a patch of astra, that show that the judge can fail.

python -m tests.faults --bug no-fence --seeds 50 --stop
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent

NAMES = sorted(path.stem for path in HERE.glob("*.patch"))


@contextmanager
def planted(name: str | None) -> Iterator[Path]:
    """Yield a folder with a copy of astra that has one bug, or without a name, this checkout."""
    if name is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix=f"astra-bug-{name}-") as folder:
        for part in ("astra", "slurm_templates", "config"):
            # What is compiled comes along: a copied file keeps its time of modification.
            shutil.copytree(ROOT / part, Path(folder, part))
        patch = HERE / f"{name}.patch"
        subprocess.run(["git", "apply", "--whitespace=nowarn", str(patch)], cwd=folder, check=True)
        yield Path(folder)
