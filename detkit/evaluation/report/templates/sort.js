"use strict";
// A click on a heading sorts a table with data-sortable; missing numbers stay at the end.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const { sort } = row.cells[column].dataset;
    return sort === undefined ? row.cells[column].textContent.trim() : sort === "" ? null : Number(sort);
  };
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = column === 0 ? "ascending" : "descending";
      const other = column === 0 ? "descending" : "ascending";
      const direction = heading.ariaSort === first ? other : first;
      headings.forEach((other) => { other.ariaSort = other === heading ? direction : null; });
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
