/* Lanes: which row of the picture a process has. A client whose operation stays unknown goes on under another number, so
   processes whose lives do not overlap share a row; it is free again once its process has said its last word. */
function lanesOf(all, axis) {
  const lives = new Map();
  for (const op of all) {
    const end = axis.end(op);
    const life = lives.get(ops.process[op]);
    if (!life) lives.set(ops.process[op], { process: ops.process[op], begin: axis.begin(op), end, ops: [op] });
    else {
      life.end = Math.max(life.end, end);
      life.ops.push(op);
    }
  }
  const lanes = [];
  for (const life of [...lives.values()].sort((a, b) => a.begin - b.begin || a.process - b.process)) {
    let lane = lanes.find((one) => one.end < life.begin);
    if (!lane) lanes.push((lane = { ops: [], processes: [], end: -1 }));
    lane.ops.push(...life.ops);
    lane.processes.push(life.process);
    lane.end = life.end;
  }
  for (const lane of lanes) lane.ops.sort((a, b) => axis.begin(a) - axis.begin(b));
  return lanes.sort((a, b) => a.processes[0] - b.processes[0]);
}

/* The operation of a lane at a moment: the last one that began before it, if it has not ended. */
function operationAt(lane, moment, slack, axis) {
  let low = 0, high = lane.ops.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (axis.begin(lane.ops[middle]) <= moment + slack) low = middle + 1;
    else high = middle;
  }
  for (let index = low - 1; index >= 0 && index >= low - 4; index--) {
    const op = lane.ops[index];
    if (axis.end(op) + slack >= moment) return op;
  }
  return -1;
}
