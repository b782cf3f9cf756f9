// Sort a table by the column whose header button was pressed.
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (!button) return;
  const header = button.parentElement, table = header.closest("table"), body = table.tBodies[0];
  const column = [...header.parentElement.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => {
    const text = row.children[column].textContent.trim(), number = parseFloat(text);
    return text === "–" ? -Infinity : Number.isNaN(number) ? text : number;
  };
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : String(x) < String(y) ? -1 : 1;
    return up ? order : -order;
  });
  body.append(...rows);
});
