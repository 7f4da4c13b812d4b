// Start: theme, views by the address's fragment, the shopper picker. The views themselves are in shop.js and pipeline.js.

import { byId, every, get, h, seconds } from './dom.js';
import { hue } from './pictograms.js';
import { openShop, shopper } from './shop.js';
import { startPipeline } from './pipeline.js';

const view = () => (location.hash.startsWith('#/pipeline') ? 'pipeline' : 'shop');
const userOf = (hash) => (hash.startsWith('#/shop/') ? decodeURIComponent(hash.slice('#/shop/'.length)) : null);

function startTheme() {
  const root = document.documentElement;
  const wanted = localStorage.getItem('theme') ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  root.dataset.theme = wanted;
  byId('theme').addEventListener('click', () => {
    root.dataset.theme = root.dataset.theme === 'dark' ? 'light' : 'dark';
    localStorage.setItem('theme', root.dataset.theme);
  });
}

async function route() {
  const name = view();
  for (const each of ['shop', 'pipeline']) {
    byId(`view-${each}`).hidden = each !== name;
    byId(`tab-${each}`).toggleAttribute('aria-current', each === name);
  }
  document.title = name === 'shop' ? 'Endcap · Storefront' : 'Endcap · Pipeline';
  if (name !== 'shop') return;
  const user = userOf(location.hash) ?? shopper() ?? await firstShopper();
  byId('tab-shop').href = user ? `#/shop/${encodeURIComponent(user)}` : '#/shop';
  openShop(user);
}

/** Somebody with a page; until there is one, asks again. */
async function firstShopper() {
  const { shoppers } = await get('/v1/shoppers?limit=1').catch(() => ({ shoppers: [] }));
  if (!shoppers.length) setTimeout(() => { if (view() === 'shop' && !shopper()) route(); }, 1500);
  return shoppers[0]?.user ?? null;
}

// ---- picker: a combobox after the ARIA pattern ----

function startPicker() {
  const input = byId('picker');
  const list = byId('picker-list');
  let rows = [];
  let chosen = -1;

  const close = () => { list.hidden = true; input.setAttribute('aria-expanded', 'false'); input.removeAttribute('aria-activedescendant'); };
  const mark = (index) => {
    chosen = rows.length ? (index + rows.length) % rows.length : -1;
    [...list.children].forEach((item, i) => item.setAttribute('aria-selected', String(i === chosen)));
    list.children[chosen]?.scrollIntoView({ block: 'nearest' });
    if (chosen >= 0) input.setAttribute('aria-activedescendant', `shopper-${chosen}`);
  };
  const take = (row) => { input.value = ''; input.blur(); close(); location.hash = `#/shop/${encodeURIComponent(row.user)}`; };
  let asked = 0;
  const search = async () => {
    const mine = ++asked;
    const found = await get(`/v1/shoppers?limit=40&search=${encodeURIComponent(input.value.trim())}`).catch(() => ({ shoppers: [] }));
    if (mine !== asked || document.activeElement !== input) return;
    rows = found.shoppers;
    list.replaceChildren(...(rows.length ? rows.map((row, i) => option(row, i, take)) : [h('li', { role: 'presentation' }, h('small', {}, 'Nobody of that name has a page yet'))]));
    list.hidden = false;
    input.setAttribute('aria-expanded', 'true');
    mark(0);
  };
  input.addEventListener('focus', search);
  input.addEventListener('input', search);
  input.addEventListener('blur', () => setTimeout(close, 150));
  input.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown') mark(chosen + 1);
    else if (event.key === 'ArrowUp') mark(chosen - 1);
    else if (event.key === 'Enter' && rows[chosen]) take(rows[chosen]);
    else if (event.key === 'Escape') input.blur();
    else return;
    event.preventDefault();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && !/input|textarea/i.test(document.activeElement.tagName) && !byId('drawer').open) {
      event.preventDefault();
      input.focus();
    }
  });
}

function option(row, index, take) {
  return h('li', { role: 'option', id: `shopper-${index}`, 'aria-selected': 'false', onmousedown: (event) => { event.preventDefault(); take(row); } },
    h('span.face', { '--hue': hue(row.user), 'aria-hidden': 'true' }, row.user.replace(/^.*\D/, '').slice(-3) || row.user.slice(0, 2)),
    h('b', {}, row.user),
    h('small', {}, row.persona || 'no page yet'),
    h('em', {}, row.placements ? `${row.placements} placements` : ''));
}

// ---- the small light in the bar ----

function startPulse() {
  const pulse = byId('pulse');
  const turn = every(3000, () => true, async () => {
    try {
      const { freshness } = await get('/v1/pipeline');
      pulse.className = 'pulse live';
      pulse.lastElementChild.textContent = freshness.count ? `pages in ${seconds(freshness.p50)}` : 'live';
    } catch {
      pulse.className = 'pulse down';
      pulse.lastElementChild.textContent = 'not reachable';
    }
  });
  turn();
}

startTheme();
startPicker();
startPulse();
startPipeline(() => view() === 'pipeline');
addEventListener('hashchange', route);
route();
