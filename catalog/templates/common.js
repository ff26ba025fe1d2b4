// What the grid and the comparison share: elements, boxes that exist only while they can be seen, and keys.
"use strict";

const NARROW = matchMedia("(max-width: 640px)");
const GAP = 8;
const NEAR = 150; // what lies so far outside the view is drawn already

/** An element; what a stranger wrote goes in as text and stays text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function picture(name, alt) {
  if (!name) return make("span", { class: "blank" }, "no preview yet");
  return make("img", { src: `pictures/${name}`, alt, decoding: "async", draggable: "false" });
}

function score(value) {
  if (value === null) return make("span", { class: "score none", title: "not ranked" }, "–");
  return make("span", { class: `score s${Math.floor(value * 10)}` }, value.toFixed(2));
}

function named(name) {
  return make("span", { class: "name", title: name }, make("bdi", {}, name));
}

/** Whether a pair's names hold all the words; of no words, every pair's do. */
function finder(search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const names = (role) => role.map((one) => one.name.toLowerCase());
  const subjects = names(GALLERY.subjects), styles = names(GALLERY.styles);
  return (pair) => words.every((word) => subjects[pair.subject].includes(word) || styles[pair.style].includes(word));
}

/** A layer of a surface that scrolls along `axes`: of its boxes {x, y, width, height, make}, those near the view are elements. */
class Layer {
  constructor(scroller, parent, name, axes = "xy") {
    this.scroller = scroller;
    this.axes = axes;
    this.element = make("div", { class: name });
    parent.append(this.element);
    this.shown = new Map();
    this.boxes = [];
  }

  show(boxes) {
    this.boxes = boxes;
    this.shown.clear();
    this.element.replaceChildren();
    this.paint();
  }

  paint() {
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.scroller;
    const left = this.axes.includes("x") ? scrollLeft : 0, top = this.axes.includes("y") ? scrollTop : 0;
    for (const box of this.boxes) {
      const near = box.x < left + clientWidth + NEAR && box.x + box.width > left - NEAR
        && box.y < top + clientHeight + NEAR && box.y + box.height > top - NEAR;
      const element = this.shown.get(box);
      if (near && !element) this.add(box);
      else if (!near && element) {
        element.remove();
        this.shown.delete(box);
      }
    }
  }

  add(box) {
    const element = box.make();
    Object.assign(element.style, { left: `${box.x}px`, top: `${box.y}px`, width: `${box.width}px`, height: `${box.height}px` });
    this.element.append(element);
    this.shown.set(box, element);
  }

  /** The next box from one that is focused: in its row or its column. */
  next(box, key) {
    const sideways = key === "ArrowLeft" || key === "ArrowRight", ahead = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    const [along, across] = sideways ? ["x", "y"] : ["y", "x"];
    const way = (one) => (one[along] - box[along]) * ahead;
    return this.boxes.filter((one) => one[across] === box[across] && way(one) > 0).sort((a, b) => way(a) - way(b))[0];
  }

  /** Brings a box into view, beside heads that cover `left` and `top`, and focuses it. */
  focus(box, left, top) {
    const { scroller } = this;
    const within = (at, from, size, view) => Math.min(Math.max(at, from + size + GAP - view), from - GAP);
    scroller.scrollLeft = within(scroller.scrollLeft, box.x, left + box.width, scroller.clientWidth);
    scroller.scrollTop = within(scroller.scrollTop, box.y, top + box.height, scroller.clientHeight);
    this.paint();
    this.shown.get(box).focus({ preventScroll: true });
    this.shown.get(box).scrollIntoView({ block: "nearest" });
  }
}

/** Values of a form from the address, and back into it, so that a view can be kept and sent. */
function readAddress(form) {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements[name];
    if (field && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value))) field.value = value;
  }
}

function writeAddress(form) {
  const chosen = [...new FormData(form)].filter(([name, value]) => value && !(name === "least" && value === "0"));
  history.replaceState(history.state, "", chosen.length ? `#${new URLSearchParams(chosen)}` : location.pathname);
}

/** The filters of the grid when it was left, or now these; a browser that keeps nothing for files forgets them. */
function lastView(view) {
  try {
    if (view !== undefined) sessionStorage.setItem("view", view);
    return sessionStorage.getItem("view") ?? "";
  } catch {
    return "";
  }
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.querySelector("input[type=search]");
  if (event.key === "/" && search && document.activeElement !== search) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});
