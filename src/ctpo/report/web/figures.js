"use strict";
// The figures of the page: the controls of each, and the curves that it shows for the reader's choices.

const shownNow = { regime: 0, hidden: new Set(), seeds: false };
const redraws = [];

function redrawAll() {
  for (const { chart } of redraws) chart.measure();
  for (const { update } of redraws) update();
}

/** The groups of the chosen regime, each with its index as `place`. */
function groupsNow(data) {
  return data.groups.map((group, place) => ({ ...group, place })).filter((group) => group.regime === data.regimes[shownNow.regime]);
}

/** The index of a group's name among all names, so that an objective has the same colour in every regime. */
function colourPlace(data, place) {
  const names = [...new Set(data.groups.map((group) => group.name))];
  return names.indexOf(data.groups[place].name);
}

function figureCard(data, figure) {
  const chosen = { frame: 0, otherX: false, group: null, hiddenParts: new Set() };
  const host = el("div", { class: "plot" });
  const controls = el("div", { class: "controls" });
  const caption = el("div", { class: "axis-label" });
  const card = el("figure", { class: figure.small ? "card small" : "card", id: `figure-${figure.id}` },
    el("h3", { textContent: figure.title }), el("p", { class: "reads", textContent: figure.text }), controls, caption, host);

  const belongs = (series) => {
    if (series.role === "seed" && !shownNow.seeds) return false;
    if (series.part !== undefined && chosen.hiddenParts.has(series.part)) return false;
    if (figure.oneGroup) return series.group === chosen.group;
    return data.groups[series.group].regime === data.regimes[shownNow.regime] && !shownNow.hidden.has(series.group);
  };
  const curve = (series) => ({
    x: figure.xs[chosen.otherX ? series.otherX : series.x], y: series.y, low: series.low, high: series.high, of: series.of,
    role: series.role ?? "line", marks: !figure.parts || !figure.id.includes("histogram"),
    look: look(series.part ?? colourPlace(data, series.group)),
    name: [series.part === undefined ? data.groups[series.group].name : figure.parts[series.part], series.name].filter(Boolean).join(", "),
  });
  const chart = new Chart(host, {
    label: `${figure.title}. ${figure.text}`, caption,
    axes: () => [chosen.otherX ? figure.otherX : figure.x, figure.y],
    curves: () => figure.series.filter((s) => belongs(s) && (s.frame ?? 0) === chosen.frame).map(curve),
    // Every frame has the same axes, so that frames can be compared. A figure of one group has axes of its own, because
    // its curves are compared with the limits in the same frame.
    all: () => figure.series.filter((s) => belongs(s) && (!figure.oneGroup || (s.frame ?? 0) === chosen.frame)).map(curve),
    height: figure.small ? 210 : 300,
  });

  const groupPicker = el("span", { class: "dropdown" });
  const update = () => {
    const groups = groupsNow(data);
    if (figure.oneGroup && !groups.some((group) => group.place === chosen.group)) chosen.group = groups[0].place;
    if (figure.oneGroup && groups.length > 1) {
      const at = groups.findIndex((group) => group.place === chosen.group);
      groupPicker.replaceChildren(dropdown("runs", groups.map((group) => group.name), at, (i) => { chosen.group = groups[i].place; chart.draw(); }));
    }
    chart.draw();
  };
  if (figure.oneGroup && data.groups.length > 1) controls.append(groupPicker);
  if (figure.frames) controls.append(frameSlider(figure, (frame) => { chosen.frame = frame; chart.draw(); }));
  if (figure.otherX) controls.append(choice([figure.x.label === "optimizer steps" ? "by optimizer step" : "by rollout batch", "by time"], 0, (i) => { chosen.otherX = i === 1; chart.draw(); }, "horizontal axis"));
  if (figure.parts) controls.append(partsLegend(figure, chosen, () => chart.draw()));
  card.append(valuesTable(chart));
  redraws.push({ chart, update });
  new ResizeObserver(() => {
    const before = chart.width;
    chart.measure();
    if (chart.width !== before) chart.draw();
  }).observe(host);
  return card;
}

