"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 760px)");
  const page = document.documentElement;
  let printing = false;

  // Tables first: they work even where the figures cannot be drawn.
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const numeric = head.classList.contains("n");
        const keyOf = (row) => {
          const cell = row.cells[column];
          return numeric ? Number.parseFloat(cell.dataset.v ?? "NaN") : cell.textContent.trim();
        };
        const order = (a, b) => {
          if (!numeric) return up ? a[0].localeCompare(b[0]) : b[0].localeCompare(a[0]);
          if (Number.isNaN(a[0]) || Number.isNaN(b[0])) return Number.isNaN(a[0]) - Number.isNaN(b[0]);
          return up ? a[0] - b[0] : b[0] - a[0];
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].map((row) => [keyOf(row), row]).sort(order).map(([, row]) => row));
      });
    });
  }
  const filter = byId("filter");
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of byId("trials-table").tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    byId("filter-count").textContent = words.length ? `${left} shown` : "";
  });

  let redraw = () => {};
  byId("theme").addEventListener("click", () => {
    const dark = page.dataset.theme ? page.dataset.theme === "dark" : darkScheme.matches;
    page.dataset.theme = dark ? "light" : "dark";
    redraw();
  });

  const library = byId("plotly");
  if (!library) {
    page.dataset.ready = "yes";
    return;
  }
  try {
    const bytes = Uint8Array.from(atob(library.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("the figure library did not start");
  } catch (error) {
    for (const node of document.querySelectorAll(".needs-script")) node.hidden = true;
    for (const node of document.querySelectorAll(".without-script")) node.hidden = false;
    console.warn(`the figure is shown as a picture only: ${error.message}`);
    return;
  }

  const data = JSON.parse(byId("figures").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    // Plotly would offer to send the data of the figure to a server of its makers.
    showSendToCloud: false,
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d", "autoScale2d"],
  };
  const theme = () => {
    const forced = page.dataset.theme;
    return data.themes[!printing && (forced ? forced === "dark" : darkScheme.matches) ? "dark" : "light"];
  };
  const drawn = new Map();
  const draw = (node, figure) => {
    drawn.set(node, figure);
    const layout = { ...figure.layout, ...(narrow.matches ? figure.narrow : {}), template: theme(), autosize: true };
    return Plotly.react(node, figure.data, layout, config);
  };
  redraw = () => Promise.all([...drawn].map(([node, figure]) => draw(node, figure)));

  const scatter = byId("tradeoff");
  if (scatter && data.tradeoff) {
    const { figure, narrow: narrowLayout, switch: options } = data.tradeoff;
    const picked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
    const show = () => {
      const axis = picked("size-axis");
      const score = options.scores[picked("score-axis")];
      // Where all students took the same route, nothing is to be chosen.
      const coloured = document.querySelector('input[name="colours"]:checked')?.value ?? "style";
      byId("tradeoff-controls").dataset.colours = coloured;
      const colours = options.colours[coloured];
      const unchecked = [...document.querySelectorAll("input[data-kind]:not(:checked)")];
      const hidden = new Set(unchecked.map((input) => JSON.stringify([input.dataset.kind, input.value])));
      const kinds = Object.entries(options.kinds);
      const log = byId("log").checked;
      // On a log axis plotly labels every digit where there is room for this many; few let it choose 1, 2 and 5.
      const nticks = narrow.matches ? 3 : log ? 4 : 9;
      const traces = figure.data.map((trace, index) => ({
        ...trace,
        x: options.axes[axis][log ? "spread" : "x"][index],
        y: score.y[index],
        ...(colours[index] ? { marker: { ...trace.marker, color: colours[index] } } : {}),
        ...(trace.error_y
          ? { error_y: { ...trace.error_y, array: score.errors[index], color: colours[index] ?? trace.error_y.color } }
          : {}),
        visible: options.fronts[index]
          ? options.fronts[index] === axis
          : !kinds.some(([kind, names]) => hidden.has(JSON.stringify([kind, names[index]]))),
      }));
      const layout = {
        ...figure.layout,
        xaxis: { ...figure.layout.xaxis, type: log ? "log" : "linear", nticks, tickformat: options.axes[axis].tickformat, title: { text: options.axes[axis].title } },
        yaxis: { ...figure.layout.yaxis, title: { text: score.title }, ...(score.range ? { range: score.range } : {}) },
        shapes: score.lines.flatMap((line, index) =>
          line === null ? [] : [{ ...options.line, y0: line, y1: line, name: `teacher ${index}` }],
        ),
      };
      return draw(scatter, { data: traces, layout, narrow: narrowLayout });
    };
    for (const button of document.querySelectorAll("#tradeoff-controls button")) {
      const kind = button.dataset.all ?? button.dataset.none;
      button.addEventListener("click", () => {
        for (const input of document.querySelectorAll(`input[data-kind="${kind}"]`)) input.checked = "all" in button.dataset;
        show();
      });
    }
    for (const input of document.querySelectorAll("#tradeoff-controls input")) {
      input.addEventListener("change", show);
    }
    await show();
    narrow.addEventListener("change", show);
    const open = (point) => {
      const address = options.links[point.curveNumber]?.[point.pointNumber];
      if (address) window.open(address, "_blank", "noopener");
    };
    scatter.on("plotly_click", (event) => open(event.points[0]));
    // The arrow keys move over winners and teachers from left to right; the faint points are in the table.
    const walk = () => {
      const shown = scatter.data.flatMap((trace, curveNumber) =>
        trace.visible === false || trace.hoverinfo === "skip" || trace.opacity < 0.5
          ? []
          : [...trace.x].map((x, pointNumber) => ({ x, curveNumber, pointNumber })).filter((point) => point.x !== null),
      );
      return shown.sort((a, b) => a.x - b.x || a.curveNumber - b.curveNumber);
    };
    let place = -1;
    scatter.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const points = walk();
      if (event.key === "Enter" && points[place]) open(points[place]);
      if (event.key === "Escape") Plotly.Fx.unhover(scatter);
      if (!step || !points.length) return;
      event.preventDefault();
      place = place < 0 ? (step > 0 ? 0 : points.length - 1) : (place + step + points.length) % points.length;
      const { curveNumber, pointNumber } = points[place];
      Plotly.Fx.hover(scatter, [{ curveNumber, pointNumber }]);
      const words = scatter.data[curveNumber].customdata[pointNumber];
      const parsed = new DOMParser().parseFromString(words.replace(/<br>/g, ", "), "text/html");
      byId("tradeoff-point").textContent = parsed.body.textContent;
    });
  }

  for (const select of document.querySelectorAll("select[data-figures]")) {
    const panels = byId(select.dataset.into);
    const show = () => {
      for (const old of panels.children) {
        drawn.delete(old);
        Plotly.purge(old);
      }
      panels.replaceChildren();
      for (const figure of data[select.dataset.figures][select.value] ?? []) {
        const node = document.createElement("div");
        panels.append(node);
        draw(node, figure);
      }
    };
    select.addEventListener("change", show);
    show();
  }

  darkScheme.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  page.dataset.ready = "yes";
})();
