// The page of a pair: arrows turn, escape goes back, and command lines can be copied.
"use strict";

document.querySelector("a[rel=up]").href += lastView();

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.activeElement?.closest(".scroll")) return;
  const way = { ArrowLeft: "prev", ArrowRight: "next", Escape: "up" }[event.key];
  if (way) document.querySelector(`a[rel=${way}]`)?.click();
});

for (const command of document.querySelectorAll(".command")) {
  const button = make("button", { type: "button" }, "copy"), text = command.querySelector("code");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
    } catch {
      button.textContent = "selected";
    }
  });
  command.querySelector(".what").append(button);
}
