"use strict";
// One plot: axes, curves, bands, and the values under the pointer. Every change of what is shown draws it again.

const MARKERS = ["circle", "square", "triangle", "diamond", "cross", "plus", "down", "ring"];
const SERIES_COLOURS = 8;
const NEAR_ZERO = 1e-3; // the value at which a symlog axis turns from linear to logarithmic, as in figures/figure.py
const MARGIN = { top: 10, right: 14, bottom: 40, left: 52 };

/** The colour, marker and dashes of the n-th curve. Colour alone would not do for everybody. Where a colour returns, its marker is another. */
function look(place) {
  const round = Math.floor(place / SERIES_COLOURS);
  return { colour: `var(--series-${place % SERIES_COLOURS})`, marker: MARKERS[(place + round) % MARKERS.length], dashes: round ? "7 3 1.5 3" : null };
}

const SHAPES = {
  square: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
  triangle: [[0, -1.2], [1.1, 0.8], [-1.1, 0.8]],
  down: [[0, 1.2], [1.1, -0.8], [-1.1, -0.8]],
  diamond: [[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]],
};
const STROKES = {
  cross: [[[-1, -1], [1, 1]], [[-1, 1], [1, -1]]],
  plus: [[[0, -1.2], [0, 1.2]], [[-1.2, 0], [1.2, 0]]],
};

function markerPath(kind, x, y, r = 3.4) {
  const through = (points) => `M${points.map(([a, b]) => `${(x + a * r).toFixed(1)},${(y + b * r).toFixed(1)}`).join("L")}`;
  if (SHAPES[kind]) return `${through(SHAPES[kind])}Z`;
  if (STROKES[kind]) return STROKES[kind].map(through).join("");
  return `M${(x - r).toFixed(1)},${y.toFixed(1)}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`;
}

function marker(kind, x, y, colour) {
  const open = kind === "ring" || kind === "cross" || kind === "plus";
  return svg("path", { d: markerPath(kind, x, y), fill: open ? (kind === "ring" ? "var(--card)" : "none") : colour, stroke: colour, "stroke-width": open ? 1.6 : 0.5 });
}

/** The scale of one axis: a function from values to pixels, with its ticks. `cut` says that 0 lies outside of it. */
function makeScale(axis, values, from, to, most) {
  const log = axis.scale === "log";
  const usable = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
  let low = axis.low ?? (usable.length ? Math.min(...usable) : 0);
  let high = axis.high ?? (usable.length ? Math.max(...usable) : 1);
  const linear = axis.scale === undefined && !axis.names;
  if (linear && !axis.cut) {
    low = axis.low ?? Math.min(0, low);
    high = axis.high ?? Math.max(0, high);
  }
  if (axis.names) [low, high] = [-0.5, axis.names.length - 0.5];
  if (log && low <= 0) low = high > 0 ? high / 1000 : 0.1;
  if (high <= low) {
    high = low === 0 ? 1 : low + Math.abs(low) * 0.1;
    if (axis.low === undefined && !log) low -= Math.abs(low) * 0.1;
  }
  const f = log ? Math.log10 : axis.scale === "symlog" ? (v) => Math.asinh(v / NEAR_ZERO) : (v) => v;
  const room = 0.04 * (f(high) - f(low));
  const start = f(low) - (axis.low === undefined && most.pad && low !== 0 ? room : 0);
  const end = f(high) + (axis.high === undefined && most.pad && high !== 0 ? room : 0);
  const scale = (v) => from + ((f(v) - start) / (end - start)) * (to - from);
  scale.cut = linear && (start > 0 || end < 0);
  scale.ticks = axis.names ? nameTicks(axis.names, most.ticks) : log ? logTicks(start, end, most.ticks) : axis.scale === "symlog" ? symlogTicks(low, high, most.ticks) : linearTicks(start, end, most.ticks, axis.whole ? 1 : 0);
  scale.shows = (v) => Number.isFinite(v) && (!log || v > 0);
  return scale;
}

function nameTicks(names, most) {
  const every = Math.ceil(names.length / (2 * most));
  return names.map((_, place) => place).filter((place) => place % every === 0);
}

function linearTicks(start, end, most, least) {
  const rough = Math.max(least, (end - start) / most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = (least ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(start / step - 1e-9); k * step <= end + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicks(start, end, most) {
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let d = Math.floor(start); d <= Math.ceil(end); d++) {
      for (const m of steps) {
        const v = Number((m * 10 ** d).toPrecision(3));
        if (Math.log10(v) >= start - 1e-9 && Math.log10(v) <= end + 1e-9) ticks.push(v);
      }
    }
    if (ticks.length <= most + 2) return ticks;
    if (steps.length === 1) return ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0);
  }
  return [];
}

/** Zero, and powers of ten on both sides of it, as many as fit. */
function symlogTicks(low, high, most) {
  const powers = [];
  for (let d = -2; 10 ** d <= Math.max(-low, high); d++) powers.push(Number((10 ** d).toPrecision(1)));
  const kept = powers.reverse().filter((_, i) => i % Math.ceil(powers.length / Math.max(1, (most - 1) / 2)) === 0);
  return [...kept.map((v) => -v), 0, ...kept].filter((v) => v >= low && v <= high);
}

