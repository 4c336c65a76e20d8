// What the pages of the lab do by themselves: open findings in place, narrow lists while one types, follow a run,
// answer keys. Every page also works without it.
(() => {
  "use strict";
  const me = document.currentScript;
  const base = me.dataset.base;
  const asset = (name) => `${base}/static/${name}?v=${me.dataset.version}`;

  // --- charts: the libraries come only when a page has a chart ---------------------------------------
  let libraries;
  const script = (name) => new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = asset(name);
    element.onload = done;
    element.onerror = () => failed(new Error("could not load " + name));
    document.head.append(element);
  });
  const draw = (root) => {
    if (!root.querySelector(".draw")) return;
    libraries ??= script("vega.js").then(() => script("draw.js"));
    libraries.then(() => window.drawFigures(root)).catch((error) => console.error(error));
  };

  // --- parts of a page that come when they are wanted ------------------------------------------------
  const note = (text, again) => {
    const element = document.createElement("p");
    element.className = "note failed";
    element.setAttribute("role", "alert");
    element.textContent = text + " ";
    if (again) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Try again";
      button.addEventListener("click", again);
      element.append(button);
    }
    return element;
  };
  const loading = () => {
    const element = document.createElement("p");
    element.className = "quiet loading";
    element.setAttribute("role", "status");
    element.innerHTML = '<span class="spin" aria-hidden="true"></span> Loading …';
    return element;
  };
  const text = async (url, signal) => {
    const answer = await fetch(url, { signal, headers: { accept: "text/html" } });
    const body = await answer.text();
    if (!answer.ok && !body.includes('class="note failed"')) throw new Error(`the lab answered ${answer.status}`);
    return body;
  };
  // Fills an element from an address; a newer wish replaces an older one.
  const wishes = new WeakMap();
  const fill = async (element, url) => {
    wishes.get(element)?.abort();
    const wish = new AbortController();
    wishes.set(element, wish);
    // Only what takes long says that it loads: what flickers is not read.
    const slow = setTimeout(() => element.replaceChildren(loading()), 150);
    try {
      const body = await text(url, wish.signal);
      clearTimeout(slow);
      element.innerHTML = body;
      element.dispatchEvent(new CustomEvent("filled", { bubbles: true }));
      draw(element);
      return true;
    } catch (error) {
      clearTimeout(slow);
      if (error.name !== "AbortError") {
        element.replaceChildren(note(`This could not be loaded (${error.message}).`, () => fill(element, url)));
      }
      return false;
    }
  };
  window.lab = { base, asset, fill, draw, note };

  // --- findings open in place, and the address keeps which -------------------------------------------
  const open = (details) => {
    if (details.dataset.loaded) return Promise.resolve();
    details.dataset.loaded = "1";
    return fill(details.querySelector(".inside"), details.dataset.load).then((well) => {
      if (!well) delete details.dataset.loaded;
    });
  };
  document.addEventListener("toggle", (event) => {
    const details = event.target;
    if (!details.matches?.("details[data-load]")) return;
    if (details.open) {
      open(details);
      history.replaceState(null, "", "#" + details.id);
    } else if (location.hash === "#" + details.id) {
      history.replaceState(null, "", location.pathname + location.search);
    }
  }, true);
  const follow = () => {
    let id = location.hash.slice(1);
    try { id = decodeURIComponent(id); } catch { /* an address that was typed wrong leads nowhere */ }
    const target = id && document.getElementById(id);
    const details = target?.closest?.("details[data-load]");
    if (!details) return;
    details.open = true;
    open(details).then(() => details.scrollIntoView({ block: "start" }));
  };
  window.addEventListener("hashchange", follow);

  // --- lists that narrow while one types -------------------------------------------------------------
  const narrow = (form) => {
    const chosen = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
    const where = form.getAttribute("action");
    history.replaceState(null, "", where + (chosen.size ? "?" + chosen : ""));
    chosen.set("bare", "1");
    return fill(document.querySelector(form.dataset.live), where + "?" + chosen);
  };
  document.querySelectorAll("form[data-live]").forEach((form) => {
    form.addEventListener("input", () => narrow(form));
    form.addEventListener("submit", (event) => { event.preventDefault(); narrow(form); });
  });

  // --- findings that have a word ----------------------------------------------------------------------
  document.querySelectorAll("[data-sift]").forEach((box) => {
    const input = box.querySelector("input"), said = box.querySelector("[role=status]");
    box.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0, all = 0;
      document.querySelectorAll("section.room").forEach((section) => {
        const room = section.querySelector("h2").textContent;
        const fits = [...section.querySelectorAll("details.finding")].filter((details) => {
          const text = `${room} ${details.querySelector("summary").textContent}`.toLowerCase();
          details.hidden = !words.every((word) => text.includes(word));
          all += 1;
          return !details.hidden;
        });
        shown += fits.length;
        section.hidden = !fits.length;
      });
      said.textContent = words.length ? (shown ? `${shown} of ${all}` : "None has these words.") : "";
    });
  });

  // --- what changes by itself ------------------------------------------------------------------------
  const poll = (element) => {
    let before = element.innerHTML;
    setInterval(async () => {
      if (document.hidden) return;
      try {
        const now = await text(element.dataset.poll);
        if (now === before) return;
        element.innerHTML = before = now;
        element.dispatchEvent(new CustomEvent("polled", { bubbles: true }));
      } catch { /* the lab was closed; what is shown stays */ }
    }, Number(element.dataset.every));
  };
  document.querySelectorAll("[data-poll]").forEach(poll);
  // What begins or ends is in the list at once; what somebody has marked there is left alone.
  const running = () => [...document.querySelectorAll("#running a")].map((link) => link.href).join();
  let ran = running();
  document.addEventListener("polled", () => {
    if (running() === ran || document.querySelector("#results :checked")) return;
    ran = running();
    const form = document.querySelector("form[data-live='#results']");
    if (form) narrow(form);
    else location.reload();
  });
  document.querySelectorAll("[data-again]").forEach((element) => setTimeout(() => location.reload(), Number(element.dataset.again)));
  // A running examination: its bar moves; when an instrument has answered, the page is fetched anew.
  document.querySelectorAll("[data-state]").forEach((element) => {
    let mark = element.dataset.mark;
    const timer = setInterval(async () => {
      if (document.hidden) return;
      try {
        const found = await (await fetch(element.dataset.state)).json();
        element.querySelector(".text").textContent = found.text;
        if (found.share) element.querySelector("progress").value = 100 * found.share;
        if (found.mark === mark) return;
        mark = found.mark;
        if (found.status !== "running") {
          clearInterval(timer);
          location.reload();
          return;
        }
        const page = new DOMParser().parseFromString(await text(location.pathname), "text/html");
        const opened = new Map([...document.querySelectorAll("details.finding[open]")].map((d) => [d.id, d]));
        const fresh = page.querySelector("main");
        opened.forEach((details, id) => fresh.querySelector("#" + CSS.escape(id))?.replaceWith(details));
        document.querySelector("main").replaceWith(fresh);
      } catch { /* try again with the next tick */ }
    }, 1000);
  });

  // --- a layer is chosen in the matrix, in the diagram or by a link ------------------------------------
  const panel = document.querySelector("[data-layer-panel]");
  const pick = (name, far) => {
    document.querySelectorAll("[aria-current][data-item], rect[aria-current]").forEach((e) => e.removeAttribute("aria-current"));
    document.querySelectorAll("[data-layer]").forEach((e) => {
      if (e.dataset.layer === name) (e.closest("tr") ?? e).setAttribute("aria-current", "true");
    });
    const to = new URLSearchParams({ layer: name });
    history.replaceState(null, "", "?" + to);
    fill(panel, location.pathname + "?bare=1&" + to).then(() => far && panel.scrollIntoView({ block: "start" }));
  };
  if (panel) {
    const chosen = (event) => {
      const element = event.target.closest?.("[data-layer]");
      if (!element || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      pick(element.dataset.layer, element.matches("a"));
    };
    document.addEventListener("click", chosen);
    document.addEventListener("keydown", (event) => {
      if ((event.key === "Enter" || event.key === " ") && event.target.matches("rect[data-layer]")) chosen(event);
    });
  }

  // --- a unit of the layer: by its number, by arrow keys, or by a link ---------------------------------
  const unit = (form, at) => {
    const to = new URLSearchParams({ layer: form.elements.layer.value, unit: at });
    history.replaceState(null, "", "?" + to);
    document.querySelectorAll("[data-unit]").forEach((link) => {
      if (link.dataset.unit === String(at)) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    fill(document.getElementById("unit"), form.dataset.unitForm + "?bare=1&" + to);
  };
  document.addEventListener("input", (event) => {
    const form = event.target.closest?.("form[data-unit-form]");
    const at = event.target.valueAsNumber;
    if (form && at >= 0 && at <= Number(event.target.max)) unit(form, at);
  });
  document.addEventListener("submit", (event) => event.target.matches("form[data-unit-form]") && event.preventDefault());
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-unit]");
    if (!link || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const form = document.querySelector("form[data-unit-form]");
    form.elements.unit.value = link.dataset.unit;
    unit(form, link.dataset.unit);
  });

  // --- scrubbing: every line shows the same place ----------------------------------------------------
  document.querySelectorAll("[data-scrub]").forEach((section) => {
    const slider = section.querySelector("input[type=range]");
    const names = JSON.parse(section.querySelector("script").textContent);
    const rows = [...section.querySelectorAll("tr[data-texts]")].map((row) => ({
      row, texts: JSON.parse(row.dataset.texts), changes: JSON.parse(row.dataset.changes),
      here: row.querySelector(".here"), change: row.querySelector(".change"), dots: [...row.querySelectorAll("circle")],
    }));
    const move = () => {
      const at = slider.value;
      section.querySelector("output").textContent = names[at];
      rows.forEach(({ row, texts, changes, here, change, dots }) => {
        here.textContent = texts[at];
        if (change) change.textContent = { unknown: "", same: at === "0" ? "" : "within noise" }[changes[at]] ?? changes[at];
        row.dataset.change = changes[at];
        dots.forEach((dot) => dot.classList.toggle("on", dot.dataset.at === at));
      });
    };
    slider.addEventListener("input", move);
    move();
  });

  // --- keys ------------------------------------------------------------------------------------------
  const keys = document.getElementById("keys");
  document.querySelectorAll("[data-keys]").forEach((button) => button.addEventListener("click", () => keys.showModal()));
  const items = () => [...document.querySelectorAll("[data-item]")].filter((item) => item.offsetParent);
  const focusable = (item) => (item.matches("summary, a, button") ? item : item.querySelector("a"));
  const step = (by) => {
    const all = items();
    const at = all.findIndex((item) => item.contains(document.activeElement));
    const next = all[Math.min(Math.max(at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by, 0), all.length - 1)];
    focusable(next ?? document.body)?.focus();
  };
  const tab = (by) => {
    const links = [...document.querySelectorAll(".tabs a")].slice(0, 3);
    const at = links.findIndex((link) => link.getAttribute("aria-current"));
    links[at + by]?.click();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.matches("input, select, textarea, [contenteditable]") && event.key !== "Escape") return;
    if (keys.open && event.key !== "?") return;
    const acts = {
      "/": () => document.querySelector("[data-search]")?.focus(),
      j: () => step(1),
      k: () => step(-1),
      "[": () => tab(-1),
      "]": () => tab(1),
      g: () => location.assign(base + "/"),
      "?": () => (keys.open ? keys.close() : keys.showModal()),
      Escape: () => event.target.matches("input") && event.target.blur(),
    };
    const act = acts[event.key];
    if (!act) return;
    if (event.key !== "Escape") event.preventDefault();
    act();
  });

  // --- buttons that need a mark ----------------------------------------------------------------------
  const marks = () => document.querySelectorAll("[data-needs]").forEach((button) => {
    button.disabled = !button.form.querySelector(`[name=${button.dataset.needs}]:checked`);
  });
  document.addEventListener("change", marks);
  document.addEventListener("filled", marks);
  marks();
  draw(document);
  follow();
})();
