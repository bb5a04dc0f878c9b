/* What is in sight and what keys, pointer and buttons do to it. `view` is the whole state of the page. */
const lines = byId("lines"), overview = byId("overview");
const view = {
  part: 0, open: null, order: null, moments: [], lanes: [], rowOf: new Map(), axis: axes.order,
  from: 0, to: 1, scroll: 0, hovered: -1, chosen: -1, coreOnly: false, dense: false,
};
const NO_PART = { name: "", answer: "valid", why: "", configurations: 0, ops: [], start: "", orders: [] };

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawLines(lines, view);
    drawOverview(overview, view);
  });
}

function openPart(index) {
  view.part = index;
  keepLink();
  view.open = opened(data.parts[index] ?? NO_PART);
  view.chosen = view.hovered = -1;
  view.scroll = 0;
  arrange();
  useOrder(0);
  startingView();
  byId("core").disabled = !view.open.core.size;
  showParts(view, openPart);
  showPanel(view, choose);
  redraw();
}

function arrange() {
  view.lanes = lanesOf(view.open.all, view.axis);
  view.rowOf = new Map(view.lanes.flatMap((lane, row) => lane.ops.map((op) => [op, row])));
}

function useOrder(index) {
  if (view.order?.number === index && view.order.part === view.part) return false;
  view.order = arranged(view.open.part, index);
  if (view.order) view.order.part = view.part;
  view.moments = view.order ? moments(view.order, view.axis) : [];
  return true;
}

/* The order that is shown for an operation: of an illegal part the longest that was found with it. */
function orderFor(op) {
  return useOrder(op >= 0 ? (view.open.part.order_of?.[op] ?? 0) : 0);
}

function startingView() {
  const { all, part, stuck, core } = view.open;
  const around = [...stuck, ...core].map((op) => view.axis.begin(op));
  if (all.length <= 30 || !part.ops.length) return fit();
  const span = spanOf(around.length ? 26 : 40);
  if (around.length) return look(Math.max(...around) - span * 0.65, Math.max(...around) + span * 0.35);
  return look(view.axis.begin(all[0]), view.axis.begin(all[0]) + span);
}

/* How much of the axis about so many operations take. */
function spanOf(number) {
  const { all } = view.open;
  const whole = view.axis.end(all[all.length - 1]) - view.axis.begin(all[0]) || 1;
  return Math.min(view.axis.last - view.axis.first, Math.max(view.axis.least, (whole * number) / all.length));
}

function look(from, to) {
  const { first, last, least } = view.axis;
  const margin = (last - first) * 0.01 + (view.axis === axes.order ? 0.7 : 0);
  const span = Math.min(Math.max(to - from, least), last - first + 2 * margin);
  view.from = Math.max(first - margin, Math.min((from + to) / 2 - span / 2, last + margin - span));
  view.to = view.from + span;
  redraw();
}

function fit() {
  const { all } = view.open;
  if (!all.length) return look(view.axis.first, view.axis.last);
  const begin = view.axis.begin(all[0]);
  const end = all.reduce((latest, op) => Math.max(latest, ops.outcome[op] === OK ? view.axis.end(op) : view.axis.begin(op)), begin);
  return look(begin - (end - begin) * 0.01 - 1, end + (end - begin) * 0.02 + 1);
}

const zoom = (factor, at = (view.from + view.to) / 2) => look(at - (at - view.from) * factor, at + (view.to - at) * factor);
const pan = (share) => look(view.from + (view.to - view.from) * share, view.to + (view.to - view.from) * share);

function scrollTo(pixels) {
  const room = view.lanes.length * laneHeight(view) - (lines.clientHeight - topOf(view));
  view.scroll = Math.max(0, Math.min(pixels, Math.max(0, room)));
  redraw();
}

function choose(op) {
  view.chosen = op;
  keepLink();
  orderFor(op);
  if (op >= 0) {
    bringIntoSight(op);
    byId("said").textContent = `${ops.text[op]}, client ${ops.process[op]}`;
  }
  showPanel(view, choose);
  redraw();
}

function bringIntoSight(op) {
  const index = view.order?.place.get(op);
  const at = index === undefined ? view.axis.begin(op) : view.moments[index];
  const span = view.to - view.from;
  if (at < view.from + span * 0.08 || at > view.to - span * 0.12) look(at - span / 2, at + span / 2);
  const tall = laneHeight(view), y = (view.rowOf.get(op) ?? 0) * tall;
  if (y < view.scroll || y > view.scroll + lines.clientHeight - topOf(view) - tall) scrollTo(y - lines.clientHeight / 2);
}

function follow(step) {
  if (!view.order) return;
  const index = view.order.place.get(view.chosen);
  const inSight = view.moments.findIndex((moment) => moment >= view.from);
  const next = index === undefined ? Math.max(0, inSight) : index + step;
  if (next >= 0 && next < view.order.ops.length) choose(view.order.ops[next]);
}

function setAxis(axis) {
  if (!timed) return;
  const share = (view.to - view.from) / (view.axis.last - view.axis.first);
  const middle = view.chosen >= 0 ? view.chosen : view.open.all.find((op) => view.axis.begin(op) >= (view.from + view.to) / 2);
  view.axis = axis;
  byId("axis").setAttribute("aria-pressed", String(axis === axes.time));
  arrange();
  view.moments = view.order ? moments(view.order, axis) : [];
  const half = (share * (axis.last - axis.first)) / 2;
  if (middle === undefined) fit();
  else look(axis.begin(middle) - half, axis.begin(middle) + half);
}

