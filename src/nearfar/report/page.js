"use strict";
// Draws the figures of this page with plotly, in the colours of the page, and lets radio buttons and boxes steer them.
const figures = JSON.parse(document.getElementById("figures").textContent);
const ROUND = [...Array(12).keys()].flatMap((k) => [1, 2, 5].map((digit) => digit * 10 ** (k - 4)));
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  return { text, axis };
}

function draw(name) {
  const place = document.getElementById(name);
  const key = document.querySelector(`input[name="${name}"]:checked`).value;
  const figure = structuredClone(figures[name][key]);
  const { text, axis } = colours();
  const layout = figure.layout;
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text } });
  for (const side of ["xaxis", "yaxis"]) layout[side] = { ...layout[side], ...axis, automargin: true };
  const log = document.querySelector(`input[data-for="${name}"][data-log]`);
  if (log && log.checked) Object.assign(layout.xaxis, { type: "log", tickvals: ROUND });
  for (const trace of figure.data) {
    const box = trace.meta && document.querySelector(`input[data-arm="${CSS.escape(trace.meta)}"]`);
    if (box) trace.visible = box.checked;
  }
  Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
}

for (const name of Object.keys(figures)) {
  draw(name);
  for (const input of document.querySelectorAll(`input[name="${name}"], input[data-for="${name}"]`))
    input.addEventListener("change", () => draw(name));
}
dark.addEventListener("change", () => Object.keys(figures).forEach(draw));
