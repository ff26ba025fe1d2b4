// The first page: every subject in every style, or the best first; filters, and keys.
"use strict";

const filters = document.getElementById("filters"), grid = document.getElementById("grid");
const canvas = grid.appendChild(make("div", { class: "canvas" }));
const corner = canvas.appendChild(make("div", { class: "corner" }, make("span", {}, "style →"), make("span", {}, "subject ↓")));
const heads = new Layer(grid, canvas, "heads", "x"), sides = new Layer(grid, canvas, "sides", "y"), cells = new Layer(grid, canvas, "cells");
let margin = { left: 0, top: 0 };

/** What passes the filters: pairs with the merge that stands for each, none where no method has finished. */
function chosen({ search, method, licence, least }) {
  const fits = finder(search), found = [];
  for (const pair of GALLERY.pairs) {
    if (!fits(pair) || (licence && pair.licence !== licence)) continue;
    const merge = method ? pair.merges.find((one) => one.method === method) : pair.merges[0];
    if (merge ? Number(least) && !(merge.score >= Number(least)) : method || licence || Number(least)) continue;
    found.push({ pair, merge });
  }
  return found;
}

function cell({ pair, merge }, captioned) {
  const names = `${GALLERY.subjects[pair.subject].name} × ${GALLERY.styles[pair.style].name}`;
  if (!merge) {
    const said = [pair.status, ...(pair.code ? [make("code", {}, pair.code)] : [])];
    return make("a", { class: "cell empty", href: pair.code ? "#not-merged" : "#grid", title: names }, make("span", { class: "blank" }, ...said));
  }
  const shown = make("a", { class: "cell", href: pair.page, title: names }, picture(merge.picture, names), score(merge.score));
  shown.append(make("span", { class: "method" }, merge.method));
  if (captioned) shown.append(named(names));
  return shown;
}

function head(role, place) {
  const one = GALLERY[role][place];
  const shown = make("div", { class: "head" });
  if (one.picture) shown.append(picture(one.picture, ""));
  shown.append(named(one.name));
  return shown;
}

/** Subjects downwards, styles to the right; those of which nothing is left take no room. */
function matrix(found) {
  const narrow = NARROW.matches, width = narrow ? 76 : 128, height = narrow ? 92 : 108;
  const rows = [...new Set(found.map(({ pair }) => pair.subject))].sort((a, b) => a - b);
  const columns = [...new Set(found.map(({ pair }) => pair.style))].sort((a, b) => a - b);
  const room = (grid.clientWidth - width) / columns.length - GAP;
  const side = Math.floor(Math.min(narrow ? 128 : 208, Math.max(narrow ? 92 : 120, room)));
  const step = side + GAP, across = new Map(columns.map((one, place) => [one, place])), down = new Map(rows.map((one, place) => [one, place]));
  lay(width + columns.length * step, height + rows.length * step, { left: width, top: height });
  heads.show(columns.map((one, place) => ({ x: place * step, y: 0, width: side, height, make: () => head("styles", one) })));
  sides.show(rows.map((one, place) => ({ x: 0, y: place * step, width, height: side, make: () => head("subjects", one) })));
  cells.show(found.map((one) => (
    { x: across.get(one.pair.style) * step, y: down.get(one.pair.subject) * step, width: side, height: side, make: () => cell(one, false) }
  )));
}

/** Finished merges, the best first; those that cannot be ranked come last. */
function bestFirst(found) {
  const ranked = found.filter(({ merge }) => merge).sort((a, b) => (b.merge.score ?? -1) - (a.merge.score ?? -1));
  const count = Math.max(2, Math.floor((grid.clientWidth + GAP) / ((NARROW.matches ? 150 : 176) + GAP)));
  const side = Math.floor((grid.clientWidth - GAP * (count - 1)) / count), height = side + 48;
  lay(grid.clientWidth, Math.ceil(ranked.length / count) * (height + GAP), { left: 0, top: 0 });
  heads.show([]);
  sides.show([]);
  cells.show(ranked.map((one, place) => (
    { x: (place % count) * (side + GAP), y: Math.floor(place / count) * (height + GAP), width: side, height, make: () => cell(one, true) }
  )));
}

function lay(width, height, covered) {
  margin = covered;
  corner.hidden = !covered.top;
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  canvas.style.setProperty("--left", `${covered.left}px`);
  canvas.style.setProperty("--top", `${covered.top}px`);
}

function show() {
  const wanted = Object.fromEntries(new FormData(filters)), found = chosen(wanted);
  const merges = found.filter(({ merge }) => merge).length, empty = found.length === 0 || (wanted.order && !merges);
  filters.elements.shown.value = Number(wanted.least).toFixed(2);
  document.getElementById("count").textContent = `${found.length.toLocaleString("en")} ${found.length === 1 ? "pair" : "pairs"}`
    + (merges < found.length ? `, ${merges.toLocaleString("en")} of them merged` : "");
  document.getElementById("nothing").hidden = !empty;
  grid.hidden = empty;
  if (!empty) (wanted.order ? bestFirst : matrix)(found);
}

function choose() {
  grid.scrollTo(0, 0);
  show();
  writeAddress(filters);
}

function clear() {
  filters.reset();
  choose();
}

function move(key) {
  const focused = [...cells.shown].find(([, element]) => element === document.activeElement)?.[0];
  const box = focused ? cells.next(focused, key) : cells.boxes.find((one) => one.x >= grid.scrollLeft && one.y >= grid.scrollTop);
  if (box) cells.focus(box, margin.left, margin.top);
}

filters.addEventListener("input", choose);
filters.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("clear").addEventListener("click", clear);
let painting = 0;
grid.addEventListener("scroll", () => {
  painting ||= requestAnimationFrame(() => {
    painting = 0;
    for (const layer of [heads, sides, cells]) layer.paint();
  });
});
addEventListener("resize", show);
addEventListener("pagehide", () => {
  history.replaceState({ left: grid.scrollLeft, top: grid.scrollTop }, "");
  lastView(location.hash);
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = document.activeElement?.closest("#filters");
  if (event.key === "Escape") {
    if (typing || document.activeElement === document.body) clear();
    document.activeElement?.blur();
  } else if (event.key.startsWith("Arrow") && (!typing || (event.key === "ArrowDown" && typing && document.activeElement.type === "search"))) {
    event.preventDefault();
    move(event.key);
  }
});

readAddress(filters);
show();
if (history.state) grid.scrollTo(history.state.left, history.state.top);
