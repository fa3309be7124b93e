"""The site that Sphinx makes of these pages: ``./setup docs`` builds it in build/docs."""

import re
from pathlib import Path
from typing import Any

import peewee
from sphinx.application import Sphinx

import astra

ROOT = Path(__file__).resolve().parent.parent

#: Where links to files outside of this folder lead.
SOURCE_URL = "https://github.com/sdss/astra/blob/main/"

project = "astra"
author = "the astra developers"
version = release = astra.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_click",
]
html_theme = "furo"
html_title = f"astra {release}"
exclude_patterns = ["pictures/*.py"]
myst_heading_anchors = 3

default_role = "literal"
autodoc_mock_imports = ["airflow"]  # heavy; the tests have it in an environment of its own
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
numpydoc_show_class_members = False

# Without a network, the empty inventory stands in: these names are then not linked.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", (None, "offline.inv")),
    "peewee": ("https://docs.peewee-orm.com/en/latest", (None, "offline.inv")),
}
intersphinx_timeout = 5


def _configuration() -> str:
    """Return the commented configuration file, with a heading for each section."""
    text = (ROOT / "config" / "astra.toml").read_text()
    sections: dict[str, str] = {}
    # A section begins with its header, and with the comment that stands before it.
    for part in re.split(r"\n\n(?=(?:# [^\n]*\n)*#?\[)", text)[1:]:
        name = re.findall(r"^#?\[+(\w+)", part, re.MULTILINE)[0]
        sections[name] = sections.get(name, "") + part.strip() + "\n"
    return "".join(f"## {name}\n\n```toml\n{part}```\n\n" for name, part in sections.items())


def edit_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill in the configuration, and lead links out of this folder to the repository."""
    source[0] = source[0].replace("<!-- configuration -->", _configuration())
    source[0] = source[0].replace("](../", f"]({SOURCE_URL}")


def _escaped(text: str) -> str:
    return re.sub(r"([*_`|\\])", r"\\\1", text)


def add_columns(
    app: Sphinx, what: str, name: str, model: Any, options: Any, lines: list[str]
) -> None:
    """List the columns of a table below the docstring of its model."""
    if what != "class" or not issubclass(model, peewee.Model):
        return
    lines += ["", ".. list-table::", "   :header-rows: 1", ""]
    lines += ["   * - column", "     - type", "     - meaning"]
    for field in model._meta.sorted_fields:
        kind = type(field).__name__ + (", may be NULL" if field.null else "")
        lines += [
            f"   * - ``{field.column_name}``",
            f"     - {kind}",
            f"     - {_escaped(field.help_text or '')}",
        ]
    lines.append("")


def escape_options(app: Sphinx, context: Any, lines: list[str]) -> None:
    """Keep asterisks in the help of options from being read as emphasis."""
    lines[:] = [line if "``" in line else line.replace("*", r"\*") for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-options", escape_options)
    app.connect("source-read", edit_source)
    app.connect("autodoc-process-docstring", add_columns, priority=900)  # after numpydoc
