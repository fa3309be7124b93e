"""The house: which folder may import from which, and what stays importable from outside.

``python -m tests.test_layout`` prints the folders, their lines, their floors and circles.
"""

import ast
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import astra
from tests.conftest import ROOT

#: The folders of the package in order: each imports only from those above it in this list. Those
#: of one line stand side by side and do not import from each other.
FLOORS = (
    ("errors", "states", "processes", "glossary", "version", "lazy", "records"),
    ("config",),
    ("database", "slurm", "fields"),
    ("models",),
    ("results",),
    ("tasks",),
    ("plan",),
    ("policy",),
    ("submit", "element", "status"),
    ("resume", "report", "doctor"),
    ("night", "pipelines"),
    ("api", "airflow", "cli", "run_page", "utils"),
)

#: What programs may rely on, by where it is imported from.
PUBLIC = {
    "astra": ("__version__", "generate_queries_for_task", "log", "task"),
    "astra.fields": ("ArrayField", "BitField", "FloatField", "PixelArray"),
    "astra.glossary": ("Glossary", "describe"),
    "astra.utils": ("Timer", "expand_path", "flatten", "log", "version_string_to_integer"),
    "astra.models": ("BossVisitSpectrum", "PipelineOutputMixin", "PipelineOutputModel", "Source"),
    "astra.models.apogee": ("ApogeeVisitSpectrum", "ApogeeVisitSpectrumInApStar"),
    "astra.models.boss": ("BossVisitSpectrum",),
    "astra.models.mwm": ("ApogeeCombinedSpectrum", "BossCombinedSpectrum"),
    "astra.models.pipeline": ("PipelineOutputMixin",),
    "astra.models.source": ("Source",),
    "astra.models.spectrum": ("Spectrum", "SpectrumMixin"),
    "astra.api": ("create_plan", "resume", "status", "submit", "wait"),
    "astra.pipelines.slam": ("slam", "train"),
}

#: The most lines of a function; lines that say ``Any`` are fewer than this in all.
MAX_LINES, MAX_ANY = 60, 60

_FLOOR_OF = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}


@cache
def _by_name() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "astra").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def modules() -> Iterable[tuple[str, Path]]:
    """The modules of the package, by their dotted names."""
    return _by_name().items()


@cache
def imports(path: Path, for_types: bool = False) -> frozenset[str]:
    """The modules of the package that a file imports from, wherever in it.

    With `for_types`, also those that only a type checker imports.
    """
    known, found = _by_name(), set()
    for node in _nodes(ast.parse(path.read_text()), for_types):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("astra"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("astra.")}
    return frozenset(found)


