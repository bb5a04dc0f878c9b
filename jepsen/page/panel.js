/* What is said in words: header, list of parts, details. Text from the history only ever becomes text nodes. */
function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");

function showHeader() {
  document.title = `${data.title}: ${WORDS[data.verdict]}`;
  byId("badge").textContent = WORDS[data.verdict];
  byId("badge").classList.add(data.verdict);
  byId("title").textContent = data.title;
  const facts = { model: data.model, operations: number(count), parts: number(data.parts.length), checked: `in ${duration(Number((data.seconds * 1e9).toPrecision(3)))}` };
  for (const [name, value] of Object.entries(data.meta)) if (!["model", "initial", "format"].includes(name)) facts[name] = value.slice(0, 60);
  if (data.truncated) facts["last line"] = "cut off, left out";
  byId("facts").append(...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function showLegend() {
  const used = new Set(ops.process.map((_, op) => kindOf(op)));
  const entries = KINDS.filter(([kind]) => used.has(kind)).map(([kind, , words]) => [`background: var(--${kind})`, words]);
  if (used.has("other")) entries.push(["background: var(--other)", "other"]);
  if (ops.outcome.includes(UNKNOWN)) entries.push(["border: 1.5px dashed var(--write)", "unknown outcome"]);
  if (ops.outcome.includes(FAILED)) entries.push(["border: 1.5px solid var(--faint)", "failed, did not happen"]);
  if (data.verdict === "invalid") entries.push(["border: 2px solid var(--bad)", "part of the contradiction"]);
  if (data.parts.some((part) => part.stuck?.length)) entries.push(["background: var(--bad)", "cannot follow"]);
  if (data.marks.length) entries.push(["background: var(--band-line)", "fault"]);
  byId("legend").replaceChildren(...entries.map(([style, words]) => make("span", {}, make("i", { style }), words)));
}

const LISTED_MAX = 400;
function showParts(view, choose) {
  const wanted = byId("filter").value.toLowerCase();
  const found = data.parts.map((part, index) => [part, index]).filter(([part]) => part.name.toLowerCase().includes(wanted));
  const items = found.slice(0, LISTED_MAX).map(([part, index]) =>
    make("li", {}, make("button", { type: "button", "aria-current": String(index === view.part), title: WORDS[part.answer], onclick: () => choose(index) },
      dot(part.answer), make("span", { class: "name" }, part.name || "all operations"), make("span", { class: "count" }, number(part.ops.length)))));
  if (found.length > LISTED_MAX) items.push(make("li", { class: "more" }, `${number(found.length - LISTED_MAX)} more: type to find one`));
  if (!found.length) items.push(make("li", { class: "more" }, "none"));
  byId("parts").replaceChildren(...items);
}

function dot(answer) {
  const one = make("span", { class: "dot", role: "img", "aria-label": WORDS[answer] });
  one.style.color = `var(--${{ valid: "good", invalid: "bad" }[answer] ?? "open"})`;
  return one;
}

function facts(view, op) {
  const found = [["client", String(ops.process[op])], ["line", String(ops.line[op])]];
  if (timed) {
    const end = ops.end[op];
    found.push(["called", duration(ops.begin[op] - firstTime)], ["took", end === null ? "no answer" : duration(end - ops.begin[op])]);
  }
  if (ops.error[op]) found.push(["error", ops.error[op]]);
  const index = view.order?.place.get(op);
  if (index !== undefined) {
    found.push(["place", `${index + 1} of ${view.order.ops.length}`], ["before", view.order.after(index - 1)], ["after", view.order.after(index)]);
  } else if (view.order) found.push(["place", ops.outcome[op] === OK ? "in no order this far" : "not needed by this order"]);
  return make("div", { class: "pairs" }, ...found.flatMap(([name, value]) => [make("span", {}, name), make("span", {}, value)]));
}

function showTip(view, x, y) {
  const tip = byId("tip");
  tip.hidden = view.hovered < 0;
  if (tip.hidden) return;
  tip.replaceChildren(make("b", {}, ops.text[view.hovered]), facts(view, view.hovered));
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(x + 16, innerWidth - width - 12))}px`;
  tip.style.top = `${y + 22 + height > innerHeight ? Math.max(8, y - height - 14) : y + 22}px`;
}

function row(view, op, choose, { bad = false, where = ops.line[op] } = {}) {
  return make("button", { type: "button", class: bad ? "row bad" : "row", "aria-current": String(op === view.chosen), title: ops.text[op], onclick: () => choose(op) },
    make("span", { class: "where" }, String(where)), make("span", { class: "what" }, ops.text[op]), make("span", { class: "who" }, `client ${ops.process[op]}`));
}

function showPanel(view, choose) {
  const { part, core } = view.open;
  const sections = [];
  if (view.chosen >= 0) sections.push(make("section", { class: "card" }, make("h2", {}, "Operation"), make("b", {}, ops.text[view.chosen]), facts(view, view.chosen)));
  sections.push(verdictOf(part));
  if (part.edges?.length) sections.push(cycleSection(view, part, choose));
  else if (core.size) {
    const past = part.begin ? "the state was before and whatever " : "";
    sections.push(make("section", {}, make("h2", {}, `Contradiction · ${number(core.size)} of ${number(part.ops.length)}`),
      part.smallest ? make("p", {}, `These contradict each other, whatever ${past}became of all other operations.`) : null,
      list(part.core.map((op) => () => row(view, op, choose)))));
  }
  if (part.stuck && (part.stuck.length || part.orders.length)) {
    const [first] = part.orders;
    sections.push(make("section", {}, make("h2", {}, "Where it ends"),
      make("p", {}, first ? `The longest order found has ${number(first.ops.length)} operations. It leads to` : "No operation can be first. The start is"),
      make("p", { class: "state" }, part.state), make("p", {}, part.stuck.length ? "and there one of these must follow, but cannot:" : "and nothing that may follow leads to the end."),
      list(part.stuck.map((op) => () => row(view, op, choose, { bad: true })))));
  }
  if (view.order) sections.push(orderSection(view, choose));
  byId("panel").replaceChildren(...sections);
}

function cycleSection(view, part, choose) {
  const steps = part.edges.flatMap(([source, , kind, why]) => [row(view, source, choose), make("p", { class: "edge" }, make("b", {}, kind), ` ${why}`)]);
  return make("section", {}, make("h2", {}, `Cycle · ${number(part.edges.length)} transactions`), make("div", { class: "rows" }, ...steps, row(view, part.edges[0][0], choose)));
}

function verdictOf(part) {
  const words = { valid: "Every operation has a place in one order that keeps real time and that the model accepts.", skipped: part.why };
  const state = part.answer === "valid" && !part.orders.length ? "" : (words[part.answer] ?? part.why);
  return make("section", {}, make("h2", {}, part.name && !part.edges?.length ? `Part ${part.name}` : "Verdict"),
    make("p", {}, dot(part.answer), ` ${WORDS[part.answer]}`), state ? make("p", {}, state) : null,
    part.configurations ? make("p", {}, `${number(part.configurations)} configurations searched`) : null);
}

const list = (rows) => (rows.length > 40 ? longList(rows) : make("div", { class: "rows" }, ...rows.map((one) => one())));

/* Only the rows in sight exist: an order may have 10,000 of them. */
const ROW = 22;
function longList(rows, start = 0) {
  const inner = make("div", {});
  inner.style.height = `${rows.length * ROW}px`;
  const outer = make("div", { class: "long", tabindex: "0" }, inner);
  const fill = () => {
    const first = Math.max(0, Math.floor(outer.scrollTop / ROW) - 4);
    inner.replaceChildren(...rows.slice(first, first + 24).map((one, index) => {
      const element = one();
      element.style.top = `${(first + index) * ROW}px`;
      return element;
    }));
  };
  outer.addEventListener("scroll", fill);
  requestAnimationFrame(() => {
    outer.scrollTop = Math.max(0, start * ROW - 120);
    fill();
  });
  return outer;
}

function orderSection(view, choose) {
  const rows = view.order.ops.map((op, index) => () => row(view, op, choose, { where: index + 1 }));
  const complete = view.open.part.answer === "valid";
  const name = complete ? "Order" : view.order.number ? "Longest order with this operation" : "Longest order";
  return make("section", {}, make("h2", {}, `${name} · ${number(rows.length)}`), longList(rows, view.order.place.get(view.chosen) ?? (complete ? 0 : rows.length)));
}

function showHelp() {
  const keys = [["↑ ↓", "operation before, after, in the order"], ["← →", "move the picture"], ["+ −", "zoom"], ["0", "show everything"],
    ["[ ]", "part before, after"], ["c", "dim all but the contradiction"], ["t", "by time, by order of the events"], ["/", "find a key"], ["d", "light, dark"], ["esc", "choose nothing"]];
  const table = make("table", {}, ...keys.map(([key, words]) => make("tr", {}, make("td", {}, make("kbd", {}, key)), make("td", {}, words))));
  byId("help").replaceChildren(make("h2", {}, "Keys"), table, make("p", {}, "Drag to move, ctrl and wheel to zoom. Hover over an operation for its order, click to keep it."),
    make("form", { method: "dialog" }, make("button", {}, "close")));
  byId("help").showModal();
}
