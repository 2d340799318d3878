// Draws every chart of the page from the specifications in #specs, as wide as its place; switches
// light and dark, and deployments on and off. The page's text and tables stand without it.
(() => {
  const DESIGNED = 1052, STACKED = 700;
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const root = document.documentElement;
  const views = new Map(), drawnAt = new Map(), hushed = new Set();

  const children = (spec) => [...(spec.hconcat || []), ...(spec.vconcat || []),
    ...(spec.layer || []), ...(spec.spec ? [spec.spec] : [])];

  const each = (spec, visit) => { visit(spec); children(spec).forEach((one) => each(one, visit)); };

  // [[spec with a width of its own, ...], ...]: those of one row stand beside each other.
  const rows = (spec) => {
    if (spec.hconcat) return [spec.hconcat.flatMap((one) => rows(one)[0] || [])];
    if (spec.vconcat) return spec.vconcat.flatMap(rows);
    if (spec.spec) return rows(spec.spec);
    if (typeof spec.width === "number") return [[spec]];
    return spec.layer ? rows(spec.layer.find((one) => typeof one.width === "number") || {}) : [];
  };

  const total = (row) => row.reduce((sum, one) => sum + one.width, 0);

  const narrowed = (spec, room) => {
    if (spec.hconcat) { spec.vconcat = spec.hconcat; delete spec.hconcat; }
    each(spec, (one) => {
      if (one.layer && one.layer.length > 1)  // labels inside marks would lie over each other
        one.layer = one.layer.filter((part) => !part.mark || (part.mark.type || part.mark) !== "text");
      if (one.facet && one.facet.row)
        one.facet.row = { ...one.facet.row,
          header: { ...one.facet.row.header, labelOrient: "top", labelAnchor: "start" } };
      for (const channel of Object.values(one.encoding || {})) {
        if (channel && channel.legend && channel.legend.orient !== "right")
          channel.legend = { ...channel.legend, columns: Math.max(1, Math.floor(room / 210)) };
        if (channel && channel.legend && channel.legend.orient === "right")
          channel.legend = { ...channel.legend, orient: "top", gradientLength: room / 2 };
        if (channel && channel.axis && channel.axis.labelLimit)
          channel.axis = { ...channel.axis, labelLimit: room / 3 };
      }
    });
    spec.config = { ...spec.config, legend: { ...spec.config.legend, labelLimit: room - 110 },
      axis: { ...spec.config.axis, labelLimit: room / 3 } };
  };

  // Marks coloured by deployment fade where the reader has switched theirs off.
  const fading = (spec) => {
    let any = false;
    each(spec, (one) => {
      const colour = one.encoding && one.encoding.color;
      if (!colour || colour.field !== "deployment") return;
      any = true;
      one.encoding.opacity = {
        condition: { test: "indexof(hushed, datum.deployment) >= 0", value: 0.06 }, value: 1,
      };
    });
    if (any) spec.params = [...(spec.params || []), { name: "hushed", value: [...hushed] }];
  };

  const embed = async (place, spec) => {
    const found = await vegaEmbed(place, spec, {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: place.dataset.chart,
    });
    if (spec.params && spec.params.some((one) => one.name === "hushed"))
      views.set(place, found.view);
    const svg = place.querySelector("svg.marks");
    return svg ? svg.width.baseVal.value : 0;
  };

  const draw = async (place) => {
    const room = Math.floor(place.clientWidth);
    if (!room) return;
    const spec = structuredClone(specs[place.dataset.chart]);
    fading(spec);
    if (room < STACKED) narrowed(spec, room);
    const wide = rows(spec);
    const most = Math.max(0, ...wide.map(total));
    for (const row of wide) {
      const now = total(row);
      const goal = room < STACKED ? Math.min(now, room - 90)
        : now > 0.7 * DESIGNED ? now + room - DESIGNED : Math.min(now, room - 180);
      for (const one of row) one.width *= Math.max(goal, 120 * row.length) / now;
    }
    let over = (await embed(place, spec)) - room;
    for (let tries = 0; most && over > 1 && tries < 3; tries += 1) {
      for (const row of wide) {
        const now = total(row), goal = Math.max(now - over - 2, 40 * row.length);
        for (const one of row) one.width *= goal / now;
      }
      over = (await embed(place, spec)) - room;
    }
    drawnAt.set(place, room);
  };

  const drawAll = async () => {
    let failed = 0;
    for (const place of document.querySelectorAll(".chart")) {
      if (Math.abs((drawnAt.get(place) || 0) - place.clientWidth) < 12) continue;
      try {
        await draw(place);
      } catch (error) {
        failed += 1;
        place.textContent = `This chart could not be drawn: ${error.message}`;
      }
    }
    root.dataset.charts = failed ? `failed ${failed}` : "drawn";
  };

  let waiting = 0;
  addEventListener("resize", () => {
    if (matchMedia("print").matches) return;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });

  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches
    ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  theme.hidden = false;

  for (const button of document.querySelectorAll(".key button")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const name = button.dataset.deployment, shown = hushed.has(name);
      if (shown) hushed.delete(name); else hushed.add(name);
      for (const same of document.querySelectorAll(".key button"))
        if (same.dataset.deployment === name) same.setAttribute("aria-pressed", String(shown));
      for (const view of views.values()) view.signal("hushed", [...hushed]).run();
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("section details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  drawAll();
})();
