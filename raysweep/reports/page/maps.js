// Maps of attacks × defenses: tables whose cells are colored, so that they are read in every way.
const WORSE = ["#0b4f8a", "#9cc4e4", "#f7f7f7", "#f2a58a", "#8f1d14"];  // from better to worse
const MAPS = {
  asr: { title: "ASR, %", ramp: ["#fff5e6", "#fdbb84", "#d7301f", "#6b0000"] },
  lost: { title: "lost clean accuracy, points", ramp: ["#f3f0fa", "#bcbddc", "#756bb1", "#31135e"] },
  asr_change: { title: "ASR change, points", ramp: WORSE, signed: true },
  ca_change: { title: "CA change, points", ramp: WORSE.toReversed(), signed: true },
};
const mapped = () => Object.keys(MAPS).filter((metric) => metric in view.titles);
const MAP_COLUMNS = 40;
const MAP_LINES = 60;
const lightOf = (color) => {
  const [r, g, b] = color.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const shadeOf = (ramp, share) => {
  const place = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const at = Math.min(Math.floor(place), ramp.length - 2);
  const parts = (color) => [1, 3, 5].map((n) => parseInt(color.slice(n, n + 2), 16));
  const [from, to] = [parts(ramp[at]), parts(ramp[at + 1])];
  const color = from.map((part, n) => Math.round(part + (place - at) * (to[n] - part)));
  const dark = 1.05 / (lightOf(color) + 0.05) > (lightOf(color) + 0.05) / 0.05;
  return { background: `rgb(${color.join(",")})`, ink: dark ? "#fff" : "#000" };
};
const arenasOf = (some) => [...new Set(some.map((cell) => cell.arena))];
// A column of a map: one attack at one rate. A line: one defense with its badges.
const layOut = (some) => {
  const columns = new Map();
  const lines = new Map();
  for (const cell of some) {
    const column = `${cell.attack}\n${cell.at}`;
    const line = `${cell.defense}\n${cell.badges}`;
    if (!columns.has(column)) columns.set(column, { cell, key: column });
    if (!lines.has(line)) lines.set(line, { cell, at: new Map() });
    lines.get(line).at.set(column, cell);
  }
  const order = [...new Set(some.map((cell) => cell.attack))];
  const sorted = [...columns.values()].sort(
    (a, b) => order.indexOf(a.cell.attack) - order.indexOf(b.cell.attack) || a.cell.rate - b.cell.rate);
  return { columns: sorted, lines: [...lines.values()] };
};
const isShown = (column, lines, metric) => lines.some(
  (line) => line.at.get(column.key)?.metrics[metric]?.mean != null);
const tip = () => document.getElementById("tip");
const showTip = (target, text) => {
  const box = target.getBoundingClientRect();
  const own = tip();
  own.textContent = text;
  own.hidden = false;
  own.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.offsetWidth - 8))}px`;
  const under = box.bottom + 6;
  const fits = under + own.offsetHeight < innerHeight;
  own.style.top = `${fits ? under : Math.max(4, box.top - own.offsetHeight - 6)}px`;
};
const hideTip = () => { tip().hidden = true; };

const headOf = (metric, columns) => {
  const attacks = [];
  for (const { cell } of columns) {
    if (attacks.at(-1)?.attack === cell.attack) attacks.at(-1).span += 1;
    else attacks.push({ attack: cell.attack, name: cell.attackName.replace(` ${cell.at}`, ""), span: 1 });
  }
  return make("thead", {},
    make("tr", {}, make("th", { scope: "col", rowspan: 2, class: "corner" }, "defense"),
      attacks.map(({ attack, name, span }) => make("th", { scope: "colgroup", colspan: span },
        make("button", { type: "button", title: `only ${attack}`,
          onclick: () => choose({ attack: [attack] }) }, name)))),
    make("tr", {}, columns.map(({ cell }) => make("th", { scope: "col" },
      make("button", { type: "button", title: `only ${cell.attack} ${cell.at}`,
        onclick: () => choose({ attack: [cell.attack], rate: [String(cell.rate)] }) },
      cell.at.replace("@ ", "") || rateOf(cell.rate), cell.failed ? " †" : "")))));
};
const fieldOf = (cell, metric, most) => {
  const { ramp, signed } = MAPS[metric];
  if (!cell) return make("td", { class: "none" }, "");
  const mean = cell.metrics[metric]?.mean;
  const text = mean == null ? (cell.finished ? "–" : "×") : signed ? points(mean) : percent(mean);
  const shade = mean == null ? null : shadeOf(ramp, signed ? (mean / most + 1) / 2 : mean / most);
  return make("td", {
    tabindex: -1, "data-cell": cell.id, "aria-label": sentenceOf(cell, metric),
    class: shade ? null : "none",
    style: shade ? `background:${shade.background};color:${shade.ink}` : null,
  }, text);
};
const countsOf = (lines) => {
  const counts = lines.flatMap((line) => [...line.at.values()].map((cell) => cell.finished));
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return least === most ? `n = ${most}` : `n = ${least}–${most}`;
};
const mapOf = (metric, laid, { fewer = true } = {}) => {
  const every = laid.columns.filter((column) => isShown(column, laid.lines, metric));
  const columns = fewer ? every.slice(0, MAP_COLUMNS) : every;
  const lines = fewer ? laid.lines.slice(0, MAP_LINES) : laid.lines;
  if (!columns.length) return null;
  const means = laid.lines.flatMap((line) => columns.map(
    (column) => line.at.get(column.key)?.metrics[metric]?.mean ?? 0));
  const { title, ramp, signed } = MAPS[metric];
  const most = metric === "asr" ? 1 : Math.max(0.05, ...(signed ? means.map(Math.abs) : means));
  const body = lines.map((line) => make("tr", {},
    make("th", { scope: "row", title: line.cell.defense },
      breakable(line.cell.defenseName), " ", badgesOf(line.cell.badges)),
    columns.map((column) => fieldOf(line.at.get(column.key), metric, most))));
  const left = [];
  if (columns.length < every.length) left.push(`${every.length - columns.length} attacks and rates`);
  if (lines.length < laid.lines.length) left.push(`${laid.lines.length - lines.length} defenses`);
  const legend = make("span", { class: "legend" }, signed ? `−${Math.round(100 * most)} ` : "0 ",
    make("i", { style: `background:linear-gradient(to right,${ramp.join(",")})` }),
    ` ${Math.round(100 * most)}`);
  const table = make("table", { class: "map", role: "grid", "data-metric": metric },
    make("caption", {}, title, " ", legend, " ",
      make("span", { class: "n" }, countsOf(lines))), headOf(metric, columns), make("tbody", {}, body));
  table.querySelector("td[data-cell]")?.setAttribute("tabindex", 0);
  return make("div", { class: "mapped" },
    make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": title }, table),
    left.length ? make("p", { class: "muted" },
      `${left.join(" and ")} more than fit here; the filters, or the results below, show them.`) : null);
};
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const walk = (event) => {
  const field = event.target.closest("td[data-cell]");
  if (!field) return;
  if (event.key === "Enter") {
    open(field);
    return;
  }
  if (event.key === "Escape") hideTip();
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  const line = field.parentElement;
  const lines = [...line.parentElement.rows];
  const next = lines[lines.indexOf(line) + down]?.cells[field.cellIndex + right];
  if (!next?.hasAttribute("data-cell")) return;
  field.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
};
const open = (field) => {
  const cell = cells[field.dataset.cell];
  choose({ attack: [cell.attack], rate: [String(cell.rate)], defense: [cell.defense] });
  document.getElementById("trials").scrollIntoView();
};
const drawMaps = () => {
  const place = document.getElementById("maps-drawn");
  let arena = "";
  const draw = () => {
    hideTip();
    const arenas = arenasOf(view.cells);
    if (!arenas.includes(arena)) [arena] = arenas;
    const laid = layOut(view.cells.filter((cell) => cell.arena === arena));
    const maps = mapped().map((metric) => mapOf(metric, laid)).filter(Boolean);
    const select = arenas.length < 2 ? null : make("label", { class: "limit" }, "Setting ",
      make("select", { onchange: (event) => { arena = event.target.value; draw(); } },
        arenas.map((name) => make("option", { value: name, selected: name === arena }, name))));
    const failed = view.cells.some((cell) => cell.arena === arena && cell.failed);
    place.replaceChildren(...[select,
      maps.length ? make("div", { class: "maps" }, maps) : make("p", {}, "Nothing in view was measured."),
      make("p", { class: "muted" }, `n: finished ${view.counted} a field. Point, or walk with the arrow keys, for the `
        + `interval; Enter or a click opens the ${view.counted}, a heading keeps one attack. `
        + `–: undefined; ×: none finished${failed ? "; †: the attack failed there" : ""}.`)].filter(Boolean));
  };
  place.addEventListener("mouseover", (event) => {
    const field = event.target.closest("td[data-cell]");
    if (field) showTip(field, field.ariaLabel); else hideTip();
  });
  place.addEventListener("mouseleave", hideTip);
  place.addEventListener("focusin", (event) => {
    const field = event.target.closest("td[data-cell]");
    if (field) showTip(field, field.ariaLabel);
  });
  place.addEventListener("focusout", hideTip);
  place.addEventListener("keydown", walk);
  place.addEventListener("click", (event) => {
    const field = event.target.closest("td[data-cell]");
    if (field) open(field);
  });
  addEventListener("scroll", hideTip, { passive: true });
  whenViewed(draw);
};
// The answer takes what the maps leave of the first screen.
const fitAnswer = () => {
  const box = document.querySelector(".answers");
  const last = document.getElementById("maps-drawn");
  if (!box || !last || isNarrow()) return;
  const free = innerHeight - (last.getBoundingClientRect().bottom + scrollY);
  if (free > 0) box.style.maxHeight = `${box.offsetHeight + Math.floor(free)}px`;
};
