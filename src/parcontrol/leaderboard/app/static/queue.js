// Ages grow while the page is open, by the server's clock: the browser's own may be wrong.
let started = performance.now();
watch("value", () => { started = performance.now(); });

const words = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return "under a minute";
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} days`;
};
setInterval(() => {
  const queue = element.querySelector(".queue");
  if (!queue) return;
  const now = Number(queue.dataset.now) + (performance.now() - started) / 1000;
  for (const age of queue.querySelectorAll("[data-since]")) {
    const text = words(now - Number(age.dataset.since));
    if (age.textContent !== text) age.textContent = text;
  }
  for (const end of queue.querySelectorAll("[data-until]")) {
    const text = now < Number(end.dataset.until) ? "" : "(over: the next worker takes it on)";
    if (end.textContent !== text) end.textContent = text;
  }
}, 15000);
