"""The page's Jinja2 template: every value is escaped; it has no script and loads nothing."""

from __future__ import annotations

TEMPLATE = """\
{%- macro table(block) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ block.title }}">
<table class="{{ 'numeric' if block.numeric else 'plain' }}{{ ' noted' if block.noted }}">
<thead><tr>
{%- for head in block.heads %}<th scope="col">{{ head }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in block.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}
{%- if loop.last and row | length < block.heads | length -%}
<td class="rest" colspan="{{ block.heads | length - row | length + 1 }}"><div>{{ cell }}</div></td>
{%- else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- endmacro -%}

{%- macro key(item) -%}
<svg viewBox="0 0 24 12" aria-hidden="true">
{%- if item.colour -%}
<rect class="swatch" fill="{{ item.colour }}" x="4" y="1" width="16" height="10"></rect>
{%- elif item.shape == "box" -%}
<rect class="bar full {{ item.style }}" x="4" y="1" width="16" height="10"></rect>
{%- elif item.shape == "open" -%}
<rect class="bar open {{ item.style }}" x="4.75" y="1.75" width="14.5" height="8.5"></rect>
{%- else -%}
<path class="line {{ 'dashed' if item.shape == 'dash' else 'solid' }} {{ item.style }}"
 d="M1 6L23 6"></path>
{%- endif -%}
</svg>
{%- endmacro -%}

{%- macro legend(items) -%}
{%- if items %}
<ul class="legend">
{%- for item in items %}<li>{{ key(item) }}{{ item.name }}</li>{% endfor -%}
</ul>
{%- endif %}
{%- endmacro -%}

{%- macro figure(block) -%}
<figure class="plotted">
<figcaption><h3>{{ block.title }}</h3></figcaption>
{{- legend(block.legend) }}
<div role="img" aria-label="{{ block.alt }}">{{ block.drawing }}</div>
{%- if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
<details{{ ' open' if block.table.open }}><summary>{{ block.table.title }}</summary>
{{- table(block.table) }}</details>
</figure>
{%- endmacro -%}

{%- macro strips(block) -%}
{%- if block.title %}<h3 class="above">{{ block.title }}</h3>{% endif %}
{%- if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
{{- legend(block.legend) }}
<div class="strips{{ ' wide' if block.wide }}{{ ' pixelated' if block.pixelated }}
{{- ' queries' if block.queries }}">
{%- for row in block.rows %}
<div class="strip of-{{ block.columns }}">
{%- for picture in row %}
<figure><img src="{{ picture.uri }}" alt="{{ picture.alt }}">
{%- if picture.caption %}<figcaption
{%- if picture.mark %} class="{{ picture.mark }}"{% endif %}>{{ picture.caption }}</figcaption>
{%- endif %}</figure>
{%- endfor %}
</div>
{%- endfor %}
</div>
{%- endmacro -%}

<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{{ title }}: fastrot report</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{%- if tiles %}
<dl class="tiles">
{%- for tile in tiles %}
<div class="tile"><div class="turned"><dt>{{ tile.name }}
{%- if tile.note %}<div class="note">{{ tile.note }}</div>{% endif %}</dt>
<dd>{{ tile.value }}</dd></div></div>
{%- endfor %}
</dl>
{%- endif %}
<nav aria-label="Contents"><ul>
{%- for section in sections %}<li><a href="#{{ section.id }}">{{ section.title }}</a></li>
{%- endfor %}</ul></nav>
</header>
<main>
{%- if notes %}
<section id="notes"><h2>Notes</h2>
{%- for note in notes %}<p class="missing">{{ note }}</p>{% endfor %}
</section>
{%- endif %}
{%- for section in sections %}
<section id="{{ section.id }}">
<h2>{{ section.title }}</h2>
{%- if section.lead %}<p>{{ section.lead }}</p>{% endif %}
{%- for line in section.warnings %}<p class="missing">{{ line }}</p>{% endfor %}
{%- for line in section.missing %}<p class="missing">Not shown: {{ line }}.</p>{% endfor %}
{%- for kind, blocks in section.blocks | runs %}
{%- if kind == "Figure" %}
<div class="grid">{% for block in blocks %}{{ figure(block) }}{% endfor %}</div>
{%- elif kind == "Strips" %}{% for block in blocks %}{{ strips(block) }}{% endfor %}
{%- elif kind == "Table" %}
{%- for block in blocks %}
<details{{ ' open' if block.open }}><summary>{{ block.title }}</summary>
{{- table(block) }}</details>
{%- endfor %}
{%- else %}{% for block in blocks %}
<pre tabindex="0"><code>{{ block.lines | join("\\n") }}</code></pre>{% endfor %}
{%- endif %}
{%- endfor %}
</section>
{%- endfor %}
</main>
<footer><p>{{ footer }}</p></footer>
</body>
</html>
"""
"""Variables that the template expects: title, subtitle, tiles, notes, sections, footer, style,
policy; custom filter: runs."""