def _nodes(tree: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    """The nodes of a tree, and only with `for_types` those that never run."""
    queue = [tree]
    while queue:
        node = queue.pop()
        yield node
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        queue += node.orelse if is_for_types and not for_types else ast.iter_child_nodes(node)


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows() -> set[tuple[str, str]]:
    """Which folder imports from which other, if only for its types."""
    pairs = {
        (folder(name), folder(used)) for name, path in modules() for used in imports(path, True)
    }
    return {(one, other) for one, other in pairs if one and other and one != other}


#: Packages that import a name when it is first used; a type checker sees all of them at once.
_FACES = {"astra", "astra.api", "astra.models"}


def circles(for_types: bool = False) -> list[set[str]]:
    """The groups of modules that import each other, directly or not; also only for their types."""
    # Any import runs astra/__init__.py, which imports nothing when it is imported.
    names = dict(modules()).keys() - (_FACES if for_types else {"astra"})
    uses = {name: imports(path, for_types) & names for name, path in modules()}

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        queue = [name]
        while queue:
            for used in uses[queue.pop()] - seen:
                seen.add(used)
                queue.append(used)
        return seen

    reach = {name: reached(name) for name in uses}
    groups = [{o for o in reach[n] if n in reach[o]} for n in uses if n in reach[n]]
    return [group for place, group in enumerate(groups) if group not in groups[:place]]


def test_every_folder_has_a_floor():
    folders = {folder(name) for name, _ in modules()} - {"", "__main__"}
    assert folders == _FLOOR_OF.keys()


def test_the_page_on_architecture_lists_the_folders_in_their_order():
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("| folder | what it does |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    listed = [name.removesuffix(".py") for cell in first for name in re.findall("`(.+?)`", cell)]
    assert listed and set(listed) == _FLOOR_OF.keys()
    floors = [_FLOOR_OF[name] for name in listed]
    assert floors == sorted(floors)


def test_a_folder_imports_only_from_those_above_it_in_the_list():
    assert len(FLOORS) <= 12
    wrong = {
        pair
        for pair in arrows()
        if pair[0] in _FLOOR_OF and _FLOOR_OF[pair[1]] >= _FLOOR_OF[pair[0]]
    }
    assert wrong <= {("airflow", "api"), ("cli", "api")}


def test_the_command_line_takes_its_functions_from_the_api():
    """Beside them it imports settings, errors, states, and the public models."""
    beside = {"astra", "astra.api", "astra.errors", "astra.lazy", "astra.states", "astra.models"}
    wrong = {
        (name, used)
        for name, path in modules()
        if folder(name) == "cli"
        for used in imports(path) - beside
        if folder(used) not in ("cli", "config")
    }
    # The demonstration looks into its own database, and the other commands are a pipeline's.
    assert {pair for pair in wrong if pair[0] not in ("astra.cli.demo", "astra.cli.slam")} == set()


def test_no_module_has_more_than_500_lines():
    folders = [ROOT / name for name in ("astra", "tests", "benchmarks")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path for path in paths if len(path.read_text().splitlines()) > 500] == []


def test_tests_of_a_folder_are_in_the_folder_of_its_name():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - {
        "faults",
        "servers",
    }
    assert folders <= _FLOOR_OF.keys()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a module, with their lines: decorators, signature, docstring and body."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
            yield node.name, (node.end_lineno or first) - first + 1


def test_no_function_has_more_than_60_lines():
    lengths = {f"{m}.{f}": n for m, path in modules() for f, n in functions(path)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_each_dataclass_has_a_docstring():
    """Without one, Python writes it from the signature, which takes a millisecond at each start."""
    without = {
        f"{name}.{node.name}"
        for name, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        and not ast.get_docstring(node)
    }
    assert without == set()


def test_few_lines_say_any():
    """``Any`` checks nothing. Rows of the database and what Airflow hands over are of any type."""
    counts = Counter(
        name
        for name, path in modules()
        for line in path.read_text().splitlines()
        if folder(name) not in ("database", "airflow") and re.search(r"\bAny\b", line)
    )
    assert counts.total() < MAX_ANY, counts.most_common()


def test_every_module_can_be_imported_and_public_names_stay():
    """A folder could hide a public name: ``astra/task/`` would hide ``from astra import task``."""
    for module in pkgutil.walk_packages(astra.__path__, "astra."):
        if module.name not in ("astra.airflow", "astra.__main__"):
            importlib.import_module(module.name)
    for module, names in PUBLIC.items():
        found = importlib.import_module(module)
        for name in names:
            assert hasattr(found, name), f"{module}.{name}"
    assert callable(astra.task) and callable(astra.generate_queries_for_task)


def test_no_test_module_imports_from_another():
    """What tests share stands in modules of its own: importing a test module brings its tests along."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                used = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                used = [alias.name for alias in node.names]
            else:
                continue
            wrong += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in used
                if any(part.startswith("test_") for part in name.split("."))
            ]
    assert not wrong


def test_no_two_models_of_tests_have_one_table():
    """Tables are named after their models, and a run of all tests knows the models of all."""
    names = Counter(
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and any("Output" in ast.unparse(b) for b in node.bases)
    )
    assert names and [name for name, n in names.items() if n > 1] == []


def test_no_modules_import_each_other():
    assert not circles() and not circles(for_types=True)


if __name__ == "__main__":
    lines: Counter[str] = Counter()
    for name, path in modules():
        lines[folder(name)] += len(path.read_text().splitlines())
    for number, floor in enumerate(FLOORS, 1):
        print(f"{number:2} ", ", ".join(f"{name} ({lines[name]:,} lines)" for name in floor))
    print(f"{len(FLOORS)} floors, {len(arrows())} arrows, circles: {circles() or 'none'}")
    print(
        f"{sum(lines.values()):,} lines, {sum(lines.values()) - lines['pipelines']:,} but pipelines"
    )
