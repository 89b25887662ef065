// Before the first paint, so that the page does not flash in the other theme.
(() => {
  let wanted = null;
  try { wanted = localStorage.getItem("kvflow-theme"); } catch { /* storage is off */ }
  if (wanted === "light" || wanted === "dark") document.documentElement.dataset.theme = wanted;
})();