/** A slider over the frames. If the first frame pools the others, it is a button, and the slider chooses one of the others. */
function frameSlider({ frames, pooled }, choose) {
  const first = pooled ? 1 : 0;
  const shown = el("output", { textContent: pooled && frames.length > 1 ? "or one batch" : frames[0] });
  if (frames.length === 1) return shown;
  const all = el("button", { type: "button", class: "entry plain", textContent: frames[0], "aria-pressed": "true", on: { click: () => {
    all.setAttribute("aria-pressed", "true");
    shown.textContent = "or one batch";
    choose(0);
  } } });
  const one = () => {
    all.setAttribute("aria-pressed", "false");
    shown.textContent = frames[slider.value];
    slider.setAttribute("aria-valuetext", frames[slider.value]);
    choose(Number(slider.value));
  };
  const moves = (event) => { if (/^(Arrow|Home|End|Page)/.test(event.key)) one(); };
  // A click or a key may choose the frame at which the slider already stands.
  const slider = el("input", {
    type: "range", min: first, max: frames.length - 1, value: first, "aria-label": pooled ? "rollout batch" : "pair of policies",
    "aria-valuetext": frames[first], on: { input: one, click: one, keyup: moves },
  });
  return el("span", { class: "frames" }, pooled ? all : null, slider, shown);
}

/** The figure's own legend, of the parts that have a curve. */
function partsLegend(figure, chosen, redraw) {
  const used = figure.parts.map((name, part) => ({ name, part, of: figure.series.find((s) => s.part === part) })).filter((each) => each.of);
  return el("div", { class: "legend" }, ...used.map(({ name, part, of }) =>
    toggle(name, look(part), of.role ?? "line", (on) => { on ? chosen.hiddenParts.delete(part) : chosen.hiddenParts.add(part); redraw(); })));
}

/** A legend entry that can be switched off. */
function toggle(name, itsLook, role, changed) {
  const button = el("button", { type: "button", class: "entry", "aria-pressed": "true", on: { click: () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    changed(on);
  } } }, swatch(itsLook, role), el("span", { textContent: name }));
  return button;
}

/** A table of the curves' values. It is filled only while it is open. */
function valuesTable(chart) {
  const box = el("div", { class: "scroll" });
  const details = el("details", { class: "values", on: { toggle: () => { if (details.open) fill(); else box.replaceChildren(); } } }, el("summary", { textContent: "values" }), box);
  function fill() {
    const { shown, xAxis, yAxis } = chart.now;
    const head = el("tr", {}, el("th", { textContent: xAxis.label }), ...shown.map((c) => el("th", { textContent: c.name })));
    const rows = chart.places().map((at) => el("tr", {}, el("td", { textContent: xAxis.names ? xAxis.names[at] : say(at) }), ...shown.map((c) => {
      const i = c.x.indexOf(at);
      return el("td", { textContent: i < 0 ? "–" : say(c.y[i], yAxis.percent) });
    })));
    box.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }
  return details;
}

/** The legend of all figures: the groups of the chosen regime, and a switch for single seeds. */
function fillLegend(data, host) {
  const groups = groupsNow(data);
  const entries = groups.length < 2 ? [] : groups.map((group) => {
    const entry = toggle(group.name, look(colourPlace(data, group.place)), "line", (on) => {
      on ? shownNow.hidden.delete(group.place) : shownNow.hidden.add(group.place);
      redrawAll();
    });
    if (shownNow.hidden.has(group.place)) entry.setAttribute("aria-pressed", "false");
    return entry;
  });
  if (data.figures.some((figure) => figure.series.some((s) => s.role === "seed"))) {
    const seeds = el("button", { type: "button", class: "entry plain", id: "seeds", "aria-pressed": String(shownNow.seeds), textContent: "single seeds", on: { click: () => {
      shownNow.seeds = !shownNow.seeds;
      seeds.setAttribute("aria-pressed", String(shownNow.seeds));
      redrawAll();
    } } });
    entries.push(seeds);
  }
  host.replaceChildren(...entries);
}
