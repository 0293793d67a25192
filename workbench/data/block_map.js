// The map of one head on a long prompt, on a canvas: rows downwards, keys to the right; a shade is the logarithm of the attention.
// Drag, wheel, keys or buttons zoom: `setTriggerValue("view", "4000:5000,0:1000")` asks for rows and keys; until they come, what is there is drawn larger.

const memory = new WeakMap();
const FAINTEST = -6, LEAST = 8, START = [24, 72], BOTTOM = 68, RIGHT = 8; // START: where the plot begins, downwards and to the right
const LOOK = { needle: ["#d55e00", "solid", []], answer: ["#009e73", "dashed", [6, 3]], sinks: ["#cc79a7", "dotted", [2, 2]] };
const KEYS = "Drag to zoom in, or focus the map: + and − zoom, arrows move, Shift with arrows pans, Enter shows single cells, 0 the whole map; the wheel zooms too.";
const BUTTONS = { in: ["+", "Zoom in"], out: ["−", "Zoom out"], whole: ["Whole", "Show the whole map"], needle: ["Needle", "Show the answer's rows and the needle's keys"] };
const AXES = [0, 1], ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const STEPS = [1, 2, 5].flatMap((one) => [1, 10, 100, 1000, 10000].map((ten) => one * ten)).sort((a, b) => a - b);

function opened(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return [header, new Float32Array(bytes.slice(4 + length).buffer)];
}

function made(tag, className, parent, text = "") {
  const element = Object.assign(document.createElement(tag), { className, textContent: text });
  parent.append(element);
  return element;
}

function frame(parent) {
  const root = made("div", "block-map", parent), bar = made("div", "bar", root), buttons = {};
  for (const [name, [text, label]] of Object.entries(BUTTONS)) {
    buttons[name] = made("button", "", bar, text);
    Object.assign(buttons[name], { type: "button", title: label, ariaLabel: label });
  }
  const level = made("p", "level", root), plot = made("div", "plot", root), canvas = made("canvas", "map", plot), tip = made("div", "tip", plot);
  const legend = made("div", "legend", root), said = (made("p", "help", root, KEYS), made("p", "said", root));
  Object.assign(canvas, { tabIndex: 0, role: "application" });
  level.ariaLive = said.ariaLive = "polite";
  tip.hidden = true;
  return { root, buttons, level, canvas, tip, legend, said, view: null, sent: "", cursor: null, id: null, band: null };
}

const written = (view) => view.map((side) => side.join(":")).join();
const digits = (value) => (value >= 0.001 ? value.toFixed(4) : value > 0 ? value.toExponential(1) : "0");
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "→");
const within = (value, low, high) => Math.max(low, Math.min(high, value));

/** Max-pooled once more, so that no cell is smaller than a pixel: values, how many, and the tokens along a side of each. */
function pooled(header, values, by) {
  const [high, wide] = header.cells.map((count) => Math.ceil(count / by)), most = new Float32Array(high * wide);
  for (let row = 0; row < header.cells[0]; row++)
    for (let key = 0; key < header.cells[1]; key++) {
      const to = Math.floor(row / by) * wide + Math.floor(key / by);
      most[to] = Math.max(most[to], values[row * header.cells[1] + key]);
    }
  return { values: most, high, wide, size: header.block * by, by };
}

