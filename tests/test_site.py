"""The documentation as a site: every page has its place in it, and pictures are there."""

import re

from tests.conftest import ROOT

DOCS = ROOT / "docs"


def test_every_page_has_one_place_in_the_site():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    pages = {page.stem for page in DOCS.glob("*.[mr][ds]*") if page.suffix in (".md", ".rst")}
    assert sorted(listed) == sorted(pages - {"index"})


def test_plain_pages_link_to_pictures_that_exist():
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file(), f"{page.name}: {picture}"
