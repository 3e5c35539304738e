"""The page of training runs: whole, safe with any text, true to the facts, ready for a screen reader."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from digit_runs import digit_item, digit_runs, load, thumbnail
from hostile import EVIL, FILE, hostile
from nearfar.report.html import island
from nearfar.report.plotted import spell
from nearfar.report.run_page import render_runs
from nearfar.report.sections.curves import curves
from nearfar.report.sections.findings import sentences
from nearfar.report.sections.map import CLASSES, groups
from nearfar.report.sections.shown import shown
from nearfar.report.sections.similarity import _overlap
from nearfar.report.sections.verification import _at
from nearfar.report.thin import CURVE_POINTS, MAP_POINTS
from pages import Page

SECTIONS = [
    "findings", "measures", "curves", "path", "spectrum", "similarity", "map", "gallery", "confusion", "verification",
    "configuration",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> list[Any]:
    return [json.loads(json.dumps(run, allow_nan=False)) for run in digit_runs()]


@pytest.fixture(scope="module")
def evil(runs) -> str:
    return render_runs([hostile(runs[0]), runs[1]])


def islands(page: Page) -> tuple[Any, Any]:
    return json.loads(page.scripts[0]), json.loads(page.scripts[1])


def texts(value: Any):
    """Every text in a figure."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


# What the page holds


def test_the_page_needs_nothing_but_itself(evil):
    for tag, attributes in Page(evil).elements:
        for name in ("src", "href", "data", "action"):
            assert re.match(r"$|#|data:", attributes.get(name) or ""), (tag, attributes)
    assert "@import" not in evil.split("<script", 1)[0]


def test_text_from_the_data_is_text(evil):
    page = Page(evil)
    assert len(page.scripts) == 4  # figures, items, plotly, ours
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"i", "b", "iframe", "object", "embed", "form"}
    assert {a["src"][:22] for tag, a in page.elements if tag == "img"} == {"data:image/png;base64,"}
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert page.text.count(EVIL) > 20
    assert FILE in page.text
    figures, items = islands(page)
    assert items["maps"]["r0"][0][0] == f"0 {FILE}"
    assert items["maps"]["r0"][3][2:] == [-1, EVIL]
    for text in texts(figures):  # plotly would read these as markup
        assert "<script" not in text
        assert "<img" not in text
    heat = figures["confusion-plot"]["r0"]["data"][0]
    assert spell(EVIL) in heat["customdata"][0][1]


def test_a_template_or_a_tag_in_a_name_is_spelled():
    assert spell("%{x}<br>") == "&#37;&#123;x&#125;&lt;br&gt;"
    assert "</script" not in island("x", "</script>").removesuffix("</script>")


def test_every_section_is_a_landmark_that_the_navigation_names(evil):
    page = Page(evil)
    assert [a["id"] for tag, a in page.elements if tag == "section"] == SECTIONS
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links == [f"#{key}" for key in SECTIONS]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [tag for tag, _ in page.elements].count("main") == 1


def test_every_control_has_a_label_every_plot_words_and_a_table(evil):
    page = Page(evil)
    assert evil.count("<input") == len(re.findall("<label><input", evil)) > 20
    tags = [tag for tag, _ in page.elements]
    assert tags.count("fieldset") == tags.count("legend")
    figures, _ = islands(page)
    plots = {a["id"]: a["aria-label"] for _, a in page.elements if a.get("class") == "plot"}
    assert set(plots) == set(figures)
    assert all("below ha" in words for words in plots.values())
    assert all(a["alt"] for tag, a in page.elements if tag == "img")
    for section in evil.split("<section ")[1:]:
        assert 'class="plot"' not in section or "<table" in section


def test_plotly_knows_every_attribute_of_every_figure(evil):
    go = pytest.importorskip("plotly.graph_objects")
    figures, _ = islands(Page(evil))
    assert len(figures) > 10
    for variants in figures.values():
        for figure in variants.values():
            go.Figure(figure)


def test_a_run_without_facts_has_a_page_without_plots():
    page = Page(render_runs([{"name": "new", "config": {"rate": 0.1}}]))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == ["findings", "configuration"]
    assert page.scripts == []
    assert "not measured anything yet" in page.text


