// A text whose tokens are shaded by the attention of one head. Untouched: what each token receives. Hovered, focused or pinned: where that token looks.
// A click or Enter pins a token, Escape lets it go: `setTriggerValue("row", 7)`, −1 for none.

const memory = new WeakMap();
const STRONGEST = 5;

function opened(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return [header, new Float32Array(bytes.slice(4 + length).buffer)];
}

function made(tag, name, parent) {
  const element = document.createElement(tag);
  element.className = name;
  parent.append(element);
  return element;
}

const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "→");

export default function ({ data, parentElement, setTriggerValue }) {
  let state = memory.get(parentElement);
  if (!state) {
    const root = made("div", "token-map", parentElement);
    state = { root, text: made("div", "text", root), said: made("p", "said", root) };
    state.said.setAttribute("aria-live", "polite");
    state.text.setAttribute("role", "listbox");
    memory.set(parentElement, state);
  }
  const { text, said } = state;
  const [header, values] = opened(data);
  const count = header.tokens.length;
  const rowOf = (row) => values.subarray(row * count, (row + 1) * count);
  const received = values.subarray(count * count);
  let pinned = header.pinned;

  text.setAttribute("aria-label", `Tokens of the text and the attention of ${header.head}. Arrow keys move, Enter pins a token.`);
  text.replaceChildren();
  const spans = header.tokens.map((token, place) => {
    const span = made("span", "token", text);
    span.append(visible(token) || "∅");
    span.setAttribute("role", "option");
    span.tabIndex = place === (pinned ?? 0) ? 0 : -1;
    if (token.includes("\n")) text.append(document.createElement("br"));
    return span;
  });

  function paint(row) {
    const shades = row === null ? received : rowOf(row);
    spans.forEach((span, place) => {
      const part = Math.sqrt(Math.max(0, shades[place]));
      span.style.setProperty("--part", `${Math.round(part * 100)}%`);
      span.classList.toggle("strong", part > 0.45);
      span.classList.toggle("row", place === row);
      span.classList.toggle("pinned", place === pinned);
      span.setAttribute("aria-selected", String(place === pinned));
      span.title = `token ${place}: ${row === null ? "receives" : "gets"} ${shades[place].toFixed(3)}`;
    });
    const order = [...shades.keys()].filter((place) => shades[place] >= 0.005).sort((a, b) => shades[b] - shades[a]).slice(0, STRONGEST);
    const list = order.map((place) => `“${visible(header.tokens[place])}” (${place}) ${shades[place].toFixed(2)}`).join(", ") || "nothing above 0.005";
    said.textContent = row === null
      ? `Mean attention received, from the rows that see the token: ${list}`
      : `“${visible(header.tokens[row])}” (${row}) looks at: ${list}`;
  }

  function focus(place) {
    const to = Math.max(0, Math.min(count - 1, place));
    spans.forEach((span, i) => (span.tabIndex = i === to ? 0 : -1));
    spans[to].focus();
  }

  function pin(place) {
    pinned = place === pinned ? null : place;
    paint(pinned);
    setTriggerValue("row", pinned ?? -1);
  }

  spans.forEach((span, place) => {
    span.onpointerenter = () => paint(place);
    span.onfocus = () => span.matches(":focus-visible") && paint(place);
    span.onblur = () => paint(pinned);
    span.onclick = () => pin(place);
    span.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (step) focus(place + step);
      else if (event.key === "Home") focus(0);
      else if (event.key === "End") focus(count - 1);
      else if (event.key === "Enter" || event.key === " ") pin(place);
      else if (event.key === "Escape" && pinned !== null) pin(pinned);
      else return;
      event.preventDefault();
    };
  });
  text.onpointerleave = () => paint(pinned);
  paint(pinned);
}
