"""Files for sites: profiles of docs/sites.md with stand-ins on PATH, the Dockerfile, Apptainer.def."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from astra.config import profiles
from astra.config.settings import Config
from astra.slurm import script
from tests.conftest import ROOT
from tests.pages import blocks
from tests.scripts import SCRIPT

PROFILES = {
    name: keys
    for text in blocks(ROOT / "docs" / "sites.md", "toml")
    for name, keys in tomllib.loads(text)["profiles"].items()
}

#: Programs of a site. Each writes down how it was called; a container then runs what follows its image.
STAND_INS = {
    "module": "",
    "conda": """[ "$1" = shell.bash ] && echo 'conda() { echo "conda $*" >>"$CALLS"; }'""",
    "apptainer": 'while [ "${1%.sif}" = "$1" ]; do shift; done; shift; exec "$@"',
    "tar": "",
    "python": "",
    "python3": "",
}

CALLED = {
    "modules": ["module purge", "module load gcc/13 python/3.11", "python3 -P -m astra run-page"],
    "conda": ["conda shell.bash hook", "conda activate survey", "python -P -m astra run-page"],
    "local-disk": ["tar -xzf /shared/survey-env.tar.gz -C /node", "python -P -m astra run-page"],
    "apptainer": [
        "module load apptainer",
        "apptainer exec --bind /data:/data /shared/astra.sif python3 -P -m astra run-page",
        "python3 -P -m astra run-page",
    ],
}


def run_script(profile: profiles.Profile, folder: Path) -> list[str]:
    """Run the script of an element among the stand-ins, and return how these were called."""
    calls, programs = folder / "calls", folder / "bin"
    programs.mkdir()
    for name, line in STAND_INS.items():
        program = programs / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{line or "true"}\n')
        program.chmod(0o755)
    python = profile.python if profile.python != (sys.executable,) else ("python",)
    text = script.render(
        profile.template, replace(SCRIPT, setup=profile.setup, python=python, chdir=folder)
    )
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "TMPDIR": "/node",
        "SLURM_ARRAY_TASK_ID": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash"], input=text, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_of_the_documentation_runs_an_element(name, tmp_path):
    profile = profiles.get(name, Config(profiles=PROFILES))
    called = run_script(profile, tmp_path)
    assert len(called) == len(CALLED[name])
    for line, begin in zip(called, CALLED[name], strict=True):
        assert line.startswith(begin)


@pytest.mark.parametrize("value", ["", [], "apptainer 'exec", ["python", ""], 3, "a\nb\0"])
def test_a_python_that_is_no_command_is_refused(value):
    config = Config(profiles={"site": {"python": value}})
    with pytest.raises(profiles.ConfigError, match=r"python: .*command"):
        profiles.get("site", config)


def test_words_of_a_python_are_quoted_in_the_script(tmp_path):
    config = Config(profiles={"site": {"python": "'/opt/my python/bin/python' -X dev"}})
    text = script.render(
        "element.sh.j2", replace(SCRIPT, python=profiles.get("site", config).python)
    )
    assert "'/opt/my python/bin/python' -X dev -P -m astra run-page" in text


def test_the_dockerfile_has_nothing_to_complain_of():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_apptainer_definition_is_well_formed(tmp_path):
    text = (ROOT / "Apptainer.def").read_text()
    head, *parts = re.split(r"^%(\w+)$", text, flags=re.MULTILINE)
    header = dict(
        line.split(": ", 1) for line in head.splitlines() if not line.startswith("#") and line
    )
    assert header == {"Bootstrap": "docker", "From": "debian:bookworm-slim"}
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() == {"files", "post", "environment", "runscript", "test", "help"}
    source, target = sections["files"].split()
    assert (ROOT / source).is_dir() and target in sections["post"]
    for name in ("post", "environment", "runscript", "test"):
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{sections[name]}")
        subprocess.run(["sh", "-n", file], check=True)
        if shutil.which("shellcheck"):
            done = subprocess.run(["shellcheck", file], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_both_images_install_the_same_packages():
    docker, apptainer = ((ROOT / name).read_text() for name in ("Dockerfile", "Apptainer.def"))
    assert re.findall(r"apt-get install .*", docker)[0].rstrip(" \\") in apptainer
    assert re.findall(r"/opt/astra/bin/pip install [^&\n]+", docker)[0].strip() in apptainer
