"use strict";

const each = (selector, act, root = document) => root.querySelectorAll(selector).forEach(act);
const one = (id) => document.getElementById(id);

each(".needs-script", (element) => { element.hidden = false; });

// --- dark and light --------------------------------------------------------

const KEY = "adrpo-report-theme";
const wantsDark = matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try { return localStorage.getItem(KEY); } catch { return null; }  // a file may have no storage
}

function remember(theme) {
  try { localStorage.setItem(KEY, theme); } catch { /* the choice lasts as long as the page */ }
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : wantsDark.matches;
}

function showTheme() {
  one("theme").setAttribute("aria-pressed", String(isDark()));
}

if (["dark", "light"].includes(remembered())) document.documentElement.dataset.theme = remembered();
showTheme();
wantsDark.addEventListener("change", showTheme);
one("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  remember(document.documentElement.dataset.theme);
  showTheme();
});

// --- sorting -------------------------------------------------------------------

const NUMBER = /^[−-]?\d+(\.\d+)?([eE][+-]?\d+)?/;

function orderOf(cell) {
  if (!cell) return null;
  if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
  const text = cell.textContent.trim();
  if (text === "–" || text === "") return null;
  const found = text.replace("−", "-").match(NUMBER);
  return found ? Number(found[0]) : text.toLowerCase();
}

function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}

function sort(table, heading) {
  const row = heading.parentElement;
  const place = [...row.children].indexOf(heading);
  const isNumber = heading.classList.contains("number");
  const first = isNumber ? "descending" : "ascending";
  const before = heading.getAttribute("aria-sort");
  const now = before !== first ? first : isNumber ? "ascending" : "descending";
  each("th[aria-sort]", (other) => other.removeAttribute("aria-sort"), row);
  heading.setAttribute("aria-sort", now);
  const body = table.tBodies[0];
  const sign = now === "ascending" ? 1 : -1;
  const keyed = [...body.rows].map((line) => [orderOf(line.cells[place]), line]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);  // last, either way
    return sign * compared(a, b);
  });
  body.append(...keyed.map(([, line]) => line));
}

each("table.sortable", (table) => {
  each("thead tr:last-child th", (heading) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sort(table, heading));
    heading.replaceChildren(button);
  }, table);
});

// --- finding prompts and rows --------------------------------------------------

each("[data-finds]", (finder) => {
  const things = [...one(finder.dataset.finds).querySelectorAll(".found")];
  const words = finder.querySelector("input");
  const group = finder.querySelector("select");
  const told = finder.querySelector("output");
  const texts = things.map((thing) => (
    thing.matches("tr") ? thing.textContent : thing.querySelector("h3").textContent
  ).toLowerCase());
  function show() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    things.forEach((thing, place) => {
      const hasWords = wanted.every((word) => texts[place].includes(word));
      const hasGroup = !group || !group.value || thing.dataset.group === group.value;
      thing.hidden = !(hasWords && hasGroup);
      count += thing.hidden ? 0 : 1;
    });
    told.textContent = `${count} of ${things.length}`;
  }
  words.addEventListener("input", show);
  if (group) group.addEventListener("change", show);
  show();
});

// --- two rows side by side -----------------------------------------------------

each(".pair", (pair) => {
  const sides = [...pair.querySelectorAll("select")];
  function show() {
    const chosen = sides.map((side) => side.value);
    each(".answer", (answer) => {
      answer.hidden = !chosen.includes(answer.dataset.model);
    });
    each(".answers", (answers) => {
      const inOrder = [...answers.children].sort(
        (a, b) => rank(a, chosen) - rank(b, chosen) || a.dataset.model - b.dataset.model,
      );
      answers.append(...inOrder);
    });
  }
  function rank(answer, chosen) {
    const place = chosen.indexOf(answer.dataset.model);
    return place < 0 ? chosen.length : place;
  }
  sides.forEach((side) => side.addEventListener("change", show));
  show();
});

// --- what is behind a number ---------------------------------------------------

const MARGIN = 12;

each(".behind", (panel) => {
  panel.addEventListener("toggle", (event) => {
    const cell = document.querySelector(`[popovertarget="${panel.id}"]`);
    cell.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState !== "open") return;
    const at = cell.getBoundingClientRect();
    panel.classList.add("placed");
    const left = Math.min(at.left, innerWidth - panel.offsetWidth - MARGIN);
    const above = at.top - 1.5 * MARGIN;
    const below = innerHeight - at.bottom - 1.5 * MARGIN;
    const isBelow = panel.offsetHeight <= below || below >= above;
    const height = Math.min(panel.offsetHeight, isBelow ? below : above);  // longer ones scroll
    panel.style.maxHeight = `${isBelow ? below : above}px`;
    panel.style.left = `${Math.max(MARGIN, left)}px`;
    panel.style.top = `${isBelow ? at.bottom + MARGIN / 2 : at.top - MARGIN / 2 - height}px`;
  });
});

// --- a picture, large ----------------------------------------------------------

const viewer = one("viewer");
const full = JSON.parse(one("full").textContent);
let opener = null;

function isOnPage(button) {
  return button.getClientRects().length > 0;
}

function neighbours() {
  const scope = opener.closest("article, .sheets, .figures");
  return [...scope.querySelectorAll(".shot")].filter(isOnPage);
}

function view(button) {
  opener = button;
  const small = button.querySelector("img");
  const picture = one("viewer-picture");
  const large = full[button.dataset.full];
  picture.src = large || small.src;
  picture.alt = small.alt;
  picture.className = button.classList.contains("tiny") ? "tiny"
    : button.classList.contains("figure") ? "whole" : "";
  one("viewer-label").textContent = button.dataset.label;
  const isHere = button.dataset.full !== undefined;
  const where = isHere ? button.dataset.file : `the full picture is ${button.dataset.file}`;
  one("viewer-facts").textContent = [button.dataset.facts, where].filter(Boolean).join(" · ");
  const all = neighbours();
  one("viewer-back").disabled = all.indexOf(button) <= 0;
  one("viewer-on").disabled = all.indexOf(button) >= all.length - 1;
}

function step(by) {
  const all = neighbours();
  const next = all[all.indexOf(opener) + by];
  if (next) view(next);
}

each(".shot", (button) => {
  button.addEventListener("click", () => {
    view(button);
    viewer.showModal();
    one("viewer-close").focus();
  });
});
one("viewer-close").addEventListener("click", () => viewer.close());
one("viewer-back").addEventListener("click", () => step(-1));
one("viewer-on").addEventListener("click", () => step(1));
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("close", () => {
  if (opener) opener.focus();  // the picture that was looked at last
});

// --- the section in view -------------------------------------------------------

const links = new Map();
each("nav a", (link) => links.set(link.hash.slice(1), link));
const seen = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    links.forEach((link) => link.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  });
}, { rootMargin: "-15% 0px -75% 0px" });
each("main > section", (section) => seen.observe(section));
