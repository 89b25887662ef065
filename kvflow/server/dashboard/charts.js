// Lines and bars over the last hour. Drawn anew each time: some hundred elements.
import { by, h, rows, s, text } from "./dom.js";
import { count, NONE, percent, seconds, short } from "./format.js";

const HEIGHT = 176;
const LEFT = 52;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 24;

/** @param history the points of `/v1/overview`, oldest first. */
export function charts({ history, slot_s: slot }) {
  const spanS = Math.max(300, ...history.map((point) => point.ago_s + slot));
  lines(by("hit-chart"), history, slot, spanS, {
    name: "Hit rate", a: (point) => point.hit_rate, keys: [["a", "hit rate"]], top: 1, format: percent, area: true,
  });
  lines(by("ttft-chart"), history, slot, spanS, {
    name: "Time to first token", a: (point) => point.first_token_p50_s, b: (point) => point.first_token_p95_s,
    keys: [["a", "median"], ["b", "95% are faster"]], format: seconds,
  });
  bars(by("prefetch-chart"), history, slot, spanS);
  table(history, slot);
}

function lines(box, history, slot, spanS, { name, a, b, keys, top, format, area }) {
  const values = history.flatMap((point) => [a(point), b ? b(point) : null]).filter((value) => value !== null);
  if (!values.length) return empty(box);
  const frame = axes(box, spanS, top ?? nice(Math.max(...values)), format);
  const drawn = [];
  for (const [kind, of] of [["b", b], ["a", a]]) {
    if (!of) continue;
    for (const run of runs(history, of, slot)) {
      const path = run.map((point, index) => `${index ? "L" : "M"}${frame.x(point.ago_s + slot / 2).toFixed(1)} ${frame.y(of(point)).toFixed(1)}`).join("");
      if (area && run.length > 1) {
        const [first, last] = [run[0], run[run.length - 1]].map((point) => frame.x(point.ago_s + slot / 2).toFixed(1));
        drawn.push(s("path", { class: "area", d: `${path}L${last} ${frame.y(0)}L${first} ${frame.y(0)}Z` }));
      }
      drawn.push(run.length > 1 ? s("path", { class: kind, d: path })
        : s("circle", { class: kind, cx: frame.x(run[0].ago_s + slot / 2), cy: frame.y(of(run[0])), r: 2.5 }));
    }
  }
  const now = values.length && history.findLast((point) => a(point) !== null);
  const own = history.map(a).filter((value) => value !== null);
  finish(box, frame, drawn, keys, `${name}: ${format(a(now))} lately, between ${format(Math.min(...own))} and ${format(Math.max(...own))} in the time shown.`);
}

function bars(box, history, slot, spanS) {
  const most = Math.max(0, ...history.map((point) => point.prefetch_used_tokens + point.prefetch_wasted_tokens));
  if (!most) return empty(box, history.length ? "Nothing was loaded ahead." : undefined);
  const frame = axes(box, spanS, nice(most), short);
  const drawn = [];
  for (const point of history) {
    const [x1, x2] = [frame.x(point.ago_s + slot), frame.x(Math.max(0, point.ago_s))];
    const [used, wasted] = [point.prefetch_used_tokens, point.prefetch_wasted_tokens];
    const width = Math.max(1, x2 - x1 - 1);
    if (used) drawn.push(s("rect", { class: "used", x: x1, width, y: frame.y(used), height: frame.y(0) - frame.y(used) }));
    if (wasted) drawn.push(s("rect", { class: "wasted", x: x1, width, y: frame.y(used + wasted), height: frame.y(used) - frame.y(used + wasted) }));
  }
  const sum = (name) => history.reduce((total, point) => total + point[name], 0);
  finish(box, frame, drawn, [["used", "read"], ["wasted", "evicted unread"]],
    `Prefetched tokens in the time shown: ${count(sum("prefetch_used_tokens"))} read, ${count(sum("prefetch_wasted_tokens"))} evicted unread.`);
}

/** Stretches without a gap: an interval without requests has no value, two of them end the line. */
function runs(history, of, slot) {
  const found = [];
  let before = null;
  for (const point of history) {
    if (of(point) === null) continue;
    if (before !== null && before - point.ago_s < 6.5 * slot) found[found.length - 1].push(point);
    else found.push([point]);
    before = point.ago_s;
  }
  return found;
}

