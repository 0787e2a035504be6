"use strict";

const root = document.documentElement;
root.classList.add("script");

function remembered(theme) {
  // A page opened from disk may be refused storage; the theme then lasts as long as the page.
  try {
    if (theme) localStorage.setItem("reta-theme", theme);
    return localStorage.getItem("reta-theme");
  } catch {
    return null;
  }
}

// Before the first paint, so that a dark page never flashes white.
if (remembered()) root.dataset.theme = remembered();

function themeButton(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const other = () => (current() === "dark" ? "light" : "dark");
  const label = () => {
    button.textContent = other() === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Switch to the ${other()} theme`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = other();
    remembered(root.dataset.theme);
    label();
  });
  system.addEventListener("change", label);
  label();
}

function classFilter(group) {
  const items = document.getElementById(group.dataset.filter).children;
  const all = group.querySelector("[data-all]");
  const buttons = [...group.querySelectorAll("[data-class]")];
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button === all) buttons.forEach((other) => press(other, false));
    else press(button, !pressed(button));
    const chosen = buttons.filter(pressed).map((other) => other.dataset.class);
    press(all, chosen.length === 0);
    for (const item of items) {
      item.hidden = chosen.length > 0 && !chosen.includes(item.dataset.label);
    }
  });
}

// Of very many classes only some are shown at a time: the page stays short, also in print.
function classSearch(group) {
  const items = [...document.getElementById(group.dataset.search).children];
  const field = group.querySelector("input");
  const more = group.querySelector("button");
  const status = group.querySelector("[role=status]");
  const page = Number(group.dataset.page);
  let limit = page;
  const show = () => {
    const wanted = field.value.trim().toLowerCase();
    const found = items.filter((item) => item.dataset.name.includes(wanted));
    const shown = new Set(found.slice(0, limit));
    for (const item of items) item.hidden = !shown.has(item);
    status.textContent = `${shown.size} of ${found.length} classes`;
    more.hidden = shown.size === found.length;
  };
  field.addEventListener("input", () => {
    limit = page;
    show();
  });
  more.addEventListener("click", () => {
    limit *= 2;
    show();
  });
  show();
}

function toggle(button) {
  const target = document.getElementById(button.dataset.toggle);
  button.addEventListener("click", () => {
    const on = target.classList.toggle("anchored");
    button.setAttribute("aria-pressed", String(on));
  });
}

function classChooser(select) {
  const panels = document.getElementById(select.dataset.choose).children;
  const show = () => {
    for (const panel of panels) panel.hidden = panel.dataset.panel !== select.value;
  };
  select.addEventListener("change", show);
  show();
}

function evolution(section) {
  const stage = section.querySelector(".stage");
  const picture = stage.querySelector("img");
  const words = stage.querySelector(".moment");
  const range = stage.querySelector("input");
  const moves = [...stage.querySelectorAll("[data-step]")];
  let strip = null;

  const show = (index) => {
    const frames = [...strip.querySelectorAll(".frame")];
    const place = Math.max(0, Math.min(index, frames.length - 1));
    const frame = frames[place];
    const image = frame.querySelector("img");
    section.querySelector("[aria-current]")?.removeAttribute("aria-current");
    frame.setAttribute("aria-current", "step");
    picture.src = image.src;
    picture.alt = image.alt;
    picture.className = image.className;
    picture.classList.toggle("anchor", frame.parentElement.classList.contains("anchor"));
    words.textContent = image.alt;
    // Only the strip scrolls; scrollIntoView would take the page along.
    strip.scrollLeft = frame.parentElement.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
    range.max = frames.length - 1;
    range.value = place;
    range.setAttribute("aria-valuetext", frame.textContent.trim());
    moves[0].disabled = place === 0;
    moves[1].disabled = place === frames.length - 1;
  };
  const begin = () => {
    strip = section.querySelector(".film:not([hidden]) .strip");
    show(strip.children.length - 1);
  };
  range.addEventListener("input", () => show(Number(range.value)));
  moves.forEach((button) =>
    button.addEventListener("click", () => show(Number(range.value) + Number(button.dataset.step))),
  );
  section.querySelector("select").addEventListener("change", begin);
  section.addEventListener("click", (event) => {
    const frame = event.target.closest(".frame");
    if (!frame) return;
    strip = frame.closest(".strip");
    show([...strip.children].indexOf(frame.parentElement));
  });
  begin();
}

function zoom(dialog) {
  const [picture, real] = dialog.querySelectorAll("img");
  const caption = dialog.querySelector("p");
  let shown = null;
  const show = (shot) => {
    const image = shot.querySelector("img:not(.real)");
    shown = shot;
    picture.src = image.src;
    picture.alt = image.alt;
    picture.className = image.className;
    const anchor = shot.querySelector("img.real");
    real.hidden = !anchor;
    if (anchor) {
      real.src = anchor.src;
      real.alt = anchor.alt;
      real.className = anchor.className;
    }
    caption.textContent = anchor
      ? `${shot.dataset.caption} · right: ${shot.dataset.anchor}`
      : shot.dataset.caption;
  };
  const move = (by) => {
    const shots = [...document.querySelectorAll(".shot")].filter((shot) => shot.offsetParent);
    show(shots[(shots.indexOf(shown) + by + shots.length) % shots.length]);
  };
  document.addEventListener("click", (event) => {
    const shot = event.target.closest(".shot");
    if (!shot) return;
    show(shot);
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.move) move(Number(button.dataset.move));
    // A click on the backdrop has the dialog itself as its target.
    else if (button || event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("close", () => shown.focus());
}

document.addEventListener("DOMContentLoaded", () => {
  themeButton(document.getElementById("theme"));
  document.querySelectorAll("[data-filter]").forEach(classFilter);
  document.querySelectorAll("[data-search]").forEach(classSearch);
  document.querySelectorAll("[data-toggle]").forEach(toggle);
  document.querySelectorAll("[data-choose]").forEach(classChooser);
  document.querySelectorAll("[data-evolution]").forEach(evolution);
  zoom(document.getElementById("zoom"));
});
