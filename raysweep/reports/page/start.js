// Sort a table by the column whose header button was pressed; undefined cells go last.
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (!button) return;
  const header = button.parentElement, body = header.closest("table").tBodies[0];
  const column = [...header.parentElement.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const words = header.classList.contains("text");
  const keyed = [...body.rows].map((row) => {
    const text = row.children[column].textContent.trim();
    return { row, text, number: words ? NaN : parseFloat(text.replaceAll(",", "")) };
  });
  keyed.sort((a, b) => {
    if ((a.text === "–") !== (b.text === "–")) return a.text === "–" ? 1 : -1;
    const bare = Number.isNaN(a.number) || Number.isNaN(b.number);
    const order = bare ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.number - b.number;
    return up ? order : -order;
  });
  body.append(...keyed.map((entry) => entry.row));
});

// A long report holds hundreds of figures: each is drawn when it comes near the view.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  if (!plots.length) return;
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const colors = (plain) => {
    const style = getComputedStyle(document.documentElement);
    const ink = plain ? "#1a1a1a" : style.getPropertyValue("--ink").trim();
    const line = plain ? "#d5d5d5" : style.getPropertyValue("--line").trim();
    const paper = plain ? "#fff" : style.getPropertyValue("--paper").trim();
    const axis = { gridcolor: line, linecolor: line, tickcolor: line };
    return { ink, paper, axis };
  };
  const themed = (layout, plain) => {
    const { ink, paper, axis } = colors(plain);
    return {
      ...layout, paper_bgcolor: paper, plot_bgcolor: paper, font: { ...layout.font, color: ink },
      xaxis: { ...layout.xaxis, ...axis }, yaxis: { ...layout.yaxis, ...axis },
    };
  };
  const config = {
    responsive: true, displaylogo: false, showLink: false, plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const draw = (plot, plain = false) => {
    const drawing = plot.querySelector(".drawing");
    plot.figure ??= JSON.parse(plot.querySelector("script").textContent);
    Plotly.react(drawing, plot.figure.data, themed(plot.figure.layout, plain), config);
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  plots.forEach((plot) => seen.observe(plot));
  dark.addEventListener("change", () => plots.filter((p) => p.figure).forEach((p) => draw(p)));
  addEventListener("beforeprint", () => plots.forEach((p) => draw(p, true)));
  addEventListener("afterprint", () => plots.forEach((p) => draw(p)));
})();
