
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => { const c = row.cells[i]; return c.dataset.sort === undefined ? c.textContent : +c.dataset.sort; };
  const compare = (x, y) => {
    if (typeof x === "number" && typeof y === "number") return x - y;
    if (typeof x === "number") return -1;
    if (typeof y === "number") return 1;
    return x.localeCompare(y, undefined, { numeric: true });
  };
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    const sort = () => {
      const number = head.classList.contains("num");
      const old = head.getAttribute("aria-sort");
      const up = old ? old === "descending" : !number;
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a, i), key(b, i)));
      body.append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
  });
}
