// The page: what is polled, what is chosen, and what the buttons do.
import { ApiError, get, key } from "./api.js";
import { charts, tiles } from "./charts.js";
import { by, text } from "./dom.js";
import { engines } from "./engines.js";
import { clear, show } from "./picture.js";
import { WorkflowList } from "./workflows.js";

const EVERY_MS = 2000;
const THEMES = ["auto", "light", "dark"];

let paused = false;
let timer = null;
let asking = false;
let again = false;
let state = null;
let overview = null;
let chosen = fromHash();
const list = new WorkflowList(choose);
list.chosen = chosen;

function fromHash() {
  const [namespace, id] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return id ? { namespace, workflow_id: id } : null;
}

function choose({ namespace, workflow_id: id }) {
  chosen = { namespace, workflow_id: id };
  list.chosen = chosen;
  history.replaceState(null, "", `#${encodeURIComponent(namespace)}/${encodeURIComponent(id)}`);
  announce(`Workflow ${id} is shown.`);
  refresh();
}

/** Said once, when something has changed that is not where the reader is. */
function announce(words) {
  text(by("announce"), words);
}

function connection(wanted, words) {
  const element = by("connection");
  text(element, words);
  if (state !== wanted) element.dataset.state = state = wanted;
}

async function refresh() {
  clearTimeout(timer);
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  try {
    await poll();
    connection(paused ? "paused" : "live", paused ? "Paused" : "Live");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    failed(error);
  } finally {
    asking = false;
    if (again) {
      again = false;
      refresh();
    } else if (!paused && by("gate").hidden) timer = setTimeout(refresh, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }
}

async function poll() {
  const [answer] = await Promise.all([
    get("/v1/overview", { engine_search: by("engine-search").value.trim() }),
    list.refresh(),
  ]);
  overview = answer;
  opened();
  if (chosen === null && list.first !== null) {
    chosen = { namespace: list.first.namespace, workflow_id: list.first.workflow_id };
    list.chosen = chosen;
    await list.refresh();
  }
  redraw();
  await pollPicture();
}

async function pollPicture() {
  if (chosen === null) return clear("Choose a workflow on the left.");
  const wanted = chosen;
  try {
    const picture = await get(`/v1/overview/workflows/${encodeURIComponent(wanted.workflow_id)}`, { namespace: wanted.namespace });
    if (wanted === chosen) show(picture);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    if (wanted === chosen) clear(`Workflow ${wanted.workflow_id} has ended.`);
  }
}

function redraw() {
  if (overview === null) return;
  text(by("version"), overview.version);
  tiles(overview, list.words);
  charts(overview);
  engines(overview);
}

function opened() {
  by("gate").hidden = true;
  by("content").hidden = false;
  by("pause").hidden = false;
  by("forget").hidden = key.get() === null;
}

function failed(error) {
  if (error.status === 401 || error.status === 403) {
    const tried = key.get() !== null;
    key.forget();
    by("forget").hidden = true;
    by("content").hidden = true;
    by("pause").hidden = true;
    by("gate").hidden = false;
    connection("closed", "Needs a key");
    text(by("gate-error"), !tried ? "" : error.status === 401
      ? "This is not a key of the service, or it has ended. Check it for missing characters."
      : "This key does not open the dashboard: it takes one of an administrator.");
    if (tried) by("key").select();
    by("key").focus();
  } else if (error.status === 429) connection("lost", "Too many requests; trying again");
  else connection("lost", error.status === 0 ? "The service does not answer; trying again" : `The service failed (HTTP ${error.status}); trying again`);
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  text(by("theme-name"), theme);
  try {
    localStorage.setItem("kvflow-theme", theme);
  } catch { /* storage is off: the choice holds until the page is left */ }
}

function later(wait, act) {
  let waiting = null;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(act, wait);
  };
}

text(by("theme-name"), document.documentElement.dataset.theme ?? "auto");
by("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    clearTimeout(timer);
    connection("paused", "Paused");
  } else refresh();
});
by("forget").addEventListener("click", () => {
  key.forget();
  refresh();
});
by("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = by("key").value.trim();
  if (!given) return;
  if (!/^[\x21-\x7e]+$/.test(given)) return text(by("gate-error"), "A key has no spaces and no letters beyond ASCII.");
  key.set(given);
  by("key").value = "";
  refresh();
});
by("search-form").addEventListener("submit", (event) => event.preventDefault());
const searched = later(250, () => {
  list.restart();
  refresh();
});
by("search").addEventListener("input", searched);
by("running-only").addEventListener("change", searched);
by("engine-search").addEventListener("input", later(250, refresh));
by("page-next").addEventListener("click", () => { list.turn(true); refresh(); });
by("page-back").addEventListener("click", () => { list.turn(false); refresh(); });
by("agents-details").addEventListener("toggle", () => pollPicture().catch(() => {}));
by("history-details").addEventListener("toggle", redraw);
addEventListener("resize", later(150, () => { redraw(); pollPicture().catch(() => {}); }));
addEventListener("hashchange", () => { chosen = fromHash(); list.chosen = chosen; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused && by("gate").hidden) refresh(); });
refresh();
