"""The page of training runs in a real browser: pointer, keyboard, colours, widths, console, network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from browser import CHROMIUM, MISSING, Browser
from digit_runs import digit_runs
from hostile import EVIL, hostile
from nearfar.report.run_page import render_runs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def runs() -> list[Any]:
    return [json.loads(json.dumps(run, allow_nan=False)) for run in digit_runs()]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The hostile page in a window, as a reader finds it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_runs([hostile(runs[0]), runs[1]]), encoding="utf-8")
    with Browser() as browser:
        browser.screen(1100)
        browser.open(path)
        yield browser
        assert browser.errors == []
        assert browser.requests == []


def drawn(browser: Browser, name: str) -> int:
    """Traces of a plot that can be seen."""
    return browser.js(
        f"[...document.querySelectorAll('#{name} .scatterlayer .trace')].filter((t) => t.getBoundingClientRect().width).length"
    )


UNFOLD = "document.querySelectorAll('details').forEach((d) => { d.open = %s; })"
SPOT = """(() => { const p = document.getElementById('map-plot'); p.scrollIntoView({ block: 'center', behavior: 'instant' });
const t = p.data[%d], l = p._fullLayout, r = p.getBoundingClientRect();
return [r.x + l._size.l + l.xaxis.l2p(t.x[%d]), r.y + l._size.t + l.yaxis.l2p(t.y[%d]), t.customdata[%d]]; })()"""
CARD = """(() => { const c = document.getElementById('map-card'), i = c.querySelector('img');
return c.hidden ? null : { text: c.innerText, width: i && i.naturalWidth, source: i && i.src }; })()"""


def test_it_opens_without_a_word_on_the_console_and_asks_for_nothing(page):
    assert page.js("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")
    assert page.js("[...document.images].every((i) => i.loading === 'lazy' || i.naturalWidth > 0)")
    assert page.js("document.querySelectorAll('script').length") == 4
    assert page.errors == []
    assert page.requests == []


def test_pointing_at_the_map_shows_the_picture(page, runs):
    x, y, index = page.js(SPOT % (1, 5, 5, 5))
    page.point(x, y)
    card = page.js(CARD)
    assert card is not None
    assert card["width"] == 8
    assert card["source"] == runs[0]["map"]["items"][index]["thumbnail"]
    assert card["text"].startswith(f"one\n{index} a \"quoted\" 'name' </script><img src=x")
    page.point(x, 5)
    assert page.js(CARD) is None


def test_hover_texts_show_markup_as_text(page):
    page.middle("#confusion-plot .nsewdrag")
    x, y = page.js(
        "(({ x, y }) => [x, y])(document.querySelector('#confusion-plot .nsewdrag').getBoundingClientRect())"
    )
    page.point(x + 12, y + 8)  # the first class, taken for itself
    said = page.js("document.querySelector('#confusion-plot .hoverlayer').textContent")
    assert said.startswith(f"{EVIL} taken for itself:")
    page.point(5, 5)


def test_boxes_hide_runs_and_classes_and_radios_choose(page):
    assert drawn(page, "path-plot") >= 4
    before = {name: drawn(page, name) for name in ("curve0", "path-plot", "spectrum-plot", "verification-plot")}
    page.click('input[data-trace="r1"]')
    after = {name: drawn(page, name) for name in before}
    assert all(after[name] < before[name] for name in before), (before, after)
    page.click('input[data-trace="r1"]')
    assert {name: drawn(page, name) for name in before} == before
    points = page.js("document.querySelectorAll('#map-plot .point').length")
    page.click('input[data-trace="r0-c1"]')
    assert page.js("document.querySelectorAll('#map-plot .point').length") == points - 61
    page.click('button[data-none="r0-c"]')
    assert page.js("document.querySelectorAll('#map-plot .point').length") <= 1
    page.click('button[data-all="r0-c"]')
    assert page.js("document.querySelectorAll('#map-plot .point').length") == points


def test_the_axis_and_the_scale_follow_their_controls(page):
    title = "document.querySelector('#curve0 .xtitle').textContent"
    assert page.js(title) == "optimiser steps"
    page.click('input[name="along"][value="epochs"]')
    assert page.js(title) == "epochs"
    assert page.js("Math.max(...document.getElementById('curve0').data[0].x)") == pytest.approx(
        200 * 128 / 1200, rel=1e-3
    )
    page.click('input[data-log="y"]')
    assert page.js("document.getElementById('curve0').layout.yaxis.type") == "log"
    page.click('input[data-log="y"]')
    page.click('input[name="along"][value="steps"]')
    assert page.js("document.getElementById('curve0').layout.yaxis.type") != "log"
    page.click('input[name="verification-plot"][value="det"]')
    assert "1 − TAR" in page.js("document.querySelector('#verification-plot .ytitle').textContent")


def test_a_run_is_chosen_where_one_is_shown_at_a_time(page):
    seen = (
        "[...document.querySelectorAll('[data-choose=gallery-run]')].filter((e) => !e.hidden).map((e) => e.dataset.is)"
    )
    assert page.js(seen) == ["r0"]
    page.click('input[name="gallery-run"][value="r1"]')
    assert page.js(seen) == ["r1"]
    rows = "[...document.querySelectorAll('[data-is=r1] .queries > li')].filter((e) => e.getBoundingClientRect().height).length"
    before = page.js(rows)
    page.click("[data-only-wrong]")
    assert 0 < page.js(rows) < before
    page.click("[data-only-wrong]")
    page.click("[data-only-heed]")
    shown = "(e) => e.getBoundingClientRect().height"
    seen = f"[...document.querySelectorAll('#configuration > .scroll tr')].filter({shown}).map((e) => e.innerText)"
    assert [row.split()[0] for row in page.js(seen)] == ["name", "loss.temperature", "known", f"<i>{EVIL}"]
    page.click("[data-only-heed]")


def test_the_list_of_points_is_walked_by_keys(page):
    page.js("document.querySelector('[data-points=r0]').closest('details').open = true")
    page.js("document.querySelector('[data-points=r0]').focus()")
    assert page.js("document.activeElement.options.length") == 597
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.settle()
    card = page.js(CARD)
    assert card["text"].startswith(EVIL)
    assert page.js("document.getElementById('map-plot').data.at(-1).x[0]") is not None
    page.press("Escape")
    page.settle()
    assert page.js(CARD) is None


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(page):
    page.js(UNFOLD % "true")
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    wanted = page.js(
        """(() => { window.stops = [...document.querySelectorAll('a, button, input, select, summary, [tabindex]')].filter((e) =>
        e.getBoundingClientRect().width && (e.type !== 'radio' || e.checked)); return window.stops.length; })()"""
    )
    seen, unmarked = set(), 0
    for _ in range(wanted + 5):
        page.press("Tab")
        at, outline = page.js(
            "[window.stops.indexOf(document.activeElement), getComputedStyle(document.activeElement).outlineStyle]"
        )
        if at >= 0:
            seen.add(at)
            unmarked += outline == "none"
    assert wanted > 50
    assert seen == set(range(wanted))
    assert unmarked == 0
    page.js(UNFOLD % "false")


def test_it_is_dark_where_the_system_is_or_the_reader_wants_it(page):
    back = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#spectrum-plot .xtitle').style.fill"
    assert page.js(back) == "rgb(255, 255, 255)"
    light = page.js(ink)
    page.screen(1100, scheme="dark")
    assert page.js(back) == "rgb(21, 23, 27)"
    assert page.js(ink) != light
    page.click('input[name="theme"][value="light"]')
    assert page.js(back) == "rgb(255, 255, 255)"
    assert page.js(ink) == light
    page.screen(1100)
    page.click('input[name="theme"][value="dark"]')
    assert page.js(back) == "rgb(21, 23, 27)"
    page.click('input[name="theme"][value=""]')
    assert page.js(back) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_window_scrolls_one_way_only(page, width):
    page.js(UNFOLD % "true")
    page.screen(width, 640)
    page.settle()
    assert page.js("document.documentElement.scrollWidth") <= width
    wide = page.js(
        f"[...document.querySelectorAll('.plot .main-svg')].filter((s) => s.getBoundingClientRect().width > {width}).length"
    )
    assert wide == 0
    page.js(UNFOLD % "false")
    page.screen(1100)
