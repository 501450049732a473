"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const { charts, networks } = JSON.parse(byId("page-data").textContent);
  const named = new Map(networks.map((network) => [network.key, network]));
  document.documentElement.classList.add("scripts");

  const announce = (text) => {
    const place = byId("announcer");
    place.textContent = "";
    window.setTimeout(() => { place.textContent = text; }, 20); // so that the same text is read again
    window.clearTimeout(announce.timer);
    announce.timer = window.setTimeout(() => { place.textContent = ""; }, 4000);
  };

  const choices = (select, pairs) => {
    for (const [value, text] of pairs) select.add(new Option(text, value));
  };
  const unique = (values) => [...new Set(values)];
  const sourceName = (source) => (source === "yours" ? "yours" : `published: ${source}`);

  // Tables: a button in each head that sorts; numbers by their first number, the rest as text.

  const NUMBER = /^[±+−-]?\d[\d,]*\.?\d*(e[+-]?\d+)?/;
  const keyOf = (row, place) => {
    const text = row.cells[place].textContent.trim();
    if (text === "" || text === "—") return null;
    const found = row.cells[place].classList.contains("number") && NUMBER.exec(text);
    if (!found) return text.toLowerCase();
    return Number(found[0].replaceAll(",", "").replace("−", "-").replace("±", ""));
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), undefined, { numeric: true });
  };

  const sort = (table, head, place) => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, place), row]);
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null); // blanks are last
      return direction * compare(one, other);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };

  const makeSortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if ("unsorted" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      head.dataset.title = head.textContent; // for print, where a button is on the first page alone
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, place));
      head.append(button);
    });
  };

  // The runs: filters, and a button that copies a command.

  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { // where a page of a file may not: select it and copy as a user would
      const area = document.createElement("textarea");
      area.value = text;
      area.setAttribute("readonly", "");
      area.style.cssText = "position:fixed;top:0;opacity:0";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };

  const copyButton = (cell) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy the command of ${cell.parentElement.cells[0].textContent}`);
    button.addEventListener("click", async () => {
      const command = cell.querySelector("code").textContent;
      const done = await copyText(command);
      announce(done ? `Copied: ${command}` : "Copying failed; select the command by hand.");
      button.focus();
    });
    cell.prepend(button);
  };

  const startRuns = () => {
    const table = byId("runs-table");
    if (!table) return;
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row) => copyButton(row.querySelector(".command")));
    const source = byId("runs-source"), network = byId("runs-network"), text = byId("runs-text");
    const sources = unique(rows.map((row) => row.dataset.source));
    choices(source, [["", "all"], ...sources.map((name) => [name, sourceName(name)])]);
    choices(network, [["", "all"], ...networks.map(({ key, name }) => [key, name])]);
    const contents = rows.map((row) => row.dataset.search.toLowerCase());
    const filter = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      rows.forEach((row, place) => {
        row.hidden = Boolean(
          (source.value && row.dataset.source !== source.value)
          || (network.value && row.dataset.network !== network.value)
          || (wanted && !contents[place].includes(wanted)),
        );
        shown += !row.hidden;
      });
      byId("runs-count").textContent = `${shown} of ${rows.length} runs`;
    };
    for (const control of [source, network, text]) control.addEventListener("input", filter);
    filter();
    byId("runs-filters").hidden = false;
  };

  // The charts. Each is drawn anew where its width or its controls change.

  const drawInto = (chart, plot) => {
    const place = chart.querySelector(".plot");
    let width = 0;
    const draw = () => {
      width = place.clientWidth;
      if (width) place.replaceChildren(plot(width));
    };
    chart.hidden = false;
    new ResizeObserver(() => { if (Math.abs(place.clientWidth - width) > 1) draw(); }).observe(place);
    draw();
    return draw;
  };

  const base = (width, label, description) => ({
    width, height: Math.max(260, Math.min(400, width * 0.5)), marginLeft: 52, marginBottom: 42,
    style: { background: "none", color: "var(--ink)", fontSize: "12px" },
    ariaLabel: label, ariaDescription: description,
  });
  const asImage = (svg) => {
    svg.setAttribute("role", "img");
    for (const mark of svg.querySelectorAll("g[aria-label]")) { // which a group without a role may not have
      mark.dataset.mark = mark.getAttribute("aria-label");
      mark.removeAttribute("aria-label");
    }
    return svg;
  };
  const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

  const pairsChart = ({ paper, seeds, values, mean, low, high }, width) => {
    const dots = values.map((value, place) => ({ value, place: place + 1, seed: seeds[place] }));
    const known = low !== null;
    const label = `Sorted differences of ${values.length} pairs`;
    const told = known ? `Mean ${points(mean)} points, 95 % interval ${points(low)} to ${points(high)}.` : "";
    const ends = [0.5, values.length + 0.5];
    const right = { x: ends[1], textAnchor: "end", dx: -2 };
    return asImage(Plot.plot({
      ...base(width, label, told),
      x: { label: "pairs, sorted →", domain: ends, ticks: Math.min(values.length, 10), tickFormat: "d" },
      y: { label: "↑ test accuracy, twin − strided (points)", grid: true, nice: true },
      marks: [
        known ? Plot.rect([0], { x1: ends[0], x2: ends[1], y1: low, y2: high, fill: "var(--twin)", fillOpacity: 0.18 }) : null,
        Plot.ruleY([0], { stroke: "var(--ink)" }),
        paper === null ? null : Plot.ruleY([paper], { stroke: "var(--ink)", strokeDasharray: "2 4" }),
        known ? Plot.ruleY([mean], { stroke: "var(--twin)", strokeWidth: 2 }) : null,
        Plot.dot(dots, { x: "place", y: "value", fill: "var(--twin)", r: width < 500 ? 3 : 4, symbol: "triangle" }),
        paper === null ? null : Plot.text([paper], { ...right, y: paper, dy: -8, text: () => `the paper's +${paper}`, fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 4 }),
        known && width > 560 ? Plot.text([mean], { ...right, y: low, dy: 10, text: () => `mean ${points(mean)}, 95 % interval ${points(low)} to ${points(high)}`, fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 4 }) : null,
        Plot.tip(dots, Plot.pointer({ x: "place", y: "value", title: (d) => `seed ${d.seed}\n${points(d.value)} points` })),
      ],
    }));
  };

  const startPairs = () => {
    const chart = byId("chart-pairs");
    if (!chart || !charts.pairs) return;
    const select = byId("pairs-source");
    const sources = charts.pairs;
    choices(select, sources.map(({ source, values }) => [source, `${sourceName(source)} (${values.length} pairs)`]));
    const draw = drawInto(chart, (width) => pairsChart(sources.find(({ source }) => source === select.value), width));
    select.addEventListener("input", draw);
  };

  const QUANTITIES = { 1: "training loss (nats)", 2: "validation loss (nats)", 3: "validation accuracy (%)" };
  const SYMBOLS = ["circle", "triangle", "square", "diamond", "star", "cross", "wye", "times", "plus"];
  const symbolOf = (key) => SYMBOLS[Math.max(networks.findIndex((network) => network.key === key), 0) % SYMBOLS.length];

  const meansOf = (rows) => d3.flatRollup(rows, (of) => d3.mean(of, (row) => row.value), (row) => row.network, (row) => row.epoch)
    .map(([network, epoch, value]) => ({ network, epoch, value }));

  const curvesChart = (curves, quantity, width) => {
    const rows = curves.flatMap(({ run, network, seed, points: of }) => of
      .filter((point) => point[quantity] !== null && (quantity !== 3 || point[0] > 0))
      .map((point) => ({ run, network, seed, epoch: point[0], value: point[quantity] })));
    const means = meansOf(rows);
    const many = curves.length > unique(curves.map(({ network }) => network)).length;
    const colour = (row) => named.get(row.network).colour;
    const name = QUANTITIES[quantity], last = d3.max(rows, (row) => row.epoch) ?? 1;
    return asImage(Plot.plot({
      ...base(width, `${name} by epoch of ${curves.length} runs`, "A thin line is a run, a thick one the mean of a network."),
      x: { label: "epoch →", ticks: Math.min(8, Math.max(1, Math.ceil(last))), domain: [rows.some((row) => row.epoch === 0) ? 0 : d3.min(rows, (row) => row.epoch) ?? 0, last], inset: 8 },
      y: { label: `↑ ${name}`, grid: true, nice: true },
      marks: [
        Plot.line(rows, { x: "epoch", y: "value", z: "run", stroke: colour, strokeOpacity: many ? 0.35 : 1, strokeWidth: 1 }),
        Plot.dot(rows, { x: "epoch", y: "value", stroke: colour, strokeOpacity: many ? 0.5 : 1, symbol: (row) => symbolOf(row.network), r: 2 }),
        Plot.line(means, { x: "epoch", y: "value", z: "network", stroke: colour, strokeWidth: 2.5 }),
        Plot.dot(means, { x: "epoch", y: "value", fill: colour, symbol: (row) => symbolOf(row.network), r: 4.5 }),
        Plot.tip(rows, Plot.pointer({ x: "epoch", y: "value", title: (row) =>
          `${named.get(row.network).name}, seed ${row.seed}\nepoch ${+row.epoch.toFixed(3)}: ${+row.value.toPrecision(5)}` })),
      ],
      symbol: { type: "identity" },
    }));
  };

  const MARKS = { circle: "●", triangle: "▲", square: "■", diamond: "◆", star: "★", cross: "✚", wye: "Y", times: "✖", plus: "+" };
  const networkBoxes = (place, keys) => {
    for (const key of keys) {
      const label = document.createElement("label"), box = document.createElement("input");
      const mark = document.createElement("span");
      Object.assign(box, { type: "checkbox", checked: true, value: key });
      mark.textContent = MARKS[symbolOf(key)];
      mark.style.color = named.get(key).colour;
      mark.setAttribute("aria-hidden", "true");
      label.append(box, mark, named.get(key).name);
      place.append(label);
    }
  };

  const startCurves = () => {
    const chart = byId("chart-curves");
    if (!chart || !charts.curves) return;
    const source = byId("curves-source"), quantity = byId("curves-quantity"), seed = byId("curves-seed");
    const boxes = byId("curves-networks");
    choices(source, unique(charts.curves.map((curve) => curve.source)).map((name) => [name, sourceName(name)]));
    const ofSource = () => charts.curves.filter((curve) => curve.source === source.value);
    const refill = () => {
      seed.replaceChildren();
      choices(seed, [["", "all"], ...unique(ofSource().map((curve) => curve.seed)).sort(d3.ascending).map((s) => [s, s])]);
      boxes.querySelectorAll("label").forEach((label) => label.remove());
      const there = new Set(ofSource().map((curve) => curve.network));
      networkBoxes(boxes, networks.map(({ key }) => key).filter((key) => there.has(key)));
    };
    const chosen = () => {
      const shown = new Set([...boxes.querySelectorAll("input:checked")].map((box) => box.value));
      return ofSource().filter((curve) => shown.has(curve.network) && (seed.value === "" || curve.seed === Number(seed.value)));
    };
    refill();
    const draw = drawInto(chart, (width) => {
      const curves = chosen();
      byId("curves-count").textContent = `${curves.length} of ${ofSource().length} runs; a thin line is a run, a thick one the mean of a network.`;
      return curvesChart(curves, Number(quantity.value), width);
    });
    source.addEventListener("input", () => { refill(); draw(); });
    for (const control of [quantity, seed, boxes]) control.addEventListener("input", draw);
  };

  // The contents: which section is in sight.

  const startContents = () => {
    const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id).setAttribute("aria-current", "true");
      }
    }, { rootMargin: "-10% 0px -80% 0px" });
    document.querySelectorAll("main > section").forEach((section) => { if (links.has(section.id)) seen.observe(section); });
  };

  document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  startRuns();
  startPairs();
  startCurves();
  startContents();
  if (window.Explorer && byId("explorer")) window.Explorer.mount(byId("explorer"));
})();
