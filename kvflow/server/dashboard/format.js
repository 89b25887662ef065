// Numbers as people read them.
export const NONE = "–";

export const count = (n) => (n === null || n === undefined ? NONE : n.toLocaleString("en-US"));

export function short(n) {
  if (n < 10_000) return count(Math.round(n));
  if (n < 1_000_000) return `${Number((n / 1000).toFixed(n < 100_000 ? 1 : 0))}k`;
  return `${Number((n / 1_000_000).toFixed(1))}M`;
}

export const percent = (x) => (x === null || x === undefined ? NONE : `${(100 * x).toFixed(x > 0 && x < 0.1 ? 1 : 0)}%`);

export function seconds(s) {
  if (s === null || s === undefined) return NONE;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(2)} s`;
  return `${s.toFixed(1)} s`;
}

export function ago(s) {
  if (s < 1.5) return "just now";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129_600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} d`;
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export const clip = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
