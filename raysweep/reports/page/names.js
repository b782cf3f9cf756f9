// How names and numbers are written, and the look of each defense, the same all over the page.
const percent = (value) => (
  value == null ? "–" : (100 * value).toFixed(1).replace(/^-0\.0$/, "0.0"));
const brief = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
const secondsOf = (value) => {
  if (value == null) return "–";
  return value === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(value >= 1 ? 1 : 3);
};
const points = (value) => {
  const text = percent(value);
  return value > 0 && text !== "0.0" ? `+${text}` : text;
};
const spread = (one) => {
  if (!one || one.mean == null) return "–";
  if (one.signed) {
    return one.low == null ? points(one.mean)
      : `${points(one.mean)} [${points(one.low)}, ${points(one.high)}]`;
  }
  if (one.low != null) return `${percent(one.mean)} [${percent(one.low)}–${percent(one.high)}]`;
  if (one.values.length < 2) return percent(one.mean);
  if (one.values.length <= 4) return `${percent(one.mean)} (${one.values.map(percent).join(", ")})`;
  const [least, most] = [Math.min(...one.values), Math.max(...one.values)];
  return `${percent(one.mean)} (${percent(least)}–${percent(most)})`;
};
const countOf = (cell) => (
  cell.finished === cell.trials ? String(cell.finished) : `${cell.finished}/${cell.trials}`);
// A name breaks where a reader would break it.
const breakable = (name) => name.split(/(?<=[_(,=])/).flatMap(
  (part, at) => (at ? [make("wbr"), part] : [part]));
// A command breaks between its words, and at no hyphen of one.
const commandOf = (line) => make("code", {}, line.split(" ").flatMap(
  (word, at) => [at ? " " : "", make("span", { class: "word" }, word)]));
const badgesOf = (badges) => badges.map((text) => make("span", { class: "badge" }, text));
const rateOf = (rate) => `${Number((100 * Number(rate)).toPrecision(4))} %`;
const sentenceOf = (cell, metric) => {
  const one = cell.metrics[metric];
  const unit = metric === "lost" || one?.signed ? "points" : "%";
  const value = one?.mean == null ? "undefined" : `${spread(one)} ${unit}`;
  const drawn = one?.mean == null ? "" : `, of ${one.n} ${one.unit}`;
  const failed = cell.failed ? ` The attack failed: ${cell.failed}.` : "";
  const badges = cell.badges.length ? ` (${cell.badges.join(", ")})` : "";
  return `${cell.defense}${badges}, ${cell.attack} ${cell.at}: ${view.titles[metric]} ${value}`
    + `${drawn}; ${countOf(cell)} ${view.counted} finished.${failed}`;
};

// Twelve colors, in an order in which those that share a dash (every fifth) are far apart in gray and
// for the color-blind, too; each has a symbol of its own. No defense is drawn in ink.
const COLORS = ["#0072b2", "#d55e00", "#5f6b77", "#4b2e83", "#009e73", "#cc79a7", "#1b5e20",
  "#e69f00", "#8c6d00", "#b02a8f", "#7a1f1f", "#56b4e9"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x",
  "star", "pentagon", "hexagram", "hourglass", "bowtie"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const looks = new Map();
const lighter = (color) => `#${[1, 3, 5].map((at) => {
  const part = parseInt(color.slice(at, at + 2), 16);
  return Math.round(part + 0.42 * (255 - part)).toString(16).padStart(2, "0");
}).join("")}`;
const lookOfTurn = (turn) => ({
  turn,
  color: COLORS[turn % COLORS.length],
  symbol: SYMBOLS[turn % SYMBOLS.length],
  dash: DASHES[(turn + Math.floor(turn / COLORS.length)) % DASHES.length],
});
const readLooks = () => {
  let turn = 0;
  for (const cell of cells) {
    if (looks.has(cell.defense)) continue;
    const bare = cell.defenseName === "none";
    looks.set(cell.defense, bare ? { ink: true, symbol: "circle-open", dash: "solid" }
      : lookOfTurn(turn));
    if (!bare) turn += 1;
  }
};
const colorOf = (look, dark) => {
  if (look.ink) return dark ? "#f2f2f2" : "#111111";
  return dark ? lighter(look.color) : look.color;
};