function tickText(value, axis) {
  if (axis.names) return axis.names[value];
  if (axis.percent) return `${Number((100 * value).toPrecision(4))}%`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(0).replace("e+", "e");
  return Number(value.toPrecision(6)).toLocaleString("en-US", { maximumSignificantDigits: 6 });
}

class Chart {
  static made = 0;

  /** curves() returns what is shown now, [{x, y, low, high, look, role, name}]. all() returns the curves that the axes must hold.
      The label of the y axis is written into the element `caption`. */
  constructor(host, { label, caption, axes, curves, all, height }) {
    Object.assign(this, { host, label, caption, axes, curves, all, height });
    this.root = svg("svg", { tabindex: 0, role: "img", "aria-label": label });
    host.append(this.root);
    this.root.addEventListener("pointermove", (event) => this.hover(event.offsetX, event));
    this.root.addEventListener("pointerdown", (event) => this.hover(event.offsetX, event));
    this.root.addEventListener("pointerleave", () => this.leave());
    this.root.addEventListener("blur", () => this.leave());
    this.root.addEventListener("keydown", (event) => this.step(event));
  }

  /** Not part of draw(): measuring after drawing would make the browser lay out the whole page again. */
  measure() {
    this.width = Math.max(240, this.host.clientWidth);
  }

  draw() {
    const { width } = this;
    const [xAxis, yAxis] = this.axes();
    const shown = this.curves();
    const everything = this.all();
    this.at = null;
    this.root.replaceChildren();
    this.root.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.root.setAttribute("height", this.height);
    const right = width - MARGIN.right, bottom = this.height - MARGIN.bottom;
    const x = makeScale(xAxis, everything.flatMap((c) => c.x), MARGIN.left, right, { ticks: Math.max(3, Math.floor(width / 80)), pad: false });
    const y = makeScale(yAxis, everything.flatMap((c) => [...c.y, ...(c.low ?? []), ...(c.high ?? [])]), bottom, MARGIN.top, { ticks: this.height < 240 ? 4 : 6, pad: true });
    this.now = { x, y, xAxis, yAxis, shown, bottom };
    this.spreadDots(shown, x);
    this.drawAxes(x, y, xAxis, yAxis, right, bottom);
    if (!shown.length) {
      this.root.append(svg("text", { x: (MARGIN.left + right) / 2, y: this.height / 2 - 10, "text-anchor": "middle", class: "empty" }, "no curve for this choice"));
      return;
    }
    const inside = `inside-${Chart.made}`;
    Chart.made += 1;
    const frame = svg("clipPath", { id: inside });
    frame.append(svg("rect", { x: MARGIN.left - 6, y: 0, width: right - MARGIN.left + 12, height: bottom + 6 }));
    const plot = svg("g", { "clip-path": `url(#${inside})` });
    for (const curve of shown) if (curve.low) plot.append(this.band(curve, x, y));
    for (const curve of shown) plot.append(...this.line(curve, x, y));
    this.cursor = svg("g");
    this.root.append(frame, plot, this.cursor);
  }

