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
def window(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_runs([hostile(runs[0]), runs[1]]), encoding="utf-8")
    with Browser() as browser:
        yield browser, path


@pytest.fixture
def page(window):
    """The hostile page, freshly opened; whatever is done with it, it complains of nothing and asks for nothing."""
    browser, path = window
    browser.screen(1100)
    browser.open(path)
    yield browser
    assert browser.errors == []
    assert browser.requests == []


ALL = "[...document.querySelectorAll({!r})]"
HEIGHT = "((e) => e.getBoundingClientRect().height > 0)"
UNFOLD = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
CARD = """(() => { const c = document.getElementById('map-card'), i = c.querySelector('img');
return c.hidden ? null : { text: c.innerText, width: i && i.naturalWidth, source: i && i.src }; })()"""
PUT_AWAY = "document.getElementById('map-card').hidden"
POINTS = "document.querySelectorAll('#map-plot .point').length"


def traces(name: str) -> str:
    """Lines of a plot that can be seen: their number, in the browser's words."""
    return f"{ALL.format(f'#{name} .scatterlayer .trace')}.filter((t) => t.getBoundingClientRect().width).length"


def test_it_opens_without_a_word_on_the_console_and_asks_for_nothing(page):
    assert page.js(f"{ALL.format('.plot')}.every((p) => p.querySelector('.main-svg'))")
    assert page.js("[...document.images].every((i) => i.loading === 'lazy' || i.naturalWidth > 0)")
    assert page.js("document.querySelectorAll('script').length") == 4


def test_pointing_at_the_map_shows_the_picture(page, runs):
    page.middle("#map-plot")
    x, y, index = page.js(
        """(() => { const p = document.getElementById('map-plot'), l = p._fullLayout, r = p.getBoundingClientRect();
        const at = t => [...t.x].map((x, i) => [r.x + l._size.l + l.xaxis.l2p(x), r.y + l._size.t + l.yaxis.l2p(t.y[i])]);
        const all = p.data.flatMap(t => t.x ? at(t) : []), own = at(p.data[1]);
        const room = own.map(([x, y]) => all.map(([a, b]) => Math.hypot(a - x, b - y)).sort((a, b) => a - b)[1]);
        const i = room.indexOf(Math.max(...room));  // the point that is farthest from all others: no other is meant
        return [...own[i], p.data[1].customdata[i]]; })()"""
    )
    page.point(x, y, f"!{PUT_AWAY}")
    page.until("document.querySelector('#map-card img').naturalWidth", 8)
    card = page.js(CARD)
    assert card["source"] == runs[0]["map"]["items"][index]["thumbnail"]
    assert card["text"].startswith(f"one\n{index} a \"quoted\" 'name' </script><img src=x")
    page.point(x, 5, PUT_AWAY)


def test_a_point_without_a_picture_shows_its_text(page):
    page.js("tell('r0', 3, 0, 0)")
    assert page.js(CARD)["text"].startswith(f"{EVIL}\n")
    assert page.js(CARD)["width"] is None


def test_hover_texts_show_markup_as_text(page):
    page.middle("#confusion-plot .nsewdrag")
    x, y = page.js(
        "(({ x, y }) => [x, y])(document.querySelector('#confusion-plot .nsewdrag').getBoundingClientRect())"
    )
    said = "document.querySelector('#confusion-plot .hoverlayer').textContent"
    page.point(x + 12, y + 8, f"{said} !== ''")  # the first class, taken for itself
    assert page.js(said).startswith(f"{EVIL} taken for itself:")


def test_boxes_hide_runs_in_every_plot_that_has_several(page):
    before = {name: page.js(traces(name)) for name in ("curve0", "path-plot", "spectrum-plot", "verification-plot")}
    own = {"curve0": 2, "path-plot": 2, "spectrum-plot": 2, "verification-plot": 3}
    assert before == {name: 2 * count for name, count in own.items()}
    page.click('input[data-trace="r1"]')
    for name, count in own.items():
        page.until(traces(name), count)
    page.click('input[data-trace="r1"]')
    for name, count in before.items():
        page.until(traces(name), count)


def test_boxes_and_buttons_hide_classes_of_the_map(page):
    points = page.js(POINTS)
    assert points >= 597
    page.click('input[data-trace="r0-c1"]')
    page.until(POINTS, points - 61)
    assert page.js("document.querySelector('[data-points=r0]').length") == 597 - 61
    page.click('button[data-none="r0-c"]')
    page.until(f"{POINTS} <= 1")
    page.click('button[data-all="r0-c"]')
    page.until(POINTS, points)


def test_the_axis_and_the_scale_follow_their_controls(page):
    title = "document.querySelector('#curve0 .xtitle').textContent"
    assert page.js(title) == "optimiser steps"
    page.click('input[name="along"][value="epochs"]')
    page.until(title, "epochs")
    last = page.js("Math.max(...document.getElementById('curve0').data[0].x)")
    assert last == pytest.approx(200 * 128 / 1200, rel=1e-3)
    scale = "document.getElementById('curve0').layout.yaxis.type === 'log'"
    page.click('input[data-log="y"]')
    page.until(scale)
    page.click('input[data-log="y"]')
    page.until(scale, False)
    page.click('input[name="verification-plot"][value="det"]')
    page.until("document.querySelector('#verification-plot .ytitle').textContent.includes('1 − TAR')")


