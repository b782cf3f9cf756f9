// The data of the page: compressed blocks, opened when they are needed.
const opened = new Map();
const unpacked = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
const data = (key) => {
  if (!opened.has(key)) {
    const block = document.getElementById(`block-${key}`);
    opened.set(key, unpacked(block.textContent).then(JSON.parse));
    block.textContent = "";
  }
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
