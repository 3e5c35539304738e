// What the page of training runs has besides its plots: the card of the map's points, their list, and filters of rows.
const MAP = "map-plot";
const points = document.getElementById("items") ? read("items") : null;
const card = document.getElementById("map-card");

function part(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

// Only text nodes and pictures that the page holds: nothing in a name or a text is read as markup.
function tell(run, index, x, y) {
  const [name, label, picture, text] = points.maps[run][index];
  const parts = [];
  if (picture >= 0) {
    const image = document.createElement("img");
    image.src = points.pictures[picture];
    image.alt = "";
    parts.push(image);
  }
  if (text) parts.push(part("span", text));
  if (label) parts.push(part("strong", label));
  parts.push(part("span", name));
  card.replaceChildren(...parts);
  card.hidden = false;
  const { _size, xaxis, yaxis } = document.getElementById(MAP)._fullLayout;
  const [left, top] = [xaxis.l2p(x) + _size.l, yaxis.l2p(y) + _size.t];
  const stage = card.parentElement;
  const right = left + 14 + card.offsetWidth > stage.clientWidth;
  card.style.left = `${Math.max(right ? left - 14 - card.offsetWidth : left + 14, 0)}px`;
  card.style.top = `${Math.max(Math.min(top + 10, stage.clientHeight - card.offsetHeight), 0)}px`;
}

function ring(x, y) {
  const place = document.getElementById(MAP);
  Plotly.restyle(place, { x: [[x]], y: [[y]] }, [place.data.length - 1]);
}

function put_away() {
  card.hidden = true;
  ring(null, null);
}

// The points of the classes that are shown, as a list that the arrow keys go through.
function list() {
  for (const chooser of document.querySelectorAll("[data-points]")) {
    const run = chooser.dataset.points;
    const names = points.maps[run];
    const options = figures[MAP][run].data.flatMap(({ x, y, customdata, meta }) => {
      if (!customdata || document.querySelector(`input[data-trace="${meta.box}"]`)?.checked === false) return [];
      return customdata.map((index, k) => {
        const [name, label, , text] = names[index];
        const option = new Option([label, text || name].filter(Boolean).join(": ").slice(0, 120), index);
        option.dataset.x = x[k];
        option.dataset.y = y[k];
        return option;
      });
    });
    chooser.replaceChildren(...options);
  }
}

if (points) {
  const place = document.getElementById(MAP);
  const here = () => chosen(MAP) ?? Object.keys(figures[MAP])[0];
  const at = ({ points: [{ customdata, x, y }] }) => customdata !== undefined && tell(here(), customdata, x, y);
  place.on("plotly_hover", at);
  place.on("plotly_click", at);
  place.on("plotly_unhover", () => { card.hidden = true; });
  list();
  document.addEventListener("change", ({ target }) => {
    if (target.dataset.trace || target.name === MAP) { put_away(); list(); }
    if (target.dataset.points) {
      const option = target.selectedOptions[0];
      const [x, y] = [Number(option.dataset.x), Number(option.dataset.y)];
      ring(x, y);
      tell(target.dataset.points, Number(option.value), x, y);
    }
  });
  document.addEventListener("keydown", ({ key }) => { if (key === "Escape") put_away(); });
  for (const [kind, checked] of [["all", true], ["none", false]])
    for (const button of document.querySelectorAll(`[data-${kind}]`))
      button.addEventListener("click", () => {
        const start = button.dataset[kind];
        for (const box of document.querySelectorAll(`input[data-trace^="${start}"]`)) box.checked = checked;
        draw(MAP);
        put_away();
        list();
      });
}

// Boxes that leave out rows of tables and of the gallery.
for (const only of ["heed", "wrong"])
  for (const box of document.querySelectorAll(`[data-only-${only}]`))
    box.addEventListener("change", () => box.closest("section").classList.toggle(`only-${only}`, box.checked));
