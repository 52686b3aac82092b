// Elements of the page, and texts for numbers.

export const $ = (id) => document.getElementById(id);
export const number = (value) => value.toLocaleString("en");
export const percent = (p) => `${(100 * p).toFixed(p < 0.0005 && p > 0 ? 3 : 1)}`;

// An element with attributes and children; texts are never read as HTML.
export function make(tag, attributes = {}, ...children) {
  const svg = ["path", "text", "line", "circle", "polyline"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The parts of a piece, its spaces marked.
export const withSpaces = (piece) =>
  piece.split(/(\u2581)/).filter(Boolean)
    .map((part) => (part === "\u2581" ? make("span", { class: "space" }, part) : part));