@pytest.mark.parametrize(
    "fact", ["events", "evaluation", "map", "gallery", "histogram", "spectrum", "confusion", "roc", "class_names"]
)
def test_any_fact_may_be_missing_in_one_run(runs, fact):
    less = {name: value for name, value in runs[0].items() if name != fact}
    for order in ([less, runs[1]], [runs[1], less], [less]):
        render_runs(order)


# What it says


def test_the_findings_compare_and_are_sure_only_where_the_intervals_part():
    def told(*values: tuple[float, float, float], **more: Any) -> str:
        runs = [
            {
                "name": f"r{k}",
                "config": {},
                "evaluation": {"metrics": [{"name": "m", "value": v, "low": a, "high": b, **more}]},
            }
            for k, (a, v, b) in enumerate(values)
        ]
        return sentences(shown(runs))[0]

    assert told((0.8, 0.85, 0.9), (0.5, 0.6, 0.7)) == (
        "By m, r0 is the best of 2 runs: 85.0% against 60.0% of r1; their 95% intervals do not overlap."
    )  # fmt: skip
    assert told((0.8, 0.85, 0.9), (0.7, 0.8, 0.86)).endswith("intervals overlap, so the difference may be luck.")
    assert told((0.8, 0.85, 0.9), (0.5, 0.6, 0.7), better="lower").startswith("By m, r1 is the best")
    assert told((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)) == "By m, r0 and r1 are equal: 20.0%."


def test_the_findings_tell_level_way_loss_rank_and_warnings(runs):
    words = "\n".join(sentences(shown(runs)))
    knn = runs[0]["evaluation"]["metrics"][0]
    assert f"supcon: knn is {100 * knn['value']:.1f}% (95% interval {100 * knn['low']:.1f}% to" in words
    assert "on 597 held-out rows; chance is 10.0%" in words
    assert "of 32 directions (effective rank)" in words
    assert "training ended: all 200 steps done" in words
    assert "supcon: the run warned of nothing." in words
    assert "few-labels: the run warned at step 0: 1,612 rows have no label" in words


def test_a_loss_that_broke_is_said_and_drawn_as_a_gap():
    steps = [{"step": k, "loss": float("nan") if k == 7 else 1.0} for k in range(9)]
    runs = shown([{"name": "a", "config": {}, "events": {"steps": steps}}])
    assert "the loss was no number from step 7" in " ".join(sentences(runs))
    section = curves(runs)
    assert section is not None
    assert section.figures["curve0"][""]["data"][0]["y"][7] is None


def test_thousands_of_steps_are_thinned_and_no_spike_is_lost():
    steps = [{"step": k, "seconds": k / 7, "epoch": k / 100, "loss": 1.0, "rate": 0.1} for k in range(30_000)]
    steps[12_345]["loss"] = 99.0
    steps[20_001]["loss"] = -5.0
    html = render_runs([{"name": "long", "config": {}, "events": {"steps": steps}}])
    trace = json.loads(Page(html).scripts[0])["curve0"][""]["data"][0]
    assert len(trace["y"]) <= CURVE_POINTS
    assert trace["meta"]["x"]["steps"][trace["y"].index(99.0)] == 12_345
    assert trace["meta"]["x"]["epochs"][trace["y"].index(-5.0)] == 200.01
    assert "30,000 values of a curve are thinned to at most 800 points" in html
    assert "long: learning rate 0.1 throughout" in html


def test_a_page_with_a_thousand_pictures_stays_small(runs):
    data = load()
    items = [digit_item(k % 500, 28) | {"name": f"{k}.png"} for k in range(3500)]
    items[:1000] = [
        {"name": f"{k}.png", "label": int(data.target[k]), "thumbnail": thumbnail(data.images[k] / 16, 28)} for k in range(1000)
    ]  # fmt: skip
    place = np.random.default_rng(0).normal(size=(2, 3500)).tolist()
    map_ = {"method": "umap", "x": place[0], "y": place[1], "items": items}
    html = render_runs([runs[0] | {"map": map_}])
    _, held = islands(Page(html))
    assert len(held["maps"]["r0"]) == MAP_POINTS
    assert "3,000 points by UMAP, drawn evenly from 3,500 rows" in html
    assert 1000 < len(held["pictures"]) <= 1500  # each picture once
    assert len(html.encode()) < 12e6, f"{len(html.encode()) / 1e6:.1f} MB"


