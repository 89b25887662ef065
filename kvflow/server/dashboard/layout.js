// A layered drawing of a directed graph, left to right, in rows where it is too long for one.
//
// Edges that close a cycle are left out of the layering and led around: below their row, or along
// the left side to a row further up. Within a layer the order is found by barycentres, which takes a
// few passes over the edges: fine for some thousands.

export const NODE = { width: 176, height: 58 };
const GAP = { x: 46, y: 18, band: 50 };
const MARGIN = 20;
const LANE = 9;
const LANES = 5;
const PASSES = 6;

/**
 * @param ids the nodes; @param edges {source, target, kind}; @param entry where it begins;
 * @param width the room there is, in pixels.
 * @returns {width, height, nodes: Map(id -> {x, y}), edges: [{source, target, kind, back, path}]}
 */
export function layout(ids, edges, entry, width) {
  const out = new Map(ids.map((id) => [id, []]));
  for (const edge of edges) out.get(edge.source)?.push(edge);
  const back = cycleEdges(ids, entry, out);
  const layerOf = layers(ids, edges, back);
  const columns = [];
  for (const id of ids) (columns[layerOf.get(id)] ??= []).push(id);
  order(columns, edges, back, layerOf);

  const lanes = columns.length > 1 && back.size ? MARGIN + LANES * LANE : MARGIN;
  const perBand = Math.max(1, Math.floor((width - lanes - MARGIN + GAP.x) / (NODE.width + GAP.x)));
  const long = columns.length > perBand;
  const left = long ? lanes : MARGIN;
  const nodes = new Map();
  let top = MARGIN;
  let widest = 0;
  for (let first = 0; first < columns.length; first += perBand) {
    const band = columns.slice(first, first + perBand);
    const rows = Math.max(...band.map((column) => column.length));
    const height = rows * (NODE.height + GAP.y) - GAP.y;
    band.forEach((column, index) => {
      const own = column.length * (NODE.height + GAP.y) - GAP.y;
      const x = left + index * (NODE.width + GAP.x);
      widest = Math.max(widest, x + NODE.width);
      column.forEach((id, row) => {
        nodes.set(id, { x, y: top + (height - own) / 2 + row * (NODE.height + GAP.y), band: first, bottom: top + height });
      });
    });
    top += height + GAP.band;
  }
  let bottom = top - GAP.band;
  const drawn = [];
  let around = 0;
  for (const edge of edges) {
    const from = nodes.get(edge.source);
    const to = nodes.get(edge.target);
    if (!from || !to) continue;
    const isBack = back.has(edge);
    if (isBack) bottom = Math.max(bottom, from.bottom + 12 + LANES * LANE);
    const path = isBack ? backward(from, to, around++ % LANES, left) : forward(from, to);
    drawn.push({ ...edge, back: isBack, path });
  }
  return { width: widest + MARGIN, height: bottom + MARGIN / 2, nodes, edges: drawn };
}

/** Edges to a node that the search is still below of: without them there is no cycle. */
function cycleEdges(ids, entry, out) {
  const state = new Map();
  const found = new Set();
  for (const root of [...entry, ...ids]) {
    if (state.has(root) || !out.has(root)) continue;
    const stack = [[root, 0]];
    state.set(root, "open");
    while (stack.length) {
      const top = stack[stack.length - 1];
      const edge = out.get(top[0])[top[1]++];
      if (!edge) {
        state.set(top[0], "done");
        stack.pop();
      } else if (state.get(edge.target) === "open") found.add(edge);
      else if (!state.has(edge.target) && out.has(edge.target)) {
        state.set(edge.target, "open");
        stack.push([edge.target, 0]);
      }
    }
  }
  return found;
}

