"""The style sheet of the page: light and dark, for desktop, telephone and paper.

The colours of the series remain distinct under the common kinds of colour blindness, and colour
never carries information alone: outlines, dashes, marks and numbers repeat it.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #5b6470; --hair: #d9dee4; --panel: #f5f7f9;
  --s1: #0b5fa5; --s2: #c2500a; --s3: #00795c; --s4: #6b6f76; --good: #00795c; --bad: #b3360b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e7eaee; --soft: #a2abb6; --hair: #343b43; --panel: #1d2227;
    --s1: #6db7f2; --s2: #f2a65a; --s3: #52cfa6; --s4: #a9afb7; --good: #52cfa6; --bad: #ff9470;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .35rem; }
h3 { font-size: .95rem; line-height: 1.35; margin: 0 0 .25rem; font-weight: 600; }
p { margin: 0 0 .75rem; max-width: 46rem; }
a { color: var(--s1); }
.soft { color: var(--soft); }
section { border-top: 1px solid var(--hair); margin-top: 2.25rem; padding-top: 1.25rem; }
nav { margin-top: 1.25rem; font-size: .9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem;
  margin: 0; padding: 0; }
nav a { display: inline-block; padding: .3rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr));
  gap: .75rem; margin: 1.5rem 0 0; padding: 0; }
.tile { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; margin: 0; }
.tile dd { margin: 0; font-size: 1.6rem; line-height: 1.2; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile dt { font-size: .9rem; }
.tile .note { font-size: .8rem; font-weight: 400; color: var(--soft); line-height: 1.35; }
.turned { display: flex; flex-direction: column-reverse; justify-content: flex-end; height: 100%; }
.missing { border-left: 3px solid var(--s2); background: var(--panel); padding: .5rem .8rem;
  font-size: .9rem; max-width: none; }
.grid { display: grid; gap: 1.75rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.plotted { max-width: 40rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .25rem;
  padding: 0; font-size: .85rem; }
.legend svg { width: 1.5rem; height: .75rem; vertical-align: -.05rem; margin-right: .35rem; }
.note { font-size: .83rem; color: var(--soft); margin: .35rem 0 0; }
.swatch { stroke: var(--soft); stroke-width: 1; }
h3.above { margin-top: 2rem; }
h3.above ~ .legend { margin-bottom: .6rem; }
svg.plot { display: block; width: 100%; height: auto; }
.t { font-size: 12px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.t.soft { fill: var(--soft); }
.t.strong { font-weight: 600; }
.t.small { font-size: 11px; }
.grid path.grid { stroke: var(--hair); stroke-width: 1; fill: none; }
.axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.rule { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { stroke-width: 1; opacity: .35; }
.line.dashed { stroke-dasharray: 6 4; }
.dot { stroke: var(--paper); stroke-width: 1; }
.line.s1, .bar.open.s1 { stroke: var(--s1); } .line.s2, .bar.open.s2 { stroke: var(--s2); }
.line.s3, .bar.open.s3 { stroke: var(--s3); } .line.s4, .bar.open.s4 { stroke: var(--s4); }
.dot.s1, .bar.full.s1, .heat.s1 { fill: var(--s1); } .dot.s2, .bar.full.s2 { fill: var(--s2); }
.dot.s3, .bar.full.s3 { fill: var(--s3); } .dot.s4, .bar.full.s4 { fill: var(--s4); }
.bar.open { fill: none; stroke-width: 1.5; }
.cell { fill: none; stroke: var(--hair); stroke-width: 1; }
.cell.blank { stroke-dasharray: 3 3; }
details { margin-top: .4rem; font-size: .85rem; }
summary { cursor: pointer; color: var(--s1); padding: .2rem 0; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; margin: .3rem 0 .5rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid var(--hair); font-variant-numeric: tabular-nums; }
.scroll th, .scroll td { overflow-wrap: normal; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
table.numeric th + th, table.numeric td { text-align: right; }
table.noted th, table.noted td { white-space: nowrap; }
table.noted thead th { white-space: normal; vertical-align: bottom; }
table.noted td:last-child { white-space: normal; min-width: 18rem; }
table.noted th:last-child, table.noted td:last-child { text-align: left; }
table.numeric td.rest { text-align: left; white-space: normal; }
td.rest div { max-width: 36rem; overflow-wrap: anywhere; }
table.plain { width: 100%; max-width: 46rem; }
table.plain tbody th { width: 45%; }
table.plain td, table.plain th { overflow-wrap: anywhere; }
.strips { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
.strips.wide { grid-template-columns: minmax(0, 1fr); }
.strip { display: grid; gap: .4rem; margin: 0; }
.strip.of-2 { gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
.strip.of-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.strip.of-4 { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.strip.of-5 { grid-template-columns: repeat(5, minmax(0, 1fr)); }
.strip.of-6 { grid-template-columns: repeat(6, minmax(0, 1fr)); }
.strip figcaption { font-size: .75rem; line-height: 1.25; margin-top: .2rem; }
.wide .strip figcaption { font-size: .85rem; }
.strip img { display: block; width: 100%; height: auto; border-radius: 3px; }
.pixelated img { image-rendering: pixelated; }
.queries .strip figure:first-child img { outline: 2px solid var(--s1); outline-offset: -2px; }
.good { color: var(--good); } .good::before { content: "✓ "; }
.bad { color: var(--bad); } .bad::before { content: "✗ "; }
.queries figure { position: relative; }
.queries .good, .queries .bad { color: inherit; }
.queries .good::before, .queries .bad::before { position: absolute; top: 3px; right: 3px;
  width: 1.05rem; height: 1.05rem; border-radius: 50%; text-align: center; font-size: .7rem;
  line-height: 1.05rem; font-weight: 700; color: var(--paper); background: var(--good); }
.queries .good::before { content: "✓"; }
.queries .bad::before { content: "✗"; background: var(--bad); }
pre { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; font-size: .85rem;
  white-space: pre; overflow-x: auto; margin: 0; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--soft); }
@media (max-width: 34rem) {
  .strip.of-5, .strip.of-6 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .wide .strip.of-3 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wide .strip.of-3 figure:first-child { grid-column: 1 / -1; }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #ffffff; --ink: #000000; --soft: #444444; --hair: #bbbbbb; --panel: #f5f5f5;
    --s1: #0b5fa5; --s2: #c2500a; --s3: #00795c; --s4: #6b6f76; --good: #00795c; --bad: #b3360b;
  }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  pre { white-space: pre-wrap; }
  figure, .strip, .tile, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .grid, .strips { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
"""CSS; the page's policy allows exactly this text, by its hash."""
