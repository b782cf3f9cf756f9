// The view: the cells that all filters leave. Every table and figure is of it, and a link keeps it.
const PARTS = {
  dataset: "dataset", model: "model", training: "trained with", attack: "attack",
  rate: "rate", defense: "defense", kind: "kind", badge: "badge", change: "change",
};
const LIMITS = { asr: "ASR ≤", lost: "lost CA ≤" };
const BARE = "no badge";
const cells = [];
const view = { chosen: {}, limits: {}, words: "", by: "attack", cells: [], ids: new Set() };
for (const part of Object.keys(PARTS)) view.chosen[part] = new Set();
const listeners = [];
const whenViewed = (listener) => listeners.push(listener);

const partsOf = (cell, part) => {
  if (part === "badge") return cell.badges.length ? cell.badges : [BARE];
  if (part === "change") return (cell.change ?? "").split(", ");
  return [String(cell[part])];
};
const passes = (cell) => Object.keys(PARTS).every((part) => {
  const wanted = view.chosen[part];
  return !wanted.size || partsOf(cell, part).some((value) => wanted.has(value));
});
const isWithin = (cell) => Object.entries(view.limits).every(([metric, limit]) => {
  const mean = cell.metrics[metric]?.mean;
  return mean != null && 100 * mean <= limit;
});
const isNamed = (cell) => view.words.toLowerCase().split(/\s+/).every(
  (word) => cell.text.includes(word));

const readCells = (given) => {
  const columns = Object.entries(given.columns).map(([name, one]) => [name, valuesOf(one)]);
  const metrics = given.metrics.map((one) => ({ ...one, units: valuesOf(one.unit) }));
  const count = columns[0][1].length;
  for (let id = 0; id < count; id += 1) {
    const cell = { id, metrics: {} };
    for (const [name, values] of columns) cell[name] = values[id];
    cell.badges = (cell.badges ?? "").split(", ").filter(Boolean);
    cell.attackName = [given.names.attack[cell.attack] ?? cell.attack, cell.at]
      .filter(Boolean).join(" ");
    cell.defenseName = given.names.defense[cell.defense] ?? cell.defense;
    cell.text = [cell.defense, cell.attack, cell.at, cell.arena, cell.kind, ...cell.badges]
      .join(" ").toLowerCase();
    for (const one of metrics) {
      cell.metrics[one.name] = {
        mean: one.mean[id], low: one.low[id], high: one.high[id], n: one.n[id],
        unit: one.units[id], values: one.values[id], signed: one.signed,
      };
    }
    cells.push(cell);
  }
  view.titles = Object.fromEntries(given.metrics.map((one) => [one.name, one.title]));
  view.hidden = new Set(given.metrics.filter((one) => !one.shown).map((one) => one.name));
  view.counts = given.counts;
  view.counted = given.counted;
};

const asLink = () => {
  const parts = Object.keys(PARTS).filter((part) => view.chosen[part].size)
    .map((part) => `${part}=${[...view.chosen[part]].map(encodeURIComponent).join(",")}`);
  const limits = Object.entries(view.limits).map(([name, limit]) => `${name}-most=${limit}`);
  const said = view.words ? [`words=${encodeURIComponent(view.words)}`] : [];
  const by = view.by === "attack" ? [] : [`by=${view.by}`];
  const where = view.section ? [`view=${view.section}`] : [];
  return [...where, ...parts, ...limits, ...said, ...by].join("&");
};
const readLink = () => {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) {
    view.section = text;  // a plain anchor keeps the filters
    return;
  }
  const given = new Map(text.split("&").map((pair) => {
    const at = pair.indexOf("=");
    return [pair.slice(0, at), pair.slice(at + 1)];
  }));
  const decoded = (word) => {
    try { return decodeURIComponent(word); } catch { return word; }
  };
  for (const part of Object.keys(PARTS)) {
    const words = given.get(part)?.split(",").filter(Boolean) ?? [];
    view.chosen[part] = new Set(words.map(decoded));
  }
  view.limits = {};
  for (const name of Object.keys(LIMITS)) {
    const limit = parseFloat(given.get(`${name}-most`));
    if (!Number.isNaN(limit)) view.limits[name] = limit;
  }
  view.words = decoded(given.get("words") ?? "");
  view.by = given.get("by") === "defense" ? "defense" : "attack";
  view.section = given.get("view") ?? "";
};
const update = ({ link = true } = {}) => {
  view.cells = cells.filter((cell) => passes(cell) && isWithin(cell) && isNamed(cell));
  view.ids = new Set(view.cells.map((cell) => cell.id));
  const text = asLink();
  if (link && text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
  for (const listener of listeners) listener();
};
const choose = (chosen) => {
  for (const [part, values] of Object.entries(chosen)) view.chosen[part] = new Set(values);
  update();
};
const clear = () => {
  for (const part of Object.keys(PARTS)) view.chosen[part] = new Set();
  Object.assign(view, { limits: {}, words: "" });
  update();
};
