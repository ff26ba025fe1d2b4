"use strict";
const filters = document.getElementById("filters");

function show() {
  const { subject, style, method } = Object.fromEntries(new FormData(filters));
  for (const row of document.querySelectorAll("tr[data-subject]")) row.hidden = subject && row.dataset.subject !== subject;
  for (const cell of document.querySelectorAll("[data-style]")) cell.hidden = style && cell.dataset.style !== style;
  for (const cell of document.querySelectorAll("td[data-style]")) {
    cell.querySelectorAll("a.cell").forEach((merge, place) => {
      merge.hidden = method ? merge.dataset.method !== method : place > 0;
    });
  }
  const chosen = new URLSearchParams([...new FormData(filters)].filter(([, value]) => value));
  history.replaceState(null, "", `#${chosen}`);
}

if (filters) {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (filters.elements[name]) filters.elements[name].value = value;
  }
  filters.hidden = false;
  filters.addEventListener("input", show);
  show();
}

addEventListener("keydown", (event) => {
  const way = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (way && !event.ctrlKey && !event.metaKey && !event.altKey) document.querySelector(`a[rel=${way}]`)?.click();
});
