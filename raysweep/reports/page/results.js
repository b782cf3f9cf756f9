// The results, a row for each attack, rate and defense, or for each defense; and the trials.
const named = (row) => make("span", { title: row.defense },
  breakable(row.defenseName), " ", make("span", { class: "n" }, `n ${row.n}`), " ", badgesOf(row.badges),
  isNarrow() ? make("div", { class: "n" }, row.attackName) : null);
// A mean above its interval or values, so that all metrics stand side by side.
const stacked = (text) => {
  const at = text.indexOf(" ");
  if (at < 0) return text;
  return make("span", {}, text.slice(0, at), " ", make("span", { class: "interval" }, text.slice(at + 1)));
};
const isAttacked = (cell) => cell.rate > 0 || cell.arena.endsWith("adversarial examples");
const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const grouped = (items, keyOf) => {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  return groups;
};
// Over families of attacks that worked: rates and forms of one family count as one.
const averageOf = (some, metric) => {
  const known = some.filter((cell) => cell.metrics[metric]?.mean != null);
  const families = [...grouped(known, (cell) => cell.family).values()].map(
    (own) => meanOf(own.map((cell) => cell.metrics[metric].mean)));
  if (!families.length) return { mean: null, values: [] };
  return { mean: meanOf(families), low: null, values: families, signed: known[0].metrics[metric].signed };
};
const rowsByDefense = (some) => {
  const kept = some.filter((cell) => isAttacked(cell) && !cell.failed);
  const every = new Map([...grouped(kept, (cell) => cell.arena)].map(
    ([arena, own]) => [arena, new Set(own.map((cell) => `${cell.attack}\n${cell.rate}`)).size]));
  return [...grouped(kept, (cell) => `${cell.arena}\n${cell.defense}\n${cell.badges}`).values()].map(
    (own) => {
      const [cell] = own;
      const metrics = Object.fromEntries(Object.keys(view.titles).map(
        (metric) => [metric, averageOf(own, metric)]));
      const met = own.filter((one) => one.finished).length;
      const all = every.get(cell.arena);
      return { ...cell, metrics, n: own.reduce((sum, one) => sum + one.finished, 0),
        attackName: met === all ? `all ${met}` : `${met} of ${all}` };
    });
};
const resultRows = () => {
  const some = view.by === "defense" ? rowsByDefense(view.cells)
    : view.cells.map((cell) => ({ ...cell, n: countOf(cell) }));
  const turns = new Map(some.map((row) => `${row.arena}\n${row.attack}`).map((key) => [key, 0]));
  [...turns.keys()].forEach((key, at) => turns.set(key, at));
  const turn = (row) => (view.by === "defense" ? 0 : turns.get(`${row.arena}\n${row.attack}`));
  const [main] = Object.keys(view.titles);
  const least = (row) => row.metrics[main]?.mean ?? Infinity;
  const rate = (row) => (view.by === "defense" ? 0 : row.rate);
  const ordered = some.toSorted((a, b) => turn(a) - turn(b) || rate(a) - rate(b)
    || (least(a) === least(b) ? 0 : least(a) - least(b)));
  return ordered.map((row) => {
    const means = Object.keys(view.titles).map((metric) => [`m ${metric}`, row.metrics[metric].mean]);
    return { ...row, ...Object.fromEntries(means) };
  });
};
const resultColumns = () => {
  const several = arenasOf(cells).length > 1;
  const metrics = Object.entries(view.titles).map(([metric, title]) => ({
    field: `m ${metric}`, title, shown: "number", visible: !view.hidden.has(metric),
    format: (row) => stacked(spread(row.metrics[metric])),
  }));
  const attack = { field: "attackName", title: "attack", visible: !isNarrow() };
  return [
    { field: "defense", title: "defense", first: true, format: named },
    attack,
    ...metrics.slice(0, 5),
    { field: "arena", title: "setting", visible: several },
    ...metrics.slice(5),
    ...Object.entries(view.counts).map(([field, title]) => ({ field, title, shown: "number" })),
    { field: "kind", title: "kind" },
    { field: "failed", title: "the attack failed", visible: false },
  ];
};
let results;
const drawResults = () => {
  const place = document.getElementById("results-drawn");
  whenSeen(place, () => {
    load("tabulator");
    const choices = [["attack", "attack, rate and defense"], ["defense", "defense"]].map(
      ([by, text]) => {
        const box = make("input", { type: "radio", name: "by", value: by,
          onchange: () => { view.by = by; update(); } });
        whenViewed(() => { box.checked = view.by === by; });
        box.checked = view.by === by;
        return make("label", {}, box, ` ${text} `);
      });
    const said = make("span", { class: "muted" });
    const say = () => {
      said.textContent = view.by === "defense"
        ? "Means over the families of attacks in view that worked, with their range." : "";
    };
    results = tableOf(place, {
      title: "Results", columns: resultColumns(), rows: resultRows(), chooser: true,
      controls: [make("fieldset", { class: "by" }, make("legend", {}, "A row for each"), choices),
        ...latexControls(), said],
    });
    say();
    whenViewed(() => { say(); results.setRows(resultRows()); });
  });
};

const records = { columns: [], rows: [], first: [], command: {} };
const openRecords = () => {
  if (records.rows.length) return;
  const given = data("rows");
  records.columns = given.columns.map((one) => one.name);
  records.first = given.first.filter((name) => records.columns.includes(name));
  records.command = given.command;
  const values = given.columns.map(valuesOf);
  records.rows = given.cells.map((cell, line) => {
    const row = { cell };
    records.columns.forEach((name, at) => { row[`c ${name}`] = values[at][line]; });
    return row;
  });
};
const recordsInView = () => records.rows.filter((row) => view.ids.has(row.cell));
const drawTrials = () => {
  const place = document.getElementById("trials-drawn");
  whenSeen(place, () => {
    load("tabulator");
    openRecords();
    const { first } = records;
    const order = [...first, ...records.columns.filter((name) => !first.includes(name))];
    const columns = order.map((name, at) => ({
      field: `c ${name}`, title: name, first: at === 0, visible: first.includes(name),
      shown: records.rows.some((row) => typeof row[`c ${name}`] === "number") ? "number" : "text",
    }));
    const table = tableOf(place, { title: document.getElementById("trials-title").textContent, columns, rows: recordsInView(), chooser: true,
      controls: recordControls() });
    whenViewed(() => table.setRows(recordsInView()));
  });
};
