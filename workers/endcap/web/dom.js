// Elements and requests. Text always goes in as text nodes, so nothing from a catalogue can become markup.

const SVG = 'http://www.w3.org/2000/svg';

/** An element: `h('p.big', {title: 'x'}, 'text', child)`. Attributes that are null or false are left out; `on…` adds listeners. */
export function h(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split('.');
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(' ');
  return fill(element, attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name.startsWith('--')) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** What the server answers, as JSON. A failed answer throws its message. */
export async function get(path) {
  return answer(await fetch(path, { headers: { accept: 'application/json' }, credentials: 'same-origin' }));
}

export async function post(path, body) {
  return answer(await fetch(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    credentials: 'same-origin',
    body: JSON.stringify(body),
  }));
}

async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  if (response.status === 401) location.reload(); // the token is another one by now: the server asks for it
  const error = new Error(body.error ?? `the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

/** Calls `work` every `ms` while the document is visible and `wanted()` holds; never twice at once. */
export function every(ms, wanted, work) {
  let running = false;
  const turn = async () => {
    if (running || document.hidden || !wanted()) return;
    running = true;
    try { await work(); } finally { running = false; }
  };
  setInterval(turn, ms);
  return turn;
}

export function toast(text, kind = '') {
  const element = byId('toast');
  element.textContent = text;
  element.className = `toast shown ${kind}`;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => element.classList.remove('shown'), 5000);
}

const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);
/** First letter large, for texts that models and catalogues write in lower case. */
export const sentence = (text) => upper(String(text ?? ''));

export const number = (value) => new Intl.NumberFormat('en').format(Math.round(value ?? 0));

/** A count in few characters: 1,234 · 12.3k · 4.5M. */
export const compact = (value) => value < 10_000 ? number(value) : new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 }).format(value);

export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** A probability in as many digits as tell it from certainty, cut and not rounded: 96%, 99.3%, 99.98%. */
export function probability(p) {
  if (p >= 0.99999) return '>99.999%';
  const digits = Math.max(0, Math.floor(-Math.log10(1 - p)) - 1);
  return `${(Math.floor(p * 100 * 10 ** digits) / 10 ** digits).toFixed(digits)}%`;
}

export const clock = (ms) => new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' }).format(ms);

export const price = (cents) => cents === null || cents === undefined ? '' : new Intl.NumberFormat('en', { style: 'currency', currency: 'USD' }).format(cents / 100);
