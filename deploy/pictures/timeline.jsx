// A state timeline that looks like Grafana's, which Grafana's packages do not export.
const React = require('react');

exports.StateTimeline = StateTimeline;

function StateTimeline({ frames, from, to, width, height, theme, mappings }) {
  const names = frames.map((frame) => frame.fields[1].state.displayName);
  const left = 12 + Math.max(...names.map((name) => name.length)) * 7;
  const [legend, axis] = [24, 20];
  const row = (height - legend - axis) / frames.length;
  const at = (ms) => left + ((ms / 1000 - from) / (to - from)) * (width - left);
  const seen = new Set();
  const bars = frames.flatMap((frame, line) => spans(frame).map(({ start, end, value }) => {
    seen.add(value);
    const { text, color } = mappings[value];
    const [x, room] = [at(start), at(Math.min(end, to * 1000)) - at(start)];
    return <g key={`${line}-${start}`}>
      <rect x={x} y={line * row + row * 0.1} width={Math.max(1, room)} height={row * 0.8} fill={color} fillOpacity={0.85} />
      {room > text.length * 7 + 8 && <text x={x + 4} y={line * row + row / 2 + 4} fontSize={12} fill={theme.colors.getContrastText(color)}>{text}</text>}
    </g>;
  }));
  const minutes = [];
  for (let t = Math.ceil(from / 120) * 120; t < to; t += 120) minutes.push(t);
  return <div>
    <svg width={width} height={height - legend} style={{ fontFamily: theme.typography.fontFamily }}>
      {bars}
      {names.map((name, line) => <text key={name} x={left - 8} y={line * row + row / 2 + 4} fontSize={12} textAnchor="end" fill={theme.colors.text.primary}>{name}</text>)}
      {minutes.map((t) => <text key={t} x={at(t * 1000)} y={height - legend - 5} fontSize={12} textAnchor="middle" fill={theme.colors.text.primary}>{new Date(t * 1000).toISOString().slice(11, 16)}</text>)}
    </svg>
    <div style={{ display: 'flex', gap: 12, fontSize: 12, paddingLeft: 8 }}>
      {[...seen].sort((a, b) => a - b).map((value) => <span key={value}>
        <span style={{ display: 'inline-block', width: 14, height: 4, background: mappings[value].color, marginRight: 6, verticalAlign: 'middle' }} />{mappings[value].text}
      </span>)}
    </div>
  </div>;
}

// Returns each run of equal values as one span. A null ends a span.
function spans(frame) {
  const [times, values] = frame.fields.map((field) => field.values);
  const out = [];
  const step = times[1] - times[0];
  values.forEach((value, n) => {
    if (value === null) return;
    const last = out.at(-1);
    if (last && last.value === value && last.end === times[n]) last.end = times[n] + step;
    else out.push({ start: times[n], end: times[n] + step, value });
  });
  return out;
}