function painted(header, { values, high, wide, size }) {
  const rgb = (text) => [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  const colours = Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (header.shades.length - 1), low = Math.min(Math.floor(place), header.shades.length - 2);
    const [from, to] = header.shades.slice(low, low + 2).map(rgb);
    return [...from.map((value, part) => Math.round(value + (to[part] - value) * (place - low))), 255];
  });
  const image = new ImageData(wide, high);
  for (let row = 0; row < high; row++) {
    const first = header.rect[0][0] + row * size, last = Math.min(first + size, header.rect[0][1]) - 1;
    for (let key = 0; key < wide; key++) {
      const begin = header.rect[1][0] + key * size, place = row * wide + key;
      if (begin > last || (header.window && begin + size - 1 <= first - header.window)) continue; // no row of the cell sees a key of it
      image.data.set(colours[within(Math.round(255 * (1 - Math.log10(values[place]) / FAINTEST)), 0, 255)], 4 * place);
    }
  }
  const canvas = new OffscreenCanvas(wide, high);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const state = memory.get(parentElement) ?? frame(parentElement);
  memory.set(parentElement, state);
  const { root, canvas, tip, legend, said, level, buttons } = state;
  const [header, values] = opened(data);
  let side = 300, cells = null, picture = null, pressed = null;
  if (state.id !== header.id || !state.sent || written(header.asked) === state.sent) Object.assign(state, { view: header.asked, sent: "" });
  Object.assign(state, { id: header.id, asked: header.asked, cursor: null, band: null });

  const span = (axis) => state.view[axis][1] - state.view[axis][0];
  const pixel = (axis, token) => START[axis] + ((token - state.view[axis][0]) / span(axis)) * side;
  const token = (axis, at) => state.view[axis][0] + ((at - START[axis]) / side) * span(axis);
  const edge = (axis, cell) => header.rect[axis][0] + cell * cells.size;
  const count = (axis) => (axis ? cells.wide : cells.high);
  const inside = (point) => point.every((at, axis) => at >= START[axis] && at < START[axis] + side);
  const cellAt = (point) => point.map((at, axis) => Math.floor((token(axis, at) - header.rect[axis][0]) / cells.size));
  const middle = () => AXES.map((axis) => (state.cursor ? edge(axis, state.cursor[axis] + 0.5) : (state.view[axis][0] + state.view[axis][1]) / 2));
  const number = ([row, key]) => `${cells.size > 1 ? "max " : ""}${digits(cells.values[row * cells.wide + key])}`;
  const name = (axis, cell) => {
    const begin = edge(axis, cell), last = Math.min(edge(axis, cell + 1), header.rect[axis][1]) - 1, text = visible(header.text[axis][cell * cells.by]);
    return `${axis ? "key" : "row"} ${last > begin ? `${begin}–${last} “${text}…”` : `${begin} “${text}”`}`;
  };

  function moved(view) {
    state.view = view.map(([begin, end]) => {
      const size = within(Math.round(end - begin), Math.min(LEAST, header.tokens), header.tokens), first = within(Math.round(begin), 0, header.tokens - size);
      return [first, first + size];
    });
    Object.assign(state, { band: null, sent: written(state.view) });
    show(null);
    clearTimeout(state.timer);
    state.timer = setTimeout(() => (state.sent === written(state.asked) ? (state.sent = "") : setTriggerValue("view", state.sent)), 250);
  }
  const zoomed = (factor, at = middle()) => moved(state.view.map((edges, axis) => edges.map((one) => at[axis] + (one - at[axis]) * factor)));
  function stroked(pen, colour, dash, path) {
    for (const [style, width, pattern] of [["#ffffffcc", 4, []], [colour, 1.5, dash]]) {
      Object.assign(pen, { strokeStyle: style, lineWidth: width });
      pen.setLineDash(pattern);
      pen.stroke(path);
    }
    pen.setLineDash([]);
  }
  function marks(pen) {
    for (const { kind, axis, ranges } of header.marks) {
      const [colour, , dash] = LOOK[kind], shown = ranges.filter(([begin, end]) => end > state.view[axis][0] && begin < state.view[axis][1]);
      for (const range of shown) {
        const [from, to] = range.map((one) => within(pixel(axis, one), START[axis], START[axis] + side)), at = (from + to) / 2, path = new Path2D();
        for (const place of shown.length > 8 ? [] : to - from > 4 ? [from, to] : [at - 3, at + 3]) {
          if (place !== within(place, START[axis], START[axis] + side)) continue;
          axis ? path.moveTo(place, START[0]) : path.moveTo(START[1], place);
          axis ? path.lineTo(place, START[0] + side) : path.lineTo(START[1] + side, place);
        }
        stroked(pen, colour, dash, path);
        const [near, far] = [START[1 - axis] - 1, START[1 - axis] - 10], point = (along, across) => (axis ? [along, across] : [across, along]);
        pen.fillStyle = colour;
        pen.fill(new Path2D(`M${point(at, near)}L${point(at - 5, far)}L${point(at + 5, far)}Z`));
      }
    }
  }
  function text(pen, words, x, y, { turned = false, ...style }) {
    pen.save();
    pen.translate(x, y);
    pen.rotate(turned ? -Math.PI / 2 : 0);
    Object.assign(pen, style).fillText(words, 0, 0);
    pen.restore();
  }
  function axes(pen, fillStyle) {
    for (const axis of AXES) {
      const each = side / span(axis), words = header.block === 1 && cells.by === 1 && each >= 13;
      const step = words ? 1 : STEPS.find((one) => one * each >= (axis ? 58 : 28)), flat = axis && !words;
      const style = { fillStyle, font: words ? "11px ui-monospace, monospace" : "11px system-ui, sans-serif", turned: axis && words };
      for (let at = Math.ceil(state.view[axis][0] / step) * step; at < state.view[axis][1]; at += step) {
        const said = words ? visible(header.text[axis][at - header.rect[axis][0]] ?? "").trim().slice(0, 6) : String(at), along = pixel(axis, at + 0.5);
        const place = axis ? [along, START[0] + side + 6] : [START[1] - 12, along];
        text(pen, said, ...place, { ...style, textAlign: flat ? "center" : "right", textBaseline: flat ? "top" : "middle" });
      }
    }
    const title = { fillStyle, font: "12px system-ui, sans-serif", textAlign: "center" };
    text(pen, "key: the token looked at", START[1] + side / 2, START[0] + side + BOTTOM - 6, title);
    text(pen, "row: the token that looks", 10, START[0] + side / 2, { ...title, turned: true });
  }
  function draw() {
    const dpr = window.devicePixelRatio || 1, pen = canvas.getContext("2d"), colour = getComputedStyle(root).color;
    const by = Math.max(1, ...AXES.map((axis) => Math.ceil(span(axis) / header.block / (side * dpr))));
    if (cells?.by !== by) [cells, state.cursor] = [pooled(header, values, by), null], (picture = painted(header, cells));
    pen.setTransform(dpr, 0, 0, dpr, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    const from = AXES.map((axis) => (state.view[axis][0] - header.rect[axis][0]) / cells.size), size = AXES.map((axis) => span(axis) / cells.size);
    pen.drawImage(picture, from[1], from[0], size[1], size[0], START[1], START[0], side, side);
    Object.assign(pen, { strokeStyle: colour, lineWidth: 1, globalAlpha: 0.4 });
    pen.strokeRect(START[1], START[0], side, side);
    pen.globalAlpha = 1;
    marks(pen);
    axes(pen, colour);
    const path = new Path2D(), box = state.band ?? state.cursor?.map((cell, axis) => [pixel(axis, edge(axis, cell)), pixel(axis, edge(axis, cell + 1))]);
    if (box) path.rect(box[1][0], box[0][0], box[1][1] - box[1][0], box[0][1] - box[0][0]), stroked(pen, "black", [], path);
    const what = cells.size === 1 ? "Exact: each cell is one row and one key." : `Pooled: each cell is the max of ${cells.size} × ${cells.size} cells.`;
    const now = what + (header.zooms && written(state.view) !== written(header.asked) ? " This part is being computed." : "");
    if (level.textContent !== now) level.textContent = now;
  }
  function show(cell, aloud = false) {
    state.cursor = cell?.every((at, axis) => at >= 0 && at < count(axis)) ? cell : null;
    tip.hidden = !state.cursor;
    if (state.cursor) {
      const lines = [number(cell), ...AXES.map((axis) => name(axis, cell[axis]))];
      tip.replaceChildren();
      lines.forEach((line, at) => made(at ? "div" : "b", "", tip, line));
      tip.style.left = `${within(pixel(1, edge(1, cell[1] + 1)) + 8, 0, root.clientWidth - tip.offsetWidth)}px`;
      tip.style.top = `${pixel(0, edge(0, cell[0] + 1)) + 8}px`;
      if (aloud) said.textContent = `${lines[1]}, ${lines[2]}: ${lines[0]}`;
    }
    draw();
  }
  const place = (event) => ((box) => [event.clientY - box.top, event.clientX - box.left])(canvas.getBoundingClientRect());
  const tokens = (event) => place(event).map((at, axis) => token(axis, at));
  canvas.onpointerdown = (event) => {
    if (event.pointerType !== "touch" && event.button === 0 && inside(place(event))) pressed = place(event), canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    const point = place(event);
    if (!pressed) return show(inside(point) ? cellAt(point) : null);
    tip.hidden = true;
    state.band = point.map((at, axis) => [pressed[axis], within(at, START[axis], START[axis] + side)].sort((a, b) => a - b));
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    const band = state.band;
    pressed = state.band = null;
    band?.every(([from, to]) => to - from > 5) ? moved(band.map((edges, axis) => edges.map((at) => token(axis, at)))) : draw();
  };
  canvas.onpointerleave = canvas.onblur = () => pressed || show(null);
  canvas.ondblclick = (event) => inside(place(event)) && zoomed(0.25, tokens(event));
  canvas.onwheel = (event) => {
    if (!(event.ctrlKey || event.metaKey || root.getRootNode().activeElement === canvas) || !inside(place(event))) return;
    event.preventDefault();
    zoomed(event.deltaY < 0 ? 0.7 : 1 / 0.7, tokens(event));
  };
  const acts = { in: () => zoomed(0.5), out: () => zoomed(2), whole: () => moved(AXES.map(() => [0, header.tokens])), exact: () => moved(middle().map((at) => [at - 32, at + 32])) };
  const pressing = { "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.whole, Home: acts.whole, Enter: acts.exact, Escape: () => show(null) };
  canvas.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (step && event.shiftKey) moved(state.view.map(([begin, end], axis) => [begin, end].map((at) => at + (step[axis] * (end - begin)) / 2)));
    else if (step) show(state.cursor?.map((at, axis) => within(at + step[axis], 0, count(axis) - 1)) ?? middle().map((at, axis) => Math.floor((at - header.rect[axis][0]) / cells.size)), true);
    else if (pressing[event.key]) pressing[event.key]();
    else return;
    event.preventDefault();
  };
  for (const name of ["in", "out", "whole"]) buttons[name].onclick = acts[name];
  buttons.needle.hidden = !header.needle;
  buttons.needle.onclick = () => moved(header.needle.map(([begin, end]) => [begin - 12, end + 12]));
  canvas.ariaLabel = `Attention map of ${header.head}, ${header.tokens} tokens. ${KEYS}`;

  legend.replaceChildren("≤ 0.000001");
  made("span", "ramp", legend).style.background = `linear-gradient(to right, ${header.shades.join(",")})`;
  legend.append("1: attention, on a logarithmic scale");
  for (const { kind, text } of header.marks) {
    const entry = made("span", "entry", legend, text);
    entry.prepend(made("i", "", legend));
    entry.firstChild.style.borderTop = `3px ${LOOK[kind][1]} ${LOOK[kind][0]}`;
  }

  function sized() {
    const room = root.clientWidth - START[1] - RIGHT, dpr = window.devicePixelRatio || 1;
    if (room <= 0) return;
    side = within(room, 150, 760);
    Object.assign(canvas, { width: (side + START[1] + RIGHT) * dpr, height: (side + START[0] + BOTTOM) * dpr });
    canvas.style.width = `${side + START[1] + RIGHT}px`;
    draw();
  }
  sized();
  state.watcher?.disconnect(); // whoever watches for the last message keeps its numbers alive
  state.watcher = new ResizeObserver(sized);
  state.watcher.observe(root);
  return () => state.watcher.disconnect();
}
