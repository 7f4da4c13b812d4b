// The storefront: a shopper's page as carousels, the control page beside it, and what happens after a purchase.

import { byId, clock, every, get, h, number, post, price, probability, seconds, sentence, svg, toast } from './dom.js';
import { explain } from './explain.js';
import { note, watch } from './feedback.js';
import { hue, pictogram } from './pictograms.js';

const STAGES = [['context', 'Context'], ['themes', 'Themes'], ['keywords', 'Keywords'], ['dedup', 'Dedup'], ['aiqa', 'Quality check']];
const ORIGINS = { theme_fallback: 'Merchandiser', page_fallback: 'Merchandiser', floor_fallback: 'Merchandiser', cold: 'Season & popularity' };
const HIGHLIGHT_MS = 15_000;
// How long a purchase is left alone before anybody asks whether a page will come of it.
const PATIENCE_MS = 6_000;

const state = {
  user: null,
  stamp: null,          // context and generation of the shown page; none while it is the default one
  isDefault: false,     // whether the default page is shown
  unranked: false,      // whether a newer page waits for its storefront, which was refused
  seen: new Set(),      // titles and products of the page before
  purchase: null,       // { id, product, clicked, acceptedMs, fold, passed } while a page is awaited; `passed`: stage → when it was through
  mode: 'personal',
};

export const shopper = () => state.user;

/** Shows `user`'s page; the same user again changes nothing. */
export function openShop(user) {
  if (user === state.user && user !== null) return;
  Object.assign(state, { user, stamp: null, isDefault: false, unranked: false, seen: new Set(), purchase: null });
  byId('journey').hidden = true;
  settle();
  byId('facts').replaceChildren();
  byId('who').textContent = user ?? 'Storefront';
  byId('persona').textContent = user ? 'One moment…' : 'Waiting for the first page';
  byId('explain').disabled = !user;
  byId('personal').replaceChildren(...(user ? [h('div.skeleton'), h('div.skeleton')] : [waitingNote()]));
  if (user) refresh();
  if (state.mode !== 'personal') showControl();
}

/** Nothing is waited for any more. */
function settle() {
  byId('personal').classList.remove('waiting');
  byId('personal').setAttribute('aria-busy', 'false');
}

/** What the store orders pages by: the same context may be worked on again by a later generation. */
const stampOf = (page) => page.context_ms * 1000 + page.generation;

const refresh = every(1000, () => state.user !== null && !byId('view-shop').hidden, async () => {
  const user = state.user;
  try {
    if (state.purchase) await followPurchase(user);
    const page = await get(`/v1/pages/${encodeURIComponent(user)}`);
    if (user !== state.user || stampOf(page) === state.stamp) return;
    state.unranked = true;
    const front = await storefront(user, page);
    state.unranked = false;
    if (user === state.user) show(page, front);
  } catch (error) {
    if (user !== state.user || state.stamp !== null || state.isDefault) return;
    if (error.status === 404) await showDefault(user);
    else showNone('The page cannot be read', h('div.empty', {}, h('b', {}, 'The page cannot be read'), error.message));
  }
});

function showNone(persona, why) {
  byId('persona').textContent = persona;
  byId('personal').replaceChildren(why);
}

const waitingNote = () => h('div.empty', {}, h('b', {}, 'No page yet'), 'A page appears here a few seconds after the first event of the shopper.');

// ---- the page ----

/** The page as it is ranked for this visit; null where this process ranks none, or another page than `page`. What is refused is not shown unranked. */
async function storefront(user, page) {
  const front = await get(`/v1/storefronts/${encodeURIComponent(user)}`).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
  return front && !front.is_default && front.context_ms === page.context_ms && front.generation === page.generation ? front : null;
}

/** What everybody without a page sees; where this process ranks nothing, a word. */
async function showDefault(user) {
  const front = await get(`/v1/storefronts/${encodeURIComponent(user)}`).catch(() => null);
  if (user !== state.user || state.stamp !== null) return;
  if (!front?.is_default || !front.placements.length) return showNone('No page yet', waitingNote());
  state.isDefault = true;
  byId('persona').textContent = 'No page yet: this is what everybody sees';
  // Its products stand on the shelves that it is about: nobody has judged them.
  const placements = placementsOf({ placements: [] }, front).map((placement) => ({
    ...placement, products: placement.products.map((product) => ({ ...product, score: null })),
  }));
  byId('facts').replaceChildren(...front.diets.map((diet) => h('li.chip.strong', {}, sentence(diet))), ...counts(placements, front));
  byId('personal').replaceChildren(...placements.map((placement, order) => placementRow(placement, order, null)));
}

