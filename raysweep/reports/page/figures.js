// Figures: a few at a time, drawn when they come into view; a filter hides lines and whole figures.
const AT_ONCE = 4;
const MANY = 10;  // seeds, of which the interval alone is drawn
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const PATTERNS = ["", "/", "x", ".", "\\", "+"];
const barsOf = ({ y, low, high }) => ({
  type: "data", symmetric: false, array: high.map((end, at) => (end == null ? 0 : end - y[at])),
  arrayminus: low.map((end, at) => (end == null ? 0 : y[at] - end)),
});
const lineOf = (line, look, dark) => {
  const color = line.shape === "rule" ? "#8a8a8a" : colorOf(look, dark);
  const base = {
    name: plain(line.shown), x: Array.isArray(line.x) && typeof line.x[0] === "string"
      ? line.x.map(plain) : line.x,
    y: line.y, legendgroup: line.name, showlegend: line.first, hovertext: Array.isArray(line.label)
      ? line.label.map(plain) : plain([line.shown, line.label].filter(Boolean).join(", ")),
  };
  const marker = { color, symbol: look.symbol, size: 8 };
  const stroke = { color, dash: look.dash, width: 1.8 };
  if (line.shape === "bars") {
    return { ...base, type: "bar", marker: { color, pattern: { shape: PATTERNS[(look.turn ?? 0) % 6] } } };
  }
  if (line.shape === "area") {
    return { ...base, mode: "lines", fill: "toself", fillcolor: color, opacity: 0.12,
      line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  }
  if (line.shape === "rule") {
    return { ...base, mode: "lines", line: { color, width: 1 }, hoverinfo: "skip" };
  }
  const mode = { line: "lines", points: "markers", both: "lines+markers" }[line.shape];
  return { ...base, mode, line: stroke, marker: line.faint ? { ...marker, size: 5, opacity: 0.5 } : marker,
    ...(line.low ? { error_y: { ...barsOf(line), color, thickness: 1.2 } } : {}) };
};
const tracesOf = (drawing, dark) => {
  const turns = new Map();
  const seen = new Set();
  return drawing.lines.filter((line) => line.cell < 0 || view.ids.has(line.cell)).map((line) => {
    if (!turns.has(line.name)) turns.set(line.name, turns.size);
    const turn = turns.get(line.name);
    const look = looks.get(line.name) ?? lookOfTurn(turn);
    const first = !seen.has(line.name) && line.shape !== "area" && !line.faint;
    if (first) seen.add(line.name);
    const shown = looks.has(line.name) && line.cell >= 0 ? cells[line.cell].defenseName : line.name;
    return lineOf({ ...line, shown, first }, look, dark);
  });
};
const axisOf = (axis, colors) => ({
  title: { text: plain(axis.title) }, type: axis.log ? "log" : undefined, range: axis.range ?? undefined,
  automargin: true, exponentformat: "power", minexponent: 5, zeroline: false,
  gridcolor: colors.line, linecolor: colors.line,
});
const colorsOf = (dark) => (dark ? { ink: "#e8e8e8", paper: "#16181c", line: "#3c4048" }
  : { ink: "#1a1a1a", paper: "#ffffff", line: "#d5d5d5" });
// `width`, in pixels, is that of the page's column if it is not given.
const draw = (plot, { dark = isDark(), width } = {}) => {
  const colors = colorsOf(dark);
  const traces = tracesOf(plot.drawing, dark);
  const names = new Set(traces.map((trace) => trace.name)).size;
  const height = 318 + (names < 4 ? 22 * names : 22 * Math.ceil(names / 2)) + 50;
  const place = plot.querySelector(".drawing");
  place.style.height = `${height}px`;  // Plotly takes it again when the window changes
  Plotly.react(place, traces, {
    height, width, margin: { l: 8, r: 8, t: 30, b: 8 }, barmode: "group",
    font: { family: "system-ui, sans-serif", size: 13, color: colors.ink },
    paper_bgcolor: colors.paper, plot_bgcolor: colors.paper,
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    xaxis: axisOf(plot.drawing.x, colors), yaxis: axisOf(plot.drawing.y, colors),
  }, {
    responsive: true, displaylogo: false, showLink: false, plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
};
const plotOf = (entry) => {
  const plot = make("figure", { class: "plot" }, make("figcaption", {}, entry.title),
    make("div", { class: "drawing", role: "group",
      "aria-label": `${entry.title}. Its numbers also stand in the tables.` }),
    make("p", { class: "muted" }));
  plot.open = () => {
    load("plotly");
    plot.drawing ??= entry.open();
    if (plot.drawing.fewer) {
      plot.lastChild.textContent = `${plot.drawing.fewer} more lines are left out: the first seeds `
        + "of each attack and defense are drawn.";
    }
  };
  whenSeen(plot, () => {
    plot.open();
    if (plot.isConnected) draw(plot);
  });
  return plot;
};
const isInView = (entry) => !entry.cells.length || entry.cells.some((id) => view.ids.has(id));
// `entries` gives the figures that there are for the view as it is.
const drawAlbum = (place, entries) => {
  let from = 0;
  let key = null;
  const plots = make("div", { class: "plots" });
  const said = make("span", { role: "status" });
  const turn = (by) => () => { from += by; show(); };
  const back = make("button", { type: "button", onclick: turn(-AT_ONCE), "aria-label": "Figures before" }, "‹");
  const on = make("button", { type: "button", onclick: turn(AT_ONCE), "aria-label": "Figures after" }, "›");
  place.replaceChildren(make("p", { class: "pages" }, back, said, on), plots);
  const show = () => {
    const every = entries().filter(isInView);
    from = Math.max(0, Math.min(from, every.length - 1));
    from -= from % AT_ONCE;
    const some = every.slice(from, from + AT_ONCE);
    back.disabled = from === 0;
    on.disabled = from + AT_ONCE >= every.length;
    back.hidden = on.hidden = every.length <= AT_ONCE;
    said.textContent = !every.length ? "No figure of what is in view."
      : every.length <= AT_ONCE ? "" : ` Figures ${from + 1}–${from + some.length} of ${every.length} `;
    const titles = some.map((entry) => entry.title).join("\n");
    if (titles === key) {
      for (const plot of plots.children) if (plot.drawing) draw(plot);
      return;
    }
    key = titles;
    plots.replaceChildren(...some.map(plotOf));
  };
  whenViewed(show);
  show();
};
// Metrics against the poison rate, where an attack has several: a line for each defense.
const hasRates = (some) => new Set(some.map((cell) => cell.rate).filter((rate) => rate > 0)).size > 1;
const rateEntries = () => {
  const entries = [];
  for (const own of grouped(view.cells, (cell) => `${cell.arena}\n${cell.attack}`).values()) {
    if (!hasRates(own)) continue;
    for (const metric of ["asr", "lost", "ca", "tpr", "fpr", "input_tpr", "input_fpr"]) {
      const known = own.filter((cell) => cell.metrics[metric]?.mean != null);
      if (!hasRates(known)) continue;
      const [{ attack, arena }] = own;
      const among = arenasOf(cells).length > 1 ? ` · ${arena}` : "";
      entries.push({
        title: `${attack}: ${view.titles[metric]} against poison rate${among}`, cells: [],
        open: () => rateDrawing(known, metric),
      });
    }
  }
  return entries;
};
const rateDrawing = (some, metric) => {
  const lines = [];
  for (const [name, own] of grouped(some, (cell) => cell.defense)) {
    const line = own.toSorted((a, b) => a.rate - b.rate);
    const at = (one) => one.metrics[metric];
    const ends = (side) => line.map((one) => (at(one).low == null ? null : 100 * at(one)[side]));
    lines.push({
      name, cell: line[0].id, shape: "both", label: "", x: line.map((one) => 100 * one.rate),
      y: line.map((one) => 100 * at(one).mean),
      ...(line.some((one) => at(one).low != null) ? { low: ends("low"), high: ends("high") } : {}),
    });
    const points = line.filter((one) => at(one).values.length <= MANY)
      .flatMap((one) => at(one).values.map((value) => [one.rate, value]));
    if (points.length) lines.push({ name, cell: line[0].id, shape: "points", faint: true, label: "one seed",
      x: points.map(([rate]) => 100 * rate), y: points.map(([, value]) => 100 * value) });
  }
  const rates = some.map((cell) => cell.rate);
  const [least, most] = [Math.min(...rates), Math.max(...rates)];
  return {
    lines, fewer: 0,
    x: { title: "poison rate, %", log: least > 0 && most / least >= 20 },
    y: { title: metric === "lost" ? "lost CA, points" : `${view.titles[metric]}, %`,
      range: metric === "lost" ? null : [-4, 104] },
  };
};
const drawAlbums = () => {
  for (const place of document.querySelectorAll(".album")) {
    const key = place.id.replace("album-", "");
    if (key === "rates") {
      drawAlbum(place, rateEntries);
      continue;
    }
    const given = JSON.parse(document.getElementById(`drawings-${key}`).textContent);
    const entries = given.map(({ title, cells: own, data: text }) => {
      let drawing;
      return { title, cells: own, open: () => (drawing ??= unpacked(text)) };
    });
    drawAlbum(place, () => entries);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of document.querySelectorAll(".plot")) if (plot.drawing) draw(plot);
  });
};
