// One workflow: the drawing of its graph, and the table that says the same in words.
import { by, rows, s, text } from "./dom.js";
import { ago, clip, count, NONE, plural } from "./format.js";
import { layout, NODE } from "./layout.js";

const PLACE_WORDS = { device: "device", host: "host", storage: "storage", gone: "gone", unknown: "not reported" };
const METER = { x: 12, y: 47, width: NODE.width - 24, height: 5 };
const NUMBERS = new Set([4, 5, 6, 7]);

let drawn = { shape: null, nodes: new Map() };

export function clear(message) {
  drawn = { shape: null, nodes: new Map() };
  const note = document.createElement("p");
  note.className = "empty";
  note.textContent = message;
  by("picture").replaceChildren(note);
  by("agents").replaceChildren();
  text(by("picture-title"), "No workflow chosen");
  text(by("picture-facts"), "");
}

/** Show a workflow, as `/v1/overview/workflows/{workflow_id}` answers it. */
export function show(picture) {
  const { workflow } = picture;
  const placements = new Map(picture.placements.map((one) => [one.agent_id, one]));
  const agents = workflow.agents.map((agent) => ({ ...agent, placement: placements.get(agent.agent_id) }));
  text(by("picture-title"), workflow.name ? `${workflow.name} (${workflow.workflow_id})` : workflow.workflow_id);
  text(by("picture-facts"), facts(workflow, agents));
  draw(workflow, agents);
  if (by("agents-details").open) table(workflow, agents);
}

function facts(workflow, agents) {
  const running = agents.filter((agent) => agent.running > 0);
  return [
    `client ${workflow.client_id}`,
    plural(workflow.agents.length, "agent"),
    running.length ? `running: ${clip(running.map((agent) => agent.agent_id).join(", "), 60)}` : "nothing runs",
    `${plural(workflow.steps_started, "step")} so far`,
    workflow.mispredictions ? `${count(workflow.mispredictions)} not predicted` : null,
    `expires in ${ago(workflow.expires_in_s)} without events`,
  ].filter(Boolean).join(" · ");
}

function draw(workflow, agents) {
  const box = by("picture");
  const width = box.clientWidth - 2;
  const ids = agents.map((agent) => agent.agent_id);
  const shape = JSON.stringify([workflow.workflow_id, ids, workflow.edges, width]);
  if (shape !== drawn.shape) {
    const plan = layout(ids, workflow.edges, workflow.entry, width);
    drawn = { shape, nodes: new Map() };
    const edges = s("g", { class: "edges" }, ...plan.edges.map((edge) =>
      s("path", { d: edge.path, class: `${edge.kind}${edge.back ? " back" : ""}`, "marker-end": "url(#arrow)" })));
    const nodes = s("g", {}, ...agents.map((agent) => {
      const node = makeNode(agent, plan.nodes.get(agent.agent_id));
      drawn.nodes.set(agent.agent_id, node);
      return node.group;
    }));
    const marker = s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" },
      s("path", { d: "M0 0L8 4L0 8z" }));
    box.replaceChildren(s("svg", { width: plan.width, height: plan.height, viewBox: `0 0 ${plan.width} ${plan.height}`, role: "img" },
      s("title"), s("defs", {}, marker), edges, nodes));
  }
  for (const agent of agents) updateNode(drawn.nodes.get(agent.agent_id), agent);
  const running = agents.filter((agent) => agent.running > 0).map((agent) => agent.agent_id);
  const summary = `Graph of ${plural(agents.length, "agent")}. ${running.length ? `Running: ${clip(running.join(", "), 120)}.` : "Nothing runs."} The table says the same.`;
  text(box.querySelector("svg > title"), summary);
}

function makeNode(agent, { x, y }) {
  const halo = s("rect", { class: "halo", x: -4, y: -4, width: NODE.width + 8, height: NODE.height + 8, rx: 12 });
  const boxed = s("rect", { class: "box", width: NODE.width, height: NODE.height, rx: 8 });
  const steps = s("text", { class: "steps", x: 23, y: 27 });
  const where = s("text", { class: "where", x: 44, y: 37 });
  const full = s("title");
  const parts = ["device", "host", "storage"].map((place) => s("rect", { class: place, y: METER.y, height: METER.height }));
  const group = s("g", { transform: `translate(${x} ${y})` }, full, halo, boxed,
    s("circle", { cx: 23, cy: 23, r: 14 }), steps,
    s("text", { class: "name", x: 44, y: 20 }, clip(agent.agent_id, 16)), where,
    s("g", { class: "meter" }, s("rect", { class: "track", ...METER }), ...parts));
  return { group, steps, where, full, parts };
}

function updateNode(node, agent) {
  const where = agent.placement ?? { place: "unknown", engines: [] };
  const near = where.engines[0];
  const wanted = `node ${where.place}${agent.running > 0 ? " running" : ""}`;
  if (node.group.getAttribute("class") !== wanted) node.group.setAttribute("class", wanted);
  text(node.steps, agent.steps_to_execution === null ? "∞" : String(agent.steps_to_execution));
  const place = near ? `${PLACE_WORDS[where.place]} · ${count(near.tokens)} tok` : "not reported";
  text(node.where, place);
  let x = METER.x;
  ["device_tokens", "host_tokens", "storage_tokens"].forEach((name, index) => {
    const width = near && near.tokens ? (METER.width * near[name]) / near.tokens : 0;
    node.parts[index].setAttribute("x", x.toFixed(1));
    node.parts[index].setAttribute("width", width.toFixed(1));
    x += width;
  });
  text(node.full, `${agent.agent_id}: ${stepWords(agent)}; fixed prefix: ${place}${near ? ` on ${near.engine_id}` : ""}`);
}

function stepWords(agent) {
  if (agent.running > 0) return agent.running > 1 ? `runs ${agent.running} times now` : "runs now";
  if (agent.steps_to_execution === null) return "cannot run again";
  return agent.steps_to_execution === 1 ? "may run next" : `in ${agent.steps_to_execution} steps`;
}

function table(workflow, agents) {
  const follows = new Map();
  for (const edge of workflow.edges) {
    const name = edge.kind === "choice" ? `${edge.target} (perhaps)` : edge.target;
    follows.get(edge.source)?.push(name) ?? follows.set(edge.source, [name]);
  }
  const near = (agent) => (agent.steps_to_execution === null ? Infinity : agent.steps_to_execution);
  const sorted = agents.toSorted((a, b) => near(a) - near(b));
  rows(by("agents"), sorted, (agent) => agent.agent_id, (agent) => {
    const where = agent.placement ?? { place: "unknown", engines: [], engine_count: 0 };
    const first = where.engines[0];
    return [
      agent.agent_id,
      `${agent.steps_to_execution ?? "∞"} (${stepWords(agent)})`,
      clip((follows.get(agent.agent_id) ?? []).join(", "), 60) || NONE,
      PLACE_WORDS[where.place],
      count(first?.tokens), count(first?.device_tokens), count(first?.host_tokens), count(first?.storage_tokens),
      first ? `${first.engine_id}${where.engine_count > 1 ? ` and ${where.engine_count - 1} more` : ""}` : NONE,
    ];
  }, NUMBERS);
}
