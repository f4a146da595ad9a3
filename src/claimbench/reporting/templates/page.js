"use strict";
// Sorts and filters the tables, opens the fold that a link leads to, and shows samples where a number is pointed at.
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const root = document.documentElement;

// A number leads to the samples of its row's cell; which metric it is stands in the head of its column.
for (const place of all("[data-cell] td.n, td[data-cell]")) {
  const id = place.dataset.cell || place.parentElement.dataset.cell;
  const text = place.firstChild;
  if (!document.getElementById(`cell-${id}`) || !text || place.textContent === "–") continue;
  const link = document.createElement("a");
  const head = place.closest("table").tHead.rows[0].cells[place.cellIndex];
  link.href = `#cell-${id}`;
  if (head && head.dataset.metric) link.dataset.metric = head.dataset.metric;
  text.replaceWith(link);
  link.append(text);
}
for (const row of all("tbody tr")) {
  const id = row.dataset.cell || row.querySelector("td[data-cell]")?.dataset.cell;
  const fold = id && document.getElementById(`cell-${id}`);
  if (fold) row.dataset.techniques = fold.parentElement.dataset.techniques;
}
for (const box of all(".scroll")) {
  const named = box.querySelector("caption") || box.closest("details").querySelector("summary");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", named.textContent.trim());
}

// Tables: a button in each head, three presses: up, down, as it was.
const key = cell => {
  const text = cell ? cell.textContent.trim() : "";
  const number = /^-?[\d,]*\.?\d+(?:e[-+]?\d+)?/.exec(text);
  return number ? [0, Number(number[0].replaceAll(",", ""))] : text === "" || text === "–" ? [2, text] : [1, text];
};
const order = (one, other, sign) => one[0] !== other[0] ? one[0] - other[0]
  : sign * (one[0] === 0 ? one[1] - other[1] : one[1].localeCompare(other[1], "en", { numeric: true }));
for (const table of all("table.data")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = all("thead th", table);
  heads.forEach(head => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const place = row => row.cells[head.cellIndex];
      const sign = next === "descending" ? -1 : 1;
      body.append(...(next === "none" ? rows : [...rows].sort((a, b) => order(key(place(a)), key(place(b)), sign))));
    });
  });
}

// Filter: a row stays where its text, its verdict and its techniques fit; what has no verdict or technique is not asked.
const [text, verdict, technique] = ["filter", "of-verdict", "of-technique"].map(id => document.getElementById(id));
const rows = all("table.data tbody tr, details.row").filter(row => !row.parentElement.closest("details.row"));
const folds = all("details:not(.row)").filter(fold => fold.querySelector("table.data"));
const fits = row => {
  const { verdict: of, techniques } = row.dataset;
  if (verdict.value && of !== undefined && of !== verdict.value) return false;
  if (technique.value && techniques !== undefined) {
    const names = techniques.split(" ").filter(Boolean);
    if (technique.value === "-" ? names.length : !names.includes(technique.value)) return false;
  }
  return text.value.trim().toLowerCase().split(/\s+/).every(word => row.textContent.toLowerCase().includes(word));
};
const filter = () => {
  const asked = text.value.trim() || verdict.value || technique.value;
  for (const row of rows) row.hidden = Boolean(asked) && !fits(row);
  for (const table of all("table.data")) {
    const hits = table.querySelector(".hits");
    const own = [...table.tBodies[0].rows];
    if (hits) hits.textContent = asked ? `${own.filter(row => !row.hidden).length} of ${own.length} rows` : "";
  }
  for (const fold of folds) {
    const summary = fold.querySelector("summary");
    const hits = all("table.data tbody tr:not([hidden])", fold).length;
    if (asked) summary.dataset.hits = hits === 1 ? "1 row fits" : `${hits} rows fit`; else delete summary.dataset.hits;
  }
  const left = all(".claims tbody tr").filter(row => !row.hidden).length;
  document.getElementById("said").textContent = asked ? `Claims that fit: ${left}` : "";
};
for (const field of [text, verdict, technique]) field.addEventListener("input", filter);

// Links into folds.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) {
    fold.open = true;
    fold.hidden = false;
  }
  target.focus({ preventScroll: true });
  (target.closest("details") || target).scrollIntoView();
};
addEventListener("hashchange", reveal);
document.addEventListener("click", event => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) reveal();
});
reveal();

// What is pointed at, or has the focus: how many samples, which doubts, and the first of the samples.
const tip = document.getElementById("tip");
let pointed = null;
const hide = () => {
  if (pointed) pointed.removeAttribute("aria-describedby");
  pointed = null;
  tip.hidden = true;
};
const told = link => {
  const fold = document.getElementById(link.hash.slice(1));
  const brief = fold && fold.querySelector(".brief");
  if (!brief) return "";
  const head = link.dataset.metric && fold.querySelector(`th[data-metric="${link.dataset.metric}"]`);
  const samples = head ? all("tbody tr", fold).map(row => row.cells[head.cellIndex].textContent).filter(Boolean) : [];
  const some = samples.slice(0, 6).join("; ") + (samples.length > 6 ? "; …" : "");
  return brief.textContent.trim() + (some ? `\nSamples, ${head.textContent}: ${some}` : "");
};
const show = event => {
  const link = event.target.closest && event.target.closest('a[href^="#cell-"],a[href^="#claim-"]');
  if (link === pointed) return;
  hide();
  const words = link && told(link);
  if (!words) return;
  pointed = link;
  tip.textContent = words;
  tip.hidden = false;
  link.setAttribute("aria-describedby", "tip");
  place();
};
const place = () => {
  if (!pointed) return;
  const { left, bottom, top } = pointed.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${bottom + tip.offsetHeight + 12 < innerHeight ? bottom + 6 : Math.max(8, top - tip.offsetHeight - 6)}px`;
};
document.addEventListener("mouseover", event => { if (event.target !== tip) show(event); });
document.addEventListener("focusin", show);
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
addEventListener("scroll", place, { passive: true, capture: true });

// Each cell's fold has the command that measures its study again, which the page holds once.
for (const fold of all("details.raw")) {
  const box = document.createElement("div");
  box.className = "copied";
  box.append(document.querySelector(`[data-again="${CSS.escape(fold.dataset.study)}"]`).cloneNode(true));
  fold.querySelector(".copied").before(box);
}

// Copying.
for (const code of all(".copied code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  code.after(button);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// Colours: the system's, light, dark.
const theme = document.getElementById("theme");
const themes = { "": "system", light: "light", dark: "dark" };
const paint = name => {
  if (name) root.dataset.theme = name; else delete root.dataset.theme;
  theme.textContent = `Colours: ${themes[name]}`;
};
const remembered = () => { try { return localStorage.getItem("claimbench-theme") || ""; } catch { return ""; } };
paint(remembered() in themes ? remembered() : "");
theme.addEventListener("click", () => {
  const names = Object.keys(themes);
  const next = names[(names.indexOf(root.dataset.theme || "") + 1) % names.length];
  paint(next);
  try { localStorage.setItem("claimbench-theme", next); } catch { /* a page of a file may have no storage */ }
});

// On paper everything is open but the raw samples.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details:not(.raw):not([open])");
  closed.forEach(fold => { fold.open = true; });
});
addEventListener("afterprint", () => closed.forEach(fold => { fold.open = false; }));
})();
