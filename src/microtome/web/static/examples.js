// The grid of examples: as tall as all of them, with cells only where one looks. Chunks come when they are scrolled to.
(() => {
  "use strict";
  const AHEAD = 2; // rows that are there before they are seen
  const start = () => {
    const grid = document.querySelector(".grid[data-cells]");
    if (!grid || grid.dataset.started) return;
    grid.dataset.started = "1";
    const total = Number(grid.dataset.all), CHUNK = Number(grid.dataset.chunk);
    if (total <= grid.children.length) return;
    document.querySelector(".pages")?.remove();
    const first = grid.firstElementChild;
    const chunks = new Map(); // chunk -> cells, or null while they are on their way
    let shown = "";
    const sizes = () => {
      const gap = parseFloat(getComputedStyle(grid).columnGap) || 0;
      const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
      return { columns, height: cellHeight + gap };
    };
    const cellHeight = first.getBoundingClientRect().height;
    const made = (cell) => {
      const link = document.createElement("a");
      link.className = "cell" + (cell.wrong ? " wrong" : "");
      link.dataset.item = "";
      link.href = grid.dataset.open + cell.id + grid.dataset.query;
      if (cell.image) {
        const image = document.createElement("img");
        image.src = cell.image;
        image.alt = "Example " + cell.id;
        link.append(image);
      } else {
        const words = document.createElement("span");
        words.className = cell.text ? "words" : "none";
        words.textContent = cell.text || cell.id;
        link.append(words);
      }
      const line = (className, ...parts) => {
        const tell = document.createElement("span");
        tell.className = className;
        tell.append(...parts);
        link.append(tell);
      };
      const piece = (tag, className, words) => {
        const made = document.createElement(tag);
        made.className = className;
        made.textContent = words;
        return made;
      };
      line("tell", piece("b", "", cell.id), " ", piece("span", "quiet", cell.value ?? ""));
      if (cell.label !== undefined) {
        line("tell" + (cell.wrong ? " miss" : ""), cell.wrong ? `${cell.label} → ${cell.answer}` : String(cell.label));
      }
      return link;
    };
    const blank = () => {
      const element = document.createElement("span");
      element.className = "cell blank";
      return element;
    };
    const fetchChunk = async (index) => {
      if (chunks.has(index)) return;
      chunks.set(index, null);
      try {
        const answer = await fetch(`${grid.dataset.cells}${grid.dataset.cells.includes("?") ? "&" : "?"}from=${index * CHUNK}`);
        if (!answer.ok) throw new Error(answer.status);
        chunks.set(index, (await answer.json()).cells);
      } catch {
        chunks.delete(index); // tried again with the next scroll
        return;
      }
      shown = "";
      draw();
    };
    const draw = () => {
      if (!grid.isConnected) return;
      const { columns, height } = sizes();
      const rows = Math.ceil(total / columns);
      const top = -grid.getBoundingClientRect().top;
      const from = Math.max(Math.floor(top / height) - AHEAD, 0);
      const to = Math.min(Math.ceil((top + innerHeight) / height) + AHEAD, rows);
      const begin = from * columns, end = Math.min(to * columns, total);
      for (let c = Math.floor(begin / CHUNK); c <= Math.floor((end - 1) / CHUNK); c++) fetchChunk(c);
      const key = `${begin}-${end}-${columns}`;
      if (key === shown) return;
      shown = key;
      const focus = document.activeElement?.closest?.(".grid") === grid ? document.activeElement.getAttribute("href") : null;
      const cells = [];
      for (let i = begin; i < end; i++) {
        const cell = chunks.get(Math.floor(i / CHUNK))?.[i % CHUNK];
        cells.push(cell ? made(cell) : blank());
      }
      grid.style.paddingTop = from * height + "px";
      grid.style.paddingBottom = Math.max(rows - to, 0) * height + "px";
      grid.replaceChildren(...cells);
      if (focus) grid.querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    };
    let waiting = false;
    const soon = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    };
    window.addEventListener("scroll", soon, { passive: true });
    window.addEventListener("resize", () => { shown = ""; soon(); });
    draw();
  };
  const form = document.querySelector("form[data-grid]");
  form?.addEventListener("input", () => {
    const chosen = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
    const where = form.getAttribute("action");
    history.replaceState(null, "", where + "?" + chosen);
    chosen.set("bare", "1");
    window.lab.fill(document.getElementById("grid"), where + "?" + chosen).then(start);
  });
  const go = document.querySelector("form[data-goto]");
  go?.addEventListener("submit", (event) => {
    event.preventDefault();
    const row = go.elements.row.value;
    if (row !== "") location.assign(`${go.getAttribute("action")}/${encodeURIComponent(row)}${location.search}`);
  });
  start();
})();