/** The page that is shown, ranked once more: by what was learnt meanwhile. A newer one comes by itself. */
async function rankAgain(event) {
  const { user, stamp } = state;
  const button = event.currentTarget;
  button.disabled = true;
  const page = await get(`/v1/pages/${encodeURIComponent(user)}`).catch(() => null);
  const front = page && await storefront(user, page).catch(() => null);
  button.disabled = false;
  if (user !== state.user || stamp !== state.stamp || (page && stampOf(page) !== stamp)) return;
  if (front) show(page, front);
  else toast('The page cannot be ranked again now', 'bad');
}

/** The placements in the order in which they are shown: ranked, or as the page was made. */
function placementsOf(page, front) {
  if (!front) return page.placements;
  const because = new Map(page.placements.map((placement) => [placement.title, placement.because]));
  return front.placements.map((placement) => ({
    ...placement,
    because: because.get(placement.title) ?? null,
    products: placement.products.map((product) => ({ ...product, score: product.relevance, ranking: product })),
  }));
}

function show(page, front) {
  const first = state.stamp === null;
  state.stamp = stampOf(page);
  const mine = state.purchase && page.accepted_ms >= state.purchase.acceptedMs;
  byId('who').textContent = state.user;
  byId('persona').textContent = sentence(page.persona || 'A new shopper');
  const placements = placementsOf(page, front);
  byId('facts').replaceChildren(...facts(page, placements, front));
  const column = byId('personal');
  const known = state.seen;
  column.replaceChildren(...placements.map((placement, order) => placementRow(placement, order, first ? null : known)));
  if (mine || !state.purchase) settle();
  state.seen = new Set(placements.flatMap((placement) => [placement.title, ...placement.products.map((product) => product.id)]));
  if (!first) setTimeout(() => column.querySelectorAll('.arrived').forEach((row) => row.classList.remove('arrived')), HIGHLIGHT_MS);
  if (mine) finishPurchase();
}

function facts(page, placements, front) {
  const fallbacks = placements.filter((placement) => ORIGINS[placement.origin]).length;
  return [
    ...page.diets.map((diet) => h('li.chip.strong', {}, sentence(diet))),
    ...counts(placements, front),
    front ? h('li', {}, h('button.again', { type: 'button', title: 'Rank this page once more, by what was learnt meanwhile', onclick: rankAgain }, 'Rank again')) : null,
    fallbacks ? h('li.chip', {}, `${fallbacks} by the merchandiser`) : null,
    h('li.chip', { title: 'From the event being accepted to the page being readable' }, `made in ${seconds(page.freshness_ms / 1000)}, ${clock(page.published_ms)}`),
  ].filter(Boolean);
}

function counts(placements, front) {
  return [
    h('li.chip', {}, `${placements.length} placements`),
    h('li.chip', {}, `${number(placements.reduce((sum, placement) => sum + placement.products.length, 0))} products`),
    front ? h('li.chip', { title: 'Placements and products in the order of the ranking policy; what is looked at and bought here teaches it' },
      `${front.shuffled ? 'shuffled, ' : 'ranked by '}policy ${number(front.policy)}`) : null,
  ].filter(Boolean);
}

function placementRow(placement, order, known) {
  const isNew = known !== null && !known.has(placement.title);
  const shelf = h('div.shelf', { tabindex: '0', role: 'group', 'aria-label': `Products: ${placement.title}` },
    placement.products.map((product) => card(product, known !== null && !known.has(product.id), placement.slate)));
  return h(isNew ? 'section.placement.arrived' : 'section.placement', { '--order': order, 'data-title': placement.title },
    h('div.placement-head', {},
      h('div', {},
        h('h2', {}, sentence(placement.title), isNew ? h('span.badge.new', {}, 'New') : null,
          placement.reranked ? h('span.badge', { title: 'Its first products are in the order that pleases most as a whole, by PIER' }, 'Arranged') : null,
          ORIGINS[placement.origin] ? h('span.badge', {}, ORIGINS[placement.origin]) : null),
        why(placement)),
      arrows(shelf)),
    placement.keywords.length ? h('div.keywords', { 'aria-label': 'Keywords' }, placement.keywords.map(keyword)) : null,
    shelf);
}