/** Longest way from a source, over edges that close no cycle. */
function layers(ids, edges, back) {
  const waiting = new Map(ids.map((id) => [id, 0]));
  const out = new Map(ids.map((id) => [id, []]));
  for (const edge of edges) {
    if (back.has(edge) || !waiting.has(edge.source) || !waiting.has(edge.target)) continue;
    waiting.set(edge.target, waiting.get(edge.target) + 1);
    out.get(edge.source).push(edge.target);
  }
  const layer = new Map(ids.map((id) => [id, 0]));
  const ready = ids.filter((id) => waiting.get(id) === 0);
  for (let next = 0; next < ready.length; next++) {
    for (const target of out.get(ready[next])) {
      layer.set(target, Math.max(layer.get(target), layer.get(ready[next]) + 1));
      waiting.set(target, waiting.get(target) - 1);
      if (waiting.get(target) === 0) ready.push(target);
    }
  }
  return layer;
}

/** Reorder each column by the mean place of its neighbours, to and fro. */
function order(columns, edges, back, layerOf) {
  const before = new Map();
  const after = new Map();
  const note = (map, id, other) => map.get(id)?.push(other) ?? map.set(id, [other]);
  for (const { source, target } of edges.filter((edge) => !back.has(edge))) {
    if (!layerOf.has(source) || !layerOf.has(target)) continue;
    note(after, source, target);
    note(before, target, source);
  }
  const place = new Map();
  const number = (column) => column.forEach((id, index) => place.set(id, (index + 0.5) / column.length));
  columns.forEach(number);
  for (let pass = 0; pass < PASSES; pass++) {
    const forwards = pass % 2 === 0;
    for (const column of forwards ? columns : columns.toReversed()) {
      const mean = new Map(column.map((id) => {
        const near = (forwards ? before : after).get(id) ?? [];
        return [id, near.length ? near.reduce((sum, other) => sum + place.get(other), 0) / near.length : place.get(id)];
      }));
      column.sort((a, b) => mean.get(a) - mean.get(b));
      number(column);
    }
  }
}

function forward(from, to) {
  if (from.band === to.band && to.x > from.x) {
    const [x1, y1, x2, y2] = [from.x + NODE.width, from.y + NODE.height / 2, to.x - 3, to.y + NODE.height / 2];
    const bend = Math.max(24, (x2 - x1) / 2);
    return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  }
  // Into a row further down: out at the bottom, in at the top.
  const [x1, y1, x2, y2] = [from.x + NODE.width / 2, from.y + NODE.height, to.x + NODE.width / 2, to.y - 3];
  const bend = Math.max(GAP.band / 2, (y2 - y1) / 2);
  return `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`;
}

/** Around what is between, so that it cannot be taken for a way forward. */
function backward(from, to, lane, left) {
  const low = from.bottom + 10 + lane * (LANE - 2);
  const x1 = from.x + NODE.width * 0.62;
  const y1 = from.y + NODE.height;
  if (from.band === to.band) {
    const x2 = to.x + NODE.width * 0.38;
    return rounded([[x1, y1], [x1, low], [x2, low], [x2, to.y + NODE.height + 3]]);
  }
  const side = left - 14 - lane * LANE;
  if (to.x > left) {
    const under = to.bottom + 10 + lane * (LANE - 2);
    const x2 = to.x + NODE.width * 0.38;
    return rounded([[x1, y1], [x1, low], [side, low], [side, under], [x2, under], [x2, to.y + NODE.height + 3]]);
  }
  const y2 = to.y + NODE.height / 2;
  return rounded([[x1, y1], [x1, low], [side, low], [side, y2], [to.x - 3, y2]]);
}

/** A line through the points with round corners. */
function rounded(points) {
  let d = `M${points[0].join(" ")}`;
  for (let index = 1; index < points.length - 1; index++) {
    const [before, corner, after] = [points[index - 1], points[index], points[index + 1]];
    d += `L${toward(corner, before).join(" ")}Q${corner.join(" ")} ${toward(corner, after).join(" ")}`;
  }
  return `${d}L${points[points.length - 1].join(" ")}`;
}

/** Some way from one point to another, half of it at most. */
function toward([x, y], [toX, toY]) {
  const length = Math.hypot(toX - x, toY - y);
  const part = length ? Math.min(10, length / 2) / length : 0;
  return [x + (toX - x) * part, y + (toY - y) * part];
}
