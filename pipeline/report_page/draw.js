"use strict";
// What all charts are drawn with: elements, numbers, markers, ticks, paths.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "9 4", "2 4", "10 4 2 4"];

function make(tag, attributes = {}, parent = null, text = null) {
  const svg = ["svg", "g", "path", "line", "text", "title", "rect"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const colour = (group) => `var(--c${group.colour})`;
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 ? short.format(value) : String(Number(value.toPrecision(size >= 1 ? 4 : 3)));
}

// One shape a colour, so that methods stay apart without colour.
function marker(shape, x, y, r) {
  const at = (dx, dy) => `${x + dx * r},${y + dy * r}`;
  const polygon = (...points) => `M${points.map((p) => at(...p)).join("L")}Z`;
  return [
    `M${at(-1, 0)}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    polygon([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]),
    polygon([0, -1.2], [1.1, 0.8], [-1.1, 0.8]),
    polygon([0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]),
    polygon([0, 1.2], [1.1, -0.8], [-1.1, -0.8]),
    polygon([-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4],
      [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]),
    polygon([-1.2, 0], [1, -1.1], [1, 1.1]),
    polygon([1.2, 0], [-1, -1.1], [-1, 1.1]),
  ][shape % 8];
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const m of [1, 2, 5]) {
      const tick = m * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks.length >= 2 ? ticks : linearTicks(low, high, 4);
}

// Parts of a curve without gaps; a log scale has no place for values that are not positive.
function path(xs, ys, px, py, stepped, log) {
  let out = "", pen = false;
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null || xs[i] === null || (log && ys[i] <= 0)) { continue; }
    const x = px(xs[i]).toFixed(1), y = py(ys[i]).toFixed(1);
    out += pen ? (stepped ? `H${x}V${y}` : `L${x},${y}`) : `M${x},${y}`;
    pen = true;
  }
  return out;
}

// The band between low and high; a log scale starts it at the floor of the plot.
function band(mean, px, py, log, floor) {
  const at = [];
  mean.x.forEach((x, i) => {
    const y = mean.y[i], half = mean.half[i];
    if (x === null || y === null || half === null) return;
    const low = y - half;
    at.push([px(x), py(y + half), log && low <= 0 ? floor : py(low)]);
  });
  if (!at.length) return "";
  const points = (k, list) => list.map((p, i) => {
    const text = `${p[0].toFixed(1)},${p[k].toFixed(1)}`;
    if (!mean.stepped || i === 0) return text;
    const before = k === 1 ? list[i - 1] : p, x = k === 1 ? p : list[i - 1];
    return `${x[0].toFixed(1)},${before[k].toFixed(1)}L${text}`;
  }).join("L");
  return `M${points(1, at)}L${points(2, [...at].reverse())}Z`;
}
