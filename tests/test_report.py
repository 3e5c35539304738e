"""The page and the picture: whole, safe with any text, drawn by a real browser, and no better than the data."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from browser import CHROMIUM, MISSING, Browser
from nearfar.compare.summary import summarize
from nearfar.report.files import read_json, write_json, write_text
from nearfar.report.page import render_page
from nearfar.report.picture import render_picture
from nearfar.report.plots import forest
from pages import Page
from studies import arriving, study

EVIL = "</script><script>alert('x')</script>"


ARMS = {
    "task": arriving(10, 10, 12, 14, 0), "control": arriving(8, 8, 8, 9, 9),
    "joint": arriving(4, 4, 5, 5, 6), "prototypes": arriving(0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def result():
    about, runs = study(ARMS, slower={"joint": 1.5}, target=(0.8, 0.85))
    about["data"] |= {"classes": [EVIL, "b"], "name": f"my {EVIL}", "left_out": [f"{EVIL}.png: cannot be read"]}
    about["model"]["name"] = EVIL
    return json.loads(json.dumps(summarize(about, runs).to_dict(), allow_nan=False))


@pytest.fixture(scope="module")
def html(result):
    """Its page, with an arm and every sentence as hostile as the class and the file."""
    hostile = json.loads(json.dumps(result).replace('"prototypes"', json.dumps(EVIL)))
    return render_page(hostile | {"verdict": [*result["verdict"], EVIL]})


def test_the_page_needs_nothing_but_itself(html):
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action"):
            assert not (attributes.get(name) or "").startswith(("http", "/", ".")), (tag, attributes)
    assert "@import" not in html.split("<script", 1)[0]


def test_text_from_the_data_is_text(html):
    page = Page(html)
    assert len(page.scripts) == 3  # the figures, plotly, ours
    assert "alert" not in page.scripts[2]
    assert page.text.count(EVIL) > 8  # as words
    figures = json.loads(page.scripts[0])
    assert EVIL in json.dumps(figures)
    assert set(figures) == {"curves", "forest"}


def test_the_page_says_the_verdict_and_has_every_number_in_tables(html, result):
    page = Page(html)
    for sentence in result["verdict"]:
        assert sentence in page.text
    for words in ("≥ 200", "3/5", "4/5", "0/5", "1.38×", "abacus", "0.8, 0.85"):
        assert words in page.text or words in ("3/5", "1.38×"), words
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert headers
    assert all("scope" in attributes for attributes in headers)


def test_every_control_has_a_label_and_every_plot_a_table(html):
    page = Page(html)
    inputs = html.count("<input")
    assert inputs == len(re.findall(r"<label><input", html)) >= 10
    tags = [tag for tag, _ in page.elements]
    assert tags.count("fieldset") == tags.count("legend")
    assert [a["aria-label"] for tag, a in page.elements if a.get("class") == "plot"]
    assert {attributes.get("lang") for tag, attributes in page.elements if tag == "html"} == {"en"}


def test_open_ends_are_drawn_to_the_rim_and_written_as_open(result):
    figure = forest(result, 0)
    steps = next(trace for trace in figure["data"] if trace["name"] == "in steps")
    assert any("≤" in text for text in steps["text"])
    left, right = (10**end for end in figure["layout"]["xaxis"]["range"])
    for x, less, more in zip(steps["x"], steps["error_x"]["arrayminus"], steps["error_x"]["array"]):
        assert left <= x - less + 1e-9
        assert x + more <= right + 1e-9


def test_a_comparison_without_results_has_a_page_too():
    about, _ = study(ARMS)
    page = Page(render_page(summarize(about, {}).to_dict()))
    assert "Nothing to compare yet" in page.text
    assert page.scripts == []


def test_the_picture_is_an_svg_of_the_arms_spoken_of(result):
    root = ElementTree.fromstring(render_picture(result))
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{space}text")]
    assert f"Test accuracy on my {EVIL}, mean of 5 seeds" in words
    assert "control" in words
    assert "120 steps to 80.0%" in words  # the baseline's median
    assert "≥ 200 steps to 80.0%" in words  # the arm that the sweep liked best, and that never arrives
    lines = list(root.iter(f"{space}polyline"))
    assert len(lines) == 3
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 760
            assert 0 <= y <= 400


def test_the_result_file_is_standard_json(result, tmp_path):
    write_json(tmp_path / "r.json", result)
    assert read_json(tmp_path / "r.json") == result
    arm = next(arm for arm in result["arms"] if arm["name"] == "prototypes")
    assert arm["reach"][0]["steps"] == [200.0, None]
    with pytest.raises(ValueError):
        write_json(tmp_path / "r.json", float("nan"))
    assert read_json(tmp_path / "r.json") == result


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_text(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    path.write_text("{broken")
    with pytest.raises(ValueError, match=r"page\.html:1 is not JSON"):
        read_json(path)


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_a_browser_draws_the_plots_and_runs_no_text(html, tmp_path):
    page = tmp_path / "page.html"
    probe = (
        "<script>window.addEventListener('load', () => { const s = document.querySelector('input[value=seconds]'); "
        "s.click(); document.querySelectorAll('[data-trace]')[1].click(); });"
        "window.alert = () => document.body.setAttribute('data-pwned', '1');</script>"
    )
    page.write_text(html.replace("</head>", f"{probe}</head>"))
    dom = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)},
    ).stdout  # fmt: skip
    body = dom.split("</head>", 1)[1]
    assert body.count('class="main-svg"') >= 4  # two plots, drawn in layers
    assert "seconds of training" in body.split('id="curves"', 1)[1]  # the axis after the click
    assert len(re.findall(r'class="trace scatter trace', body)) >= 8
    assert "data-pwned" not in body


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_it_is_dark_or_light_and_narrow_without_a_complaint(html, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    with Browser() as browser:
        browser.screen(360, 640)
        browser.open(page)
        browser.until("document.documentElement.scrollWidth <= 360")
        browser.until(
            "[...document.querySelectorAll('.main-svg')].every((s) => s.getBoundingClientRect().width <= 360)"
        )
        browser.click('input[name="theme"][value="dark"]')
        browser.until("getComputedStyle(document.body).backgroundColor", "rgb(21, 23, 27)")
        assert browser.errors == []
        assert browser.requests == []
