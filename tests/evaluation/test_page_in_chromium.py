"""The page of `report --html` in Chromium: keys, focus, themes, sizes, and no request."""

from __future__ import annotations

import pytest

from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.figures.catalogue import figures_of
from adrpo_scale.evaluation.report.page import report_page
from tests.evaluation.test_page import HOSTILE, OLD
from tests.support.browser import Browser
from tests.support.row_folders import PROMPTS, row_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A page of pictures and one of completions."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in ("images", "text"):
        for algorithm, gain in (("adrpo", 3.0), ("raft", 2.0), ("grpo", 1.0)):
            row_folder(
                folder / kind,
                algorithm,
                gain=gain,
                benchmark=kind,
                prompts=(*PROMPTS, *HOSTILE),
                side=240,
            )
        runs = read_runs(str(folder / kind))
        names = ["image"] if kind == "images" else []
        drawn, left_out = figures_of([run for n in names for run in read_runs(str(OLD / n))])
        (folder / f"{kind}.html").write_bytes(report_page(runs, [kind], drawn, left_out))
    return folder


@pytest.fixture
def page(browser, files):
    page = browser.page(files / "images.html")
    yield page
    page.close()


@pytest.fixture
def text(browser, files):
    page = browser.page(files / "text.html")
    yield page
    page.close()


SHOT = "#picture-cards .card:nth-child(2) tbody tr:nth-child(1) td:nth-child(2) .shot"
COLUMN = "#results tbody tr .number"
OPEN = "document.getElementById('viewer').open"


def test_no_request_leaves_and_nothing_of_others_runs(page, files):
    page.value("Promise.all([...document.images].filter(i => i.src).map(i => i.decode()))")
    assert page.requests() == [(files / "images.html").resolve().as_uri()]
    assert page.complaints() == []
    names = page.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    assert page.value("typeof window.hostile") == "undefined"
    assert HOSTILE[0][0] in page.texts("#picture-cards h3")
    # The policy is no claim: what the page itself would ask for is refused.
    refused = "new Promise(done => addEventListener('securitypolicyviolation', "
    refused += "event => done(event.effectiveDirective), {once: true}))"
    asked = "fetch('http://127.0.0.1:9/').catch(() => 0)"
    assert page.value(f"(() => {{ const told = {refused}; {asked}; return told; }})()") == (
        "connect-src"
    )
    assert len(page.requests()) == 1


@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_table_is_sorted_by_a_key(page, key):
    rows = page.texts("#results tbody th")
    assert [row.split()[0] for row in rows] == ["adrpo", "grpo", "raft"]
    page.focus("#results thead tr:last-child th:nth-child(2) button")
    page.press(key)
    assert [row.split()[0] for row in page.texts("#results tbody th")] == ["adrpo", "raft", "grpo"]
    sorted_by = "#results th[aria-sort='{}'] button"
    assert page.texts(sorted_by.format("descending")) == ["checker"]
    page.press(key)
    assert [row.split()[0] for row in page.texts("#results tbody th")] == ["grpo", "raft", "adrpo"]
    assert page.texts(sorted_by.format("ascending")) == ["checker"]
    assert "checker" in page.focused()
    page.focus("#results thead tr:last-child th:nth-child(1) button")
    page.press(key)
    assert page.texts("#results tbody th") == rows
    assert page.value("document.querySelectorAll('#results th[aria-sort]').length") == 1


def test_prompts_are_found_by_words_and_by_category(page):
    page.focus("[data-finds='picture-cards'] input")
    page.type("RED blue")
    assert page.texts("#picture-cards h3") == ["a red circle above a blue square"]
    assert page.texts("[data-finds='picture-cards'] output") == ["1 of 8"]
    page.value("document.execCommand('selectAll')")
    page.type("no such prompt")
    assert page.texts("#picture-cards h3") == []
    page.value("document.execCommand('selectAll')")
    page.type(" ")
    choice = "document.querySelector('[data-finds=\"picture-cards\"] select')"
    page.value(f"{choice}.value = 'drawn: counting'; {choice}.dispatchEvent(new Event('change'))")
    assert page.texts("#picture-cards h3") == ["two green triangles", "seven yellow dots in a row"]


