"use strict";
// The responses: held-out ones with their tool calls, and training responses token by token.

const CLIP_NAMES = { 0: "not clipped", 1: "clipped at the upper limit", "-1": "clipped at the lower limit", 2: "dual clip" };
const FAINT = 0.05; // log ratios of this size or less never get the full colour
const CLIP_CLASS = { 1: "high", "-1": "low", 2: "dual" };

function viewerCards(data) {
  const kinds = [
    ["heldout", "Held-out responses", "Responses of the model to problems that it does not train on. Tool calls and their output are marked. The output (hatched) is fed to the model; the model did not write it.", showTranscript, transcriptLabel],
    ["samples", "Training responses, token by token", "The colour of a token is the log ratio that weights it. Blue: the policy finds the token likelier than when it was sampled. Orange: less likely. A line under a token means that it is clipped. Grey hatched tokens are tool output and not trained on. Point at a token, or tap it, for its numbers. The response with the most clipped tokens is shown first.", showSample, sampleLabel],
  ];
  return kinds.filter(([kind]) => data.runs.some((run) => run[kind].length)).map(([kind, title, text, show, label]) => viewer(data, kind, title, text, show, label));
}

function viewer(data, kind, title, text, show, label) {
  const runs = data.runs.map((run, place) => place).filter((place) => data.runs[place][kind].length);
  const now = { run: 0, batch: 0, row: 0 };
  const controls = el("div", { class: "controls" });
  const body = el("div", { class: "response" });
  const batches = () => data.runs[runs[now.run]][kind];
  const rows = () => batches()[now.batch].rows;
  function fill() {
    now.batch = Math.min(now.batch, batches().length - 1);
    now.row = Math.min(now.row, rows().length - 1);
    const left = batches()[now.batch].left_out;
    const turn = (by) => { now.row = (now.row + by + rows().length) % rows().length; fill(); };
    controls.replaceChildren(
      ...(runs.length > 1 ? [dropdown("run", runs.map((place) => data.runs[place].name), now.run, (i) => { now.run = i; now.batch = batches().length - 1; fill(); })] : []),
      dropdown("after batch", batches().map((batch) => String(batch.batch)), now.batch, (i) => { now.batch = i; fill(); }),
      dropdown("response", rows().map(label), now.row, (i) => { now.row = i; fill(); }),
      el("span", { class: "turn" }, el("button", { type: "button", textContent: "‹", "aria-label": "previous response", on: { click: () => turn(-1) } }), el("button", { type: "button", textContent: "›", "aria-label": "next response", on: { click: () => turn(1) } })),
      ...(left ? [el("span", { class: "note", textContent: `${left} more in the run's files` })] : []));
    body.replaceChildren(...show(rows()[now.row]));
    hideTip();
  }
  now.batch = batches().length - 1;
  if (kind === "samples") Object.assign(now, mostClipped(batches()));
  fill();
  return el("div", { class: "card texts", id: `viewer-${kind}` }, el("h3", { textContent: title }), el("p", { class: "reads", textContent: text }), controls, body);
}

function mostClipped(batches) {
  let most = { batch: batches.length - 1, row: 0, clipped: 0 };
  batches.forEach(({ rows }, batch) => rows.forEach((row, place) => {
    const clipped = row.clip.filter((state) => state !== 0).length;
    if (clipped > most.clipped) most = { batch, row: place, clipped };
  }));
  return { batch: most.batch, row: most.row };
}

const short = (text) => (text.length > 36 ? `${text.slice(0, 35)}…` : text).replace(/\s+/g, " ");
const verdict = (row) => (row.correct === null ? "" : row.correct ? "✓ " : "✗ ");
const transcriptLabel = (row, place) => `${place + 1}. ${verdict(row)}${short(row.prompt)}`;
const sampleLabel = (row, place) => `${place + 1}. reward ${say(row.reward)}: ${short(row.prompt)}`;

/** A block of text that keeps its own writing direction, so that it cannot reverse the text around it. */
function quoted(className, text) {
  return el("pre", { class: className, dir: "auto", textContent: text });
}

function showTranscript(row) {
  const state = [row.correct === null ? null : row.correct ? "✓ right" : "✗ wrong", row.finished ? null : "cut off at the length limit", `expected ${row.answer || "–"}`];
  return [
    el("div", { class: "caption", textContent: "prompt" }), quoted("prompt", row.prompt),
    el("div", { class: "caption" }, "response ", el("span", { class: row.correct === false ? "wrong" : "right", textContent: state.filter(Boolean).join(" · ") })),
    el("pre", { class: "completion", dir: "auto" }, ...segments(row)),
    ...(row.calls.length ? [callTable(row.calls)] : []),
  ];
}

