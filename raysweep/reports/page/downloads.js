// The view as files.
const save = (name, type, text) => {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const sweepName = () => document.querySelector("h1").textContent;
const fileName = (ending) => `${sweepName().replace(/[^\w.-]+/g, "_")}.${ending}`;
const quoted = (value) => {
  const text = value == null ? "" : value === true ? "True" : value === false ? "False" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const asCsv = (names, rows) => [
  names.map(quoted).join(","),
  ...rows.map((row) => names.map((name) => quoted(row[`c ${name}`])).join(",")),
].join("\n") + "\n";
const LATEX = {
  "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", $: "\\$", "#": "\\#", _: "\\_", "{": "\\{",
  "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--", "±": "$\\pm$",
  "·": "$\\cdot$", "<": "\\textless{}", ">": "\\textgreater{}", "†": "$\\dagger$",
};
const latex = (text) => [...String(text).replace(/\s+/g, " ")].map((one) => LATEX[one] ?? one).join("");
const asLatex = () => {
  const metrics = Object.keys(view.titles);
  const parts = [...grouped(view.cells, (cell) => `${cell.attackName} · ${cell.arena}`)].map(
    ([title, some]) => {
      const here = metrics.filter((metric) => some.some((cell) => cell.metrics[metric].mean != null));
      const heads = ["defense", ...here.map((metric) => view.titles[metric]), "n", "badges"];
      const lines = some.map((cell) => [cell.defenseName,
        ...here.map((metric) => spread(cell.metrics[metric])), countOf(cell), cell.badges.join(", ")]);
      const line = (words) => `${words.map(latex).join(" & ")} \\\\`;
      return [`\\begin{tabular}{l${"r".repeat(here.length + 1)}l}`, "\\toprule",
        `\\multicolumn{${heads.length}}{l}{${latex(title)}} \\\\`, "\\midrule", line(heads),
        "\\midrule", ...lines.map(line), "\\bottomrule", "\\end{tabular}", ""].join("\n");
    });
  return parts.join("\n");
};
const latexControls = () => [make("button", { type: "button", class: "latex",
  onclick: () => save(fileName("tex"), "text/x-tex", asLatex()) }, "LaTeX of the view")];
const recordControls = () => [
  make("button", { type: "button", class: "csv", onclick: () => save(
    fileName("csv"), "text/csv", asCsv(records.columns, recordsInView())) }, "CSV of the view"),
  make("span", { class: "muted" }, records.command.said, commandOf(records.command.line)),
];
