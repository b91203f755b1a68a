// The page reads without this script; it sorts tables, enlarges pictures and unfolds for print.
"use strict";

// --- tables sort by a click on a heading, or Enter on it ---

function valueOf(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value.replace("inf", "Infinity") || NaN) : cell.textContent.trim();
}

function compared(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const known = (row) => !Number.isNaN(valueOf(row, column));
  const rows = [...body.rows];
  const sorted = rows.filter(known).sort((a, b) => compared(valueOf(a, column), valueOf(b, column)));
  if (descending) sorted.reverse();
  body.append(...sorted, ...rows.filter((row) => !known(row))); // what is not known stays last
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const number = [...table.tBodies[0].rows].some((row) => "value" in row.cells[column].dataset);
      const before = heading.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : Boolean(number); // numbers: the largest first
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

// --- pictures enlarge in a dialog; Escape closes it, and the focus goes back ---

const dialog = document.getElementById("large");
const shown = document.getElementById("shown");
const title = document.getElementById("title");

for (const picture of document.querySelectorAll("button.picture")) {
  picture.addEventListener("click", () => {
    shown.replaceChildren(...[...picture.childNodes].map((node) => node.cloneNode(true)));
    title.textContent = picture.getAttribute("aria-label").replace(/^Enlarge: /, "");
    dialog.showModal();
    dialog.scrollTo(0, 0);
  });
}
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});

// --- print shows what is folded ---

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
