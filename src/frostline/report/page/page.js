"use strict";
// Sorts the tables by their headings, and hides what the filter does not ask for. Without it the page is complete.

function value(row, column) {
  const cell = row.cells[column];
  const given = cell.dataset.value;
  if (given === undefined) return cell.classList.contains("number") ? null : cell.textContent;
  const number = Number(given);
  return Number.isNaN(number) ? given : number;
}

function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last, either way
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}

for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const direction = descending ? -1 : 1;
    const column = heading.cellIndex;
    const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), direction));
    body.append(...rows);
  });
}

const filter = document.getElementById("filter");
if (filter) {
  const shown = document.getElementById("shown");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    const all = new Set();
    const kept = new Set();
    for (const part of document.querySelectorAll("[data-strategy]")) {
      const name = part.dataset.strategy;
      const keep = name.toLowerCase().includes(wanted);
      all.add(name);
      if (keep) kept.add(name);
      if (part instanceof HTMLElement) part.hidden = !keep;
      else part.classList.toggle("off", !keep);
    }
    shown.textContent = wanted ? `${kept.size} of ${all.size} strategies` : "";
  });
}
