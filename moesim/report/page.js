// Draws every chart of the page from the specifications in #specs; the page's text stays without it.
(async () => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: "moesim-chart",
  };
  let failed = 0;
  for (const place of document.querySelectorAll(".chart")) {
    try {
      const named = { ...options, downloadFileName: place.dataset.chart };
      await vegaEmbed(place, specs[place.dataset.chart], named);
    } catch (error) {
      failed += 1;
      place.textContent = `This chart could not be drawn: ${error.message}`;
    }
  }
  document.documentElement.dataset.charts = failed ? `failed ${failed}` : "drawn";
})();
