"use strict";

// Shows the embedded cases. Everything that a model or a data set said is put in as text, never as
// markup. What is chosen lives in the address, so that a link shows the same cases.

(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const found = document.getElementById("count");
  const controls = Object.fromEntries(
    ["protocol", "method", "metric", "search", "failures"].map((name) => [
      name,
      document.getElementById(name),
    ]),
  );
  const ALL = "";
  const START = {
    protocol: content.protocols[content.protocol]
      ? content.protocol
      : (Object.keys(content.protocols)[0] ?? ALL),
    method: ALL,
    metric: ALL,
    search: "",
    failures: false,
    case: ALL,
    page: 1,
  };
  /** What a link to one case leaves out. */
  const ALONE = { search: START.search, failures: START.failures, page: START.page };
  let state = { ...START };

  // ---- cases -------------------------------------------------------------------------------

  const isNumber = (value) => typeof value === "number";
  const hasFailed = (value, metric) =>
    isNumber(value) && value < 1 && !content.telling.includes(metric);

  /** Methods that a filter speaks of: the chosen one, or all that edit. */
  function methodsOf({ method }) {
    const names = content.methods.map((entry) => entry.name);
    if (method !== ALL) return [method];
    const editing = names.filter((name) => name !== content.unedited);
    return editing.length ? editing : names;
  }

  function fails(item, { protocol, metric }, name) {
    const values = item.methods[name]?.values[protocol] ?? {};
    return metric === ALL
      ? Object.entries(values).some(([name, value]) => hasFailed(value, name))
      : hasFailed(values[metric], metric);
  }

  /**
   * The queries behind metrics, each with the metrics that it counts in: some are means over several
   * kinds of query, or over all questions of a protocol.
   */
  function queriesOf(item, metrics) {
    const rows = new Map();
    const asked = new Set(Object.keys(item.queries));
    for (const { answers } of Object.values(item.methods)) {
      for (const key of Object.keys(answers)) asked.add(key);
    }
    for (const metric of metrics) {
      let keys = [metric];
      if (!asked.has(metric)) {
        keys = (content.families[metric] ?? []).filter((kind) => asked.has(kind));
        if (!keys.length) keys = [...asked].filter((key) => key.startsWith(`${state.protocol}_`));
        if (!keys.length) keys = [metric];
      }
      for (const key of keys) rows.set(key, [...(rows.get(key) ?? []), metric]);
    }
    // A query's own value says more than a mean in which it counts.
    return [...rows].map(([key, of]) => [key, of.includes(key) ? [key] : of]);
  }

  const haystacks = new Map();

  function haystack(item) {
    if (!haystacks.has(item)) {
      const parts = [`#${item.index}`];
      for (const { prompt, target, image, images } of Object.values(item.queries)) {
        parts.push(prompt, target, image, ...(images ?? []));
      }
      for (const { answers } of Object.values(item.methods)) parts.push(...Object.values(answers));
      haystacks.set(item, parts.filter(Boolean).join("\n").toLowerCase());
    }
    return haystacks.get(item);
  }

  const wordsOf = ({ search }) => search.toLowerCase().split(/\s+/).filter(Boolean);

  function chosen() {
    const words = wordsOf(state);
    const names = methodsOf(state);
    return content.cases.filter(
      (item) =>
        (state.case === ALL || String(item.index) === state.case) &&
        (!state.failures || names.some((name) => fails(item, state, name))) &&
        words.every((word) => haystack(item).includes(word)),
    );
  }

  // ---- elements ----------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  /** Text with the words that were searched for marked. */
  function marked(text) {
    const words = wordsOf(state).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const shown = document.createDocumentFragment();
    if (!words.length) {
      shown.append(text);
      return shown;
    }
    text.split(new RegExp(`(${words.join("|")})`, "giu")).forEach((part, place) => {
      if (part) shown.append(place % 2 ? make("mark", {}, part) : part);
    });
    return shown;
  }

  function said(text) {
    if (text === undefined || text === null) return make("span", { class: "quiet" }, "no answer");
    if (text === "") return make("span", { class: "quiet" }, "(empty)");
    return make("span", { class: "said", dir: "auto" }, marked(text));
  }

  function verdict(value, metric, key) {
    const shown = (kind, text) => {
      const name = metric === key ? "" : `${named(metric)} `;
      return make("span", { class: `verdict ${kind}` }, name + text);
    };
    if (!isNumber(value)) return shown("quiet", "no value");
    // Of answers that are told apart only the one that was given is shown.
    if (content.telling.includes(metric)) return value >= 1 ? shown("quiet", "") : "";
    const [good, bad] = content.comparing.includes(metric) ? ["same", "changed"] : ["right", "wrong"];
    if (value >= 1) return shown("good", `✓ ${good}`);
    if (value <= 0) return shown("bad", `✗ ${bad}`);
    const percent = Math.min(99, Math.max(1, Math.round(value * 100)));
    return shown("part", `◐ ${percent} % ${good}`);
  }

  function gate(decision, key) {
    const isOpen = Boolean(decision.open);
    const shown = make("span", { class: "gate" }, `gate ${isOpen ? "open" : "closed"}`);
    if (isNumber(decision.similarity)) shown.append(` ${decision.similarity.toFixed(3)}`);
    const should = content.inScope.includes(key);
    if (isOpen !== should && (should || content.comparing.includes(key))) {
      shown.classList.add("misjudged");
      shown.title = `this query is ${should ? "" : "not "}in the scope of the edit`;
      shown.prepend("⚠ ");
    }
    return shown;
  }

  function thumbnail(name) {
    if (!name) return make("span", { class: "no-picture" }, "no picture");
    const source = Object.hasOwn(content.pictures, name) ? content.pictures[name] : undefined;
    if (!source) return make("span", { class: "no-picture", title: name }, `not shown: ${name}`);
    return make("img", { src: source, alt: `picture ${name}`, title: name });
  }

  // A few frames of a video, or pictures of several, as names_of in thumbnails.py chooses them.
  function strip(query) {
    const names = query.images ?? [query.image];
    const count = Math.min(content.frames, names.length);
    const chosen = Array.from({ length: count }, (_, place) =>
      names[Math.floor((place * names.length) / count)]
    );
    if (chosen.length === 1) return thumbnail(chosen[0]);
    return make("span", { class: "strip" }, ...chosen.map(thumbnail));
  }

  function question(item, key) {
    const query = item.queries[key];
    const shown = make("div", { class: "asked" }, make("p", { class: "metric" }, named(key)));
    if (!query) {
      shown.append(make("p", { class: "quiet" }, "the question was not recorded"));
      return make("div", { class: "question" }, shown);
    }
    shown.append(make("p", { dir: "auto" }, marked(query.prompt ?? "")));
    if (query.target) {
      const target = make("p", { class: "target", dir: "auto" }, marked(query.target));
      target.prepend(make("span", { class: "quiet" }, "target "));
      shown.append(target);
    }
    return make("div", { class: "question" }, strip(query), shown);
  }

  const named = (metric) => content.metrics[metric] ?? metric;

  // Roles are given although these are the elements' own: narrow screens show the rows as blocks,
  // and browsers then forget that they are a table.
  function cell(title, ...children) {
    return make("td", { role: "cell", "data-title": title }, ...children);
  }

  function matrix(item) {
    const metrics = state.metric === ALL ? content.protocols[state.protocol] : [state.metric];
    const editing = content.methods
      .map((entry) => entry.name)
      .filter((name) => name !== content.unedited && (state.method === ALL || name === state.method));
    const heads = ["question", "before the edit", ...editing].map((title) => {
      const head = make("th", { scope: "col", role: "columnheader" }, title);
      if (title === content.favourite) head.classList.add("favourite");
      return head;
    });
    const before = item.methods[content.unedited];
    const rows = queriesOf(item, metrics ?? []).map(([key, of]) => {
      const verdicts = (own, which) =>
        which.map((metric) => verdict(own.values[state.protocol]?.[metric], metric, key));
      const first = cell("before the edit", said(before?.answers[key]));
      if (before) {
        first.append(...verdicts(before, of.filter((metric) => !content.comparing.includes(metric))));
      }
      const cells = editing.map((name) => {
        const own = item.methods[name];
        if (!own) return cell(name, make("span", { class: "quiet" }, "no case"));
        const shown = cell(name, said(own.answers[key]), ...verdicts(own, of));
        if (own.gate[key]) shown.append(gate(own.gate[key], key));
        const isFailure = of.some((metric) =>
          hasFailed(own.values[state.protocol]?.[metric], metric),
        );
        shown.classList.toggle("failure", isFailure);
        return shown;
      });
      const head = make("th", { scope: "row", role: "rowheader" }, question(item, key));
      return make("tr", { role: "row" }, head, first, ...cells);
    });
    const table = make(
      "table",
      { role: "table", class: "matrix", "aria-label": `Edit ${item.index}` },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads)),
      make("tbody", { role: "rowgroup" }, ...rows),
    );
    table.style.setProperty("--columns", editing.length + 1);
    table.style.setProperty("--question", editing.length > 2 ? "18rem" : "28rem");
    return table;
  }

  function card(item) {
    const link = {
      class: "index",
      href: addressOf({ ...state, ...ALONE, case: String(item.index) }),
      title: "link to this case",
    };
    const title = make("h3", {}, make("a", link, `#${item.index}`));
    const request = item.queries.reliability;
    if (request) {
      title.append(" ", make("span", { dir: "auto" }, marked(request.prompt ?? "")));
      if (request.target) {
        title.append(" → ", make("span", { class: "target", dir: "auto" }, marked(request.target)));
      }
    }
    const region = make(
      "div",
      { class: "scrolling", role: "region", tabindex: "0", "aria-label": `Answers, edit ${item.index}` },
      matrix(item),
    );
    return make("article", { class: "case" }, title, region);
  }

  // ---- page --------------------------------------------------------------------------------

  function show() {
    const cases = chosen();
    const pages = Math.max(1, Math.ceil(cases.length / content.perPage));
    state.page = Math.min(Math.max(1, state.page), pages);
    const start = (state.page - 1) * content.perPage;
    list.replaceChildren(...cases.slice(start, start + content.perPage).map(card));
    if (!cases.length) {
      const missing = content.cases.every(({ index }) => String(index) !== state.case);
      const told =
        state.case !== ALL && missing
          ? `Case ${state.case} is not among those on this page.`
          : "No case is like this. Take a filter away.";
      list.append(make("p", { class: "nothing" }, told));
    }
    found.textContent = `${cases.length} of ${content.cases.length} cases`;
    for (const paging of document.querySelectorAll(".paging")) {
      paging.hidden = pages === 1;
      paging.querySelector(".page").textContent = `page ${state.page} of ${pages}`;
      paging.querySelector(".previous").disabled = state.page === 1;
      paging.querySelector(".next").disabled = state.page === pages;
    }
  }

  function options(select, entries, value) {
    select.replaceChildren(...entries.map(([key, text]) => make("option", { value: key }, text)));
    select.value = value;
  }

  /** Brings the controls to the state; choices that there are not become the first. */
  function settle() {
    if (!Object.hasOwn(content.protocols, state.protocol)) state.protocol = START.protocol;
    const metrics = content.protocols[state.protocol] ?? [];
    const methods = content.methods.map(({ name }) => name);
    if (!metrics.includes(state.metric)) state.metric = ALL;
    if (!methods.includes(state.method)) state.method = ALL;
    const protocols = Object.keys(content.protocols);
    options(controls.protocol, protocols.map((name) => [name, name]), state.protocol);
    options(controls.metric, [[ALL, "all"], ...metrics.map((name) => [name, named(name)])], state.metric);
    options(controls.method, [[ALL, "all"], ...methods.map((name) => [name, name])], state.method);
    if (controls.search.value !== state.search) controls.search.value = state.search;
    controls.failures.checked = state.failures;
  }

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = {
      protocol: given.get("protocol") ?? START.protocol,
      method: given.get("method") ?? START.method,
      metric: given.get("metric") ?? START.metric,
      search: given.get("search") ?? START.search,
      failures: given.get("failures") === "1",
      case: given.get("case") ?? START.case,
      page: Number.parseInt(given.get("page") ?? "1", 10) || 1,
    };
  }

  function addressOf(choices) {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(choices)) {
      if (value !== START[name]) given.set(name, value === true ? "1" : value);
    }
    return `#${given.toString() || "cases"}`;
  }

  function change(changes) {
    state = { ...state, page: 1, case: ALL, ...changes };
    settle();
    show();
    history.replaceState(null, "", addressOf(state));
  }

  // Links to sections are no state.
  const isState = () => location.hash.includes("=");

  for (const name of ["protocol", "method", "metric"]) {
    controls[name].addEventListener("change", () => change({ [name]: controls[name].value }));
  }
  controls.failures.addEventListener("change", () =>
    change({ failures: controls.failures.checked }),
  );
  controls.search.addEventListener("input", () => change({ search: controls.search.value }));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    change({ ...START });
  });
  for (const [name, step] of [["previous", -1], ["next", 1]]) {
    for (const button of document.querySelectorAll(`.paging .${name}`)) {
      button.addEventListener("click", () => {
        change({ page: state.page + step });
        list.scrollIntoView();
        list.focus({ preventScroll: true });
      });
    }
  }
  window.addEventListener("hashchange", () => {
    if (!isState()) return;
    read();
    settle();
    show();
    list.scrollIntoView();
  });
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  if (!content.cases.length) return;
  form.hidden = false;
  list.tabIndex = -1;
  if (isState()) read();
  settle();
  show();
  if (isState()) document.getElementById("cases").scrollIntoView();
})();
