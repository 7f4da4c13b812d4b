// A picture for products that have none: a drawn sign by what the category says, on a colour by department.

import { svg } from './dom.js';

// Signs on a 48 × 48 field, drawn with strokes. The first pattern that fits the category's words wins.
const SIGNS = [
  [/wine|beer|spirit|liquor|cider|whisk|vodka|rum\b|gin\b/, 'M17 6h14c1 9-1 15-7 15s-8-6-7-15zM24 21v17M16 41h16M17 13h14'],
  [/coffee|tea\b|teas\b|cocoa|espresso|cappuccino/, 'M10 17h23v11c0 6-4 10-11.500 10S10 34 10 28zM33 20h3c6 0 6 9 0 9h-3M16 6c-2 3 2 4 0 7M24 6c-2 3 2 4 0 7'],
  [/milk|cream|kefir|buttermilk/, 'M15 18v22h18V18l-4-7V6H19v5zM15 18h18M19 27h10M19 33h6'],
  [/cheese|gouda|cheddar|feta|brie/, 'M6 27 33 12c5 2 8 6 9 11v16H6zM6 27h36M16 33h.1M28 34h.1M33 20h.1'],
  [/yog|pudding|dessert|custard/, 'M12 14h24l-3 26H15zM10 14h28M19 21h10M24 14l7-9'],
  [/egg/, 'M24 6c7 0 13 11 13 20s-5 15-13 15-13-6-13-15S17 6 24 6zM18 20c1-3 2-5 4-6'],
  [/fish|salmon|tuna|seafood|shrimp|cod\b|sardine|anchov/, 'M6 24c7-11 20-11 27 0-7 11-20 11-27 0zM33 24l9-8v16zM15 22h.1M22 17c3 4 3 10 0 14'],
  [/meat|beef|pork|lamb|steak|bacon|ham\b|sausage|salami|deli|burger|mince/, 'M10 28C6 17 15 8 26 9c10 1 15 8 13 15-2 6-8 5-11 9s-4 7-9 6-8-6-9-11zM24 18a4 4 0 1 0 .1 0'],
  [/chicken|turkey|poultry|duck|wing/, 'M30 7c7 2 11 9 7 16-4 6-10 4-14 8l-5 5M18 36c2 5-4 6-5 3-3 0-3-6 2-5M30 7c-9-1-15 6-13 13 1 4 0 7-4 11'],
  [/bread|bagel|loaf|roll\b|rolls|baguette|tortilla|wrap|pita|bun\b|buns/, 'M9 22c-4-4 0-11 6-11h18c6 0 10 7 6 11v16H9zM19 18v6M29 18v6'],
  [/cake|cookie|biscuit|pastr|muffin|brownie|bak(ed|ing|ery)|donut|pie\b|waffle|pancake/, 'M12 22h24l-3 18H15zM10 22c-2-7 5-8 6-9 1-7 15-7 16 0 1 1 8 2 6 9zM20 27l1 8M28 27l-1 8'],
  [/chocolat|candy|sweet|confection|gum\b|caramel|toffee/, 'M16 24a8 8 0 1 1 16 0 8 8 0 1 1-16 0zM17 19 7 14v20l10-5M31 19l10-5v20l-10-5M21 21l6 6'],
  [/ice cream|frozen|sorbet|gelato/, 'M15 21h18l-9 21zM15 21c-4-8 3-14 9-14s13 6 9 14M20 27l8 6'],
  [/pasta|noodle|spaghetti|macaroni|lasagn|ramen/, 'M8 25h32c0 9-6 15-16 15S8 34 8 25zM15 25V10M21 25V8M27 25V8M33 25V10'],
  [/rice|grain|oat|cereal|granola|muesli|flour|quinoa|couscous|barley|porridge/, 'M24 42V17M24 17c-5-3-5-8 0-12 5 4 5 9 0 12zM24 26c-6 1-9-2-9-8 6 0 9 3 9 8zM24 26c6 1 9-2 9-8-6 0-9 3-9 8zM24 35c-6 1-9-2-9-8 6 0 9 3 9 8zM24 35c6 1 9-2 9-8-6 0-9 3-9 8z'],
  [/soup|broth|stew|chili|curry|bowl|stock/, 'M7 23h34c0 10-7 16-17 16S7 33 7 23zM18 16c-2-3 2-5 0-9M26 16c-2-3 2-5 0-9'],
  [/sauce|ketchup|mustard|dressing|mayo|vinegar|oil\b|oils|syrup|salsa|condiment/, 'M20 6h8v8l5 6v18c0 3-2 4-4 4H19c-2 0-4-1-4-4V20l5-6zM15 25h18v10H15z'],
  [/jam|honey|spread|butter|hummus|pickle|jar|olive|preserve|dip\b|dips/, 'M14 7h20v6H14zM13 13h22c3 3 3 6 3 9v15c0 3-2 4-4 4H14c-2 0-4-1-4-4V22c0-3 0-6 3-9zM10 24h28v9H10z'],
  [/nut\b|nuts|almond|cashew|peanut|seed|walnut|pistachio|trail/, 'M24 6c7 0 11 4 11 9H13c0-5 4-9 11-9zM13 15h22c0 15-4 22-11 27-7-5-11-12-11-27zM24 21v12'],
  [/chip|crisp|snack|popcorn|pretzel|cracker|bar\b|bars/, 'M13 7h22l-2 5 3 27H12l3-27zM15 12h18M19 25c4-5 6 5 10 0M19 31c4-5 6 5 10 0'],
  [/fruit|apple|berry|berries|banana|citrus|orange|grape|peach|mango|melon/, 'M24 15c5-5 16-2 15 9-1 9-7 17-11 16-2-1-6-1-8 0-4 1-10-7-11-16-1-11 10-14 15-9zM24 15c0-5 2-8 6-9'],
  [/vegetable|carrot|potato|tomato|onion|pepper|salad|lettuce|cabbage|bean|lentil|pea\b|peas|mushroom|legume|tofu/, 'M29 19c4 4-14 22-20 20s16-24 20-20zM29 19c1-6 4-9 10-10-1 6-4 9-10 10zM29 19c-1-6 0-9 3-13M29 19c6 1 9 0 13-3M19 26l4 4'],
  [/herb|spice|season|salt|basil|garlic|leaf|plant/, 'M10 38C8 20 18 8 39 8c1 21-9 31-27 29M10 41c4-12 11-20 20-24'],
  [/water|juice|soda|drink|beverage|lemonade|smoothie|cola|energy/, 'M14 12h20l-3 29H17zM15 21h18M25 12l3-8h6'],
  [/baby|infant|toddler|diaper/, 'M16 20h16v17c0 3-2 5-5 5h-6c-3 0-5-2-5-5zM17 20c0-4 14-4 14 0M21 17c-2-6 8-6 6 0M21 28h6M21 34h6'],
  [/pet|dog|cat\b|cats|bird|aquar/, 'M24 24c7 0 12 7 10 12-2 4-6 1-10 1s-8 3-10-1c-2-5 3-12 10-12zM11 18v4M19 9v6M29 9v6M37 18v4'],
  [/clean|laundry|detergent|dish|bleach|household|paper|tissue|towel/, 'M17 19h13c4 3 5 6 5 10v13H15V27c0-3 0-5 2-8zM19 19v-8h9v8M17 6h15v5H17M32 6l6 3M21 29h8'],
  [/soap|shampoo|hair|skin|cosmetic|beauty|tooth|deodor|shav|hygiene|vitamin|health|medic|personal/, 'M14 20h20c2 2 2 4 2 6v14c0 1-1 2-2 2H14c-1 0-2-1-2-2V26c0-2 0-4 2-6zM20 20v-6h8v6M24 14V7h-9M12 30h24'],
  [/flower|garden|outdoor|home|kitchen|cook|candle/, 'M24 22a5 5 0 1 0 .1 0M24 22c-6-6-2-14 0-15 2 1 6 9 0 15zM29 27c6-6 14-2 15 0-1 2-9 6-15 0zM24 32c6 6 2 9 0 10-2-1-6-4 0-10zM19 27c-6 6-14 2-15 0 1-2 9-6 15 0z'],
  [/can\b|canned|tin\b/, 'M12 12c0-6 24-6 24 0v24c0 6-24 6-24 0zM12 12c0 6 24 6 24 0M12 21c0 6 24 6 24 0M12 29c0 6 24 6 24 0'],
];

const GOLDEN_ANGLE = 137.508;

function hash(text) {
  let value = 2166136261;
  for (const character of text) value = Math.imul(value ^ character.codePointAt(0), 16777619) >>> 0;
  return value;
}

/** The hue of a department, 0…359. */
export const hue = (department) => Math.round((hash(department || '') % 97) * GOLDEN_ANGLE) % 360;

/** The sign of a product, or its monogram where no sign fits. */
export function pictogram(product) {
  const words = `${product.category} ${product.name} ${product.department}`.toLowerCase();
  const sign = SIGNS.find(([pattern]) => pattern.test(product.category.toLowerCase())) ?? SIGNS.find(([pattern]) => pattern.test(words));
  const inner = sign ? svg('path', { d: sign[1] }) : svg('text', { x: 24, y: 33, 'text-anchor': 'middle' }, monogram(product));
  return svg('svg', { viewBox: '0 0 48 48', class: 'sign', 'aria-hidden': 'true' }, inner);
}

function monogram(product) {
  const words = (product.brand || product.name || '?').split(/\s+/).filter(Boolean);
  return words.slice(0, 2).map((word) => word.charAt(0).toUpperCase()).join('');
}
