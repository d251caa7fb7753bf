(address) => {
  // Themes and other parameters that are none of ours stay.
  const theme = new URLSearchParams(location.search).get("__theme");
  const wanted = new URLSearchParams(address);
  // A late answer to what was done on a part that has been left meanwhile.
  if (wanted.get("tab") !== new URLSearchParams(location.search).get("tab")) return;
  if (theme) wanted.set("__theme", theme);
  const search = wanted.toString() ? `?${wanted}` : "";
  if (search !== location.search) history.replaceState(null, "", location.pathname + search);
}
