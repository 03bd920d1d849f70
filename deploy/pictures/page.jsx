// Draws a dashboard with Grafana's own plotting, units and theme, from the HTTP API of a Prometheus.
// The page uses `require`, since esbuild does not unwrap the default exports of older packages for files named .mjs.
const React = require('react');
const { createRoot } = require('react-dom/client');
const { firstValueFrom } = require('rxjs');
const { FieldType, ThemeContext, createTheme, dateTime, getDisplayProcessor, standardTransformers, standardTransformersRegistry,
  toDataFrame, transformDataFrame } = require('@grafana/data');
const { initPluginTranslations } = require('@grafana/i18n');
const { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } = require('@grafana/ui');
const { StateTimeline } = require('./timeline.jsx');

const theme = createTheme({ colors: { mode: 'dark' } });
const { dashboard, url, from, to } = window.INPUT;
const CELL = 38, GAP = 8, WIDTH = 1600;
const step = Math.max(5, Math.ceil((to - from) / 250));
const timeRange = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformer) => ({ ...transformer, transformation: async () => transformer })));

function fill(text, scoped) {
  return text.replaceAll('$job', '.+').replaceAll('$instance', '.+').replaceAll('$destination', scoped ?? '.+')
    .replaceAll('$__rate_interval', '60s').replaceAll('$__range', `${to - from}s`);
}

async function ask(path, parameters) {
  const reply = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const body = await reply.json();
  if (body.status !== 'success') throw new Error(`${parameters.query}: ${body.error}`);
  return body.data.result ?? body.data;
}

const legend = (format, labels) => format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');

// Returns values on every step, null if Prometheus has none, so that gaps are drawn as gaps.
async function rangeFrames(target, scoped) {
  const result = await ask('query_range', { query: fill(target.expr, scoped), start: from, end: to, step });
  const times = [];
  for (let t = from; t <= to; t += step) times.push(t * 1000);
  return result.map(({ metric, values }) => {
    const at = new Map(values.map(([t, v]) => [Math.round(t * 1000), Number(v)]));
    const name = legend(target.legendFormat, metric) || target.refId;
    return toDataFrame({ refId: target.refId, fields: [
      { name: 'Time', type: FieldType.time, values: times },
      { name, type: FieldType.number, labels: metric, config: { displayNameFromDS: name }, values: times.map((t) => at.get(t) ?? null) },
    ] });
  });
}

async function tableFrame(target, alone) {
  const result = await ask('query', { query: fill(target.expr), time: to });
  const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))];
  return toDataFrame({ refId: target.refId, fields: [
    { name: 'Time', type: FieldType.time, values: result.map(() => to * 1000) },
    ...labels.map((label) => ({ name: label, type: FieldType.string, values: result.map(({ metric }) => metric[label]) })),
    { name: alone ? 'Value' : `Value #${target.refId}`, type: FieldType.number, values: result.map(({ value }) => Number(value[1])) },
  ] });
}

function matches({ id, options }, name) {
  if (id === 'byName') return name === options;
  return new RegExp(options.replace(/^\/|\/$/g, '')).test(name);
}

// Applies the part of Grafana's field configuration that the dashboards use: defaults, then overrides by name or expression.
function configure(frames, { defaults, overrides }) {
  let series = 0;
  for (const frame of frames) for (const field of frame.fields) {
    const { displayName, displayNameFromDS } = field.config;
    const name = displayName ?? displayNameFromDS ?? field.name;
    const config = { ...structuredClone(defaults), displayName, displayNameFromDS };
    for (const { matcher, properties } of overrides) {
      if (!matches(matcher, name)) continue;
      for (const { id, value } of properties) {
        if (id.startsWith('custom.')) config.custom = { ...config.custom, [id.slice(7)]: value };
        else config[id] = value;
      }
    }
    field.config = field.type === FieldType.time ? { custom: config.custom } : config;
    field.state = { ...field.state, displayName: name, seriesIndex: field.type === FieldType.number ? series++ : 0 };
    field.display = getDisplayProcessor({ field, theme });
  }
  return frames;
}

