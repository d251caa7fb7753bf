// Follows links inside the page without loading it again, and keeps focus and screen readers where they were.
let kept = null;
const isInside = (link) => (link.getAttribute("href") || "").startsWith("?") && !link.hasAttribute("data-out");

document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest("a[href]");
  if (!link || !isInside(link) || event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  kept = link.getAttribute("data-keep");
  const address = link.getAttribute("href");
  const leaves = new URLSearchParams(address).get("tab") !== new URLSearchParams(location.search).get("tab");
  history.pushState(null, "", address === "?" ? location.pathname : address);
  if (leaves) window.scrollTo(0, 0);
  trigger("click", { address });
});
window.addEventListener("popstate", () => trigger("click", { address: location.search }));

// What is shown is replaced as a whole: the link that was followed gets its focus back, and the count is read out. The
// bar, which may be wider than a phone, shows where one is.
let here = null;
new MutationObserver(() => {
  const current = document.querySelector("#bar nav [aria-current]");
  if (current && current !== here) {
    const nav = current.closest("nav");
    const [at, around] = [current.getBoundingClientRect(), nav.getBoundingClientRect()];
    nav.scrollLeft += at.left + at.width / 2 - (around.left + around.width / 2);
    here = current;
  }
  if (kept) {
    const link = document.querySelector(`[data-keep="${CSS.escape(kept)}"]`);
    if (link && document.activeElement !== link && (document.activeElement === document.body || !document.activeElement)) {
      link.focus({ preventScroll: true });
    }
  }
  const said = document.querySelector("[data-announce]");
  const announcer = element.querySelector("#announcer");
  if (said && announcer && announcer.textContent !== said.textContent) announcer.textContent = said.textContent;
}).observe(document.body, { childList: true, subtree: true });
