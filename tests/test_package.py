"""The package: what it exports, and what travels in its wheel."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version as PackageVersion

import astra
from astra.config.shipped_files import config_dir, templates_dir
from astra.models.pipeline import PipelineOutputModel
from astra.version import CURRENT, Version
from tests.conftest import ROOT


def test_names_and_version():
    assert astra.__all__ == ["End", "__version__", "generate_queries_for_task", "log", "task"]
    assert all(getattr(astra, name) is not None for name in astra.__all__)
    assert astra.__version__ == CURRENT.text == "0.8.1" and CURRENT.number == 8001
    later = Version(1_002_003)
    assert (later.text, later.major_minor_text, later.major_minor) == ("1.2.3", "1.2", 1002)
    assert later == Version.parse("1.2.3") > Version.of_major_minor(1002) > CURRENT
    assert PipelineOutputModel._meta.table_name == "pipeline_output_model"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist, as they would be published."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    assert set(folder.iterdir()) == {wheel, sdist}  # so that `twine check dist/*` passes
    return {"wheel": wheel, "sdist": sdist}


def test_the_distributions_are_fit_to_be_published(distributions):
    command = [sys.executable, "-m", "twine", "check", "--strict", *distributions.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_sdist_holds_what_its_tests_and_its_documentation_need(distributions):
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in tracked if not name.startswith(".ci/")} <= names


def test_a_wheel_and_a_checkout_both_find_templates_and_profiles(distributions, tmp_path):
    assert (templates_dir() / "element.sh.j2").is_file()
    assert (config_dir() / "profiles.toml").is_file()
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202 - our own wheel
    assert (tmp_path / "site" / "astra" / "py.typed").is_file()
    find = (
        "from astra.config.shipped_files import *; import astra.pipelines.slam.model_file as m; "
        + (
            "assert (templates_dir() / 'base.sh.j2').is_file() and all(p.is_file() for p in m.SHIPPED.values()); "
            "assert (config_dir() / 'profiles.toml').is_file(); "
            "import astra.report.page as p; assert (p.FOLDER / 'report.html.j2').is_file(); print(templates_dir())"
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", find], cwd=tmp_path / "site",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "site"))


def test_importing_the_package_does_not_wait_for_the_database_driver():
    find = "import sys, astra; print('psycopg2' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_commands_that_touch_no_array_do_without_numpy():
    find = "import sys, astra.cli.running, astra.api, astra.cli.show; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_element_does_not_import_what_runs_other_programs():
    find = "import sys, astra.run_page, astra.element.element; print('subprocess' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_database_may_be_used_before_the_models_are_imported(tmp_path):
    code = "from astra.database.connection import database; print(database.execute_sql('select 7').fetchone())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "(7,)\n"


#: Known advisories of what astra and its tests install, and the version that mended each. A tool
#: such as pip-audit asks a service for more; this needs no network.
ADVISORIES = {
    "CVE-2024-22195": ("jinja2", "3.1.3"),
    "CVE-2024-34064": ("jinja2", "3.1.4"),
    "CVE-2024-56201": ("jinja2", "3.1.5"),
    "CVE-2025-27516": ("jinja2", "3.1.6"),
    "CVE-2024-3772": ("pydantic", "2.4.0"),
    "CVE-2024-27305": ("aiosmtpd", "1.4.5"),
    "CVE-2024-34083": ("aiosmtpd", "1.4.6"),
    "CVE-2023-41334": ("astropy", "5.3.3"),
}


@pytest.mark.parametrize("advisory", ADVISORIES)
def test_no_version_with_a_known_advisory_can_be_installed(advisory):
    name, mended = ADVISORIES[advisory]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(r) for part in (project["dependencies"], *extras) for r in part]
    floors = [
        s.version for r in wanted if r.name == name for s in r.specifier if s.operator == ">="
    ]
    assert floors and all(PackageVersion(floor) >= PackageVersion(mended) for floor in floors)
    try:
        assert PackageVersion(version(name)) >= PackageVersion(mended)
    except PackageNotFoundError:
        assert name == "astropy"  # an extra that the tests do without
