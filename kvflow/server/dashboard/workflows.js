// The list of workflows: searched and paged by the service.
import { get } from "./api.js";
import { by, h, keyed, text } from "./dom.js";
import { ago, clip, count, plural } from "./format.js";

const PER_PAGE = 25;

export class WorkflowList {
  /** @param onChoice called with {namespace, workflow_id} when one is chosen. */
  constructor(onChoice) {
    this.onChoice = onChoice;
    this.chosen = null;
    this.pages = [null];
    this.next = null;
    this.first = null;
  }

  get query() {
    return { search: by("search").value.trim(), running: by("running-only").checked };
  }

  /** What is searched for has changed: from the first page again. */
  restart() {
    this.pages = [null];
  }

  turn(forwards) {
    if (forwards && this.next !== null) this.pages.push(this.next);
    else if (!forwards && this.pages.length > 1) this.pages.pop();
  }

  async refresh() {
    const asked = JSON.stringify([this.query, this.pages]);
    const answer = await get("/v1/overview/workflows", { ...this.query, page: this.pages.at(-1), limit: PER_PAGE });
    if (asked !== JSON.stringify([this.query, this.pages])) return; // another page was asked for meanwhile
    this.next = answer.next_page;
    this.first = answer.workflows[0] ?? null;
    this.draw(answer.workflows);
  }

  get words() {
    return this.query.running ? "with running agents listed" : this.query.search ? "search is on" : "";
  }

  draw(workflows) {
    keyed(by("workflows"), workflows, (one) => `${one.namespace}/${one.workflow_id}`, (one) => {
      const button = h("button", { type: "button" }, h("span", { class: "name" }, h("span", { class: "dot", "aria-hidden": "true" }), h("span")), h("span", { class: "facts" }));
      button.addEventListener("click", () => this.onChoice(one));
      return h("li", {}, button);
    }, (item, one) => {
      const button = item.firstElementChild;
      const [name, facts] = button.children;
      name.firstElementChild.classList.toggle("on", one.running_count > 0);
      text(name.lastElementChild, one.name ?? one.workflow_id);
      if (name.title !== one.workflow_id) name.title = one.workflow_id;
      text(facts, summary(one));
      const current = this.chosen !== null && this.chosen.workflow_id === one.workflow_id && this.chosen.namespace === one.namespace;
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    const empty = by("workflows-empty");
    empty.hidden = workflows.length > 0;
    text(empty, this.query.search || this.query.running ? "None matches." : "No workflow is live. They appear when a client creates one.");
    by("page-back").disabled = this.pages.length === 1;
    by("page-next").disabled = this.next === null;
    text(by("page-number"), this.pages.length > 1 || this.next !== null ? `page ${count(this.pages.length)}` : "");
  }
}

function summary(one) {
  const doing = one.running_count
    ? `runs ${clip(one.running.join(", "), 34)}`
    : one.next.length ? `next ${clip(one.next.join(", "), 34)}` : "finished";
  return `${doing} · ${plural(one.agents, "agent")} · ${one.idle_s < 5 ? "active" : `idle ${ago(one.idle_s)}`}`;
}
