// Narrows the lists of the atlas by words, room and verdict; the address keeps the choice.
(() => {
  "use strict";
  const fields = { words: document.getElementById("words"), room: document.getElementById("room"), verdict: document.getElementById("verdict") };
  const rows = [...document.querySelectorAll("tr[data-room]")];
  const count = document.getElementById("count"), none = document.getElementById("none");
  const narrow = () => {
    const words = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      const fits =
        (!fields.room.value || row.dataset.room === fields.room.value) &&
        (!fields.verdict.value || row.dataset.verdict === fields.verdict.value) &&
        words.every((word) => text.includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    document.querySelectorAll("section.papers-of").forEach((section) => {
      section.hidden = !section.querySelector("tr[data-room]:not([hidden])");
    });
    // Planned papers stay folded until somebody looks for words.
    document.querySelectorAll("details.planned").forEach((details) => {
      details.open = words.length > 0;
      details.hidden = !details.querySelector("tr[data-room]:not([hidden])");
    });
    count.textContent = shown + " of " + rows.length + " papers shown";
    none.hidden = shown > 0;
    const chosen = new URLSearchParams();
    Object.entries(fields).forEach(([name, field]) => field.value && chosen.set(name, field.value));
    history.replaceState(null, "", chosen.size ? "#" + chosen : location.pathname);
  };
  const given = new URLSearchParams(location.hash.slice(1));
  Object.entries(fields).forEach(([name, field]) => {
    if (given.has(name)) field.value = given.get(name);
    field.addEventListener("input", narrow);
  });
  none.querySelector("button").addEventListener("click", () => {
    Object.values(fields).forEach((field) => (field.value = ""));
    narrow();
    fields.words.focus();
  });
  document.querySelector(".find").hidden = false;
  narrow();
})();
