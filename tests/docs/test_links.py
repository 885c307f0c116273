"""Links and anchors of the pages lead to something."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from tests.support.pages import ROOT, anchors, links, name_of, pages


def broken(page, root=ROOT):
    """Targets of a page's links, inside `root`, that are not there."""
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.parent / target).resolve() if target else page
        is_there = path.exists() and path.is_relative_to(root)
        if not is_there or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            yield link


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_and_anchors_of_a_page_resolve(page):
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `heading`, of words\n")
    good = ("other.md", "other.md#a-heading-of-words", "https://nowhere.example")
    for number, link in enumerate((*good, "nothing.md", "other.md#nothing", "#nothing", "/tmp")):
        page = tmp_path / f"{number}.md"
        page.write_text(f"[x]({link})\n")
        assert list(broken(page, tmp_path)) == ([] if link in good else [link])


def test_readme_fits_on_two_hundred_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
