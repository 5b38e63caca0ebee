// Curves over a budget, their legend, and tables that sort.
const state = { axis: data.axes[0].key, log: false, all: false, hidden: new Set() };

function shownGroups() {
  return data.groups.filter((_, i) => !state.hidden.has(i));
}

function extent(metric, log) {
  let x = [Infinity, -Infinity], y = [Infinity, -Infinity];
  const widen = (range, v) => { range[0] = Math.min(range[0], v); range[1] = Math.max(range[1], v); };
  for (const group of shownGroups()) {
    for (const run of group.runs) {
      const xs = run.x[state.axis];
      if (!xs) continue;
      run.y[metric].forEach((v, i) => {
        if (v === null || xs[i] === null || (log && v <= 0)) return;
        widen(x, xs[i]); widen(y, v);
      });
    }
  }
  return Number.isFinite(x[0]) && Number.isFinite(y[0]) ? { x, y } : null;
}

function scales(metric, width, height, log) {
  const range = extent(metric, log);
  if (!range) return null;
  const margin = { left: 48, right: 14, top: 10, bottom: 40 };
  let [low, high] = range.y;
  if (log && high / low < 1.01) high = low * 1.01;
  if (!log) {
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
    const floor = low >= 0 ? 0 : -Infinity, ceiling = metric === "test_accuracy" ? 1 : Infinity;
    low = Math.max(low - room, floor); high = Math.min(high + room, Math.max(ceiling, high));
  }
  const start = Math.min(0, range.x[0]), end = range.x[1] > start ? range.x[1] : start + 1;
  const f = log ? Math.log : (v) => v;
  const plotWidth = width - margin.left - margin.right;
  const plotHeight = height - margin.top - margin.bottom;
  return {
    margin, plotWidth, plotHeight,
    inside: (v) => Math.min(Math.max(v, low), high),
    px: (v) => margin.left + ((v - start) / (end - start)) * plotWidth,
    py: (v) => margin.top + (1 - (f(v) - f(low)) / (f(high) - f(low) || 1)) * plotHeight,
    value: (p) => start + ((p - margin.left) / plotWidth) * (end - start),
    xTicks: linearTicks(start, end, Math.max(3, Math.floor(plotWidth / 90))),
    yTicks: log ? logTicks(low, high) : linearTicks(low, high, 5),
  };
}

function frame(svg, s, axis, height) {
  const right = s.margin.left + s.plotWidth, bottom = s.margin.top + s.plotHeight;
  for (const tick of s.yTicks) {
    const y = s.py(tick);
    make("line", { x1: s.margin.left, x2: right, y1: y, y2: y, stroke: "var(--grid)" }, svg);
    make("text", { x: s.margin.left - 8, y: y + 4, "text-anchor": "end" }, svg, number(tick));
  }
  for (const tick of s.xTicks) {
    const x = s.px(tick);
    make("line", { x1: x, x2: x, y1: bottom, y2: bottom + 5, stroke: "var(--soft)" }, svg);
    make("text", { x, y: bottom + 18, "text-anchor": "middle" }, svg, number(tick));
  }
  make("line", { x1: s.margin.left, x2: right, y1: bottom, y2: bottom, stroke: "var(--soft)" }, svg);
  make("text", { x: s.margin.left + s.plotWidth / 2, y: height - 4, "text-anchor": "middle" }, svg, axis.label);
}

function draw(figure, metric) {
  figure.querySelectorAll("svg, .tip, p").forEach((node) => node.remove());
  const axis = data.axes.find((a) => a.key === state.axis);
  const log = state.log && metric.key === "train_loss";
  const width = Math.max(260, figure.clientWidth), height = Math.round(Math.min(360, Math.max(250, width * 0.62)));
  const s = scales(metric.key, width, height, log);
  if (!s) { make("p", { class: "hint" }, figure, "Nothing to show on this axis."); return; }
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": data.alts[metric.key][axis.key] }, figure);
  frame(svg, s, axis, height);
  const groups = shownGroups();
  for (const group of groups) {
    const mean = group.mean[metric.key][axis.key];
    if (!mean.half) continue;
    const floor = s.margin.top + s.plotHeight;
    make("path", { class: "band", d: band(mean, s.px, (v) => s.py(s.inside(v)), log, floor), fill: colour(group), "fill-opacity": 0.16 }, svg);
  }
  for (const group of groups) {
    const { stepped, half } = group.mean[metric.key][axis.key];
    if (half && !state.all) continue;
    for (const run of group.runs) {
      const xs = run.x[axis.key];
      if (!xs) continue;
      const line = make("path", { d: path(xs, run.y[metric.key], s.px, s.py, stepped, log), fill: "none", stroke: colour(group), "stroke-width": 1, "stroke-opacity": 0.4 }, svg);
      make("title", {}, line, run.id);
    }
  }
  for (const group of groups) {
    const mean = group.mean[metric.key][axis.key];
    const last = mean.x.length - 1;
    if (last < 0) continue;
    make("path", { class: "mean", d: path(mean.x, mean.y, s.px, s.py, mean.stepped, log), fill: "none", stroke: colour(group), "stroke-width": 2.6, "stroke-linejoin": "round", "stroke-dasharray": DASHES[group.dash % DASHES.length] }, svg);
    if (!log || mean.y[last] > 0) make("path", { d: marker(group.colour, s.px(mean.x[last]), s.py(mean.y[last]), 5), fill: colour(group), stroke: "var(--card)" }, svg);
  }
  follow(figure, svg, s, axis, metric);
}

