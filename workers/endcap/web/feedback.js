// What the visitor does with the slates that are shown: what came into sight, what was looked at, what went into the cart.

import { post } from './dom.js';

const SEND_EVERY_MS = 2000;
const ENTRIES_MAX = 1000; // of one request
const KINDS = ['impressions', 'clicks', 'cart_adds'];
const IN_SIGHT = 0.6; // share of a card

const slates = new WeakMap(); // card → { slate, product }
const waiting = new Map();    // slate → what was done, not yet told
const told = new Set();       // what was told or waits, so that nothing is told over and over

const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || document.hidden) continue;
    note(target, 'impressions');
    sight.unobserve(target);
  }
}, { threshold: IN_SIGHT });

/** From now on it is told what is done with `card`, which shows `product` of `slate`. */
export function watch(card, slate, product) {
  slates.set(card, { slate, product });
  sight.observe(card);
}

/** Notes what was done with a card: `impressions`, `clicks` or `cart_adds`. */
export function note(card, kind) {
  const known = slates.get(card);
  if (!known) return;
  const key = `${kind} ${known.product} ${known.slate}`;
  if (told.has(key)) return;
  told.add(key);
  const entry = waiting.get(known.slate) ?? { slate: known.slate, impressions: [], clicks: [], cart_adds: [] };
  entry[kind].push(known.product);
  waiting.set(known.slate, entry);
}

async function send() {
  const entries = [...waiting.values()].slice(0, ENTRIES_MAX);
  if (!entries.length) return;
  entries.forEach((entry) => waiting.delete(entry.slate));
  try {
    await post('/v1/feedback', entries);
  } catch {
    entries.forEach(again);
  }
}

/** What was not taken is told again, with what was noted meanwhile: each thing counts once, however often it is told. */
function again(entry) {
  const since = waiting.get(entry.slate);
  if (since) KINDS.forEach((kind) => entry[kind].push(...since[kind]));
  waiting.set(entry.slate, entry);
}

setInterval(send, SEND_EVERY_MS);