async function tableData(panel) {
  const frames = await Promise.all(panel.targets.map((target) => tableFrame(target, panel.targets.length === 1)));
  const [frame] = await firstValueFrom(transformDataFrame(panel.transformations, frames));
  // A hidden column would take its width from the others.
  configure([frame], panel.fieldConfig);
  const fields = frame.fields.filter((field) => !field.config.custom?.hidden);
  const { displayName, desc } = panel.options.sortBy[0];
  const by = fields.find((field) => field.state.displayName === displayName).values;
  const order = [...by.keys()].sort((a, b) => (by[a] > by[b] ? 1 : -1) * (desc ? -1 : 1));
  return { ...frame, length: order.length, fields: fields.map((field) => ({ ...field, values: order.map((row) => field.values[row]) })) };
}

const kinds = {
  timeseries: async (panel) => {
    const frames = (await Promise.all(panel.targets.map((target) => rangeFrames(target, panel.scoped)))).flat();
    if (frames.length === 0) return () => <div style={{ textAlign: 'center', paddingTop: 60, color: theme.colors.text.secondary }}>No data</div>;
    configure(frames, panel.fieldConfig);
    return (width, height) => <TimeSeries frames={frames} timeRange={timeRange} timeZone="utc" width={width} height={height} legend={panel.options.legend} options={panel.options} />;
  },
  stat: async (panel) => {
    const result = await ask('query', { query: fill(panel.targets[0].expr), time: to });
    const frame = configure([toDataFrame({ fields: [{ name: 'Value', type: FieldType.number, values: [Number(result[0]?.value[1] ?? NaN)] }] })], panel.fieldConfig)[0];
    const value = frame.fields[0].display(frame.fields[0].values[0]);
    return (width, height) => <BigValue value={value} width={width} height={height} theme={theme} colorMode="value" graphMode="none" justifyMode="auto" textMode="value" />;
  },
  table: async (panel) => {
    const frame = await tableData(panel);
    return (width, height) => <Table data={frame} width={width} height={height} />;
  },
  'state-timeline': async (panel) => {
    const frames = configure((await Promise.all(panel.targets.map((target) => rangeFrames(target)))).flat(), panel.fieldConfig);
    return (width, height) => <StateTimeline frames={frames} from={from} to={to} width={width} height={height} theme={theme} mappings={panel.fieldConfig.defaults.mappings[0].options} />;
  },
};

// Returns the panels, those with `repeat` once per destination and side by side, as Grafana lays them out.
async function spread() {
  const found = await ask('series', { 'match[]': 'sluicegate_pending_rows', start: from, end: to });
  const destinations = [...new Set(found.map((labels) => labels.destination))].sort();
  return dashboard.panels.flatMap((panel) => panel.repeat !== 'destination' ? [panel] : destinations.map((scoped, n) => {
    const w = 24 / Math.min(destinations.length, panel.maxPerRow);
    return { ...panel, scoped, title: panel.title.replace('$destination', scoped), gridPos: { ...panel.gridPos, x: n * w, w } };
  }));
}

function place({ x, y, w, h }) {
  const column = (WIDTH - GAP * 2) / 24;
  return { left: GAP + x * column, top: 56 + y * CELL, width: w * column - GAP, height: h * CELL - GAP };
}

function Panel({ panel, draw }) {
  const { left, top, width, height } = place(panel.gridPos);
  const box = { position: 'absolute', left, top, width, height };
  if (panel.type === 'row') return <div style={{ ...box, fontSize: 16, fontWeight: 500, paddingTop: 6 }}>⌄ {panel.title}</div>;
  return <div style={box}><PanelChrome title={panel.title} description={panel.description} width={width} height={height}>{draw}</PanelChrome></div>;
}

async function main() {
  // This call only fills in translations. English is the default text.
  await initPluginTranslations('sluicegate', []);
  const all = await spread();
  const drawn = [];
  for (const panel of all) drawn.push({ panel, draw: panel.type === 'row' ? null : await kinds[panel.type](panel) });
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles isExtensionSidebarOpen={false} hackNoBackdropBlur={true} />
      <div style={{ position: 'relative', height: window.INPUT.height }}>
        <div style={{ padding: '14px 12px', fontSize: 22, fontWeight: 500 }}>{dashboard.title}</div>
        {drawn.map(({ panel, draw }, n) => <Panel key={n} panel={panel} draw={draw} />)}
      </div>
    </ThemeContext.Provider>);
}

main().catch((error) => { document.body.innerText = `cannot draw: ${error.stack}`; });
