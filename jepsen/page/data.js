/* The judged history, as report.py wrote it, and small questions about it. Operations are numbers: places in columns. */
const data = JSON.parse(document.getElementById("data").textContent);
const ops = data.ops;
const count = ops.process.length;
const OK = 0, UNKNOWN = 1, FAILED = 2;

/* The clock can be shown only if every call has a time; completions without one are drawn at the end. */
const timed = count > 0 && ops.begin.every((one) => one !== null);
const lastTime = timed ? ops.begin.concat(ops.end).concat(data.marks.map((mark) => mark[6])).reduce((a, b) => Math.max(a, b ?? 0), 0) : 0;
const firstTime = timed ? ops.begin.concat(data.marks.map((mark) => mark[5] ?? Infinity)).reduce((a, b) => Math.min(a, b), Infinity) : 0;

const WORDS = { valid: data.promise, invalid: `not ${data.promise}`, unknown: "not known", skipped: "not looked at" };
const KINDS = [
  ["read", ["read", "get", "contains", "scan"], "read"],
  ["write", ["write", "put", "append", "add", "enqueue", "acquire"], "write"],
  ["both", ["cas", "txn", "incr"], "compare and set, transaction"],
  ["take", ["delete", "remove", "dequeue", "release"], "remove"],
];
const kindOf = (op) => (KINDS.find(([, names]) => names.includes(ops.f[op])) ?? ["other"])[0];

/* An axis places operations: by the order of the events (the only clock that is true), or by the time that was noted.
   The order counts the events of the part that is shown: those of other parts would only stretch the picture. */
const axes = {
  order: {
    ranks: [],
    begin: (op) => rankOf(ops.call[op]),
    end: (op) => (ops.ret[op] < 0 ? axes.order.ranks.length : rankOf(ops.ret[op])),
    mark: (mark) => [rankOf(mark[3]) - 0.5, rankOf(mark[4]) - 0.5],
    first: 0,
    last: 1,
    least: 4,
    label: (value) => (Number.isInteger(value) ? String(value + 1) : ""),
  },
  time: {
    begin: (op) => ops.begin[op] - firstTime,
    end: (op) => (ops.end[op] ?? lastTime) - firstTime,
    mark: (mark) => [(mark[5] ?? firstTime) - firstTime, (mark[6] ?? lastTime) - firstTime],
    first: 0,
    last: Math.max(1, lastTime - firstTime),
    least: 1000,
    label: (value) => duration(value),
  },
};

/* How many events of the part come before a position in the whole history. */
function rankOf(position) {
  let low = 0, high = axes.order.ranks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (axes.order.ranks[middle] < position) low = middle + 1;
    else high = middle;
  }
  return low;
}

function duration(ns) {
  const size = Math.abs(ns);
  if (size === 0) return "0";
  const [unit, name] = size >= 1e9 ? [1e9, "s"] : size >= 1e6 ? [1e6, "ms"] : size >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  return `${Number((ns / unit).toPrecision(5))} ${name}`;
}

/* What is known of a part that is on the page: its operations by call, and who is in the contradiction. */
function opened(part) {
  const all = [...part.ops].sort((a, b) => ops.call[a] - ops.call[b]);
  axes.order.ranks = all.flatMap((op) => (ops.ret[op] < 0 ? [ops.call[op]] : [ops.call[op], ops.ret[op]])).sort((a, b) => a - b);
  axes.order.last = Math.max(1, axes.order.ranks.length - 1);
  return { part, all, core: new Set(part.core ?? []), stuck: new Set(part.stuck ?? []) };
}

/* One of a part's orders: place of each operation in it, and the states between. */
function arranged(part, number) {
  const order = part.orders[number];
  if (!order) return null;
  const place = new Map(order.ops.map((op, index) => [op, index]));
  const after = (index) => (index < 0 ? part.start : order.states[order.state[index]]);
  return { ops: order.ops, place, after, number };
}

/* A moment for each operation of an order: rising, and inside of every operation's interval where the clock allows. */
function moments(order, axis) {
  const latest = new Array(order.ops.length);
  let bound = axis.last;
  for (let index = order.ops.length - 1; index >= 0; index--) {
    const op = order.ops[index];
    if (ops.outcome[op] === OK) bound = Math.min(bound, axis.end(op));
    latest[index] = bound;
  }
  const step = axis === axes.order ? 0.4 : axis.last / Math.max(1, order.ops.length) / 4;
  let now = axis.first;
  return order.ops.map((op, index) => {
    now = Math.max(now, axis.begin(op));
    now += Math.max(0, Math.min(step, (latest[index] - now) / 3));
    return now;
  });
}
