"use strict";
// Small helpers. Text reaches the page only through textContent, so nothing that a model wrote can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with properties, and with children that are elements or text. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An SVG element with attributes. */
function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** A row of buttons of which one is pressed. */
function choice(names, chosen, choose, label) {
  const buttons = names.map((name, place) =>
    el("button", { type: "button", textContent: name, "aria-pressed": String(place === chosen), on: { click: () => pick(place) } }));
  function pick(place) {
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === place)));
    choose(place);
  }
  return el("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
}

/** A drop-down list with its label. */
function dropdown(label, names, chosen, choose) {
  const select = el("select", { on: { change: () => choose(Number(select.value)) } });
  names.forEach((name, place) => select.append(el("option", { value: place, textContent: name, selected: place === chosen })));
  return el("label", { class: "dropdown" }, el("span", { textContent: label }), select);
}

/** A number as text with at most four digits, or in percent. */
function say(value, percent = false) {
  if (value === null || value === undefined) return "–";
  if (percent) return `${Number((100 * value).toPrecision(3))} %`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumSignificantDigits: 4 });
}

const tip = document.getElementById("tip");

/** Shows a few lines beside a point of the window. */
function showTip(x, y, lines) {
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
}

function hideTip() {
  tip.hidden = true;
}
