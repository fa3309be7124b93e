"""Run the examples in the docstrings of public names: ``python -m tests.examples``.

They find a fresh SQLite file with eight spectra, four of them in plan 1, which is whole.
"""

import doctest
import importlib
import sys
from collections.abc import Iterator

PUBLIC = ("astra", "astra.api", "astra.models", "astra.pipelines.slam")


def public_names() -> Iterator[tuple[str, object]]:
    """Yield each public name that is a function or class, with what it is."""
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            thing = getattr(importlib.import_module(module), name)
            if callable(thing):
                yield f"{module}.{name}", thing


def _set_up() -> None:
    from astra.cli.demo import make_spectra
    from astra.models import BossVisitSpectrum
    from astra.models.schema import init_database
    from astra.plan.plan import create_plan
    from astra.resume.resume import resume_local

    init_database()
    make_spectra(8)
    (planned,) = create_plan("slam.slam", BossVisitSpectrum, limit=2, max_rows=4)
    resume_local(planned.plan)


if __name__ == "__main__":
    _set_up()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for name, thing in public_names():
        for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs={}):
            test.globs.update(Iterable=importlib.import_module("collections.abc").Iterable)
            runner.run(test)
    sys.exit(1 if runner.summarize().failed else 0)
