// On paper: whole maps of every setting in view, and tables without a scroll bar.
const PRINTED = 300;
const PRINTED_COLUMNS = 12;
const HALF = 340;  // pixels: two figures side by side on A4 and on letter
const paperTable = (columns, rows) => {
  const heads = columns.map((column) => make("th", { scope: "col" }, column.title));
  const lines = rows.slice(0, PRINTED).map((row) => make("tr", {}, columns.map((column, at) => make(
    at ? "td" : "th", at ? {} : { scope: "row" },
    column.format ? column.format(row) : written(row[column.field], column.shown)))));
  const left = rows.length - PRINTED;
  return make("div", { class: "paper" }, make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, lines)),
  left > 0 ? make("p", {}, `${left.toLocaleString("en")} more rows are not printed.`) : null);
};
const paperMaps = () => arenasOf(view.cells).flatMap((arena) => {
  const laid = layOut(view.cells.filter((cell) => cell.arena === arena));
  const maps = mapped().flatMap((metric) => {
    const columns = laid.columns.filter((column) => isShown(column, laid.lines, metric));
    const starts = columns.map((_, at) => at).filter((at) => at % PRINTED_COLUMNS === 0);
    return starts.map((at) => mapOf(
      metric, { ...laid, columns: columns.slice(at, at + PRINTED_COLUMNS) }, { fewer: false }));
  });
  return arenasOf(cells).length > 1 ? [make("h3", {}, arena), ...maps] : maps;
});
const toPaper = () => {
  const after = (place, ...children) => place.after(make("div", { class: "paper" }, children));
  const maps = document.getElementById("maps-drawn");
  if (maps) {
    after(maps, paperMaps());
    const columns = (results?.columns ?? resultColumns()).filter(isVisible).slice(0, 8);
    after(document.getElementById("results-drawn"), paperTable(columns, resultRows()));
  }
  for (const place of document.querySelectorAll(".sheet")) {
    const sheet = openSheet(place.dataset.block);
    after(place, paperTable(sheet.columns, sheet.inView()));
  }
  for (const plot of document.querySelectorAll(".plot")) {
    plot.open();
    draw(plot, { dark: false, width: HALF });
  }
};
const fromPaper = () => {
  for (const element of document.querySelectorAll(".paper")) element.remove();
  for (const plot of document.querySelectorAll(".plot")) if (plot.drawing) draw(plot);
};