function why(placement) {
  const because = placement.because ? [' · Because you bought ', h('b', {}, placement.because)] : [];
  return h('p.why', {}, sentence(placement.intent), because);
}

function keyword(word) {
  const node = word.descriptor === 'node';
  const drawing = node ? 'M2 2h3v3H2zM7 7h3v3H7zM3.500 5v3.500H7' : 'M5 1.500a3.500 3.500 0 1 0 .01 0M7.500 7.500 10.500 10.500';
  return h(node ? 'span.keyword.node' : 'span.keyword', { title: node ? 'Taxonomy node' : 'Search query' },
    svg('svg', { viewBox: '0 0 12 12', 'aria-hidden': 'true' }, svg('path', { d: drawing })), word.text);
}

function card(product, fresh, slate) {
  const name = [product.brand, product.name, product.size].filter(Boolean).join(' ');
  const looked = (event) => { if (!event.target.closest('.buy')) note(event.currentTarget, 'clicks'); };
  const made = h(fresh ? 'article.card.fresh' : 'article.card', { '--hue': hue(product.department), 'data-product': product.id, onclick: slate ? looked : undefined },
    h('div.tile', { title: product.ranking ? ranking(product.ranking) : null }, pictogram(product)),
    product.score === null ? null : h('span.score', { title: 'Probability that it belongs to the placement, by the cross-encoder' }, probability(product.score)),
    h('div.card-words', {},
      h('p.card-brand', {}, product.brand || sentence(product.category)),
      h('h3', { title: name }, sentence(product.name)),
      h('p.card-size', {}, product.size),
      h('div.card-foot', {},
        h('span.price', {}, price(product.price_cents)),
        h('button.buy', { type: 'button', 'aria-label': `Buy ${name}`, onclick: (event) => buy(product, event.currentTarget) }, 'Buy'))));
  if (slate) watch(made, slate, product.id);
  return made;
}

const ranking = ({ score, bonus, nominators }) => `Brought in by ${nominators.join(', ')} · expected reward ${score.toFixed(3)}, exploring it counts ${bonus.toFixed(3)}`;

function arrows(shelf) {
  const turn = (direction) => shelf.scrollBy({ left: direction * shelf.clientWidth * 0.85, behavior: 'smooth' });
  const arrow = (label, path, direction) => h('button.icon', { type: 'button', 'aria-label': label, onclick: () => turn(direction) },
    svg('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' }, svg('path', { d: path })));
  return h('div.arrows', {}, arrow('Back', 'm14 6-6 6 6 6', -1), arrow('Forward', 'm10 6 6 6-6 6', 1));
}

// ---- a purchase and its page ----

async function buy(product, button) {
  button.disabled = true;
  note(button.closest('.card'), 'cart_adds');
  const [tenant, user] = state.user.includes('/') ? state.user.split(/\/(.*)/) : ['default', state.user];
  const event = { id: newId(), tenant, user, at_ms: Date.now(), kind: 'purchase', lines: [{ product: product.id, quantity: 1 }] };
  try {
    const { results, accepted_ms } = await post('/v1/events', event);
    if (results[0].status !== 'accepted') throw new Error(results[0].reason ?? results[0].status);
    state.purchase = { id: event.id, product, clicked: performance.now(), acceptedMs: accepted_ms, fold: null, passed: new Map() };
    byId('personal').classList.add('waiting');
    byId('personal').setAttribute('aria-busy', 'true');
    toast(`Bought ${product.name}. Regenerating the page…`);
    drawJourney([]);
    refresh();
  } catch (error) {
    toast(`The purchase was not taken: ${error.message}`, 'bad');
  } finally {
    setTimeout(() => { button.disabled = false; }, 800);
  }
}

/** 128 random bits in hex; `crypto.randomUUID` is missing on plain HTTP beyond loopback. */
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