// The values of the means at the pointer: the last known at or before it.
function follow(figure, svg, s, axis, metric) {
  const rule = make("line", { y1: s.margin.top, y2: s.margin.top + s.plotHeight, stroke: "var(--soft)", "stroke-dasharray": "3 3", visibility: "hidden" }, svg);
  const tip = make("div", { class: "tip", hidden: "" }, figure);
  const hide = () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (at < s.margin.left || at > s.margin.left + s.plotWidth + 8) { hide(); return; }
    const x = s.value(at);
    tip.replaceChildren();
    make("div", {}, tip, `${axis.label}: ${number(x)}`);
    for (const group of shownGroups()) {
      const mean = group.mean[metric.key][axis.key];
      let i = mean.x.length - 1;
      while (i >= 0 && mean.x[i] > x) i--;
      if (i < 0) continue;
      const row = make("div", {}, tip);
      make("i", {}, row).style.background = colour(group);
      make("span", {}, row, group.label);
      make("b", {}, row, mean.y[i].toFixed(metric.key === "test_accuracy" ? 3 : 4));
    }
    tip.hidden = false;
    const left = at > s.margin.left + s.plotWidth / 2;
    tip.style.left = left ? "auto" : `${at + 12}px`;
    tip.style.right = left ? `${svg.viewBox.baseVal.width - at + 12}px` : "auto";
    rule.setAttribute("x1", at); rule.setAttribute("x2", at);
    rule.setAttribute("visibility", "visible");
  });
  svg.addEventListener("pointerleave", hide);
}

function drawAll() {
  data.metrics.forEach((metric) => draw(document.getElementById(`chart-${metric.key}`), metric));
  const without = shownGroups().filter((g) => g.runs.every((r) => !r.x[state.axis])).map((g) => g.label);
  const axis = data.axes.find((a) => a.key === state.axis);
  document.getElementById("curve-note").textContent =
    `Thick lines are means over seeds, drawn where every seed has a value, with a 95 % band (Student's t, point by point) from 3 seeds on; thin lines are single runs.` +
    (without.length ? ` Not on this axis, which it does not use (${axis.label.toLowerCase()}): ${without.join(", ")}.` : "");
}

function choices(id, options, chosen, choose) {
  const set = document.getElementById(id);
  for (const [value, label] of options) {
    const box = make("label", {}, set);
    const input = make("input", { type: "radio", name: id, value }, box);
    input.checked = value === chosen;
    input.addEventListener("change", () => { choose(value); drawAll(); });
    make("span", {}, box, label);
  }
}

function legend() {
  const place = document.getElementById("legend");
  data.groups.forEach((group, i) => {
    const button = make("button", { type: "button", "aria-pressed": "true", title: "Show or hide" }, place);
    const sample = make("svg", { width: 34, height: 14, "aria-hidden": "true" }, button);
    make("line", { x1: 1, x2: 33, y1: 7, y2: 7, stroke: colour(group), "stroke-width": 2.6, "stroke-dasharray": DASHES[group.dash % DASHES.length] }, sample);
    make("path", { d: marker(group.colour, 17, 7, 5), fill: colour(group) }, sample);
    make("span", {}, button, `${group.label} (n = ${group.runs.length})`);
    button.addEventListener("click", () => {
      const hide = !state.hidden.has(i);
      if (hide) state.hidden.add(i); else state.hidden.delete(i);
      button.setAttribute("aria-pressed", String(!hide));
      drawAll();
    });
  });
}

// Figures sort from the largest first, words from A; cells without a value stay last.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const figures = head.classList.contains("number");
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !figures;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? "";
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => {
        const [p, q] = [key(a), key(b)];
        if (p === "" || q === "") return (p === "") - (q === "");
        const order = figures ? Number(p) - Number(q) : p.localeCompare(q, "en", { numeric: true });
        return up ? order : -order;
      }));
    });
  });
}

for (const metric of data.metrics) {
  make("h3", {}, make("figure", { id: `chart-${metric.key}` }, document.getElementById("charts")), metric.label);
}
choices("axes", data.axes.map((a) => [a.key, a.label]), state.axis, (value) => { state.axis = value; });
choices("scale", [["linear", "Linear"], ["log", "Log"]], "linear", (value) => { state.log = value === "log"; });
legend();
choices("singles", [["few", "Below 3 seeds"], ["all", "All"]], "few", (value) => { state.all = value === "all"; });
document.querySelectorAll("table.sortable").forEach(sortable);
drawAll();
let pending = 0;
addEventListener("resize", () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(drawAll); });
