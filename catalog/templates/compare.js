// Two methods, pair by pair: pictures and scores side by side, the largest gain of the second first.
"use strict";

const filters = document.getElementById("filters"), grid = document.getElementById("grid");
const canvas = grid.appendChild(make("div", { class: "canvas" }));
const rows = new Layer(grid, canvas, "cells");

function bars(positions) {
  const shown = make("span", { class: "small-bars" });
  for (const [label, position] of positions) {
    const full = make("i", { class: "full" });
    full.style.width = `${100 * Math.min(1, Math.max(0, position ?? 0))}%`;
    shown.append(make("span", {}, label), make("i", { class: `track ${label}` }, full), make("b", {}, position === null ? "–" : position.toFixed(2)));
  }
  return shown;
}

function half(merge, alt) {
  return make("span", { class: "half" }, picture(merge.picture, alt), make("span", {}, make("span", { class: "by" }, merge.method), score(merge.score), bars(merge.positions)));
}

function row({ pair, first, second, gain }) {
  const subject = GALLERY.subjects[pair.subject].name, style = GALLERY.styles[pair.style].name, names = `${subject} × ${style}`;
  const said = gain === null ? "not ranked" : `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(2)}`;
  const sign = gain > 0 ? "gain" : gain < 0 ? "loss" : "even";
  return make("a", { class: "row", href: pair.page },
    make("span", { class: "what" }, named(names), make("span", { class: `difference ${sign}` }, said)), half(first, names), half(second, names));
}

/** Pairs that both methods have merged, with what the second gains; those without a score come last. */
function compared({ first, second, search }) {
  const fits = finder(search), found = [];
  for (const pair of GALLERY.pairs) {
    const [one, other] = [first, second].map((method) => pair.merges.find((merge) => merge.method === method));
    if (!one || !other || !fits(pair)) continue;
    const ranked = one.score !== null && other.score !== null;
    found.push({ pair, first: one, second: other, gain: ranked ? other.score - one.score : null });
  }
  return found.sort((a, b) => (b.gain ?? -2) - (a.gain ?? -2));
}

function summarise(found, { first, second }) {
  const gains = found.map(({ gain }) => gain).filter((gain) => gain !== null);
  const won = gains.filter((gain) => gain > 0).length, lost = gains.filter((gain) => gain < 0).length, even = gains.length - won - lost;
  const share = (count) => `${Math.round((100 * count) / gains.length)} %`;
  const mean = gains.reduce((sum, gain) => sum + gain, 0) / gains.length;
  const summary = document.getElementById("summary");
  if (!gains.length) return summary.replaceChildren(found.length ? "No pair was scored by both." : "");
  const split = make("div", { class: "split", role: "img", "aria-label": `${second} wins ${share(won)}, ${first} ${share(lost)}` });
  for (const [count, kind] of [[won, "gain"], [even, "even"], [lost, "loss"]]) {
    const part = make("i", { class: kind });
    part.style.flexGrow = count;
    split.append(part);
  }
  const told = (what, value) => make("div", {}, make("dt", {}, what), make("dd", {}, value));
  const numbers = make("dl", { class: "numbers" }, told(`${second} wins`, share(won)), told(`${first} wins`, share(lost)));
  if (even) numbers.append(told("even", share(even)));
  numbers.append(told("mean gain", `${mean < 0 ? "−" : "+"}${Math.abs(mean).toFixed(2)}`), told("pairs", gains.length.toLocaleString("en")));
  summary.replaceChildren(numbers, split);
}

function show() {
  const wanted = Object.fromEntries(new FormData(filters)), found = compared(wanted);
  const height = NARROW.matches ? 268 : 148;
  summarise(found, wanted);
  document.getElementById("nothing").hidden = found.length > 0;
  grid.hidden = found.length === 0;
  canvas.style.height = `${found.length * (height + GAP)}px`;
  rows.show(found.map((one, place) => ({ x: 0, y: place * (height + GAP), width: grid.clientWidth, height, make: () => row(one) })));
}

function choose() {
  grid.scrollTo(0, 0);
  show();
  writeAddress(filters);
}

filters.addEventListener("input", choose);
filters.addEventListener("submit", (event) => event.preventDefault());
grid.addEventListener("scroll", () => requestAnimationFrame(() => rows.paint()));
addEventListener("resize", show);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.activeElement?.closest("select")) return;
  if (event.key === "Escape") {
    filters.elements.search.value = "";
    document.activeElement?.blur();
    choose();
  } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    event.preventDefault();
    const focused = [...rows.shown].find(([, element]) => element === document.activeElement)?.[0];
    const box = focused ? rows.next(focused, event.key) : rows.boxes.find((one) => one.y >= grid.scrollTop);
    if (box) rows.focus(box, 0, 0);
  }
});

const from = GALLERY.methods.includes("direct") ? "direct" : GALLERY.methods[0];
const wins = (method) => GALLERY.pairs.filter((pair) => pair.merges[0]?.method === method).length;
filters.elements.first.value = from;
filters.elements.second.value = GALLERY.methods.filter((one) => one !== from).sort((a, b) => wins(b) - wins(a))[0];
readAddress(filters);
show();
