// Building and updating elements. Text is always set as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const s = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
export const by = (id) => document.getElementById(id);

/** Set the text if it is another: what does not change is not announced, and costs no layout. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/**
 * Make the container's children be those of `items`, in order. Elements are kept by key, so that
 * focus, selection and scroll position survive.
 */
export function keyed(container, items, keyOf, make, update) {
  const old = new Map([...container.children].map((child) => [child.dataset.key, child]));
  let place = container.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = old.get(key);
    if (element) old.delete(key);
    else {
      element = make(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else container.insertBefore(element, place);
  }
  for (const element of old.values()) element.remove();
}

/** Fill a table's body; each row is a list of cells: text, or an element to put there. */
export function rows(body, items, keyOf, cells, numbers = new Set()) {
  keyed(body, items, keyOf, () => h("tr"), (row, item) => {
    const wanted = cells(item);
    while (row.children.length < wanted.length) {
      const first = row.children.length === 0;
      row.append(h(first ? "th" : "td", { scope: first ? "row" : null, class: numbers.has(row.children.length) ? "number" : null }));
    }
    wanted.forEach((cell, index) => {
      if (cell instanceof Node) row.children[index].replaceChildren(cell);
      else text(row.children[index], cell);
    });
  });
}
