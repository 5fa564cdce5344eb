"use strict";
(() => {
  const canvases = [...document.querySelectorAll(".canvas")];
  const narrow = matchMedia("(max-width: 640px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line") };
    const found = {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("text") },
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") } },
      margin: { l: 56, r: 16, t: 24, b: 56 },
      legend: narrow.matches
        ? { orientation: "h", y: -0.25, yanchor: "top", x: 0 }
        : { orientation: "v", x: 1.02, y: 1, xanchor: "left" },
    };
    for (const name of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      const title = { ...layout[name].title, standoff: 14 };
      found[name] = { ...layout[name], ...axis, automargin: true, title };
    }
    return found;
  }

  async function draw(canvas, figure) {
    const layout = themed(figure.layout);
    const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    await Plotly.react(canvas, figure.data, layout, config);
    canvas.dataset.drawn = "yes";
  }

  const figures = new Map(canvases.map((canvas) => [canvas, JSON.parse(canvas.querySelector("script").textContent)]));
  const all = () => figures.forEach((figure, canvas) => draw(canvas, structuredClone(figure)));
  canvases.forEach((canvas) => canvas.replaceChildren());
  all();
  dark.addEventListener("change", all);
  narrow.addEventListener("change", all);
})();