  drawAxes(x, y, xAxis, yAxis, right, bottom) {
    const grid = svg("g", { class: "axes" });
    for (const tick of y.ticks) {
      grid.append(svg("line", { x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }));
      grid.append(svg("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick, yAxis)));
    }
    if (xAxis.names) for (let place = 1; place < xAxis.names.length; place++) grid.append(svg("line", { x1: x(place - 0.5), x2: x(place - 0.5), y1: MARGIN.top, y2: bottom }));
    for (const tick of x.ticks) {
      grid.append(svg("line", { x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4, class: "tick" }));
      grid.append(svg("text", { x: x(tick), y: bottom + 17, "text-anchor": "middle" }, tickText(tick, xAxis)));
    }
    grid.append(svg("line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, class: "tick" }));
    grid.append(svg("text", { x: right, y: this.height - 5, "text-anchor": "end", class: "label" }, labelOf(xAxis, x)));
    this.caption.textContent = labelOf(yAxis, y);
    this.root.append(grid);
  }

  /** Dots of several curves in one category stand beside each other. */
  spreadDots(shown, x) {
    const dotted = shown.filter((curve) => curve.role === "dots");
    const apart = Math.min(11, (0.8 * (x(1) - x(0))) / Math.max(1, dotted.length));
    dotted.forEach((curve, place) => { curve.aside = (place - (dotted.length - 1) / 2) * apart; });
  }

  points(curve, values, x, y) {
    return curve.x.map((at, i) => (x.shows(at) && values[i] !== null && y.shows(values[i]) ? [x(at) + (curve.aside ?? 0), y(values[i])] : null));
  }

  line(curve, x, y) {
    const points = this.points(curve, curve.y, x, y);
    const { colour, marker: kind, dashes } = curve.look;
    if (curve.role === "dots") {
      const dots = svg("g", { class: "curve dots" });
      dots.append(...points.filter(Boolean).map((point) => marker(kind, ...point, colour)));
      return [dots];
    }
    const d = pathThrough(points);
    const width = { line: 2, seed: 1, reference: 1.3, limit: 1.8 }[curve.role];
    const attributes = { d, fill: "none", stroke: colour, "stroke-width": width, class: `curve ${curve.role}` };
    if (curve.role === "reference") attributes["stroke-dasharray"] = "2 4";
    else if (curve.role === "limit") attributes["stroke-dasharray"] = "7 4";
    else if (dashes) attributes["stroke-dasharray"] = dashes;
    const drawn = [svg("path", attributes)];
    if (curve.role === "line" && curve.marks) {
      const places = points.map((p, i) => (p ? i : -1)).filter((i) => i >= 0);
      const every = Math.max(1, Math.ceil(places.length / 9));
      places.filter((_, i) => i % every === 0 || i === places.length - 1).forEach((i) => drawn.push(marker(kind, ...points[i], colour)));
    }
    return drawn;
  }

  band(curve, x, y) {
    const up = this.points(curve, curve.high, x, y), down = this.points(curve, curve.low, x, y);
    const parts = [];
    for (let start = 0; start < up.length; start++) {
      if (!up[start] || !down[start]) continue;
      let end = start;
      while (end + 1 < up.length && up[end + 1] && down[end + 1]) end++;
      const around = [...up.slice(start, end + 1), ...down.slice(start, end + 1).reverse()];
      parts.push(`M${around.map(pair).join("L")}Z`);
      start = end;
    }
    return svg("path", { d: parts.join(""), fill: curve.look.colour, class: "band" });
  }

  /** The distinct x values at which a curve has a value. */
  places() {
    const { shown, x } = this.now;
    return [...new Set(shown.flatMap((c) => c.x.filter((v, i) => x.shows(v) && c.y[i] !== null)))].sort((a, b) => a - b);
  }

  hover(pixel, event) {
    const places = this.places();
    if (!places.length) return;
    const ratio = Number(this.root.getAttribute("viewBox").split(" ")[2]) / this.root.clientWidth;
    const { x } = this.now;
    this.at = places.reduce((best, v) => (Math.abs(x(v) - pixel * ratio) < Math.abs(x(best) - pixel * ratio) ? v : best));
    this.show(event.clientX, event.clientY);
  }

  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const places = this.places();
    if (!move || !places.length) return;
    event.preventDefault();
    const now = places.indexOf(this.at);
    this.at = places[Math.max(0, Math.min(places.length - 1, now < 0 ? (move > 0 ? 0 : places.length - 1) : now + move))];
    const box = this.root.getBoundingClientRect();
    this.show(box.left + this.now.x(this.at), box.top + 20);
  }

  show(left, top) {
    const { x, y, xAxis, yAxis, shown, bottom } = this.now;
    this.cursor.replaceChildren(svg("line", { x1: x(this.at), x2: x(this.at), y1: MARGIN.top, y2: bottom, class: "cursor" }));
    const lines = [];
    for (const curve of shown) {
      const i = curve.x.indexOf(this.at);
      if (i < 0 || curve.y[i] === null || curve.role === "seed") continue;
      if (y.shows(curve.y[i])) this.cursor.append(svg("circle", { cx: x(this.at) + (curve.aside ?? 0), cy: y(curve.y[i]), r: 4, fill: curve.look.colour, class: "dot" }));
      const range = curve.low && curve.low[i] !== null ? ` (${say(curve.low[i], yAxis.percent)} to ${say(curve.high[i], yAxis.percent)})` : "";
      const of = curve.of && curve.of[i] ? ` of ${say(curve.of[i])} tokens` : "";
      lines.push([curve.y[i], el("div", { class: "row" }, swatch(curve.look, curve.role), el("span", { textContent: curve.name }), el("b", { textContent: say(curve.y[i], yAxis.percent) + of + range }))]);
    }
    lines.sort((a, b) => b[0] - a[0]);
    showTip(left, top, [el("div", { class: "head", textContent: `${xAxis.label.replace(/ \(log scale.*\)/, "")}: ${xAxis.names ? xAxis.names[this.at] : say(this.at, xAxis.percent)}` }), ...lines.map((line) => line[1])]);
  }

  leave() {
    this.cursor?.replaceChildren();
    hideTip();
  }
}

const labelOf = (axis, scale) => (scale.cut ? `${axis.label} (this axis does not start at 0)` : axis.label);

const pair = ([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`;

function pathThrough(points) {
  let d = "", open = false;
  for (const point of points) {
    if (point) d += `${open ? "L" : "M"}${pair(point)}`;
    open = Boolean(point);
  }
  return d;
}

/** A short piece of a curve, for legends. */
function swatch({ colour, marker: kind, dashes }, role = "line") {
  const root = svg("svg", { width: 26, height: 12, viewBox: "0 0 26 12", class: "swatch", "aria-hidden": "true" });
  const pattern = { reference: "2 4", limit: "6 3" }[role] ?? dashes;
  if (role !== "dots") root.append(svg("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, ...(pattern ? { "stroke-dasharray": pattern } : {}) }));
  if (role === "line" || role === "dots") root.append(marker(kind, 13, 6, colour));
  return root;
}
