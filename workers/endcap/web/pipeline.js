// The pipeline, live: what every stage took in, passed on, dropped and still has waiting; freshness; dead letters.

import { byId, clock, compact, every, get, h, number, seconds, sentence, svg } from './dom.js';

const POINTS = 60;
const WORDS = {
  context: ['Context', 'Folds events into who the shopper is'],
  themes: ['Themes', 'A decoder writes titles, intents and concepts'],
  keywords: ['Keywords', 'Nearest terms, then a choice among them'],
  dedup: ['Dedup', 'Embeddings find near-repeats'],
  aiqa: ['Quality', 'A cross-encoder judges every product'],
  learner: ['Learner', 'Learns from what is looked at and bought'],
};

const history = new Map(); // stage and lane → its passed counts, newest last

export function startPipeline(wanted) {
  const draw = every(1000, wanted, async () => {
    try {
      const [pipeline, dead] = await Promise.all([get('/v1/pipeline'), get('/v1/dead-letters?limit=100')]);
      whenNew('tiles', { ...pipeline, uptime_s: pipeline.uptime_s > 0, stages: null }, tiles);
      stages(pipeline.stages);
      whenNew('letters', dead, letters);
    } catch (error) {
      byId('feeder').textContent = `Not reachable: ${error.message}`;
      drawn.clear();
    }
  });
  addEventListener('hashchange', draw);
  draw();
}

const drawn = new Map(); // part of the page → what it shows, as text

/** Draws a part of the page when it has changed: under a pointer or a selection nothing is replaced by the same. */
function whenNew(part, value, draw) {
  const text = JSON.stringify(value);
  if (drawn.get(part) === text) return;
  drawn.set(part, text);
  draw(value);
}

function tiles({ generation, accepted, refused, pages, freshness, cache, feeder, uptime_s: uptime }) {
  const figure = (name, value, note = '') => h('div.figure', {}, h('p', {}, name), h('b', {}, value), h('small', {}, note));
  const share = (value) => (value === null || value === undefined ? '–' : `${Math.round(value * 100)}%`);
  byId('tiles').replaceChildren(
    figure('Freshness, median', seconds(freshness.p50), 'event accepted → page readable'),
    figure('Freshness, 99th percentile', seconds(freshness.p99), `over the last ${number(freshness.count)} pages`),
    figure('Events accepted', compact(accepted), `${refused ? `${number(refused)} refused, ` : ''}${number(pages.shoppers)} shoppers with a page`),
    figure('Pages published', compact(pages.published), uptime > 0 ? `${(pages.per_second ?? 0).toFixed(2)} a second lately` : ''),
    figure('Keyword cache', share(cache.keywords), 'answers taken from the cache'),
    figure('Verdict cache', share(cache.verdicts), 'answers taken from the cache'));
  byId('feeder').textContent = [generation && `generation ${generation}`, feeder].filter(Boolean).join(' · ');
}

function stages(rows) {
  const flow = byId('flow');
  if (flow.children.length !== rows.length) {
    flow.replaceChildren(...rows.map(() => h('li.stage')));
    drawn.clear();
  }
  rows.forEach((row, place) => {
    const key = row.lane === 'live' ? row.name : `${row.name}.${row.lane}`;
    const points = history.get(key) ?? [];
    points.push(row.passed + (row.dropped.learnt ?? 0));
    if (points.length > POINTS + 1) points.shift();
    history.set(key, points);
    const rates = points.slice(1).map((value, i) => Math.max(0, value - points[i]));
    whenNew(`stage ${key}`, { row, rates }, () => flow.children[place].replaceWith(stage(key, row, rates)));
  });
}

function stage(key, row, rates) {
  const [title, duty] = WORDS[row.name] ?? [sentence(row.name), ''];
  const [name, purpose] = row.lane === 'live' ? [title, duty] : [`${title}, backfill`, 'Works on a replay in the time that live records leave'];
  const { learnt = 0, ...lost } = row.dropped; // what was learnt ends at the learner, and is not lost
  const dropped = Object.values(lost).reduce((sum, n) => sum + n, 0);
  const onward = row.name === 'learner' ? line('Learnt', learnt) : line('Passed on', row.passed);
  const atWork = row.at_work;
  const trouble = row.trouble ? `${row.stopped ? 'Has stopped' : 'Waits'}: ${row.trouble}` : '';
  return h('li.stage', { 'data-stage': key },
    h('header', {}, h('h3', {}, name), h(row.waiting ? 'span.waiting-count.busy' : 'span.waiting-count', {}, row.waiting ? `${number(row.waiting)} waiting` : 'up to date')),
    h('p', {}, trouble || purpose),
    spark(rates),
    h('dl', {},
      line('In', row.in), onward, line('Dropped', dropped, Object.entries(lost).map(([reason, n]) => `${reason}: ${n}`).join(', ')),
      line('Dead letters', row.dead_lettered, '', row.dead_lettered > 0),
      line('At work', atWork ? `${number(atWork.records)} for ${number(atWork.seconds)} s` : '–', 'The batch in hand; until it is done, no other figure changes'),
      row.tokens ? line('Tokens/s', row.tokens_per_second ?? 0, `${number(row.tokens.prefilled)} read, ${number(row.tokens.generated)} chosen, ${number(row.tokens.forced)} forced`) : line('Busy', seconds(row.seconds))));
}

const line = (name, value, title = '', bad = false) => [
  h('dt', {}, name),
  h(bad ? 'dd.bad' : 'dd', { title: title || null }, typeof value === 'number' ? compact(value) : value),
];

/** Passed per second over the last minute. */
function spark(rates) {
  const top = Math.max(1, ...rates);
  const at = (rate, i) => `${(i / (POINTS - 1)) * 100} ${38 - (rate / top) * 34}`;
  const shift = POINTS - rates.length;
  const path = rates.length > 1 ? `M${rates.map((rate, i) => at(rate, i + shift)).join('L')}` : 'M0 38H100';
  const area = rates.length > 1 ? `${path}L100 40L${(shift / (POINTS - 1)) * 100} 40Z` : '';
  return svg('svg', { class: 'spark', viewBox: '0 0 100 40', preserveAspectRatio: 'none', role: 'img', 'aria-label': `At most ${top} a second in the last minute` },
    svg('path', { class: 'area', d: area }), svg('path', { d: path }));
}

function letters({ total, letters: rows }) {
  byId('dead-count').textContent = total ? `${number(total)} in all` : '';
  byId('dead').replaceChildren(...(rows.length ? rows.map((row) => h('tr', {},
    h('td', {}, clock(row.at_ms)), h('td', {}, row.stage), h('td', {}, h('span.reason', {}, row.reason)), h('td', {}, row.message), h('td', {}, h('code', {}, row.original))))
    : [h('tr', {}, h('td', { colspan: 5 }, 'None. Everything that came in could be processed.'))]));
}
