// What a point of a plot stands for, under the pointer; a click on a point opens its model. The same is in the text and
// the tables beside the plot, for keyboards and screen readers.
let tip = document.querySelector("body > .plot-tip");
if (!tip) {
  tip = document.createElement("div");
  tip.className = "plot-tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
}
let shown = null;

const pointOf = (event) => event.target.closest && event.target.closest("[data-tip]");
const hide = () => {
  shown = null;
  tip.hidden = true;
};
const show = (point) => {
  shown = point;
  tip.textContent = point.getAttribute("data-tip");
  tip.hidden = false;
  const at = point.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const above = at.top - size.height - 8;
  tip.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - size.width / 2, innerWidth - size.width - 8))}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
};

element.addEventListener("pointerover", (event) => {
  const point = pointOf(event);
  if (point && event.pointerType === "mouse") show(point);
});
element.addEventListener("pointerout", (event) => pointOf(event) && event.pointerType === "mouse" && hide());
element.addEventListener("click", (event) => {
  const point = pointOf(event);
  if (!point) return hide();
  // A finger sees the values first, and opens the model with a second touch.
  if (event.pointerType !== "mouse" && shown !== point) return show(point);
  const href = point.getAttribute("data-href");
  if (!href) return;
  hide();
  const link = document.createElement("a");
  link.href = href;
  element.append(link);
  link.click();
  link.remove();
});
window.addEventListener("scroll", hide, { passive: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