/** The completion as pieces, in which the program and the output of every call are marked. */
function segments(row) {
  const parts = [];
  let at = 0;
  const mark = (text, className, title) => {
    const start = text ? row.completion.indexOf(text, at) : -1;
    if (start < 0) return;
    parts.push(row.completion.slice(at, start), el("span", { class: className, title, textContent: text }));
    at = start + text.length;
  };
  row.calls.forEach((call, place) => {
    mark(call.program, "call", `call ${place + 1}, ${call.status}`);
    mark(call.output, "fed", `output of call ${place + 1}, fed to the model`);
  });
  return [...parts, row.completion.slice(at)];
}

function callTable(calls) {
  const failed = calls.filter((call) => call.status !== "ok").length;
  const rows = calls.map((call, place) => el("tr", {},
    el("th", { textContent: String(place + 1) }), el("td", {}, quoted("cell", call.program)), el("td", { class: call.status === "ok" ? "" : "wrong", textContent: call.status }), el("td", {}, quoted("cell", call.output))));
  const head = el("tr", {}, ...["", "program", "status", "output"].map((name) => el("th", { textContent: name })));
  return el("details", {}, el("summary", { textContent: `${calls.length} tool call${calls.length === 1 ? "" : "s"}, ${failed} failed` }), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

function showSample(row) {
  const clipped = row.clip.filter((state) => state !== 0).length;
  const trained = [...row.model].filter((bit) => bit === "1").length;
  const largest = Math.max(...row.weight.map((value) => Math.abs(value ?? 0)), FAINT);
  const readout = el("div", { class: "readout", role: "status", textContent: "point at a token for its numbers" });
  const tokens = row.tokens.map((text, i) => token(row, text, i, largest, readout));
  const text = el("div", { class: "tokens", dir: "ltr" }, ...tokens);
  return [
    el("div", { class: "caption", textContent: "prompt" }), quoted("prompt", row.prompt),
    el("div", { class: "caption", textContent: `response · reward ${say(row.reward)} · advantage ${say(row.advantage)} · ${trained} tokens trained on, ${clipped} clipped` }),
    legendOfTokens(largest), text, readout,
    ...(row.cut ? [el("p", { class: "note", textContent: `${row.cut.toLocaleString("en-US")} more tokens are in the run's files` })] : []),
  ];
}

function token(row, text, i, largest, readout) {
  const ours = row.model[i] === "1";
  const weight = row.weight[i];
  const made = el("span", { class: `token ${ours ? CLIP_CLASS[row.clip[i]] ?? "" : "fed"}`, tabIndex: i === 0 ? 0 : -1, textContent: visible(text) });
  if (ours && weight !== null) {
    made.style.setProperty("--strength", (Math.min(1, Math.sqrt(Math.abs(weight) / largest)) * 62).toFixed(0) + "%");
    made.classList.add(weight > 0 ? "likelier" : "rarer");
  }
  const lines = () => numbersOf(row, i, ours).map(([name, value]) => el("div", { class: "row" }, el("span", { textContent: name }), el("b", { textContent: value })));
  const show = () => {
    readout.replaceChildren(...numbersOf(row, i, ours).map(([name, value]) => el("span", {}, `${name} `, el("b", { textContent: value }))));
    const box = made.getBoundingClientRect();
    showTip(box.right, box.bottom, lines());
  };
  made.addEventListener("pointerenter", show);
  made.addEventListener("focus", show);
  made.addEventListener("pointerleave", hideTip);
  made.addEventListener("blur", hideTip);
  made.addEventListener("keydown", (event) => {
    const next = { ArrowRight: made.nextElementSibling, ArrowLeft: made.previousElementSibling }[event.key];
    if (next) { event.preventDefault(); made.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
  return made;
}

/** The token with signs for its white space. A line break gets a sign and still breaks the line. */
function visible(text) {
  return text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥") || "∅";
}

function numbersOf(row, i, ours) {
  const numbers = [["token", JSON.stringify(row.tokens[i])], ["position", String(row.position[i])]];
  if (!ours) return [...numbers, ["", "tool output, not trained on"]];
  const ratio = (value) => (value === null ? "–" : `${say(Math.exp(value))} (log ${say(value)})`);
  const prefix = row.ratio[i] === null ? null : row.ratio.slice(0, i + 1).reduce((sum, value) => sum + (value ?? 0), 0);
  return [...numbers, ["token ratio", ratio(row.ratio[i])], ["prefix ratio", ratio(prefix)], ["ratio that weights it", ratio(row.weight[i])], ["", CLIP_NAMES[row.clip[i]]]];
}

function legendOfTokens(largest) {
  const sample = (className, text) => el("span", { class: `token ${className}`, textContent: text });
  const ends = [sample("rarer", `log ratio −${say(largest)}`), sample("", "0"), sample("likelier", `+${say(largest)}`)];
  ends[0].style.setProperty("--strength", "62%");
  ends[2].style.setProperty("--strength", "62%");
  return el("div", { class: "key" }, ...ends, sample("high", "upper limit"), sample("low", "lower limit"), sample("dual", "dual clip"), sample("fed", "tool output"));
}
