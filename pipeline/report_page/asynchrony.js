// What one run's updates did: four charts, and the choice of the run.
const RUNS = data.activity;
const SHARES = [["updating", "var(--c0)"], ["scoring or waiting for a score", "var(--c4)"], ["idle", "var(--grid)"]];
const nodeColour = (node) => `var(--c${node % 8})`;

function chart(id, title, alt, height) {
  const figure = document.getElementById(id);
  figure.replaceChildren();
  make("h3", {}, figure, title);
  const width = Math.max(260, figure.clientWidth);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt }, figure);
  return { figure, svg, width, height };
}

// Bars from zero, one a count; the labels of the x axis are thinned.
function bars(id, title, alt, counts, label, paint, cut = false) {
  const { svg, width, height } = chart(id, title, alt, 230);
  const left = 52, right = 10, top = 8, bottom = height - 40;
  const most = Math.max(...counts, 1), step = (width - left - right) / Math.max(counts.length, 1);
  const y = (v) => bottom - (v / most) * (bottom - top);
  for (const tick of linearTicks(0, most, 4)) {
    make("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "var(--grid)" }, svg);
    make("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, svg, number(tick));
  }
  const every = Math.ceil(counts.length / 12);
  counts.forEach((count, i) => {
    const bar = make("rect", { x: left + i * step + step * 0.08, y: y(count), width: Math.min(step * 0.84, 60), height: bottom - y(count), fill: paint(i) }, svg);
    make("title", {}, bar, `${label} ${i}: ${count}`);
    if (i % every === 0) {
      const last = cut && i === counts.length - 1;
      make("text", { x: left + i * step + Math.min(step / 2, 35), y: bottom + 16, "text-anchor": "middle" }, svg, last ? `≥${i}` : String(i));
    }
  });
  make("line", { x1: left, x2: width - right, y1: bottom, y2: bottom, stroke: "var(--soft)" }, svg);
  make("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, svg, cut ? `${label} (the last bar: all above)` : label);
}

function timeline(run) {
  const scores = run.scores.length > 0;
  const rows = [...(scores ? ["scores"] : []), ...run.workers.map((name) => `worker ${name}`)];
  const high = rows.length > 12 ? 14 : 26, left = 78, right = 10;
  const { svg, width } = chart("activity-timeline", "Timeline of updates and scores", run.alts.timeline, rows.length * high + 44);
  const bottom = rows.length * high + 4, ms = run.seconds * 1e3 || 1;
  const x = (v) => left + (v / ms) * (width - left - right);
  const box = ([a, b], row, inset) => `M${x(a).toFixed(1)},${(row * high + inset).toFixed(1)}h${Math.max(x(b) - x(a), 0.6).toFixed(1)}v${(high - 2 * inset).toFixed(1)}h${(-Math.max(x(b) - x(a), 0.6)).toFixed(1)}z`;
  rows.forEach((name, i) => {
    make("rect", { x: left, y: i * high + 2, width: width - left - right, height: high - 4, fill: "var(--grid)", "fill-opacity": 0.5 }, svg);
    make("text", { x: left - 8, y: i * high + high / 2 + 4, "text-anchor": "end" }, svg, name.length > 10 ? `…${name.slice(-9)}` : name);
  });
  // Scores overlap when they are queued: seen through, and one below the other.
  make("path", { d: run.scores.map((s) => box(s, 0, 5)).join(""), fill: "var(--soft)", "fill-opacity": 0.45 }, svg);
  const byColour = new Map();
  run.spans.forEach((span, i) => {
    const key = nodeColour(run.node[i]);
    byColour.set(key, (byColour.get(key) ?? "") + box(span, run.row[i] + (scores ? 1 : 0), 3));
  });
  for (const [fill, d] of byColour) make("path", { d, fill }, svg);
  for (const tick of linearTicks(run.start, run.start + run.seconds, Math.max(3, Math.floor((width - left) / 100)))) {
    const at = x((tick - run.start) * 1e3);
    make("line", { x1: at, x2: at, y1: 0, y2: bottom + 4, stroke: "var(--line)" }, svg);
    make("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, svg, String(Number(tick.toFixed(4))));
  }
  make("text", { x: (left + width) / 2, y: bottom + 36, "text-anchor": "middle" }, svg, "Time (s)");
}

function shares(run) {
  const high = run.workers.length > 12 ? 14 : 26, left = 78, right = 10;
  const { figure, svg, width } = chart("activity-shares", "What the workers did", run.alts.shares, run.workers.length * high + 26);
  const bottom = run.workers.length * high + 4, x = (v) => left + v * (width - left - right);
  run.workers.forEach((name, i) => {
    const label = `worker ${name}`;
    make("text", { x: left - 8, y: i * high + high / 2 + 4, "text-anchor": "end" }, svg, label.length > 10 ? `…${label.slice(-9)}` : label);
    let from = 0;
    run.shares[i].forEach((share, k) => {
      const bar = make("rect", { x: x(from), y: i * high + 3, width: Math.max(x(share) - x(0), 0), height: high - 6, fill: SHARES[k][1] }, svg);
      make("title", {}, bar, `${label}: ${(100 * share).toFixed(1)} % ${SHARES[k][0]}`);
      from += share;
    });
  });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) make("text", { x: x(tick), y: bottom + 16, "text-anchor": tick === 1 ? "end" : "middle" }, svg, `${100 * tick} %`);
  const keys = make("p", { class: "keys" }, figure);
  for (const [name, fill] of SHARES) {
    const key = make("span", {}, keys);
    make("i", {}, key).style.background = fill;
    key.append(name);
  }
}

function drawActivity() {
  const run = RUNS[state.run];
  if (run.staleness.length) bars("activity-staleness", "Staleness of updates", run.alts.staleness, run.staleness, "Staleness (versions)", () => "var(--c0)", run.cut);
  else {
    const place = document.getElementById("activity-staleness");
    place.replaceChildren();
    make("h3", {}, place, "Staleness of updates");
    make("p", { class: "hint" }, place, "Undefined: no update of this run was scored after a version that it saw.");
  }
  bars("activity-updates", "Updates of each block or replica", run.alts.updates, run.updates, "Block or replica", nodeColour);
  timeline(run);
  shares(run);
}

state.run = 0;
if (RUNS.length) {
  const select = document.getElementById("activity-run");
  RUNS.forEach((run, i) => make("option", { value: i }, select, `${run.label} — ${run.id}`));
  select.addEventListener("change", () => { state.run = Number(select.value); drawActivity(); });
  drawActivity();
  addEventListener("resize", () => requestAnimationFrame(drawActivity));
} else {
  document.getElementById("activity-charts").hidden = true;
}
