// The data of the page: compressed blocks, opened when they are needed.
const opened = new Map();
const unpacked = async (text) => {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) bytes[at] = letters.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
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
  return unpacked(text).then(JSON.parse);
};
const data = (key) => {
  if (!opened.has(key)) opened.set(key, whole.then(() => taken(key)));
  return opened.get(key);
};
const library = (key) => {
  const name = `library ${key}`;
  if (!opened.has(name)) {
    opened.set(name, data(key).then((text) => {
      const script = document.createElement("script");
      script.textContent = text;
      document.head.append(script);
    }));
  }
  return opened.get(name);
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
    draw();
  }, { rootMargin: "400px" });
  seen.observe(element);
};
const isNarrow = () => innerWidth < 640;
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
