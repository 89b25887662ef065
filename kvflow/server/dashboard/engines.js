// The table of engines.
import { by, h, rows, text } from "./dom.js";
import { ago, count, NONE, percent, seconds, short } from "./format.js";

const NUMBERS = new Set([5, 6, 7, 8, 9]);
const STATES = { live: "live", silent: "no reports", lost: "lost" };

export function engines({ engines: shown, engines_total: total }) {
  by("engines-empty").hidden = total > 0 || by("engine-search").value !== "";
  text(by("engines-shown"), total > shown.length ? `${shown.length} of ${count(total)}, by name` : "");
  rows(by("engines"), shown, (engine) => engine.engine_id, cells, NUMBERS);
}

function cells({ engine_id: id, state, report, connected_for_s: connected }) {
  const stream = connected === null ? "not on the stream" : `on the stream for ${ago(connected)}`;
  return [
    id,
    h("span", { class: `state ${state}`, title: stream }, STATES[state]),
    report ? lease(report) : NONE,
    report?.device ? pool(report.device, "device", id) : NONE,
    report?.host ? pool(report.host, "host", id) : NONE,
    count(report?.running_requests), count(report?.waiting_requests),
    percent(report?.recent.hit_rate), seconds(report?.recent.first_token_p50_s), count(report?.agents),
    report ? h("span", {}, report.model || "?", h("span", { class: "quiet" }, `${report.engine_version}, kvflow ${report.plugin_version}`)) : stream,
  ];
}

function pool({ size_tokens: size, used_tokens: used }, tier, id) {
  return h("span", {}, h("progress", { class: tier, max: Math.max(1, size), value: Math.min(used, size), "aria-label": `${tier} cache of ${id} in use` }), `${short(used)} of ${short(size)}`);
}

function lease({ lease_left_s: left, reported_ago_s: since }) {
  if (left <= 0) return h("span", {}, `over, ${ago(since)} ago`);
  return h("span", {}, `${left.toFixed(0)} s left`);
}
