
(() => {
  "use strict";
  // The same view may stand twice in a page: take the first one that no script has taken yet.
  const root = [...document.querySelectorAll('[data-headwork="ROOT"]')].find((each) => !each.dataset.ready);
  if (!root) return;
  root.dataset.ready = "true";

  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const cells = Uint8Array.from(atob(data.cells), (c) => c.charCodeAt(0));
  const n = data.tokens.length;
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const state = { head: data.start, token: n - 1, hover: null, key: null, from: true };

  const level = (head, query, key) => cells[(head * n + query) * n + key];
  const text = (byte) => (byte === 255 ? "not measured" : ((byte / 254) * data.top).toFixed(2));
  const shown = (token) =>
    token === "" ? "∅" : token.replace(/[\u0000-\u0020\u007f-\u00a0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) =>
      ({ " ": "␣", "\n": "↵", "\t": "⇥" })[c] || "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const label = (i) => `“${shown(data.tokens[i])}” (${i})`;

  // Text from outside goes through textContent and setAttribute only; nothing is ever parsed as markup.
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  const ramp = () => (night.matches ? data.dark : data.light);
  const rgb = (byte) => {
    if (byte === 255) return [136, 136, 136];
    const steps = ramp();
    const at = (byte / 254) * (steps.length - 1);
    const low = Math.min(Math.floor(at), steps.length - 2);
    return steps[low].map((from, i) => Math.round(from + (steps[low + 1][i] - from) * (at - low)));
  };
  const inkOn = (colour) => {
    const [r, g, b] = colour.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#1a1a1a" : "#ffffff";
  };
  const paint = (canvas, head) => {
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    const table = Array.from({ length: 256 }, (_, byte) => rgb(byte));
    for (let i = 0; i < n * n; i++) image.data.set([...table[cells[head * n * n + i]], 255], i * 4);
    context.putImageData(image, 0, 0);
  };

  // A row of choices with one tab stop: arrow keys, Home and End move, and moving chooses.
  const choices = (buttons, choose) =>
    buttons.forEach((button, i) => {
      button.addEventListener("click", () => choose(i));
      button.addEventListener("keydown", (event) => {
        const last = buttons.length - 1;
        const to = {
          ArrowRight: Math.min(i + 1, last), ArrowDown: Math.min(i + 1, last),
          ArrowLeft: Math.max(i - 1, 0), ArrowUp: Math.max(i - 1, 0), Home: 0, End: last,
        }[event.key];
        if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        choose(to);
        buttons[to].focus();
      });
    });
  const mark = (buttons, attribute, chosen) =>
    buttons.forEach((button, i) => {
      button.setAttribute(attribute, String(i === chosen));
      button.tabIndex = i === chosen ? 0 : -1;
    });

  const heads = data.heads.map((name, i) => {
    const isMarked = data.marked.includes(i);
    const button = make("button", { type: "button", role: "radio", "aria-label": isMarked ? `${name}, marked` : name });
    if (isMarked) button.className = "marked";
    button.append(make("canvas", { width: n, height: n, "aria-hidden": "true" }), isMarked ? `${name} ●` : name);
    return button;
  });
  const ways = ["looks at", "is looked at by"].map((name) => make("button", { type: "button", role: "radio" }, name));
  const values = [];
  const tokens = data.tokens.map((token) => {
    const value = make("small", { "aria-hidden": "true" });
    values.push(value);
    return make("button", { type: "button", role: "option" }, make("bdi", {}, shown(token)), value);
  });
  const canvas = make("canvas", { width: n, height: n });
  const line = make("i");
  const map = make("div", { class: "map", "aria-hidden": "true" }, canvas, line);
  const said = make("p", { class: "said", role: "status", "aria-live": "polite" });
  const gradient = make("i");
  const strip = make("div", { class: "tokens", role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal" }, ...tokens);

  root.append(
    make("div", { class: "heads", role: "radiogroup", "aria-label": "Head" }, ...heads),
    make("div", { class: "bar" },
      make("span", { class: "name" }, "the token"),
      make("div", { class: "ways", role: "radiogroup", "aria-label": "Direction" }, ...ways),
      make("span", { class: "scale" }, `${data.title} 0`, gradient, data.top.toPrecision(2))),
    make("div", { class: "body" },
      make("div", {}, map, make("div", { class: "axes", "aria-hidden": "true" }, make("span", {}, "query ↓"), make("span", {}, "key →"))),
      strip),
    said,
    make("p", { class: "help" }, `Point at a token or a row of the map. Keys: Tab, then arrow keys, Home and End.${data.marked.length ? " ●: the heads that the claim is about." : ""}`),
  );

  const describe = (current, row) => {
    if (state.key !== null) return `${label(current)} looks at ${label(state.key)}: ${text(level(state.head, current, state.key))}.`;
    const most = [...row.keys()].filter((i) => row[i] !== 255 && row[i] > 1).sort((a, b) => row[b] - row[a]).slice(0, 3);
    const way = state.from ? "looks at" : "is looked at by";
    const rest = most.map((i) => `${label(i)} ${text(row[i])}`).join(", ");
    return `Head ${data.heads[state.head]}: ${label(current)} ${way} ${rest || "nothing above 0.01"}.`;
  };

  const update = () => {
    const current = state.hover ?? state.token;
    const row = Array.from({ length: n }, (_, i) => (state.from ? level(state.head, current, i) : level(state.head, i, current)));
    tokens.forEach((button, i) => {
      const colour = rgb(row[i]);
      button.style.background = `rgb(${colour.join(",")})`;
      button.style.color = inkOn(colour);
      values[i].textContent = row[i] === 255 ? "–" : row[i] > 1 ? text(row[i]).replace(/^0\./, ".") : "";
      button.setAttribute("aria-label", `${label(i)}: ${text(row[i])}`);
    });
    mark(tokens, "aria-selected", current);
    tokens.forEach((button, i) => (button.tabIndex = i === state.token ? 0 : -1));
    const across = state.from || state.key !== null;
    const start = `${(100 * current) / n}%`;
    Object.assign(line.style, across
      ? { left: 0, width: "100%", top: start, height: `${100 / n}%` }
      : { top: 0, height: "100%", left: start, width: `${100 / n}%` });
    said.textContent = describe(current, row);
  };
  const chooseHead = (i) => {
    state.head = i;
    mark(heads, "aria-checked", i);
    paint(canvas, i);
    update();
  };
  const chooseWay = (i) => {
    state.from = i === 0;
    mark(ways, "aria-checked", i);
    update();
  };
  const chooseToken = (i) => {
    Object.assign(state, { token: i, hover: null, key: null });
    update();
  };
  const point = (hover, key = null) => {
    Object.assign(state, { hover, key });
    update();
  };
  const repaint = () => {
    heads.forEach((button, i) => paint(button.firstChild, i));
    gradient.style.background = `linear-gradient(to right, ${ramp().map((c) => `rgb(${c.join(",")})`).join(",")})`;
    chooseHead(state.head);
  };

  choices(heads, chooseHead);
  choices(ways, chooseWay);
  choices(tokens, chooseToken);
  tokens.forEach((button, i) => {
    button.addEventListener("focus", () => chooseToken(i));
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(i));
  });
  strip.addEventListener("pointerleave", () => point(null));
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size) => Math.max(0, Math.min(n - 1, Math.floor((offset / size) * n)));
    return [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
  };
  map.addEventListener("pointermove", (event) => point(...under(event)));
  map.addEventListener("pointerleave", () => point(null));
  map.addEventListener("click", (event) => chooseToken(under(event)[0]));
  night.addEventListener("change", repaint);
  mark(ways, "aria-checked", 0);
  repaint();
})();