def test_a_picture_opens_by_a_key_and_gives_the_focus_back(page):
    page.focus(SHOT)
    page.press("Enter")
    assert page.value(OPEN) and page.focused() == "BUTTON viewer-close Close"
    assert page.texts("#viewer-label") == ["adrpo ×1: two green triangles"]
    facts = page.texts("#viewer-facts")[0]
    assert facts.startswith("seed 0, no. 0 · checker 2") and facts.endswith("images/000004.png")
    shown = page.value(
        "(async () => { const image = document.getElementById('viewer-picture');"
        " await image.decode(); return image.naturalWidth; })()"
    )
    assert shown == 240  # the thumbnail has 176
    page.press("Escape")
    assert not page.value(OPEN)
    assert page.value(f"document.activeElement === document.querySelector('{SHOT}')")


def test_arrows_go_through_one_prompt_and_the_focus_follows(page):
    page.focus(SHOT)
    page.press(" ")
    page.press("ArrowRight", 2)
    assert page.texts("#viewer-label") == ["raft ×1: two green triangles"]
    page.press("ArrowLeft")
    assert page.texts("#viewer-label") == ["grpo ×1: two green triangles"]
    page.press("ArrowLeft", 5)  # no picture of another prompt comes
    assert page.texts("#viewer-label") == ["adrpo ×1: two green triangles"]
    assert page.value("document.getElementById('viewer-back').disabled")
    page.press("ArrowRight")
    page.press("Escape")
    assert page.value("document.activeElement.dataset.label") == "grpo ×1: two green triangles"


def test_what_is_behind_a_number_opens_and_closes_by_keys(page):
    page.focus(f"{COLUMN} .cell")
    page.press("Enter")
    (panel,) = page.texts(".behind")
    assert "checker (drawn) of adrpo ×1" in panel and "printed by" in panel
    box = page.value(
        "(() => { const box = document.querySelector('.behind:popover-open')"
        ".getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })()"
    )
    assert min(box) >= 0 and box[2] <= 1280 and box[3] <= 900
    page.press("Escape")
    assert page.texts(".behind") == [] and page.value("document.activeElement.className") == "cell"


def test_the_first_key_leads_past_the_bar(page):
    page.press("Tab")
    assert page.focused() == "A Skip to the results"
    page.press("Enter")
    assert page.focused().startswith("MAIN main")
    page.press("Tab")
    assert page.value("document.activeElement.getAttribute('role')") == "region"  # it scrolls
    page.press("Tab")
    assert page.focused().startswith("BUTTON row")


def background(page):
    return page.value("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_follow_the_system_and_the_switch(page):
    light = background(page)
    page.prefer("dark")
    dark = background(page)
    assert light == "rgb(250, 249, 246)" and dark == "rgb(20, 23, 26)"
    inverted = "getComputedStyle(document.querySelector('.drawing img')).filter !== 'none'"
    assert page.value(inverted)
    page.focus("#theme")
    page.press(" ")
    assert background(page) == light and not page.value(inverted)
    page.prefer("light")
    page.press("Enter")
    assert background(page) == dark and page.value(inverted)
    assert page.value("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    page.value("localStorage.clear()")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_page(page, width):
    page.resize(width, 800)
    assert page.value("document.documentElement.scrollWidth") == width


def test_on_paper_the_page_is_light_and_has_no_controls(page):
    page.prefer("dark", "print")
    assert background(page) == "rgb(255, 255, 255)"
    assert page.texts("nav a") == page.texts("#theme") == page.texts(".finder") == []
    assert len(page.texts("#picture-cards h3")) == 8 and page.texts(COLUMN)


def test_without_scripts_every_number_is_there_and_no_dead_control(page):
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    page.browser.events.clear()
    page.send("Page.reload")
    page.browser.wait_for("Page.loadEventFired")
    page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(page.texts(COLUMN)) == 3 and page.texts(".needs-script") == []
    assert page.texts("th > button") == [] and "Scripts are off" in page.texts("noscript")[0]


def test_completions_of_two_chosen_rows_stand_side_by_side(text):
    first = "#text-cards .card:nth-child(1) .answers:nth-of-type(1) .answer h4"
    assert text.texts(first)[:2] == ["adrpo ×1", "grpo ×1"]
    choice = "document.querySelector('[data-side=\"left\"]')"
    text.value(f"{choice}.value = '2'; {choice}.dispatchEvent(new Event('change'))")
    assert text.texts(first)[:2] == ["raft ×1", "grpo ×1"]
    assert text.complaints() == []
    assert text.value("typeof window.hostile") == "undefined"
