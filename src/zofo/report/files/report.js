"use strict";
(function () {
  // Okabe and Ito's colours, lighter or darker where the page needs it: 3 : 1 against it at least
  const LIGHT = ["#0072b2", "#c24e00", "#00795a", "#a8517f", "#2b7ea8", "#8a6500", "#333333"];
  const DARK = ["#56b4e9", "#ff9a4d", "#2fc79a", "#e39ac0", "#9ad1f2", "#e8b93c", "#dddddd"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const axes = JSON.parse(document.getElementById("axes").textContent);
  const charts = Array.from(document.querySelectorAll(".plot"));
  let axis = Object.keys(axes)[0];
  let printing = false;

  async function unpackPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function palette() { return dark.matches && !printing ? DARK : LIGHT; }
  function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function traces(chart) {
    const colours = palette();
    return chart.figure.data.map(function (trace) {
      const number = trace.meta.colour, colour = colours[number % colours.length];
      const made = Object.assign({}, trace, { marker: { color: colour } });
      if (trace.type === "scatter") {
        made.line = { color: colour, width: 2, dash: DASHES[Math.floor(number / colours.length) % DASHES.length] };
        made.x = trace.meta.axes[axis];
      }
      return made;
    });
  }

  function layout(chart) {
    const ink = printing ? "#000" : style("--ink"), line = printing ? "#bbb" : style("--line");
    const own = chart.figure.layout || {};
    const plain = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    return Object.assign({}, own, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
      margin: { l: 50, r: 10, t: 30, b: 45 }, height: 300, template: null,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, showlegend: chart.figure.data.length > 1,
      xaxis: Object.assign({}, plain, own.xaxis, chart.switchable ? { title: { text: axes[axis], font: { size: 13 } } } : {}),
      yaxis: Object.assign({}, plain, own.yaxis),
    });
  }

  function draw() {
    if (!window.Plotly) return;
    charts.forEach(function (element) {
      const chart = element.chart;
      Plotly.react(element, traces(chart), layout(chart), { responsive: true, displaylogo: false, displayModeBar: false });
    });
  }

  charts.forEach(function (element) {
    element.chart = {
      figure: JSON.parse(document.getElementById(element.id + "-data").textContent),
      switchable: element.dataset.switchable === "true",
    };
  });
  document.querySelectorAll("input[name^=axis]").forEach(function (input) {
    input.addEventListener("change", function () {
      axis = input.value;
      document.querySelectorAll("input[name^=axis]").forEach(function (one) { one.checked = one.value === axis; });
      draw();
    });
  });
  function colourSwatches() {
    const colours = palette();
    document.querySelectorAll(".swatch").forEach(function (one) {
      one.style.background = colours[Number(one.dataset.colour) % colours.length];
    });
  }
  function redraw() { colourSwatches(); draw(); }
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", function () { printing = true; redraw(); });
  window.addEventListener("afterprint", function () { printing = false; redraw(); });
  redraw();
  if (!window.DecompressionStream) document.getElementById("too-old").hidden = false;
  else if (charts.length) unpackPlotly().then(draw);
})();
