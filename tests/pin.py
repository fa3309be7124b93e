"""Renew the constraints files: the newest versions of what the tests need.

``./setup pin`` runs this with the oldest Python that astra supports: newer ones install the same
versions, which the reverse does not hold for.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OLDEST = (3, 11)

#: Airflow has a file of its own, as it has a virtual environment: it asks for other versions.
FILES = {"constraints.txt": "test,docs", "constraints-airflow.txt": "airflow"}


def constraints(extra: str) -> str:
    """Return the text of a constraints file."""
    words = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = subprocess.run(
        [sys.executable, "-m", "pip", *words, f"{ROOT}[{extra}]"],
        stdout=subprocess.PIPE,
        check=True,
    )
    packages = [entry["metadata"] for entry in json.loads(report.stdout)["install"]]
    lines = sorted(
        f"{package['name'].lower()}=={package['version']}\n"
        for package in packages
        if package["name"] != "sdss-astra"
    )
    return f"# Made by ./setup pin: what .[{extra}] is installed with.\n{''.join(lines)}"


if __name__ == "__main__":
    if sys.version_info[:2] != OLDEST:
        sys.exit(
            f"setup pin: .venv has Python {sys.version_info[0]}.{sys.version_info[1]}; the versions "
            "must suit Python 3.11 too: make .venv with python3.11, and repeat"
        )
    for file, extra in FILES.items():
        (ROOT / file).write_text(constraints(extra))
        print(f"{file}: written")
