/* The two canvases. All is drawn anew on each change, only what is in sight: 10,000 operations take a few ms. */
const AXIS = 26, STATES = 26, GUTTER = 52, CHARACTER = 6.65, LANE_LEAST = 28, LANE_MOST = 42;
const FONT = '11px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = "ground paper raised line ink soft faint accent good bad bad-ground open read write both take other bar-ink band band-line lane";
  colours = Object.fromEntries(names.split(" ").map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function prepared(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.textBaseline = "middle";
  return { pen, width, height };
}

const xOf = (view, width, value) => GUTTER + ((value - view.from) / (view.to - view.from)) * (width - GUTTER);
const valueAt = (view, width, x) => view.from + ((x - GUTTER) / (width - GUTTER)) * (view.to - view.from);
const topOf = (view) => AXIS + (view.order ? STATES : 0);
const laneHeight = (view) => Math.max(LANE_LEAST, Math.min(LANE_MOST, Math.floor((lines.clientHeight - topOf(view) - 30) / Math.max(1, view.lanes.length))));
const barHeight = (view) => laneHeight(view) - (laneHeight(view) > 34 ? 14 : 8);
const yOf = (view, lane) => topOf(view) + lane * laneHeight(view) - view.scroll;

function drawLines(canvas, view) {
  const { pen, width, height } = prepared(canvas);
  const top = topOf(view), tall = laneHeight(view);
  drawLaneGround(pen, view, width, height);
  drawMarks(pen, view, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(GUTTER, top, width - GUTTER, height - top);
  pen.clip();
  const rows = view.lanes.map((lane, row) => [lane, yOf(view, row)]).filter(([, y]) => y <= height && y + tall >= top);
  for (const [lane, y] of rows) for (const op of lane.ops) drawTail(pen, view, width, op, y);
  for (const [lane, y] of rows) for (const op of lane.ops) drawBar(pen, view, width, op, y);
  if (view.order) drawOrder(pen, view, width);
  drawEdges(pen, view, width);
  for (const [lane, y] of rows) lane.ops.forEach((op, index) => drawText(pen, view, width, op, lane.ops[index + 1], y));
  pen.restore();
  drawAxis(pen, view, width);
  if (view.order) drawStates(pen, view, width);
}

function drawLaneGround(pen, view, width, height) {
  const tall = laneHeight(view);
  pen.textAlign = "right";
  view.lanes.forEach((lane, row) => {
    const y = yOf(view, row);
    if (y > height || y + tall < topOf(view)) return;
    pen.fillStyle = row % 2 ? colours.ground : colours.lane;
    pen.fillRect(0, y, width, tall);
    pen.fillStyle = colours.soft;
    const first = String(lane.processes[0]);
    pen.fillText(lane.processes.length > 1 ? `${first.slice(0, 5)}+` : first.slice(0, 6), GUTTER - 8, y + tall / 2);
  });
  pen.textAlign = "left";
}

function drawMarks(pen, view, width, height) {
  const rows = [], top = topOf(view);
  for (const mark of data.marks) {
    const [begin, end] = view.axis.mark(mark);
    const from = xOf(view, width, begin), to = Math.max(from + 1, xOf(view, width, end));
    if (to < GUTTER || from > width) continue;
    pen.fillStyle = colours.band;
    pen.fillRect(Math.max(GUTTER, from), top, Math.min(width, to) - Math.max(GUTTER, from), height - top);
    pen.fillStyle = colours["band-line"];
    if (from >= GUTTER) pen.fillRect(from, top, 1, height - top);
    const text = `${mark[1]}${mark[2] === "nil" ? "" : ` ${mark[2]}`}`.slice(0, 60);
    const at = Math.max(GUTTER + 4, from + 4);
    let row = rows.findIndex((until) => until < at);
    if (row < 0) row = rows.push(0) - 1;
    if (row > 3) continue;
    rows[row] = at + text.length * CHARACTER + 10;
    pen.fillStyle = colours.take;
    pen.fillText(text, at, height - 10 - row * 14);
  }
}

function shade(view, op) {
  if (view.coreOnly && !view.open.core.has(op) && !view.open.stuck.has(op)) return 0.13;
  return view.order && !view.order.place.has(op) && ops.outcome[op] !== OK ? 0.6 : 1;
}

function span(view, width, op) {
  const from = xOf(view, width, view.axis.begin(op));
  return [from, Math.max(from + 2, xOf(view, width, view.axis.end(op)))];
}

/* What stays unknown may take effect at any later moment: a thin line to the end says so. */
function drawTail(pen, view, width, op, y) {
  if (ops.outcome[op] !== UNKNOWN) return;
  const from = Math.max(GUTTER, xOf(view, width, view.axis.begin(op)));
  if (from > width) return;
  pen.globalAlpha = 0.3 * shade(view, op);
  pen.fillStyle = colours[kindOf(op)];
  pen.fillRect(from, y + laneHeight(view) - 3, width - from, 2);
  pen.globalAlpha = 1;
}

function drawBar(pen, view, width, op, y) {
  const [from, to] = span(view, width, op);
  if (to < GUTTER || from > width) return;
  const colour = colours[kindOf(op)], tall = barHeight(view), top = y + (laneHeight(view) - tall) / 2;
  pen.globalAlpha = shade(view, op);
  pen.beginPath();
  if (to - from > 6) pen.roundRect(from, top, to - from, tall, 4);
  else pen.rect(from, top, to - from, tall);
  if (ops.outcome[op] === OK) {
    pen.fillStyle = view.open.stuck.has(op) ? colours.bad : colour;
    pen.fill();
  } else {
    pen.fillStyle = colours.paper;
    pen.fill();
    pen.strokeStyle = ops.outcome[op] === FAILED ? colours.faint : colour;
    pen.setLineDash(ops.outcome[op] === UNKNOWN ? [4, 3] : []);
    pen.lineWidth = 1.2;
    pen.stroke();
    pen.setLineDash([]);
  }
  const chosen = op === view.chosen || op === view.hovered;
  if (chosen || view.open.core.has(op)) {
    pen.beginPath();
    pen.roundRect(from - 2, top - 2, to - from + 4, tall + 4, 6);
    pen.lineWidth = 2;
    pen.strokeStyle = chosen ? colours.ink : colours.bad;
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/* Inside of the bar beside the point of the order, or after the bar if the lane is free there, or cut. */
function drawText(pen, view, width, op, next, y) {
  const [from, to] = span(view, width, op);
  if (to < GUTTER - 200 || from > width || (to - from < 8 && view.dense)) return;
  const index = view.order?.place.get(op), round = view.dense ? 5 : 10;
  const point = index === undefined ? -1 : xOf(view, width, view.moments[index]);
  const inside = point >= from && point <= to;
  const rooms = inside ? [[Math.max(from, GUTTER), point - round], [point + round, to]] : [[Math.max(from, GUTTER), to]];
  const [left, right] = rooms.reduce((a, b) => (b[1] - b[0] > a[1] - a[0] ? b : a));
  const room = Math.floor((right - left - 8) / CHARACTER);
  const text = ops.text[op].replace(" -> ", " → ").replace(/ → unknown$/, " ?");
  const short = ops.f[op] === "txn" ? text : text.replace(/^(read|get) → |^(write|append|put|add) /, "");
  const fitting = [text, short].find((one) => one.length <= room);
  const free = next === undefined ? width : xOf(view, width, view.axis.begin(next));
  const after = Math.max(to, point + round) + 5;
  const outside = fitting ? undefined : [text, short].find((one) => one.length * CHARACTER + 6 < free - after);
  pen.globalAlpha = shade(view, op);
  const middle = y + laneHeight(view) / 2 + 0.5;
  if (outside && after > GUTTER) {
    pen.fillStyle = view.open.stuck.has(op) ? colours.bad : colours.soft;
    pen.fillText(outside, after, middle);
  } else if (fitting || room > 2) {
    pen.fillStyle = ops.outcome[op] === OK ? colours["bar-ink"] : ops.outcome[op] === FAILED ? colours.faint : colours.ink;
    pen.fillText(fitting ?? `${short.slice(0, room - 1)}…`, left + 5, middle);
  }
  pen.globalAlpha = 1;
}

function drawOrder(pen, view, width) {
  const { order, moments: at } = view;
  let first = at.findIndex((moment) => moment >= view.from);
  if (first < 0) first = at.length;
  first = Math.max(0, first - 1);
  const points = [];
  for (let index = first; index < at.length; index++) {
    points.push([xOf(view, width, at[index]), yOf(view, view.rowOf.get(order.ops[index])) + laneHeight(view) / 2, index]);
    if (at[index] > view.to) break;
  }
  const crowded = points.length > (width - GUTTER) / 7;
  view.dense = points.length >= (width - GUTTER) / 26;
  if (points.length > width / 2) return; // more than a line in two pixels shows nothing and hides the rest
  pen.globalAlpha = (crowded ? 0.28 : 0.6) * (view.coreOnly ? 0.3 : 1);
  pen.strokeStyle = colours.ink;
  pen.lineWidth = crowded ? 0.8 : 1.3;
  pen.lineJoin = "round";
  pen.beginPath();
  points.forEach(([x, y], index) => (index ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
  pen.globalAlpha = 1;
  if (crowded) return;
  pen.textAlign = "center";
  for (const [x, y, index] of points) drawPoint(pen, view, x, y, index);
  pen.textAlign = "left";
}

/* A cycle of transactions: arrows to what must come later, bowed so that two between the same pair can be told apart. */
function drawEdges(pen, view, width) {
  const middle = (op) => {
    const [from, to] = span(view, width, op);
    return [(Math.max(from, GUTTER) + Math.min(to, width)) / 2, yOf(view, view.rowOf.get(op)) + laneHeight(view) / 2];
  };
  for (const [source, target, kind] of view.open.part.edges ?? []) {
    const [x, y] = middle(source), [goalX, goalY] = middle(target);
    const long = Math.hypot(goalX - x, goalY - y) || 1, bow = Math.min(46, 14 + long * 0.16);
    const bendX = (x + goalX) / 2 - ((goalY - y) / long) * bow, bendY = (y + goalY) / 2 + ((goalX - x) / long) * bow;
    pen.strokeStyle = pen.fillStyle = colours.bad;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.quadraticCurveTo(bendX, bendY, goalX, goalY);
    pen.stroke();
    const angle = Math.atan2(goalY - bendY, goalX - bendX);
    pen.beginPath();
    pen.moveTo(goalX, goalY);
    pen.lineTo(goalX - 11 * Math.cos(angle - 0.4), goalY - 11 * Math.sin(angle - 0.4));
    pen.lineTo(goalX - 11 * Math.cos(angle + 0.4), goalY - 11 * Math.sin(angle + 0.4));
    pen.fill();
    const atX = (x + 2 * bendX + goalX) / 4, atY = (y + 2 * bendY + goalY) / 4, wide = kind.length * CHARACTER + 12;
    pen.beginPath();
    pen.roundRect(atX - wide / 2, atY - 9, wide, 18, 9);
    pen.fill();
    pen.fillStyle = colours["bar-ink"];
    pen.textAlign = "center";
    pen.fillText(kind, atX, atY + 0.5);
    pen.textAlign = "left";
  }
}

function drawPoint(pen, view, x, y, index) {
  const op = view.order.ops[index], chosen = op === view.chosen || op === view.hovered;
  pen.globalAlpha = shade(view, op) < 0.2 ? 0.25 : 1;
  pen.beginPath();
  pen.arc(x, y, view.dense ? 3 : 7.5, 0, 2 * Math.PI);
  pen.fillStyle = chosen ? colours.accent : colours.paper;
  pen.fill();
  pen.strokeStyle = chosen ? colours.accent : colours.ink;
  pen.lineWidth = 1.2;
  pen.stroke();
  if (!view.dense) {
    pen.fillStyle = chosen ? colours.paper : colours.ink;
    pen.font = FONT.replace("11px", index < 99 ? "9px" : index < 999 ? "7px" : "5.5px");
    pen.fillText(String(index + 1), x, y + 0.5);
    pen.font = FONT;
  }
  pen.globalAlpha = 1;
}

/* The state between the points of the order, and in red where nothing can follow. */
function drawStates(pen, view, width) {
  const { order, moments: at } = view;
  pen.fillStyle = colours.paper;
  pen.fillRect(0, AXIS, width, STATES);
  pen.save();
  pen.beginPath();
  pen.rect(GUTTER, AXIS, width - GUTTER, STATES);
  pen.clip();
  const ends = view.open.part.answer !== "valid" && order.number === 0;
  let begin = -Infinity, text = view.open.part.start;
  const piece = (end, last) => {
    const from = xOf(view, width, begin), to = xOf(view, width, end);
    if (to < GUTTER || from > width) return;
    const left = Math.max(from, GUTTER);
    pen.fillStyle = last && ends ? colours["bad-ground"] : colours.raised;
    pen.fillRect(left + 0.5, AXIS + 3, Math.min(to, width) - left - 1, STATES - 7);
    const room = Math.floor((Math.min(to, width) - left - 10) / CHARACTER);
    pen.fillStyle = last && ends ? colours.bad : colours.ink;
    if (room >= Math.min(2, text.length)) pen.fillText(text.length <= room ? text : `${text.slice(0, room - 1)}…`, left + 5, AXIS + STATES / 2 - 0.5);
  };
  at.forEach((moment, index) => {
    const after = order.after(index);
    if (after === text) return;
    piece(moment, false);
    [begin, text] = [moment, after];
  });
  piece(Infinity, true);
  pen.restore();
  pen.fillStyle = colours.faint;
  pen.fillText("state", 8, AXIS + STATES / 2 - 1);
  pen.fillStyle = colours.line;
  pen.fillRect(0, AXIS + STATES - 1, width, 1);
}

function drawAxis(pen, view, width) {
  pen.fillStyle = colours.paper;
  pen.fillRect(0, 0, width, AXIS);
  pen.fillStyle = colours.line;
  pen.fillRect(0, AXIS - 1, width, 1);
  const wanted = (view.to - view.from) / Math.max(2, (width - GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = Math.max(view.axis === axes.order ? 1 : 0, [1, 2, 5, 10].map((one) => one * power).find((one) => one >= wanted));
  pen.textAlign = "center";
  for (let value = Math.ceil(view.from / step) * step; value <= view.to; value += step) {
    const x = xOf(view, width, value);
    if (x < GUTTER + 16) continue;
    pen.fillStyle = colours.faint;
    pen.fillRect(x, AXIS - 5, 1, 4);
    pen.fillStyle = colours.soft;
    pen.fillText(view.axis.label(Math.round(value / step) * step), x, AXIS / 2 - 1);
  }
  pen.textAlign = "left";
  pen.fillStyle = colours.faint;
  pen.fillText(view.axis === axes.order ? "event" : "time", 8, AXIS / 2 - 1);
}

/* The whole part in one strip: how busy it was, where the faults and the contradiction are, and what is in sight. */
function drawOverview(canvas, view) {
  const { pen, width, height } = prepared(canvas);
  const whole = view.axis.last - view.axis.first || 1;
  const at = (value) => GUTTER + ((Math.max(view.axis.first, Math.min(view.axis.last, value)) - view.axis.first) / whole) * (width - GUTTER - 8);
  for (const mark of data.marks) {
    const [begin, end] = view.axis.mark(mark);
    pen.fillStyle = colours["band-line"];
    pen.fillRect(at(begin), height - 6, Math.max(1.5, at(end) - at(begin)), 4);
  }
  const bins = new Array(Math.max(1, Math.floor((width - GUTTER - 8) / 3))).fill(0);
  for (const op of view.open.all) bins[Math.min(bins.length - 1, Math.floor(((view.axis.begin(op) - view.axis.first) / whole) * bins.length))]++;
  const most = Math.max(1, ...bins);
  pen.fillStyle = colours.faint;
  bins.forEach((many, index) => {
    const tall = Math.sqrt(many / most) * (height - 16);
    if (many) pen.fillRect(GUTTER + index * 3, height - 8 - tall, 2, tall);
  });
  pen.fillStyle = colours.bad;
  for (const op of [...view.open.core, ...view.open.stuck]) pen.fillRect(at(view.axis.begin(op)) - 1, 3, 2.5, height - 10);
  const left = at(view.from), wide = Math.max(4, at(view.to) - left);
  pen.fillStyle = colours.accent;
  pen.globalAlpha = 0.14;
  pen.fillRect(left, 1, wide, height - 2);
  pen.globalAlpha = 1;
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 1.5;
  pen.strokeRect(left, 1, wide, height - 2);
}
