"use strict";
const PAGE = JSON.parse(document.getElementById("page-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), printing = matchMedia("print");
const NARROW = 700; // pixels: below, the legend goes under the plot, where it has room
const PRINTED = 670; // pixels: an A4 page between its margins has 680
const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

// The colours of all plots, for one theme.
function template(isDark) {
  const text = isDark ? "#e4e7eb" : "#1b1f24", line = isDark ? "#363d46" : "#e1e5ea", back = isDark ? "#14171c" : "#ffffff";
  const axis = { gridcolor: line, linecolor: line, zeroline: false, automargin: true, title: { standoff: 12 } };
  return { layout: { paper_bgcolor: back, plot_bgcolor: back, font: { color: text, size: 13, family: getComputedStyle(document.body).fontFamily },
    xaxis: axis, yaxis: axis, colorway: ["#4c8bd0", "#d98324", "#4aa564", "#a06bc4", "#c9505a"], hoverlabel: { font: { size: 13 } } } };
}

function theme() { return template(dark.matches && !printing.matches); }

// A name of an axis, without its middle if it is long; Plotly's escapes count as letters.
function shorten(name, most) {
  const letters = String(name).match(/&(?:amp|lt|gt);|./gsu) || [];
  const half = most >> 1;
  return letters.length > most ? [...letters.slice(0, half), "…", ...letters.slice(half + 1 - most)].join("") : name;
}

// The layout for the page's width.
function arrange(layout, data, width) {
  for (const trace of data.filter(trace => trace.type === "heatmap")) {
    trace.showscale = width >= NARROW;
    for (const [axis, names] of [["xaxis", trace.x], ["yaxis", trace.y]]) {
      const step = axis === "xaxis" && width < NARROW ? Math.ceil(names.length / 14) : 1; // of more, names overlap
      const tickvals = names.filter((_, i) => i % step === 0);
      layout[axis] = { ...layout[axis], tickvals, ticktext: tickvals.map(name => shorten(name, width < NARROW ? 14 : 26)) };
    }
  }
  const names = data.filter(trace => trace.showlegend !== false && trace.type !== "heatmap").length;
  const legend = width < NARROW ? { orientation: "h", y: -0.25, yanchor: "top", x: 0, ...layout.legend } : { ...layout.legend };
  for (const axis of Object.values(layout)) if (PAGE.texts[axis.title]) axis.title = { text: PAGE.texts[axis.title] };
  const grows = width < NARROW ? (layout.height || 420) + 22 * names : Math.max(layout.height || 480, names > 8 ? 170 + 22 * names : 0);
  return { margin: { l: 20, r: 12, t: 16, b: 20 }, hovermode: "closest", ...layout, height: grows, legend, template: theme() };
}

// The choices of a plot: a select for each part of the options' keys; the last follows the first.
function choose(name) {
  const { options } = PAGE.plots[name], bar = document.querySelector(`[data-choices="${name}"]`);
  const selects = options[0].key.map((_, level) => {
    const label = document.createElement("label"), select = document.createElement("select");
    label.append(bar.dataset.label || "", select);
    select.setAttribute("aria-label", `${document.getElementById("plot-" + name).getAttribute("aria-label")} ${level + 1}`);
    bar.append(label);
    return select;
  });
  const fill = () => selects.forEach((select, level) => {
    const before = select.value, chosen = selects.slice(0, level).map(other => other.value);
    const fits = options.filter(option => chosen.every((value, i) => option.key[i] === value));
    const values = [...new Set(fits.map(option => option.key[level]))];
    select.replaceChildren(...values.map(value => new Option(value, value)));
    select.value = values.includes(before) ? before : values[0];
  });
  fill();
  selects.forEach(select => select.addEventListener("change", () => { fill(); draw(name); }));
  return () => options.find(option => option.key.every((value, i) => selects[i].value === value));
}

const current = Object.fromEntries(Object.keys(PAGE.plots).map(name => [name, choose(name)]));

function draw(name) {
  const div = document.getElementById(`plot-${name}`), option = current[name](), plot = PAGE.plots[name];
  document.getElementById(`note-${name}`).textContent = option.note;
  // Plotly changes what it is given.
  const data = structuredClone(option.data), layout = arrange(structuredClone(plot.layout), data, div.clientWidth);
  return Plotly.react(div, data, layout, CONFIG);
}

// New colours and, on paper, a new width, with the methods that the reader has on.
function recolour() {
  for (const name of Object.keys(PAGE.plots)) {
    const div = document.getElementById(`plot-${name}`);
    const width = printing.matches ? PRINTED : undefined;
    Plotly.react(div, div.data, { ...div.layout, width, autosize: !width, template: theme() }, { ...CONFIG, responsive: !width });
  }
}

for (const name of Object.keys(PAGE.plots)) draw(name);
dark.addEventListener("change", recolour);
printing.addEventListener("change", recolour);

for (const button of document.querySelectorAll("button[data-plot]")) {
  button.addEventListener("click", () => {
    const div = document.getElementById(`plot-${button.dataset.plot}`), height = Math.max(div.layout.height, 480);
    const layout = { ...arrange(structuredClone(PAGE.plots[button.dataset.plot].layout), div.data, 1000), template: template(false), height };
    Plotly.downloadImage({ data: div.data, layout }, { format: button.dataset.format, filename: button.dataset.plot, width: 1000, height, scale: 2 });
  });
}

// Accuracies of the seeds, below the cell that is pointed at.
function placeTooltip() {
  for (const cell of document.querySelectorAll(".seeds:hover, .seeds:focus")) {
    const { bottom, right } = cell.getBoundingClientRect();
    cell.querySelector("[role=tooltip]").style.inset = `${bottom + 2}px ${Math.max(document.documentElement.clientWidth - right, 4)}px auto auto`;
  }
}
for (const event of ["mouseover", "focusin", "scroll"]) addEventListener(event, placeTooltip, true);

// The comparison of two methods.
const compare = PAGE.compare, pick = ["first", "second", "column"].map(name => document.getElementById(`compare-${name}`));
pick.forEach((select, i) => {
  const values = i < 2 ? compare.rows : compare.columns;
  select.replaceChildren(...values.map((value, number) => new Option(value, number)));
  select.value = [compare.first, compare.second, compare.column][i];
  select.addEventListener("change", showComparison);
});

function format(key, values) {
  return PAGE.texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function showComparison() {
  const [first, second, column] = pick.map(select => Number(select.value));
  const names = { first: compare.rows[first], second: compare.rows[second] };
  const result = first === second ? null : compare.results[`${Math.min(first, second)},${Math.max(first, second)}`][column];
  let key = "compare_same", values = names;
  if (typeof result === "number") {
    key = "compare_unknown";
    values = { ...names, reason: compare.reasons[result] };
  } else if (result) {
    const gap = first < second ? result[0] : -result[0], isShown = Math.abs(gap) > result[1];
    key = isShown ? "compare_shown" : "compare_equal";
    const side = PAGE.texts[gap > 0 ? "compare_higher" : "compare_lower"];
    values = { ...names, side, gap: (gap < 0 ? "−" : "+") + Math.abs(gap).toFixed(2), half: result[1].toFixed(2), seeds: result[2], images: result[3].toLocaleString("en") };
  }
  document.getElementById("compare-result").textContent = format(key, values);
}
showComparison();
