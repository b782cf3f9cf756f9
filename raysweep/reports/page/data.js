// The data of the page: compressed blocks, opened when they are needed. The browser's own streams
// would open them later than a printer waits for.
const opened = new Map();
const unpacked = (text) => {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) bytes[at] = letters.charCodeAt(at);
  return JSON.parse(fflate.strFromU8(fflate.gunzipSync(bytes)));
};
// What stands behind the script is whole when the browser has read all of the page.
const whole = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});
const taken = (key) => {
  const block = document.getElementById(`block-${key}`);
  const text = block.textContent;
  block.textContent = "";
  return unpacked(text);
};
const data = (key) => {
  if (!opened.has(key)) opened.set(key, taken(key));
  return opened.get(key);
};
const loaded = new Set();
const load = (library) => {
  if (loaded.has(library)) return;
  loaded.add(library);
  const script = document.createElement("script");
  script.textContent = data(library);
  document.head.append(script);
};
const valuesOf = (column) => column.values
  ?? column.codes.map((code) => (code < 0 ? null : column.distinct[code]));

// Elements are made of text alone: whatever the data hold stays text.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== ""));
  return element;
};
// What is costly is drawn when it comes near the view, and not before.
const whenSeen = (element, draw) => {
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    whole.then(draw);
  }, { rootMargin: "400px" });
  seen.observe(element);
};
const isNarrow = () => innerWidth < 640;
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
