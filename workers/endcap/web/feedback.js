// What the visitor does with the slates that are shown: what came into sight, what was looked at, what went into the cart.

import { post } from './dom.js';

const SEND_EVERY_MS = 2000;
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
  if (!waiting.size) return;
  const entries = [...waiting.values()];
  waiting.clear();
  try {
    await post('/v1/feedback', entries);
  } catch {
    // Told again with the next: each thing counts once, however often it is told.
    for (const entry of entries) if (!waiting.has(entry.slate)) waiting.set(entry.slate, entry);
  }
}

setInterval(send, SEND_EVERY_MS);