function setCoreOnly(on) {
  view.coreOnly = on && view.open.core.size > 0;
  byId("core").setAttribute("aria-pressed", String(view.coreOnly));
  redraw();
}

/* The address says what is looked at, so that a place in a history can be pointed at. */
function keepLink() {
  const fields = new URLSearchParams({ part: view.part, ...(view.chosen >= 0 ? { op: view.chosen } : {}) });
  try { history.replaceState(null, "", `#${fields}`); } catch { /* some browsers keep a file's address */ }
}

function openLink() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const op = Number(fields.get("op") ?? -1), part = Number(fields.get("part") ?? 0);
  openPart(part in data.parts ? part : 0);
  if (view.rowOf.has(op)) choose(op);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  readColours();
  redraw();
}

function turnTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("jepsen-theme", theme); } catch { /* a page opened from a file may have no storage */ }
  setTheme(theme);
}

function hover(event) {
  const box = lines.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  const lane = view.lanes[Math.floor((y - topOf(view) + view.scroll) / laneHeight(view))];
  const slack = (2 * (view.to - view.from)) / (box.width - GUTTER);
  const inside = lane && x >= GUTTER && y >= topOf(view);
  const op = inside ? operationAt(lane, valueAt(view, box.width, x), slack, view.axis) : -1;
  if (op !== view.hovered) {
    view.hovered = op;
    if (op >= 0 || view.chosen >= 0) orderFor(op >= 0 ? op : view.chosen);
    redraw();
  }
  showTip(view, event.clientX, event.clientY);
}

const pointer = { down: false, moved: false, x: 0, y: 0 };
lines.addEventListener("pointerdown", (event) => {
  Object.assign(pointer, { down: true, moved: false, x: event.clientX, y: event.clientY });
  lines.setPointerCapture(event.pointerId);
});
lines.addEventListener("pointermove", (event) => {
  if (!pointer.down) return hover(event);
  const dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
  if (!pointer.moved && Math.hypot(dx, dy) < 4) return undefined;
  Object.assign(pointer, { moved: true, x: event.clientX, y: event.clientY });
  lines.classList.add("dragging");
  pan(-dx / (lines.clientWidth - GUTTER));
  return scrollTo(view.scroll - dy);
});
lines.addEventListener("pointerup", (event) => {
  lines.classList.remove("dragging");
  if (pointer.down && !pointer.moved) {
    hover(event);
    choose(view.hovered === view.chosen ? -1 : view.hovered);
  }
  pointer.down = false;
});
lines.addEventListener("pointerleave", () => {
  view.hovered = -1;
  byId("tip").hidden = true;
  redraw();
});
lines.addEventListener("wheel", (event) => {
  event.preventDefault();
  const overflows = view.lanes.length * laneHeight(view) > lines.clientHeight - topOf(view);
  const at = valueAt(view, lines.clientWidth, event.clientX - lines.getBoundingClientRect().left);
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) pan((event.deltaX || event.deltaY) / lines.clientWidth);
  else if (event.ctrlKey || event.metaKey || event.altKey || !overflows) zoom(Math.exp(event.deltaY * 0.0022), at);
  else scrollTo(view.scroll + event.deltaY);
}, { passive: false });
lines.addEventListener("dblclick", (event) => zoom(0.4, valueAt(view, lines.clientWidth, event.clientX - lines.getBoundingClientRect().left)));

function jump(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const box = overview.getBoundingClientRect();
  const share = (event.clientX - box.left - GUTTER) / (box.width - GUTTER - 8);
  const middle = view.axis.first + share * (view.axis.last - view.axis.first), half = (view.to - view.from) / 2;
  look(middle - half, middle + half);
}
overview.addEventListener("pointerdown", jump);
overview.addEventListener("pointermove", jump);

const moved = (step) => openPart((view.part + step + data.parts.length) % Math.max(1, data.parts.length));
const KEYS = {
  ArrowUp: () => follow(-1), ArrowDown: () => follow(1), ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2),
  "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), 0: () => fit(), "[": () => moved(-1), "]": () => moved(1),
  c: () => setCoreOnly(!view.coreOnly), t: () => setAxis(view.axis === axes.time ? axes.order : axes.time), d: turnTheme,
  "?": showHelp, "/": () => byId("filter").focus(), Escape: () => choose(-1),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.id === "filter") {
    if (event.key === "Escape") lines.focus();
    return;
  }
  const action = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (!action) return;
  event.preventDefault();
  action();
});

byId("axis").addEventListener("click", KEYS.t);
byId("core").addEventListener("click", KEYS.c);
byId("fit").addEventListener("click", fit);
byId("theme").addEventListener("click", turnTheme);
byId("keys").addEventListener("click", showHelp);
byId("filter").addEventListener("input", () => showParts(view, openPart));
addEventListener("resize", redraw);
new ResizeObserver(redraw).observe(byId("stage"));

let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
try { theme = localStorage.getItem("jepsen-theme") ?? theme; } catch { /* as above */ }
byId("axis").hidden = !timed;
byId("core").hidden = data.verdict !== "invalid";
setTheme(theme);
showHeader();
showLegend();
openLink();
addEventListener("hashchange", openLink);
