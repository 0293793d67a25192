// A layer × head map on a canvas. Layers downwards, heads to the right; a shade is a score, a faint grey none, a ring a labelled head.
// Hovering or the arrow keys tell a head; a click or Enter chooses it: `setTriggerValue("head", "L17H3")`.

const memory = new WeakMap();

function opened(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return [header, new Float32Array(bytes.slice(4 + length).buffer)];
}

function mixed(shades, part) {
  const place = Math.max(0, Math.min(1, part)) * (shades.length - 1);
  const low = Math.floor(place), high = Math.min(low + 1, shades.length - 1);
  const rgb = (text) => [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  const [from, to] = [rgb(shades[low]), rgb(shades[high])];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (place - low))).join(",")})`;
}

function spread(scores) {
  const low = scores.reduce((a, b) => Math.min(a, b), 0);
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  return [low, top > low ? top : low + 1];
}

function made(tag, name, parent) {
  const element = document.createElement(tag);
  element.className = name;
  parent.append(element);
  return element;
}

function frame(parent) {
  const root = made("div", "head-map", parent);
  const plot = made("div", "plot", root);
  const rows = made("div", "rows", plot);
  const canvas = made("canvas", "cells", plot);
  const columns = made("div", "columns", plot);
  const tip = made("div", "tip", plot);
  const legend = made("div", "legend", root);
  const said = made("p", "said", root);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  said.setAttribute("aria-live", "polite");
  tip.hidden = true;
  return { root, plot, rows, canvas, columns, tip, legend, said, cursor: null };
}

export default function ({ data, parentElement, setTriggerValue }) {
  const state = memory.get(parentElement) ?? frame(parentElement);
  memory.set(parentElement, state);
  const { root, plot, rows, canvas, columns, tip, legend, said } = state;
  const [header, scores] = opened(data);
  const [low, high] = header.range ?? spread(scores);
  let size = { width: 10, height: 10 };
  if (state.cursor && (state.cursor[0] >= header.layers || state.cursor[1] >= header.heads)) state.cursor = null;

  const name = ([layer, head]) => `L${layer}H${head}`;
  const number = ([layer, head]) => layer * header.heads + head;
  const value = (cell) => (Number.isNaN(scores[number(cell)]) ? "–" : scores[number(cell)].toFixed(3));
  const told = (cell) => `${name(cell)}: ${header.title} ${value(cell)}; ${header.labels[number(cell)] || "no label"}`;

  function ticks() {
    const every = (pixels, wanted) => [1, 2, 4, 5, 8, 10, 16, 20, 32].find((step) => step * pixels >= wanted) ?? 32;
    const filled = (box, count, step, pixels, side) => {
      box.replaceChildren();
      for (let i = 0; i < count; i += step) made("span", "", box).append(String(i));
      [...box.children].forEach((span, i) => (span.style[side] = `${(i * step + 0.5) * pixels}px`));
    };
    filled(rows, header.layers, every(size.height, 15), size.height, "top");
    filled(columns, header.heads, every(size.width, 22), size.width, "left");
  }

  function draw() {
    const dpr = window.devicePixelRatio || 1, gap = size.width > 8 && size.height > 8 ? 1 : 0;
    const pen = canvas.getContext("2d");
    pen.setTransform(dpr, 0, 0, dpr, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let layer = 0; layer < header.layers; layer++)
      for (let head = 0; head < header.heads; head++) {
        const score = scores[layer * header.heads + head];
        pen.fillStyle = Number.isNaN(score) ? "#8882" : mixed(header.shades, (score - low) / (high - low));
        pen.fillRect(head * size.width, layer * size.height, size.width - gap, size.height - gap);
      }
    const radius = Math.max(2, Math.min(size.width, size.height) * 0.22);
    for (const [layer, head] of header.marked) {
      pen.beginPath();
      pen.arc((head + 0.5) * size.width - gap / 2, (layer + 0.5) * size.height - gap / 2, radius, 0, 7);
      pen.fillStyle = "white";
      pen.fill();
      pen.strokeStyle = "black";
      pen.lineWidth = 1.2;
      pen.stroke();
    }
    for (const [cell, colour] of [[header.chosen, "#d55e00"], [state.cursor, "black"]]) {
      if (!cell) continue;
      const box = [cell[1] * size.width, cell[0] * size.height, size.width - gap, size.height - gap];
      pen.lineWidth = 4;
      pen.strokeStyle = "white";
      pen.strokeRect(...box);
      pen.lineWidth = 2;
      pen.strokeStyle = colour;
      pen.strokeRect(...box);
    }
  }

  function sized() {
    const room = root.clientWidth - 34;
    if (room <= 0) return;
    const height = Math.max(7, Math.min(17, 900 / header.layers));
    size = { width: Math.max(4, Math.min(60, Math.floor(room / header.heads))), height };
    const dpr = window.devicePixelRatio || 1;
    const [width, tall] = [size.width * header.heads, height * header.layers];
    Object.assign(canvas, { width: width * dpr, height: tall * dpr });
    Object.assign(canvas.style, { width: `${width}px`, height: `${tall}px` });
    rows.style.height = `${tall}px`;
    legend.style.maxWidth = `${Math.max(width, 200)}px`;
    columns.style.width = `${width}px`;
    ticks();
    draw();
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const cell = [Math.floor((event.clientY - box.top) / size.height), Math.floor((event.clientX - box.left) / size.width)];
    return cell[0] >= 0 && cell[0] < header.layers && cell[1] >= 0 && cell[1] < header.heads ? cell : null;
  }

  function show(cell, aloud) {
    state.cursor = cell;
    tip.hidden = !cell;
    if (cell) {
      tip.replaceChildren();
      made("b", "", tip).append(name(cell));
      made("div", "", tip).append(`${header.title} ${value(cell)}`);
      made("div", "", tip).append(header.labels[number(cell)] || "no label");
      const left = canvas.offsetLeft + (cell[1] + 1) * size.width + 6;
      tip.style.left = `${Math.max(0, Math.min(left, root.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${canvas.offsetTop + (cell[0] + 1) * size.height + 6}px`;
      if (aloud) said.textContent = told(cell);
    }
    draw();
  }

  const choose = (cell) => cell && setTriggerValue("head", name(cell));
  canvas.setAttribute("aria-label", `Map of ${header.title}, ${header.layers} layers by ${header.heads} heads. Arrow keys move, Enter opens a head.`);
  canvas.onpointermove = (event) => show(at(event), false);
  canvas.onpointerleave = () => show(null, false);
  canvas.onblur = () => show(null, false);
  canvas.onclick = (event) => choose(at(event));
  canvas.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(state.cursor);
    else if (event.key === "Escape") show(null, true);
    else if (step) {
      const [layer, head] = state.cursor ?? header.chosen ?? header.marked[0] ?? [0, 0];
      const move = state.cursor ? step : [0, 0];
      const kept = (value, count) => Math.max(0, Math.min(count - 1, value));
      show([kept(layer + move[0], header.layers), kept(head + move[1], header.heads)], true);
    } else return;
    event.preventDefault();
  };

  legend.replaceChildren();
  made("span", "", legend).append(low.toFixed(2));
  made("span", "bar", legend).style.background = `linear-gradient(to right, ${header.shades.join(",")})`;
  made("span", "", legend).append(`${high.toFixed(2)} ${header.title}`);
  if (header.meaning) {
    const mark = made("span", "", legend);
    made("span", "ring", mark);
    mark.append(header.mark ?? `${header.marked.length} labelled ${header.meaning}`);
  }
  sized();
  state.watcher?.disconnect(); // whoever watches for the last message keeps its numbers alive
  state.watcher = new ResizeObserver(sized);
  state.watcher.observe(root);
  return () => state.watcher.disconnect();
}
