"use strict";
// Draws the figures of a page with plotly, in the colours of the page, and lets its controls steer them:
//   radio buttons named like a figure choose its variant; so do those named in the data-choose of anything they show or hide,
//   boxes with data-trace show and hide traces by trace.meta.box, boxes with data-log set an axis of the figures in data-for,
//   radio buttons with data-x choose among trace.meta.x, what the figure runs along.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const ROUND = [...Array(12).keys()].flatMap((k) => [1, 2, 5].map((digit) => digit * 10 ** (k - 4)));
const system = window.matchMedia("(prefers-color-scheme: dark)");
const chosen = (name) => document.querySelector(`input[name="${CSS.escape(name)}"]:checked`)?.value;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(name) {
  const variants = figures[name];
  const figure = structuredClone(variants[chosen(name) ?? Object.keys(variants)[0]]);
  const layout = figure.layout;
  const line = colour("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), ...layout.font } });
  layout.hoverlabel = { bgcolor: colour("--panel"), bordercolor: line, font: { color: colour("--text") }, namelength: -1, align: "left" };
  for (const side of ["xaxis", "yaxis"]) layout[side] = { ...axis, ...layout[side] };
  const along = document.querySelector("input[data-x]:checked")?.value;
  if (layout.meta?.x) layout.xaxis.title = { text: layout.meta.x[along] };
  for (const side of ["x", "y"]) {
    const log = document.querySelector(`input[data-for~="${name}"][data-log="${side}"]`);
    if (log?.checked) Object.assign(layout[`${side}axis`], { type: "log", tickvals: ROUND, range: undefined, rangemode: undefined });
  }
  for (const trace of figure.data) {
    const { box, x, shade } = trace.meta ?? {};
    if (box && document.querySelector(`input[data-trace="${CSS.escape(box)}"]`)?.checked === false) trace.visible = false;
    else if (box) trace.visible = true;
    if (x) x[along] ? (trace.x = x[along]) : (trace.visible = false);
    if (shade) trace.colorscale = [[0, colour("--panel")], [1, colour("--deep")]];
  }
  for (const mark of layout.annotations ?? []) mark.arrowcolor ??= colour("--soft");
  return Plotly.react(name, figure.data, layout, { responsive: true, displayModeBar: false });
}

const names = Object.keys(figures);
const steered = (input) => names.filter((name) =>
  input.name === name || input.dataset.for?.split(" ").includes(name) ||
  Object.values(figures[name]).some(({ data, layout }) =>
    ("x" in input.dataset && layout.meta?.x) || (input.dataset.trace && data.some((trace) => trace.meta?.box === input.dataset.trace))));

function show() {
  for (const part of document.querySelectorAll("[data-choose]")) {
    const is = chosen(part.dataset.choose);
    part.hidden = Boolean(is) && is !== part.dataset.is; // of a single run there is nothing to choose, and nothing is hidden
  }
}

function paint() {
  const theme = chosen("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  names.forEach(draw);
}

for (const part of document.querySelectorAll(".theme")) part.hidden = false;
show();
paint();
document.addEventListener("change", ({ target }) => {
  if (target.name === "theme") paint();
  else steered(target).forEach(draw);
  show();
});
system.addEventListener("change", paint);
