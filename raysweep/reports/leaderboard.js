// Filters, search and order of the table; the state stands behind the # of the address.
(() => {
  const table = document.getElementById("table"), body = table.tBodies[0];
  const count = document.getElementById("count"), more = document.getElementById("more");
  const selects = [...document.querySelectorAll("[data-filter]")];
  const search = document.querySelector("[data-search]");
  const AT_ONCE = 200; // rows; the rest of what is found is counted, and shown when asked for
  let shown = AT_ONCE;
  const chosen = () => selects.filter((s) => s.selectedIndex > 0); // the first option is all
  const matches = (row) =>
    chosen().every((s) => row.dataset[s.dataset.filter] === s.value) &&
    row.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
  const update = () => {
    let found = 0;
    for (const row of body.rows) row.hidden = !matches(row) || ++found > shown;
    const rest = Math.max(0, found - shown);
    count.textContent = `${found} of ${body.rows.length} cells` + (rest ? `, ${rest} not shown` : "");
    more.hidden = !rest;
  };
  const remember = () => {
    const state = new URLSearchParams(chosen().map((s) => [s.dataset.filter, s.value]));
    if (search.value) state.set("search", search.value);
    history.replaceState(null, "", `#${state}`);
  };
  const recall = () => {
    if (!location.hash.includes("=")) return;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const s of selects) {
      const values = [...s.options].slice(1).map((o) => o.value);
      s.selectedIndex = values.indexOf(state.get(s.dataset.filter)) + 1;
    }
    search.value = state.get("search") ?? "";
    update();
  };
  const changed = () => { shown = AT_ONCE; update(); remember(); };
  selects.forEach((s) => s.addEventListener("change", changed));
  search.addEventListener("input", changed);
  document.querySelector("[data-clear]").addEventListener("click", () => {
    for (const s of selects) s.selectedIndex = 0;
    search.value = "";
    changed();
  });
  more.addEventListener("click", () => { shown += AT_ONCE; update(); });
  addEventListener("hashchange", recall);

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const header = button.parentElement;
    const column = [...header.parentElement.children].indexOf(header);
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => {
      const { value } = row.cells[column].dataset;
      return { row, key: value ?? row.cells[column].textContent.trim(), numeric: value !== undefined };
    });
    keyed.sort((a, b) => {
      if (a.numeric && (a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1;
      const order = a.numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...keyed.map((entry) => entry.row));
    update();
  });
  recall();
  update();
})();
