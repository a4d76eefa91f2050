"use strict";
{
  const root = document.documentElement;
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  // Light and dark: as the system has it, until somebody says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const remembered = (theme) => {
    try {
      if (theme) localStorage.setItem("hf_deit report", theme);
      return localStorage.getItem("hf_deit report");
    } catch {
      return null; // a browser may keep nothing for files
    }
  };
  const name = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", isDark() ? "Show the light page" : "Show the dark page");
  };
  const theme = remembered();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    name();
  });
  system.addEventListener("change", name);
  name();
  toggle.hidden = false;

  // Sorting: up, down, and back to the order of the report. Rows that are alike keep their order, empty cells come last.
  const valueOf = (cell) => {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.textContent.trim();
  };
  const order = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1; // numbers before words
    return compare(one, other);
  };
  const sort = (table, index, direction) => {
    const body = table.tBodies[0];
    const rows = table.allRows.map((row) => [valueOf(row.cells[index]), row]);
    if (direction !== "none") {
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort(([one], [other]) =>
        one === "" || other === "" ? (one === "") - (other === "") : sign * order(one, other));
    }
    body.append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      if (at === index) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
  };
  for (const table of document.querySelectorAll("main table")) {
    table.allRows = [...table.tBodies[0].rows];
    if (table.allRows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      if (!button.textContent.trim()) button.setAttribute("aria-label", "names");
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" };
        sort(table, index, next[head.getAttribute("aria-sort")] ?? "ascending");
      });
    });
  }

  // Filters of long tables: by what names a row, and its other words.
  for (const tools of document.querySelectorAll(".tools")) {
    const input = tools.querySelector("input");
    const count = tools.querySelector("output");
    const { allRows } = tools.parentElement.querySelector("table");
    const isNamed = (cell, at) => at === 0 || cell.dataset.value === undefined;
    const texts = allRows.map((row) =>
      [...row.cells].filter(isNamed).map((cell) => cell.textContent).join("\n").toLowerCase());
    const number = (value) => value.toLocaleString("en");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().trim().replace(/\s+/g, " ");
      let shown = 0;
      allRows.forEach((row, index) => {
        row.hidden = !texts[index].includes(wanted);
        shown += !row.hidden;
      });
      const all = number(allRows.length);
      count.textContent = shown === allRows.length ? `${all} rows` : `${number(shown)} of ${all} rows`;
    });
    tools.hidden = false;
  }

  // Pictures in their own size, where the page is too narrow for it.
  for (const frame of document.querySelectorAll(".frame")) {
    const picture = frame.querySelector("img");
    const offer = () => {
      if (frame.querySelector("button") || picture.naturalWidth <= picture.clientWidth * 1.15) return;
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.title = "Show in its own size";
      button.append(picture);
      frame.append(button);
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(frame.classList.toggle("whole")));
      });
    };
    if (picture.complete) offer();
    else picture.addEventListener("load", offer);
  }

  // Where the reader is.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      const seen = entries.filter((entry) => entry.isIntersecting);
      if (!seen.length) return;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(seen[0].target.id)?.setAttribute("aria-current", "true");
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) watch.observe(section);
}
