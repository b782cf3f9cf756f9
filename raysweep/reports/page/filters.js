// The filter bar: one for all views.
const optionsOf = (part) => {
  const counts = new Map();
  for (const cell of cells) {
    for (const value of partsOf(cell, part)) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  const values = [...counts.keys()];
  return part === "rate" ? values.sort((a, b) => a - b) : values;
};
const optionName = (part, value) => {
  if (part === "rate") return rateOf(value);
  return value || "the rest";
};
const drawFilters = () => {
  const bar = document.getElementById("filters");
  const parts = Object.keys(PARTS).map((part) => [part, optionsOf(part)])
    .filter(([, values]) => values.length > 1);
  const folds = parts.map(([part, values]) => {
    const count = make("span", { class: "count" });
    const boxes = values.map((value) => make("input", {
      type: "checkbox", value, onchange: (event) => {
        const chosen = view.chosen[part];
        if (event.target.checked) chosen.add(value); else chosen.delete(value);
        update();
      },
    }));
    const labels = boxes.map((box) => make("label", {}, box, ` ${optionName(part, box.value)}`));
    const fold = make("details", { class: "filter", name: "filter", "data-part": part },
      make("summary", {}, PARTS[part], count),
      make("fieldset", {}, make("legend", {}, PARTS[part]), labels));
    whenViewed(() => {
      for (const box of boxes) box.checked = view.chosen[part].has(box.value);
      count.textContent = view.chosen[part].size ? ` ${view.chosen[part].size}/${values.length}` : "";
    });
    return fold;
  });
  const limits = Object.entries(LIMITS).filter(([name]) => name in view.titles).map(
    ([name, title]) => {
      const field = make("input", {
        type: "number", min: -100, max: 100, step: "any", "data-limit": name, oninput: (event) => {
          const limit = event.target.valueAsNumber;
          if (Number.isNaN(limit)) delete view.limits[name]; else view.limits[name] = limit;
          update();
        },
      });
      whenViewed(() => {
        if (field !== document.activeElement) field.value = view.limits[name] ?? "";
      });
      return make("label", { class: "limit" }, `${title} `, field);
    });
  const search = make("input", {
    type: "search", placeholder: "search", "aria-label": "search names", oninput: (event) => {
      view.words = event.target.value;
      update();
    },
  });
  const said = make("span", { class: "count", role: "status" });
  const all = make("button", { type: "button", onclick: clear }, "clear");
  whenViewed(() => {
    if (search !== document.activeElement) search.value = view.words;
    const trials = (some) => some.reduce((sum, cell) => sum + cell.trials, 0);
    said.textContent = `${trials(view.cells).toLocaleString("en")} of `
      + `${trials(cells).toLocaleString("en")} ${view.counted}`;
    all.disabled = view.cells.length === cells.length;
  });
  bar.append(...folds, ...limits, search, all, said);
  document.addEventListener("click", (event) => {
    for (const fold of bar.querySelectorAll("details[open]")) {
      if (!fold.contains(event.target)) fold.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const fold of bar.querySelectorAll("details[open]")) {
      fold.open = false;
      fold.querySelector("summary").focus();
    }
  });
};