def test_classes_beyond_the_twentieth_share_a_mark():
    items = [{"name": str(k), "label": k % 30 if k % 7 else -1} for k in range(300)]
    found = groups({"method": "pca", "x": [0.0] * 300, "y": [0.0] * 300, "items": items})
    assert len(found) == CLASSES + 1
    assert found[-1][0] is None
    assert sorted(k for _, members in found for k in members) == list(range(300))


def test_right_and_wrong_are_said_and_signed(runs):
    html = render_runs([runs[1]])
    marks = [near["right"] for query in runs[1]["gallery"] for near in query["neighbours"]]
    assert not all(marks)
    assert f"{sum(marks)} of {len(marks)} neighbours are right" in html
    assert re.search(r'<li class="item wrong">.*?<span aria-hidden="true">✗</span> wrong', html)


def test_the_similarities_are_told_by_their_middle():
    told = {"edges": [-1.0, -0.5, 0.0, 0.5, 1.0], "positives": [0, 1, 2, 7], "negatives": [50, 40, 8, 2]}
    assert _overlap(told) == (  # type: ignore[arg-type]
        "The middle pair that belongs together has a similarity of about 0.75; about 2.0% of the pairs that do not are as similar."
    )  # fmt: skip


def test_a_rate_is_read_off_the_curve_where_it_has_one():
    told: Any = {"far": [0.0, 0.005, 0.05, 1.0], "tar": [0.2, 0.5, 0.9, 1.0], "thresholds": [0.9, 0.8, 0.5, -1.0]}
    assert _at(told, 0.01) == (0.5, 0.8)
    assert _at(told, 0.1) == (0.9, 0.5)
    assert _at(told, 0.001) == (None, None)  # too few pairs to tell


def test_what_differs_between_runs_is_set_off(runs):
    html = render_runs(runs)
    rows = re.findall(r'<tr class=heed><th scope="row">([\w.]+)<small>≠ differs', html)
    assert rows == ["loss.temperature", "known"]
    assert "≠ differs" not in render_runs(runs[:1])


# Bad facts


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (None, "no runs"),
        ({"name": "a"}, "run 'a' has no config"),
        ({"config": {}}, "run 'without a name' has no name"),
        ({"name": "a", "config": {}, "rocs": {}}, "run 'a' has 'rocs', which no section shows"),
        ({"name": "a", "config": {}, "map": {"method": "pca", "x": [1.0], "y": [], "items": []}}, "map has columns of different"),
        ({"name": "a", "config": {}, "map": {"method": "tsne", "x": [], "y": [], "items": []}}, "map.method is 'tsne'"),
        (
            {"name": "a", "config": {}, "map": {
                "method": "pca", "x": [0.0], "y": [0.0], "items": [{"name": "i", "thumbnail": "https://x.org/a.png"}]}},
            "a page fetches nothing",
        ),
        (
            {"name": "a", "config": {}, "map": {
                "method": "pca", "x": [0.0], "y": [0.0], "items": [{"name": "i", "thumbnail": 'data:image/png;base64,">'}]}},
            "wanted data:image/png",
        ),
        (
            {"name": "a", "config": {}, "class_names": ["one"], "gallery": [{"item": {"name": "i", "label": 1}, "neighbours": []}]},
            r"gallery has the class 1 \(i\) of 1 class_names",
        ),
        ({"name": "a", "config": {}, "roc": {"far": [0.0], "tar": [], "thresholds": []}}, "roc has columns of different lengths"),
        ({"name": "a", "config": {}, "histogram": {"edges": [0.0, 1.0], "positives": [], "negatives": []}}, "histogram has"),
        ({"name": "a", "config": {}, "confusion": {"matrix": [[1, 2]]}}, "confusion has columns of different lengths"),
    ],
)  # fmt: skip
def test_facts_that_do_not_fit_are_refused_by_name(facts, words):
    with pytest.raises(ValueError, match=words):
        render_runs([] if facts is None else [facts])
