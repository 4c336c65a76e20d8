// Draws each figure when it comes into view, and all of them before printing: from the embedded examination, or from
// the specification a figure carries itself. `drawFigures(root)` does so for what a page has added.
(() => {
  "use strict";
  const embedded = document.getElementById("examination");
  const findings = embedded ? JSON.parse(embedded.textContent).findings : {};
  // Every ink is the page's own, so light, dark and print need no second drawing.
  const ink = "currentColor";
  const text = { labelColor: ink, titleColor: ink };
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      ...text, domainColor: ink, tickColor: ink, gridColor: ink, gridOpacity: 0.12, domainOpacity: 0.5,
      tickOpacity: 0.5, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", labelOpacity: 0.85,
    },
    axisX: { labelFlush: false, labelOverlap: true },
    axisQuantitative: { tickCount: 8 },
    legend: { ...text, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", orient: "bottom" },
    header: text,
    title: { color: ink },
    text: { color: ink, fill: ink },
    rule: { color: ink },
    // Told apart by most colour-blind eyes, and with contrast on white and on black.
    range: { category: ["#3b7dd8", "#d9730d", "#2a9d74", "#c24a8d", "#885828", "#7040e8", "#70a058", "#a040a0"] },
    line: { strokeWidth: 2 },
    bar: { color: "#3b7dd8" },
    point: { color: "#3b7dd8" },
    area: { color: "#3b7dd8" },
  };
  config.line.color = "#3b7dd8";
  // A page whose policy allows no style of our own brings the tooltip's itself.
  const defaultStyle = embedded !== null;
  // No figure may fetch anything; only pictures written into the data are shown.
  const loader = vega.loader();
  loader.load = () => Promise.reject(new Error("a report loads nothing"));
  const sanitize = loader.sanitize.bind(loader);
  loader.sanitize = (uri, options) =>
    uri.startsWith("data:image/") ? sanitize(uri, options) : Promise.reject(new Error("a report loads nothing"));

  const draw = (element) => {
    const own = element.querySelector("script[type='application/json']");
    // What a stored figure would have the drawing program do (menus, other loaders) is not asked for.
    const { usermeta, ...spec } = own ? JSON.parse(own.textContent) : findings[element.dataset.finding].figures[element.dataset.figure].spec;
    const options = {
      config, loader, renderer: "svg", actions: false, ast: true, mode: "vega-lite", logLevel: vega.Error,
      defaultStyle, tooltip: { disableDefaultStyle: !defaultStyle },
    };
    return vegaEmbed(element, spec, options).catch((error) => {
      const note = document.createElement("p");
      note.className = "quiet";
      note.textContent = "This figure could not be drawn (" + error.message + "); its numbers are below.";
      element.replaceChildren(note);
    });
  };
  const waiting = new Set();
  const take = (element) => {
    if (waiting.delete(element)) draw(element);
  };
  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      observer.unobserve(entry.target);
      take(entry.target);
    }),
    { rootMargin: "400px" },
  );
  // What is in view at once is drawn at once: a browser that never scrolls may never call the observer.
  const inView = (element) => element.getBoundingClientRect().top < window.innerHeight + 400;
  window.drawFigures = (root) => root.querySelectorAll(".draw:not(.vega-embed)").forEach((element) => {
    waiting.add(element);
    if (inView(element)) take(element);
    else observer.observe(element);
  });
  window.drawFigures(document);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("header details, main details").forEach((details) => details.closest(".numbers") || (details.open = true));
    [...waiting].forEach(take);
  });
})();
