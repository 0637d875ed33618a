'use strict';
const { groups, failures } = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const BASE = 'base', FULL = 'full', LANGUAGE_MODEL = 'language-model', MISSING = '–';

// Elements. Text only ever enters as text nodes.
function make(namespace, tag, attributes, children) {
  const element = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'on') for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null));
  return element;
}
/** Text in which *stars* emphasise and `ticks` are code, as nodes. */
const prose = text => text.split(/(\*[^*\s][^*\n]*\*|`[^`\n]+`)/).filter(Boolean).map(part => {
  const inner = part.slice(1, -1);
  if (part.length > 2 && part.startsWith('*') && part.endsWith('*')) return h('em', {}, inner);
  if (part.length > 2 && part.startsWith('`') && part.endsWith('`')) return h('code', {}, inner);
  return part;
});

const h = (tag, attributes = {}, ...children) => make('http://www.w3.org/1999/xhtml', tag, attributes, children);
const s = (tag, attributes = {}, ...children) => make('http://www.w3.org/2000/svg', tag, attributes, children);

// Numbers.
const optional = (value, format) => value === null || value === undefined ? MISSING : format(value);
function significant(value) {
  const size = Math.abs(value);
  return value.toFixed(size === 0 ? 0 : size < .9995 ? 3 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}
function scaled(value, base, units) {
  let power = 0;
  while (value >= base * (power ? .9995 : 1) && power < units.length - 1) { value /= base; power += 1; }
  return (power ? significant(value) : value.toFixed(0)) + units[power];
}
const count = value => scaled(value, 1000, ['', 'k', 'M', 'G']);
const bytes = value => scaled(value, 1024, [' B', ' KiB', ' MiB', ' GiB']);
const ms = value => significant(value) + ' ms';
const score = value => value.toFixed(3);
const estimate = e => score(e.mean) + (e.half_width === null ? '' : ' ± ' + score(e.half_width));
const gain = e => (e.mean < 0 ? '−' : '+') + estimate({ ...e, mean: Math.abs(e.mean) });
const signed = value => score(Math.round(value * 1e3) / 1e3 || 0).replace('-', '−');
const percent = share => (Math.round(share * 100) + ' %').replace('-', '−');
const rankInterval = ([best, worst]) => best === worst ? String(best) : best + '–' + worst;
const isLanguageModel = group => group.kind === LANGUAGE_MODEL;
const plural = (n, noun) => n + ' ' + noun + (n === 1 ? '' : 's');

const VERDICTS = { reference: 'is the baseline method', beats: 'beats', 'not-shown': 'does not beat', worse: 'worse',
                   'too-few-seeds': 'too few seeds', unknown: 'unknown' };
const LETTERS = { parameters: 'P', memory: 'M', time: 'T', bytes: 'B', latency: 'L', forgetting: 'F' };
const AXES = {
  parameters: { title: 'Trainable parameters', of: c => c.trainable, format: count, log: true },
  memory: { title: 'Memory of training', of: c => c.memory_bytes, format: bytes, bytes: true },
  time: { title: 'Median step time', of: c => c.step_ms, format: ms },
  bytes: { title: 'Adapter on disk', of: c => c.adapter_bytes, format: bytes, log: true, bytes: true },
  latency: { title: 'Unmerged latency at batch 1', of: c => c.unmerged_ms, format: ms },
  forgetting: { title: 'Forgetting, nats a token', of: c => c.forgetting, format: signed },
};

// Families: colour and shape. The references come first and are drawn in ink.
const families = [...new Set(groups.flatMap(g => g.methods.map(m => m.method.family)))]
  .sort((a, b) => (b === 'reference') - (a === 'reference') || a.localeCompare(b));
const colour = family => `var(--family-${families.indexOf(family) === 0 ? 0 : (families.indexOf(family) - 1) % 6 + 1})`;
const SHAPES = ['M0-6.5L2-2 6.5-2 3 1.3 4.2 6 0 3.2-4.2 6-3 1.3-6.5-2-2-2Z', 'M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z',
  'M-4.5-4.5H4.5V4.5H-4.5Z', 'M0-6L5.5 4.5H-5.5Z', 'M0-6L6 0 0 6-6 0Z', 'M0 6L5.5-4.5H-5.5Z',
  'M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z'];
const mark = (family, attributes = {}) =>
  s('path', { d: SHAPES[families.indexOf(family) % SHAPES.length], style: `fill:${colour(family)}`, ...attributes });
const icon = family => s('svg', { class: 'icon', width: 14, height: 14, viewBox: '-7 -7 14 14', role: 'img', 'aria-label': family },
  s('title', {}, family), mark(family));

// Filters.
const matches = m => (!$('family').value || m.method.family === $('family').value)
  && [m.method.name, m.method.title, m.method.family, m.method.reference].join(' ').toLowerCase()
    .includes($('text').value.trim().toLowerCase());
const taskOf = g => `${g.suite} / ${g.task} on ${g.model.name}`;

// The table of results; `most` columns are sorted from the top first, those with `only` stand where that holds. A title
// may depend on the group.
const COLUMNS = [
  { title: 'Method', value: m => m.method.name, cell: m => [icon(m.method.family), m.method.name,
    h('small', {}, m.method.title)] },
  { title: 'Test', most: g => g.metric.higher_is_better, value: m => m.test && m.test.mean, cell: m => optional(m.test, estimate) },
  { title: 'Perplexity', only: isLanguageModel, value: m => m.test && m.test.mean,
    cell: m => optional(m.test, e => significant(Math.exp(e.mean))) },
  { title: 'Seeds', value: m => m.runs.length, cell: m => String(m.runs.length) },
  { title: g => 'Gain over\n' + g.baseline_method, most: () => true, value: m => m.gain && m.gain.mean,
    cell: m => [optional(m.gain, gain), h('small', {}, VERDICTS[m.beats_baseline])] },
  { title: 'Of gap', most: () => true, value: m => m.share_of_gap, cell: m => optional(m.share_of_gap, percent) },
  { title: 'Rank interval', value: m => m.rank_interval && m.rank_interval[0], cell: m => optional(m.rank_interval, rankInterval) },
  { title: 'Forgetting', only: isLanguageModel, value: m => m.forgetting && m.forgetting.mean,
    cell: m => optional(m.forgetting, gain) },
  ...[['Trainable', 'trainable', count], ['Changed', 'changed', count], ['Stored', 'stored', count],
    ['Rank of change', 'rank_of_change', String], ['Adapter', 'adapter_bytes', bytes], ['Memory', 'memory_bytes', bytes]]
    .map(([title, key, format]) => ({ title, value: m => m.costs[key], cell: m => optional(m.costs[key], format) })),
  { title: 'Step ms\n(p90)', value: m => m.costs.step_ms, cell: m => m.costs.step_ms === null ? MISSING
    : `${significant(m.costs.step_ms)} (${optional(m.costs.step_p90_ms, significant)})` },
  ...[['Tokens/s', 'tokens_per_s', count], ['Latency ms\nunmerged', 'unmerged_ms', significant],
    ['Latency ms\nmerged', 'merged_ms', significant], ['Latency ms\nbase', 'base_ms', significant]]
    .map(([title, key, format]) => ({ title, value: m => m.costs[key], cell: m => optional(m.costs[key], format) })),
  { title: 'Front', most: () => true, value: m => m.pareto.length,
    cell: m => m.pareto.map(axis => LETTERS[axis]).join('') || MISSING },
];

function results(group) {
  let sorted = null, descending = false;
  const body = h('tbody');
  const columns = COLUMNS.filter(column => !column.only || column.only(group));
  const titleOf = column => typeof column.title === 'function' ? column.title(group) : column.title;
  const heads = columns.map((column, index) => h('th', { scope: 'col' }, h('button', { type: 'button', on: { click() {
    descending = sorted === index ? !descending : column.most !== undefined && column.most(group);
    sorted = index;
    fill();
  } } }, titleOf(column))));
  function fill() {
    const methods = group.methods.filter(matches);
    if (sorted !== null) {
      const value = columns[sorted].value;
      const order = (a, b) => typeof a === 'string' ? a.localeCompare(b) : a - b;
      methods.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        // What is missing stays at the end in both directions.
        return (x === null) - (y === null) || (x === null ? 0 : order(x, y) * (descending ? -1 : 1));
      });
    }
    heads.forEach((head, index) => {
      if (index === sorted) head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    body.replaceChildren(...methods.map(m => h('tr', { class: m.pareto.includes($('axis').value) ? 'front' : null },
      columns.map((column, index) => h(index ? 'td' : 'th', index ? {} : { scope: 'row' }, column.cell(m))))));
    if (!methods.length) body.append(h('tr', {}, h('td', { colspan: columns.length }, 'No method matches the filters.')));
  }
  const note = group.methods.some(m => m.rank_interval)
    ? 'Sorted by test score at first. Methods whose rank intervals overlap are not ranked apart. Shaded: on the front of the selected cost.'
    : 'Sorted by test score at first, which is no ranking: too few seeds. Shaded: on the front of the selected cost.';
  const table = h('table', { class: 'results' }, h('thead', {}, h('tr', {}, heads)), body);
  return { element: [scroll(table, 'Results of ' + taskOf(group)), h('p', { class: 'soft' }, note)], update: fill };
}
const scroll = (table, label) => h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label }, table);

// Scales and ticks.
function linear(low, high, from, to) {
  const step = [1, 2, 5, 10].map(m => m * 10 ** Math.floor(Math.log10((high - low) / 5))).find(x => (high - low) / x <= 6);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  return { at: value => from + (value - low) / (high - low) * (to - from), ticks };
}
// Zero has no logarithm: it gets a place of its own left of the axis.
function logarithmic(values, from, to, inBytes) {
  const positive = values.filter(value => value > 0), hasZero = positive.length < values.length;
  const start = hasZero ? from + 56 : from;
  const low = Math.log10(Math.min(...positive)) - .15, high = Math.log10(Math.max(...positive)) + .15;
  const units = inBytes ? [1, 1024, 1024 ** 2, 1024 ** 3] : [1, 1e3, 1e6, 1e9];
  const ticks = units.flatMap(unit => [unit, 10 * unit, 100 * unit])
    .filter(tick => Math.log10(tick) >= low && Math.log10(tick) <= high);
  return {
    at: value => value > 0 ? start + (Math.log10(value) - low) / (high - low) * (to - start) : from + 20,
    ticks: hasZero ? [0, ...ticks] : ticks, gap: hasZero ? from + 38 : null,
  };
}
function domain(values, margin) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low) * margin || Math.abs(low) * .1 || 1;
  return [low - pad, high + pad];
}

// The Pareto plot.
function plot(group, width) {
  const axis = AXES[$('axis').value], height = Math.max(320, Math.min(460, width * .55));
  const box = { left: 52, right: width - 14, top: 12, bottom: height - 42 };
  const points = group.methods.filter(m => m.test && axis.of(m.costs) !== null)
    .map(m => ({ m, cost: axis.of(m.costs), score: m.test.mean, half: m.test.n >= 3 ? m.test.half_width : 0 }));
  if (!points.length) return h('p', {}, 'No method has both a test score and this cost.');
  const scores = points.flatMap(p => [p.score - p.half, p.score + p.half]), costs = points.map(p => p.cost);
  const y = linear(...domain(scores, .08), box.bottom, box.top);
  const x = axis.log && costs.some(cost => cost > 0) ? logarithmic(costs, box.left, box.right, axis.bytes)
    : linear(...domain(costs, .08), box.left, box.right);
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width: '100%', role: 'img',
    'aria-label': `Test ${group.metric.name} against ${axis.title}. The table has the same numbers.` });

  for (const tick of y.ticks) svg.append(
    s('line', { class: 'grid', x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) }),
    s('text', { class: 'tick', x: box.left - 6, y: y.at(tick) + 4, 'text-anchor': 'end' }, tick.toFixed(y.ticks[1] - y.ticks[0] < .0095 ? 3 : 2)));
  for (const tick of x.ticks) svg.append(
    s('line', { class: 'grid', x1: x.at(tick), x2: x.at(tick), y1: box.top, y2: box.bottom }),
    s('text', { class: 'tick', x: x.at(tick), y: box.bottom + 16, 'text-anchor': 'middle' }, axis.format(tick).replace(/\.0+(?=\D|$)/, '')));
  svg.append(
    s('path', { class: 'axis', fill: 'none', d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }),
    x.gap ? s('path', { class: 'axis', fill: 'none', d: `M${x.gap - 5} ${box.bottom + 5}l5-10m3 10l5-10` }) : '',
    s('text', { x: (box.left + box.right) / 2, y: height - 6, 'text-anchor': 'middle' }, `${axis.title} (less is better)`),
    s('text', { transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle' },
      `Test ${group.metric.name} (${group.metric.higher_is_better ? 'higher' : 'lower'} is better)`));
  for (const p of points.filter(p => [group.baseline_method, FULL].includes(p.m.method.name))) svg.append(
    s('path', { class: 'reference ' + p.m.method.name, d: `M${box.left} ${y.at(p.score)}H${box.right}` }));

  const front = points.filter(p => p.m.pareto.includes($('axis').value)).sort((a, b) => a.cost - b.cost);
  // Labels keep off the lines, too: a label that covers one is the lesser evil, so lines are thin.
  const taken = front.map((p, index) => ({ left: x.at(p.cost), right: index + 1 < front.length ? x.at(front[index + 1].cost) : box.right,
    top: y.at(p.score) - 2, bottom: y.at(p.score) + 2 }));
  if (front.length) svg.append(s('path', { class: 'front-line', d: front.map((p, index) =>
    (index ? `H${x.at(p.cost)}V` : `M${x.at(p.cost)} `) + y.at(p.score)).join('') + `H${box.right}` }));

  for (const p of points) {
    [p.x, p.y, p.shown] = [x.at(p.cost), y.at(p.score), matches(p.m)];
    taken.push({ left: p.x - 7, right: p.x + 7, top: p.y - 7, bottom: p.y + 7 });
    if (p.half) taken.push({ left: p.x - 2, right: p.x + 2, top: y.at(p.score + p.half), bottom: y.at(p.score - p.half) });
    const tip = `${p.m.method.title}: ${estimate(p.m.test)}, ${axis.format(p.cost)}`;
    svg.append(s('g', { class: p.shown ? null : 'filtered' }, s('title', {}, tip),
      p.half ? s('path', { d: `M${p.x} ${y.at(p.score - p.half)}V${y.at(p.score + p.half)}`, style: `stroke:${colour(p.m.method.family)};stroke-width:1.5` }) : '',
      mark(p.m.method.family, { transform: `translate(${p.x} ${p.y})` })));
  }
  for (const p of points.filter(p => p.shown)) svg.append(...label(p, box, taken));
  return svg;
}

// Puts a label where it covers the least of what is there, near its point first.
const measure = document.createElement('canvas').getContext('2d');
function label(p, box, taken) {
  measure.font = '12px system-ui, sans-serif';
  const text = p.m.method.name, width = measure.measureText(text).width, height = 14;
  let best = null;
  for (const away of [9, 16, 26, 38, 52]) for (const angle of [0, 180, 270, 90, 315, 45, 225, 135]) {
    const [dx, dy] = [Math.cos(angle * Math.PI / 180), Math.sin(angle * Math.PI / 180)].map(v => Math.abs(v) < 1e-9 ? 0 : v);
    const left = p.x + dx * away + (dx > 0 ? 0 : dx < 0 ? -width : -width / 2), top = p.y + dy * (away + 2) - height / 2;
    const spot = { left, right: left + width, top, bottom: top + height, away };
    const covered = taken.reduce((sum, other) =>
      sum + Math.max(0, Math.min(spot.right, other.right) - Math.max(spot.left, other.left))
        * Math.max(0, Math.min(spot.bottom, other.bottom) - Math.max(spot.top, other.top)), 0);
    const outside = left < box.left + 2 || spot.right > box.right || top < box.top || spot.bottom > box.bottom ? 1e4 : 0;
    const cost = covered + outside + away / 1e3;
    if (!best || cost < best.cost - 1e-9) best = { ...spot, cost };
  }
  taken.push(best);
  const near = { x: Math.max(best.left, Math.min(p.x, best.right)), y: Math.max(best.top, Math.min(p.y, best.bottom)) };
  return [best.away > 16 ? s('line', { class: 'leader', x1: p.x, y1: p.y, x2: near.x, y2: near.y }) : '',
    s('text', { class: 'label', x: best.left, y: best.top + 11 }, text)];
}

// Dev curves: a small plot for each method, all on the same scale, with the references behind.
function curves(group) {
  const finite = run => run.curve.filter(epoch => epoch.dev !== null);
  const all = group.methods.flatMap(m => m.runs.flatMap(finite));
  if (!all.length) return h('p', {}, 'No run kept a curve.');
  const W = 230, H = 140, epochs = all.map(e => e.epoch), last = Math.max(...epochs), first = Math.min(...epochs);
  const y = linear(...domain(all.map(e => e.dev), .05), H - 20, 6);
  const x = epoch => last === first ? 130 : 36 + (epoch - first) / (last - first) * (W - 44);
  // What was measured once holds for all epochs.
  const path = run => finite(run).map((e, i) => `${i ? 'L' : 'M'}${x(e.epoch)} ${y.at(e.dev)}`).join('')
    + (finite(run).length === 1 ? `H${W - 8}` : '');
  const references = group.methods.filter(m => [group.baseline_method, FULL].includes(m.method.name));
  return h('div', { class: 'curves' }, group.methods.filter(matches).map(m => h('figure', {},
    h('figcaption', {}, icon(m.method.family), m.method.name),
    s('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `Dev ${group.metric.name} of ${m.method.name} by epoch, ends at `
      + m.runs.map(run => optional(run.dev, score)).join(', ') },
      y.ticks.map(tick => [s('line', { class: 'grid', x1: 36, x2: W - 8, y1: y.at(tick), y2: y.at(tick) }),
        s('text', { class: 'tick', x: 32, y: y.at(tick) + 4, 'text-anchor': 'end' }, tick.toFixed(2))]),
      [...new Set([first, last])].map(tick => s('text', { class: 'tick', x: x(tick), y: H - 6, 'text-anchor': tick === last ? 'end' : 'start' },
        tick === last ? 'epoch ' + tick : String(tick))),
      references.filter(r => r !== m).map(r => r.runs.slice(0, 1).map(run => s('path', { class: 'reference ' + r.method.name, d: path(run) }))),
      m.runs.map(run => s('path', { d: path(run), fill: 'none', style: `stroke:${colour(m.method.family)};stroke-width:1.8` }, s('title', {}, 'seed ' + run.seed))),
      m.runs.map(run => finite(run).slice(-1).map(e => mark(m.method.family, { transform: `translate(${x(e.epoch)} ${y.at(e.dev)}) scale(.7)` }))))
  )));
}

// Learning rates and definitions.
const plain = (label, head, rows) => scroll(h('table', { class: 'plain' }, h('thead', {}, h('tr', {}, head.map(title => h('th', { scope: 'col', class: 'text' }, title)))),
  h('tbody', {}, rows.map(row => h('tr', {}, row.map((cell, index) => index ? h('td', { class: 'text' }, cell) : h('th', { scope: 'row' }, cell)))))), label);

// A row for each search: seeds that share one share a row.
function tuning(group) {
  const most = Math.max(0, ...group.methods.flatMap(m => m.runs.map(run => run.tuning.length)));
  const trials = Array.from({ length: most }, (_, index) => index);
  return plain('Learning rates', ['Method', 'Seeds', 'Chosen', 'Winner', 'Grid', ...trials.map(index => `Trial ${index + 1}`)],
    group.methods.filter(matches).flatMap(m => m.searches.map(search => [
      [icon(m.method.family), m.method.name], search.seeds.join(', '),
      m.method.name === BASE ? 'not trained' : search.learning_rate.toExponential(),
      h('span', { class: ['low-end', 'high-end'].includes(search.place) ? 'end' : null }, optional(search.place_words, String)), optional(search.grid, String),
      ...trials.map(index => search.tuning[index]).map(trial => trial
        ? h('span', { class: trial.learning_rate === search.learning_rate ? 'won' : null },
          `${trial.learning_rate.toExponential()} → ${trial.error ? 'failed' : optional(trial.dev, score)}`) : MISSING),
    ])));
}

function settings(group) {
  return plain('What ran on what', ['Runs', 'Device', 'Threads', 'CPU', 'Kernels', 'OS', 'Burn', 'PEFT', 'rustc', 'Revision'],
    group.settings.map(({ runs, environment: e, git }) => [String(runs), e.device, String(e.threads), e.cpu, e.kernels,
      e.os, e.burn, e.peft, e.rustc, git.revision + (git.dirty ? ' with uncommitted changes' : '')]));
}

function definitions(group) {
  const entry = (term, text) => [h('dt', {}, term), h('dd', {}, text)];
  return group.methods.filter(matches).map(m => h('details', {},
    h('summary', {}, icon(m.method.family), `${m.method.name}: ${m.method.title}`),
    h('dl', {}, entry('Reference', m.method.reference), entry('Definition', m.runs.map(run => run.definition_hash)
      .filter((hash, i, all) => all.indexOf(hash) === i).join(', ')),
      entry('Runs', m.runs.map(run => `seed ${run.seed}: ${run.id}, ${run.started_at}, ${significant(run.wall_s)} s`).join('; ')),
      m.runs.flatMap(run => run.notes.map(note => entry('Note, seed ' + run.seed, note)))),
    h('p', { class: 'soft' }, 'Configuration'), h('pre', {}, JSON.stringify(m.method.config, null, 2)),
    h('p', { class: 'soft' }, 'Whole definition'), h('pre', {}, JSON.stringify(m.runs[0].definition, null, 2))));
}

// One section for each suite, task and model.
const sections = groups.map(group => {
  const table = results(group);
  const legend = h('div', { class: 'legend', 'aria-hidden': 'true' }, families.filter(f => group.methods.some(m => m.method.family === f))
    .map(f => h('span', {}, icon(f), f)));
  const holes = { plot: h('div'), note: h('figcaption'), curves: h('div'), tuning: h('div'), definitions: h('div') };
  const notes = group.methods.flatMap(m => m.runs.flatMap(run => run.notes.map(note => `${m.method.name}, seed ${run.seed}: ${note}`)));
  const element = h('section', {},
    h('h2', {}, taskOf(group)),
    group.analysis.split(/\n\s*\n/).map(text => h('p', {}, ...prose(text))),
    h('p', { class: 'soft' }, `${group.model.name} (${count(group.model.parameters)} parameters, ${group.model.source}); `
      + `${group.rows.train} train, ${group.rows.dev} dev and ${group.rows.test} test `
      + (isLanguageModel(group) ? `blocks, and ${group.rows.general} of general text; untrained model` : 'rows; majority class')
      + ` ${score(group.baseline)}.`),
    group.warnings.length ? h('ul', { class: 'warnings' }, group.warnings.map(text => h('li', {}, text))) : null,
    h('h3', {}, 'What the runs show'), h('ul', {}, group.verdicts.map(text => h('li', {}, text))),
    h('h3', {}, 'Results'), legend, table.element,
    notes.length ? h('ul', { class: 'soft' }, notes.map(text => h('li', {}, text))) : null,
    h('h3', {}, 'Quality against cost'), h('figure', {}, legend.cloneNode(true), holes.plot, holes.note),
    h('h3', {}, `Dev ${group.metric.name} by epoch`),
    h('p', { class: 'soft' }, 'One line per seed, the same scale for all. Behind: ' + group.baseline_method + ' (dashed) and full fine-tuning (dotted), first seed.'
      + (isLanguageModel(group) ? ' Epoch 0 is before training.' : '')),
    holes.curves,
    h('h3', {}, 'Learning rates'),
    h('p', { class: 'soft' }, 'Each method’s learning rates with the dev score they reached. Underlined: the one that won, with which the test score was made. '
      + 'Winner: where in the grid it lies. Grid: whose rates they are.'),
    holes.tuning,
    h('h3', {}, 'What ran on what'), settings(group), holes.definitions);
  return {
    group, element,
    update() {
      element.hidden = $('task').value !== '' && $('task').value !== taskOf(group);
      if (element.hidden) return;
      table.update();
      holes.curves.replaceChildren(curves(group));
      holes.tuning.replaceChildren(tuning(group));
      holes.definitions.replaceChildren(...definitions(group));
      this.draw();
    },
    draw() {
      const axis = AXES[$('axis').value], missing = group.methods.filter(m => !m.test || axis.of(m.costs) === null);
      holes.plot.replaceChildren(plot(group, Math.max(300, holes.plot.clientWidth)));
      holes.note.textContent = 'Solid steps: the front of all methods by their means. Dashed: ' + group.baseline_method + '. Dotted: full fine-tuning.'
        + (group.methods.some(m => m.test && m.test.n >= 3) ? ' Bars: 95 % interval over seeds.' : ' No intervals: fewer than 3 seeds.')
        + ' Faint: filtered out.' + (missing.length ? ` Not drawn, for lack of a number: ${missing.map(m => m.method.name).join(', ')}.` : '');
    },
  };
});

function update() {
  sections.forEach(section => section.update());
  const open = sections.filter(section => !section.element.hidden).flatMap(section => section.group.methods);
  $('shown').textContent = `${open.filter(matches).length} of ${plural(open.length, 'method')} shown`;
}

for (const g of groups) $('task').append(h('option', { value: taskOf(g) }, taskOf(g)));
for (const family of families) $('family').append(h('option', { value: family }, family));
for (const [name, axis] of Object.entries(AXES)) if (name !== 'forgetting' || groups.some(isLanguageModel)) $('axis').append(h('option', { value: name }, axis.title));
const runs = groups.flatMap(g => g.methods.flatMap(m => m.runs)), days = runs.map(run => run.started_at.slice(0, 10)).sort();
$('about').textContent = [plural(runs.length, 'run'), failures.length ? failures.length + ' failed' : '', [...new Set([days[0], days.at(-1)])].filter(Boolean).join(' to ')]
  .filter(Boolean).join(', ');
if (failures.length) {
  $('failed').hidden = false;
  $('failed').append(plain('Failed', ['Method', 'Suite', 'Task', 'Model', 'Learning rate', 'Seed', 'Failed at', 'Error'], failures.map(f =>
    [f.method, f.suite, f.task, f.model, f.learning_rate.toExponential(), String(f.seed), f.failed_at, h('pre', {}, f.error)])));
}
$('groups').append(...sections.map(section => section.element));
$('filters').addEventListener('input', update);
$('filters').addEventListener('submit', event => event.preventDefault());
$('theme').addEventListener('click', () => {
  const root = document.documentElement, now = root.style.colorScheme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  root.style.colorScheme = now === 'dark' ? 'light' : 'dark';
});
let drawnAt = innerWidth;
addEventListener('resize', () => {
  if (innerWidth === drawnAt) return;
  drawnAt = innerWidth;
  sections.filter(section => !section.element.hidden).forEach(section => section.draw());
});
update();
