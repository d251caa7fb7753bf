(address) => {
  // Themes and other parameters that are none of ours stay.
  const theme = new URLSearchParams(location.search).get("__theme");
  const wanted = new URLSearchParams(address);
  const links = [...document.querySelectorAll("#bar nav a")].map((link) => link.getAttribute("href"));
  // Of the first part's views, and of parts that there are not, the address need not name one.
  const partOf = (search) => {
    const name = new URLSearchParams(search).get("tab");
    return links.includes(`?tab=${name}`) ? name : null;
  };
  // A late answer to what was done on a part that has been left meanwhile: it may have opened that part again.
  if (partOf(address) !== partOf(location.search)) {
    window.dispatchEvent(new PopStateEvent("popstate"));
    return;
  }
  if (theme) wanted.set("__theme", theme);
  const search = wanted.toString() ? `?${wanted}` : "";
  if (search !== location.search) history.replaceState(null, "", location.pathname + search);
}
