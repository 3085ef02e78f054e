"use strict";
// The page itself: it reads the data, makes the sections and remembers the theme.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

function theme() {
  const button = document.getElementById("theme");
  const order = ["system", "light", "dark"];
  let now = 0;
  try { now = Math.max(0, order.indexOf(localStorage.getItem("ctpo-report-theme"))); } catch { /* a page opened from disk may have no storage */ }
  const apply = () => {
    if (now === 0) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = order[now];
    button.textContent = `theme: ${order[now]}`;
  };
  button.addEventListener("click", () => {
    now = (now + 1) % order.length;
    try { localStorage.setItem("ctpo-report-theme", order[now]); } catch { /* the choice is then not remembered */ }
    apply();
  });
  apply();
}

function headline() {
  const cards = data.cards.map(({ label, value, detail }) =>
    el("div", { class: "number" }, el("div", { class: "label", textContent: label }), el("div", { class: "value", textContent: value }), el("div", { class: "detail", textContent: detail })));
  document.getElementById("headline").append(...cards);
}

function missing() {
  if (!data.notes.length) return;
  const box = document.getElementById("missing");
  const items = data.notes.map(({ text, runs }) => {
    const whose = !runs.length ? "" : runs.length === data.runs.length && runs.length > 1 ? "all runs: " : runs.length > 3 ? `${runs.length} runs: ` : data.runs.length > 1 ? `${runs.join("; ")}: ` : "";
    return el("li", { textContent: whose + text, title: runs.join("\n") });
  });
  box.append(el("summary", { textContent: `What is missing or damaged (${data.notes.length})` }), el("ul", {}, ...items));
  box.hidden = false;
  box.open = data.notes.length <= 4;
}

function tableCard({ id, title, text, head, rows, groups }) {
  const body = rows.map((cells, place) => {
    const made = cells.map((cell, column) => el(column === 0 ? "th" : "td", { textContent: cell }));
    const group = groups[place];
    if (group !== undefined && group !== null && data.groups.length > 1) made[Math.max(0, cells.indexOf(data.groups[group].name))].prepend(swatch(look(colourPlace(data, group))));
    return el("tr", {}, ...made);
  });
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { textContent: name, scope: "col" })))), el("tbody", {}, ...body));
  const long = rows.length > 12;
  const box = el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": title }, table);
  const inside = long ? el("details", {}, el("summary", { textContent: `${rows.length} rows` }), box) : box;
  return el("div", { class: "card table", id: `table-${id}` }, el("h3", { textContent: title }), el("p", { class: "reads", textContent: text }), inside);
}

function sections() {
  const links = [];
  for (const [id, title] of Object.entries(data.sections)) {
    const figures = data.figures.filter((figure) => figure.section === id);
    const tables = data.tables.filter((table) => table.section === id);
    const viewers = id === "texts" ? viewerCards(data) : [];
    if (!figures.length && !tables.length && !viewers.length) continue;
    const section = el("section", { id, "aria-label": title }, el("h2", { textContent: title }));
    section.append(el("div", { class: "grid" }, ...figures.map((figure) => figureCard(data, figure))), el("div", { class: "tables" }, ...tables.map(tableCard)), ...viewers);
    main.append(section);
    links.push(el("a", { href: `#${id}`, textContent: title }));
  }
  document.getElementById("sections").append(...links);
}

function regimes() {
  if (data.regimes.length < 2) return;
  document.getElementById("regimes").append(choice(data.regimes, 0, (place) => {
    shownNow.regime = place;
    fillLegend(data, document.getElementById("legend"));
    redrawAll();
  }, "regime"));
}

theme();
headline();
missing();
sections();
regimes();
fillLegend(data, document.getElementById("legend"));
redrawAll();
document.getElementById("foot").textContent = `Made by ctpo ${data.version} from the files of ${data.runs.length} run${data.runs.length === 1 ? "" : "s"}. This page needs no network.`;
document.addEventListener("scroll", hideTip, { passive: true });
document.documentElement.dataset.drawn = String(Math.round(performance.now()));