async function followPurchase(user) {
  const { stages } = await get(`/v1/journey/${encodeURIComponent(user)}`);
  const purchase = state.purchase;
  if (!purchase || user !== state.user) return;
  drawJourney(stages);
  if (performance.now() - purchase.clicked < PATIENCE_MS || state.unranked || !(await isOver()) || state.purchase !== purchase) return;
  state.purchase = null;
  byId('journey').hidden = true;
  settle();
  toast(`The purchase of ${purchase.product.name} changes nothing here: this shopper wants no personal page, or it is a dead letter (see the pipeline)`, 'bad');
}

/** Whether no page will come of the purchase: all stages are through with it, or the fold, where nothing waits any more, has passed it over. */
async function isOver() {
  const { fold, passed } = state.purchase;
  if (fold) return STAGES.every(([stage]) => passed.has(stage));
  const { stages: running } = await get('/v1/pipeline');
  return running.every((each) => each.name !== 'context' || each.waiting === 0);
}

/** The context that holds the purchase: the fold names the event, or has gone past it with a later one. */
function foldOf(stages) {
  const { id, acceptedMs } = state.purchase;
  return stages.find((each) => each.stage === 'context' && (each.event_id === id || each.at_ms > acceptedMs + 2000));
}

/** Keeps when each stage was first through with the purchase: later contexts of the shopper take the place of this one in the stages' results. */
function notePassed(stages) {
  const { passed } = state.purchase;
  state.purchase.fold ??= foldOf(stages);
  const { fold } = state.purchase;
  for (const each of fold ? stages : []) {
    if (each.context_ms >= fold.context_ms && !passed.has(each.stage)) passed.set(each.stage, each.at_ms);
  }
}

function drawJourney(stages, pageAfter = null) {
  const { product, clicked, acceptedMs, passed } = state.purchase;
  const strip = byId('journey');
  notePassed(stages);
  const open = STAGES.findIndex(([stage]) => !passed.has(stage));
  const steps = STAGES.map(([stage, name], i) => {
    const done = passed.has(stage);
    const kind = done ? 'li.done' : i === open ? 'li.now' : 'li';
    const words = done ? `+${seconds(Math.max(0, passed.get(stage) - acceptedMs) / 1000)}` : i === open ? 'at work' : 'waits';
    return h(kind, {}, h('b', {}, name), h('span', {}, words));
  });
  strip.replaceChildren(
    h('li.done', {}, h('b', {}, sentence(product.name)), h('span', {}, pageAfter === null ? `bought ${seconds((performance.now() - clicked) / 1000)} ago` : `new page ${seconds(pageAfter)} later`)), ...steps);
  strip.hidden = false;
}

async function finishPurchase() {
  const purchase = state.purchase;
  const pageAfter = (performance.now() - purchase.clicked) / 1000;
  toast(`New page ${seconds(pageAfter)} after the purchase`);
  const { stages } = await get(`/v1/journey/${encodeURIComponent(state.user)}`).catch(() => ({ stages: [] }));
  if (state.purchase !== purchase) return;
  drawJourney(stages, pageAfter);
  state.purchase = null;
}

// ---- control ----

async function showControl() {
  const column = byId('control');
  try {
    const page = await get(`/v1/control/${encodeURIComponent(state.user ?? 'anybody')}`);
    column.replaceChildren(...page.placements.map((placement, order) => placementRow({ ...placement, origin: null }, order, null)));
  } catch (error) {
    column.replaceChildren(h('div.empty', {}, h('b', {}, 'No control page'), error.message));
  }
}

/** With a control page in sight, each column says what it is. */
function heads() {
  document.querySelectorAll('.column-heads').forEach((row) => row.remove());
  if (state.mode === 'personal') return;
  const head = (name, words) => h('div.column-head', {}, h('h2', {}, name), h('p', {}, words));
  byId('columns').before(h('div.columns.column-heads', { 'data-mode': state.mode },
    state.mode === 'both' ? head('Personal', 'generated for this shopper') : null,
    head('Control', 'a static library, the same for everybody')));
}

function setMode(mode) {
  state.mode = mode;
  byId('columns').dataset.mode = mode;
  byId('personal').hidden = mode === 'control';
  byId('control').hidden = mode === 'personal';
  heads();
  if (mode !== 'personal') showControl();
}

document.querySelectorAll('input[name="mode"]').forEach((input) => input.addEventListener('change', () => setMode(input.value)));
byId('explain').addEventListener('click', () => state.user && explain(state.user));
