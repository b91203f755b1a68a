// The page works without this script, which sorts tables, enlarges images and unfolds details for print.
"use strict";

// --- a click or Enter on a heading sorts its table ---

function readValue(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value.replace("inf", "Infinity") || NaN) : cell.textContent.trim();
}

function compareValues(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const hasValue = (row) => !Number.isNaN(readValue(row, column));
  const rows = [...body.rows];
  const sorted = rows.filter(hasValue).sort((a, b) => compareValues(readValue(a, column), readValue(b, column)));
  if (descending) sorted.reverse();
  body.append(...sorted, ...rows.filter((row) => !hasValue(row))); // rows without a value stay last
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isNumeric = [...table.tBodies[0].rows].some((row) => "value" in row.cells[column].dataset);
      const previous = heading.getAttribute("aria-sort");
      const descending = previous ? previous === "ascending" : isNumeric; // numbers: largest first
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortTable(table, column, descending);
    });
  });
}

// --- a click on an image enlarges it in a dialog; Escape closes it and restores the focus ---

const dialog = document.getElementById("large");
const enlarged = document.getElementById("enlarged");
const title = document.getElementById("title");

for (const picture of document.querySelectorAll("button.picture")) {
  picture.addEventListener("click", () => {
    enlarged.replaceChildren(...[...picture.childNodes].map((node) => node.cloneNode(true)));
    title.textContent = picture.getAttribute("aria-label").replace(/^Enlarge: /, "");
    dialog.showModal();
    dialog.scrollTo(0, 0);
  });
}
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // a click on the backdrop
});

// --- printing unfolds all details ---

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
