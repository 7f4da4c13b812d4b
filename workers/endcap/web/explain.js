// The explain drawer: what every stage did for a shopper's latest page.

import { byId, get, h, seconds, sentence } from './dom.js';

const NAMES = { context: 'Context', themes: 'Themes', keywords: 'Keywords', dedup: 'Dedup', aiqa: 'Quality check' };
const LONG = 90;

export async function explain(user) {
  byId('drawer-title').textContent = user;
  const body = byId('drawer-body');
  body.replaceChildren(h('div.skeleton'));
  byId('drawer').showModal();
  try {
    const story = await get(`/v1/explain/${encodeURIComponent(user)}`);
    body.replaceChildren(...steps(story));
  } catch (error) {
    body.replaceChildren(h('div.empty', {}, h('b', {}, 'Nothing to show'), error.message));
  }
}

function steps(story) {
  const rows = [];
  if (story.event) rows.push(step('Event accepted', story.event.id, { accepted: new Date(story.event.accepted_ms).toLocaleString() }));
  for (const stage of story.stages) {
    const same = story.page && stage.context_ms === story.page.context_ms;
    const after = same ? `+${seconds(Math.max(0, stage.at_ms - story.event.accepted_ms) / 1000)} after the event` : 'a newer context, still on its way';
    const timing = { verdict: [stage.verdict, stage.reason].filter(Boolean).join(': '), worked: `${seconds(stage.infer_ms / 1000)} in a batch of ${stage.batch_records}`, waited: seconds(stage.waited_ms / 1000) };
    rows.push(step(NAMES[stage.stage] ?? stage.stage, after, { ...timing, ...stage.explanation }));
  }
  if (story.page) rows.push(step('Page', `${story.page.placements.length} placements`, { generation: story.page.generation, 'made with': story.page.versions }));
  return rows;
}

function step(name, note, parts) {
  const short = [];
  const long = [];
  for (const [key, value] of Object.entries(parts)) {
    if (value === null || value === undefined || value === '') continue;
    (isShort(value) ? short : long).push([key, value]);
  }
  return h('section.step', {}, h('h3', {}, name, h('small', {}, note)),
    short.length ? pairs(short) : null,
    long.map(([key, value]) => h('details', {}, h('summary', {}, label(key), count(value)), h('div.inside', {}, draw(value)))));
}

const isShort = (value) => (typeof value === 'object' ? Object.keys(value).length === 0 : String(value).length <= LONG);
const MOMENT = /^(at|last)_ms$/;
const label = (key) => sentence(key.replace(/_ms$/, '').replaceAll('_', ' '));
const count = (value) => (Array.isArray(value) ? ` (${value.length})` : '');
const pairs = (entries) => h('dl.pairs', {}, entries.map(([key, value]) => [h('dt', {}, label(key)), h('dd', {}, MOMENT.test(key) ? new Date(value).toLocaleString() : draw(value))]));

/** Any JSON value as elements. */
function draw(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value === 'object' && !Object.keys(value).length) return '–';
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item !== 'object')) return h('div.keywords', {}, value.map((item) => h('span.keyword', {}, String(item))));
    return h('ul.list', {}, value.map((item) => h('li', {}, draw(item))));
  }
  if (typeof value === 'object') return pairs(Object.entries(value));
  if (typeof value === 'number') return Number.isInteger(value) ? String(value) : value.toPrecision(4);
  const text = String(value);
  return text.length > LONG ? h('pre', {}, text) : text;
}