def test_a_run_is_chosen_where_one_is_shown_at_a_time(page):
    seen = f"{ALL.format('[data-choose=gallery-run]')}.filter((e) => !e.hidden).map((e) => e.dataset.is).join()"
    assert page.js(seen) == "r0"
    page.click('input[name="gallery-run"][value="r1"]')
    page.until(seen, "r1")
    page.click('input[name="map-plot"][value="r1"]')
    page.until(
        f"{ALL.format('input[data-trace^=r1-c]')}.length > 9 && {ALL.format('input[data-trace^=r1-c]')}.every({HEIGHT})"
    )


def test_boxes_leave_out_what_is_right_and_what_is_equal(page):
    page.click('input[name="gallery-run"][value="r1"]')
    rows = f"{ALL.format('[data-is=r1] .queries > li')}.filter({HEIGHT}).length"
    before = page.js(rows)
    page.click("[data-only-wrong]")
    assert 0 < page.js(rows) < before
    page.click("[data-only-heed]")
    left = page.js(f"{ALL.format('#configuration > .scroll tr')}.filter({HEIGHT}).map((e) => e.innerText)")
    assert [row.split()[0] for row in left] == ["name", "loss.temperature", "known", f"<i>{EVIL}"]


def test_the_list_of_points_is_walked_by_keys(page):
    page.js("document.querySelector('[data-points=r0]').closest('details').open = true")
    page.js("document.querySelector('[data-points=r0]').focus()")
    assert page.js("document.activeElement.options.length") == 597
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.until(PUT_AWAY, False)
    assert page.js(CARD)["text"].startswith(EVIL)
    assert page.js("document.getElementById('map-plot').data.at(-1).x[0]") is not None
    page.press("Escape")
    page.until(PUT_AWAY)


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(page):
    page.js(UNFOLD)
    wanted = page.js(
        f"(window.stops = {ALL.format('a, button, input, select, summary, [tabindex]')}"
        f".filter((e) => {HEIGHT}(e) && (e.type !== 'radio' || e.checked))).length"
    )
    seen, unmarked = set(), 0
    for _ in range(wanted + 5):
        page.press("Tab")
        at, outline = page.js(
            "((e) => [window.stops.indexOf(e), getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        if at >= 0:
            seen.add(at)
            unmarked += outline == "none"
    assert wanted > 50
    assert seen == set(range(wanted))
    assert unmarked == 0


def test_it_is_dark_where_the_system_is_or_the_reader_wants_it(page):
    back = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#spectrum-plot .xtitle').style.fill"
    white, black, light = "rgb(255, 255, 255)", "rgb(21, 23, 27)", page.js(ink)
    assert page.js(back) == white
    page.screen(1100, scheme="dark")
    page.until(back, black)
    page.until(f"{ink} !== {light!r}")
    page.click('input[name="theme"][value="light"]')
    page.until(back, white)
    page.until(ink, light)
    page.screen(1100)
    page.click('input[name="theme"][value="dark"]')
    page.until(back, black)
    page.click('input[name="theme"][value=""]')
    page.until(back, white)


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_window_scrolls_one_way_only(page, width):
    page.js(UNFOLD)
    page.screen(width, 640)
    page.until(f"document.documentElement.scrollWidth <= {width}")
    page.until(f"{ALL.format('.plot .main-svg')}.every((s) => s.getBoundingClientRect().width <= {width})")


def test_of_a_single_run_nothing_is_hidden(window, runs):
    browser, path = window
    alone = path.with_name("alone.html")
    alone.write_text(render_runs([runs[1]]), encoding="utf-8")
    browser.screen(1100)
    browser.open(alone)
    assert browser.js(f"{ALL.format('[data-choose]')}.length > 3 && {ALL.format('[data-choose]')}.every({HEIGHT})")
    assert browser.js(f"{ALL.format('.plot')}.every((p) => p.querySelector('.main-svg'))")
    browser.click('input[data-trace="r0-c2"]')
    browser.until(f"{POINTS} < 597")
    assert browser.errors == []


def test_a_run_of_texts_without_classes_shows_them(window, runs):
    browser, path = window
    items = [{"name": f"notes.csv:{k}", "text": f"a <b>sentence</b> no. {k}"} for k in range(50)]
    near = [{"item": items[k], "score": 0.9 - k / 100, "right": None} for k in range(5)]
    facts = {
        "name": "texts", "config": {}, "gallery": [{"item": items[9], "neighbours": near}],
        "map": {"method": "umap", "x": [k % 7 for k in range(50)], "y": [k % 11 for k in range(50)], "items": items},
    }  # fmt: skip
    texts = path.with_name("texts.html")
    texts.write_text(render_runs([facts]), encoding="utf-8")
    browser.open(texts)
    browser.js(f"{UNFOLD}; document.querySelector('[data-points]').focus()")
    browser.press("ArrowDown")
    browser.until(PUT_AWAY, False)
    assert browser.js(CARD)["text"].startswith("a <b>sentence</b> no. 0\nnotes.csv:0")
    assert browser.js("document.querySelector('.queries blockquote').textContent") == "a <b>sentence</b> no. 9"
    assert "? not known" in browser.js("document.querySelector('#gallery').innerText.replaceAll('\\n', ' ')")
    assert browser.errors == []
