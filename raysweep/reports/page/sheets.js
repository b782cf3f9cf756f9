// Tables: only the rows in view are elements; header and first column stay in place.
const TALLEST = 480;
const isNumber = (shown) => shown !== "text" && shown !== "badges";
const written = (value, shown) => {
  if (shown === "percent") return percent(value);
  if (shown === "seconds") return secondsOf(value);
  if (typeof value === "number") return brief(value);
  return value == null || value === "" ? "–" : String(value);
};
const compared = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
};
// What is undefined goes last, whichever way a column is sorted.
const sorter = (a, b, aRow, bRow, column, direction) => {
  const [noA, noB] = [a == null || a === "", b == null || b === ""];
  if (noA || noB) return (noA - noB) * (direction === "asc" ? 1 : -1);
  return compared(a, b);
};
const columnOf = ({ field, title, shown = "text", format, visible = true, first = false }) => ({
  field, title, sorter, visible, frozen: first, headerSortTristate: true, headerTooltip: title,
  hozAlign: isNumber(shown) ? "right" : "left", headerHozAlign: isNumber(shown) ? "right" : "left",
  maxInitialWidth: !first ? 320 : isNarrow() ? 150 : 260, minWidth: 60,
  cssClass: first ? "first" : "",
  titleFormatter: () => make("button", { type: "button" }, title),
  formatter: (one) => {
    if (format) return format(one.getData());
    if (shown === "badges") {
      return make("span", {}, badgesOf(String(one.getValue() ?? "").split(", ").filter(Boolean)));
    }
    const text = written(one.getValue(), shown);
    return make("span", { title: text.length > 40 ? text : null }, first ? breakable(text) : text);
  },
});
const isVisible = (column) => column.visible !== false;
const setVisible = (table, column, visible) => {
  column.visible = visible;
  if (visible) table.showColumn(column.field); else table.hideColumn(column.field);
};
const drawChooser = (place, columns, table) => {
  const summary = make("summary");
  const say = () => {
    summary.textContent = `columns (${columns.filter(isVisible).length} of ${columns.length})`;
  };
  say();
  place.replaceChildren(summary, make("fieldset", {}, make("legend", {}, "columns"),
    columns.slice(1).map((column) => {
      const box = make("input", { type: "checkbox", checked: isVisible(column),
        onchange: (event) => { setVisible(table, column, event.target.checked); say(); } });
      return make("label", {}, box, ` ${column.title}`);
    })));
};
// Columns for which a wide window has no room are hidden, the last first; a narrow one scrolls.
const fit = (columns, table) => {
  const width = table.element.querySelector(".tabulator-tableholder").clientWidth;
  let taken = table.getColumns().filter((column) => column.isVisible())
    .reduce((sum, column) => sum + column.getWidth(), 0);
  for (const column of columns.slice(1).toReversed()) {
    if (taken <= width) return;
    if (!isVisible(column)) continue;
    taken -= table.getColumn(column.field).getWidth();
    setVisible(table, column, false);
  }
};
// Draws a table into a place; returns how its rows are changed.
const tableOf = (place, { title, columns, rows, controls = [], chooser = false }) => {
  const drawn = make("div", { "aria-label": title, class: "table" });
  let table;
  const choice = make("details", { class: "filter columns" });
  const bar = chooser ? [...controls, choice] : controls;
  const foot = make("p", { class: "muted count" });
  const setFoot = (count) => {
    foot.textContent = count > 12 ? `${count.toLocaleString("en")} rows` : "";
  };
  place.replaceChildren(...(bar.length ? [make("div", { class: "bar" }, bar)] : []), drawn, foot);
  table = new Tabulator(drawn, {
    data: rows, columns: columns.map(columnOf), maxHeight: TALLEST, layout: "fitDataFill",
    nestedFieldSeparator: false, placeholder: "Nothing in view",
    columnDefaults: { resizable: false },
  });
  setFoot(rows.length);
  // The part that scrolls takes the focus, so that it must be the body that readers are told of.
  const built = new Promise((done) => { table.on("tableBuilt", done); }).then(() => {
    const holder = drawn.querySelector(".tabulator-tableholder");
    drawn.removeAttribute("aria-owns");
    holder.setAttribute("role", "rowgroup");
    holder.querySelector(".tabulator-table")?.setAttribute("role", "presentation");
    if (!chooser) return;
    if (!isNarrow()) fit(columns, table);
    drawChooser(choice, columns, table);
  });
  return {
    columns, rows: () => table.getRows("active").map((row) => row.getData()),
    setRows: (some) => built.then(() => { setFoot(some.length); return table.replaceData(some); }),
  };
};
const ready = new Map();
const openSheet = (key) => {
  if (ready.has(key)) return ready.get(key);
  const sheet = data(key);
  const columns = sheet.columns.map((one, at) => ({
    field: `c${at}`, title: one.title, shown: one.shown, first: at === 0,
  }));
  const values = sheet.columns.map(valuesOf);
  const rows = values[0].map((_, line) => {
    const row = { cell: sheet.cells ? sheet.cells[line] : -1 };
    values.forEach((own, at) => { row[`c${at}`] = own[line]; });
    return row;
  });
  const inView = () => rows.filter((row) => row.cell < 0 || view.ids.has(row.cell));
  const opened = { title: sheet.title, columns, inView };
  ready.set(key, opened);
  return opened;
};
const drawSheets = () => {
  for (const place of document.querySelectorAll(".sheet")) {
    whenSeen(place, () => {
      load("tabulator");
      const sheet = openSheet(place.dataset.block);
      const { title, columns } = sheet;
      const table = tableOf(place, { title, columns, rows: sheet.inView() });
      whenViewed(() => table.setRows(sheet.inView()));
    });
  }
};