function axes(box, spanS, top, format) {
  const width = Math.max(240, box.clientWidth);
  const x = (agoS) => LEFT + (width - LEFT - RIGHT) * (1 - Math.min(1, Math.max(0, agoS / spanS)));
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / top));
  const grid = s("g", { class: "grid" });
  for (const part of [0, 0.5, 1]) {
    grid.append(s("line", { x1: LEFT, x2: width - RIGHT, y1: y(part * top), y2: y(part * top) }),
      s("text", { x: LEFT - 7, y: y(part * top) + 4, "text-anchor": "end" }, format(part * top)));
  }
  const minutes = spanS / 60;
  const step = minutes <= 6 ? 1 : minutes <= 15 ? 3 : minutes <= 30 ? 5 : 15;
  for (let minute = 0; minute <= minutes; minute += step) {
    grid.append(s("text", { x: x(minute * 60), y: HEIGHT - 7, "text-anchor": minute ? "middle" : "end" }, minute ? `−${minute} min` : "now"));
  }
  return { x, y, width, grid };
}

function finish(box, frame, drawn, keys, label) {
  const svg = s("svg", { viewBox: `0 0 ${frame.width} ${HEIGHT}`, role: "img", "aria-label": label }, frame.grid, ...drawn);
  box.replaceChildren(svg, h("ul", { class: "keys", "aria-hidden": "true" }, ...keys.map(([kind, words]) => h("li", {}, h("i", { class: kind }), words))));
}

function empty(box, words = "No engine has reported figures yet.") {
  if (box.dataset.empty !== words || box.children.length !== 1) {
    box.replaceChildren(h("p", { class: "empty" }, words));
    box.dataset.empty = words;
  }
}

/** The least of 1, 2, 2.5 and 5 times a power of ten that is not below the value. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999);
}

function table(history, slot) {
  if (!by("history-details").open) return;
  const minutes = (point) => (Math.max(0, point.ago_s) / 60).toFixed(slot < 60 ? 1 : 0);
  rows(by("history"), history.toReversed(), (point) => String(Math.round((Date.now() / 1000 - point.ago_s) / slot)), (point) => [
    minutes(point), count(point.requests), percent(point.hit_rate), seconds(point.first_token_p50_s), seconds(point.first_token_p95_s),
    count(point.prefetch_used_tokens), count(point.prefetch_wasted_tokens),
  ], new Set([1, 2, 3, 4, 5, 6]));
}

/** The row of figures at the top. */
export function tiles(overview, workflowsShown) {
  const { recent } = overview;
  const states = overview.engines.reduce((sum, one) => ({ ...sum, [one.state]: (sum[one.state] ?? 0) + 1 }), {});
  text(by("tile-workflows"), count(overview.live_workflows));
  text(by("tile-workflows-sub"), workflowsShown);
  text(by("tile-engines"), count(overview.engines_total));
  text(by("tile-engines-sub"), overview.engines_total > overview.engines.length ? "" : ["live", "silent", "lost"].filter((state) => states[state]).map((state) => `${states[state]} ${state}`).join(", "));
  text(by("tile-hit"), percent(recent.hit_rate));
  text(by("tile-hit-sub"), recent.prompt_tokens
    ? ["device", "host", "storage"].filter((tier) => tier === "device" || recent[`${tier}_hit_tokens`]).map((tier) => `${tier} ${percent(recent[`${tier}_hit_tokens`] / recent.prompt_tokens)}`).join(", ")
    : "no requests in the last minute");
  text(by("tile-ttft"), seconds(recent.first_token_p50_s));
  text(by("tile-ttft-sub"), recent.first_token_p95_s === null ? "no requests in the last minute" : `median; 95% within ${seconds(recent.first_token_p95_s)}`);
  const loaded = recent.prefetch_used_tokens + recent.prefetch_wasted_tokens;
  text(by("tile-prefetch"), loaded ? percent(recent.prefetch_used_tokens / loaded) : NONE);
  text(by("tile-prefetch-sub"), loaded ? `${short(recent.prefetch_wasted_tokens)} tokens in vain` : "nothing in the last minute");
}
