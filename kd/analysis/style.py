"""How the page of an analysis looks: the style of reports, and what galleries, bars and charts need beyond it."""

from kd.reports.page import STYLE as OF_REPORTS

STYLE = f"""{OF_REPORTS}
:root {{ --m0: #b45309; --m1: #0072b2 }}
@media (prefers-color-scheme: dark) {{ :root {{ --m0: #ff9d3c; --m1: #35b7ee }} }}
.m0 {{ --own: var(--m0) }}
.m1 {{ --own: var(--m1) }}
h1, h2, .card p, summary, figcaption {{ overflow-wrap: anywhere }}
h2 {{ margin-top: 1.8em }}
p.lead, p.note {{ max-width: 60rem }}
.note, .interval, .file, figcaption, dt, small {{ color: var(--soft) }}
:root {{ --soft: #57606a }}
@media (prefers-color-scheme: dark) {{ :root {{ --soft: #9aa6b2 }} }}
.note {{ font-size: .875rem }}
.interval {{ white-space: nowrap; font-size: .85em }}
.skip {{ position: absolute; left: -100rem }}
.skip:focus {{ position: static; display: inline-block; padding: .5em 1em }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px }}
nav ul, .legend {{ display: flex; flex-wrap: wrap; gap: .3em 1.4em; padding: 0; list-style: none }}
nav ul {{ border-block: 1px solid var(--faint); padding: .6em 0; margin: 1.5em 0 0 }}
.legend {{ font-size: .875rem; margin: .8em 0 }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem }}
.card {{ border: 1px solid var(--faint); border-top: 5px solid var(--own); border-radius: 6px; padding: .9rem 1.1rem }}
.card h2 {{ font-size: 1rem; margin: 0; padding: 0; border: 0 }}
.card p {{ margin: .2em 0 }}
.card .big {{ font-size: 2.6rem; line-height: 1.2; font-weight: 700; font-variant-numeric: tabular-nums }}
.card .big small {{ font-size: 1.1rem; font-weight: 400 }}
.card dl {{ display: grid; grid-template-columns: 1fr 1fr; gap: .5em 1em; margin: 1em 0 0 }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; font-weight: 600 }}
dt {{ font-size: .8rem }}
details {{ margin: 1rem 0 }}
summary {{ cursor: pointer; padding: .35em 0 }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem;
  margin: .6rem 0 }}
figure {{ margin: 0; min-width: 0 }}
figure img {{ min-width: 0; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: #2b2f34; border-radius: 4px }}
figcaption {{ font-size: .8125rem; line-height: 1.4; margin-top: .35em }}
figcaption b {{ color: var(--ink) }}
.file {{ font-size: .75rem }}
.swatch {{ display: inline-block; width: 1.1em; height: 1.1em; border: 3px solid; outline: 1px solid #1a1a1a;
  background: #727272; vertical-align: -.2em; margin-right: .2em }}
.tables {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(32rem, 100%), 1fr)); gap: 0 2.5rem }}
.share {{ display: flex; flex-wrap: wrap; align-items: center; gap: 0 .8em }}
.share + .share {{ margin-top: .3em }}
.tables > div {{ min-width: 0 }}
h3 {{ margin: 1.4em 0 .2em }}
td, tbody th {{ vertical-align: middle }}
td.n {{ text-align: right }}
tbody th small {{ font-weight: 400; white-space: normal }}
svg.bar {{ width: 7.5rem; min-width: 7.5rem; height: .875rem }}
.legend svg.bar {{ display: inline-block; width: 1.5rem; min-width: 1.5rem; vertical-align: -.1em }}
.bar .ground {{ fill: var(--faint); opacity: .55 }}
.bar .fill {{ fill: var(--own) }}
.bar .reach {{ stroke: var(--ink); stroke-width: 1.4; fill: none }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.2rem }}
svg.curves {{ min-width: 0; max-width: 30rem }}
.curves text {{ font: 11px system-ui, sans-serif; fill: var(--soft) }}
.curves .grid {{ stroke: var(--faint); fill: none }}
.curves .mark {{ stroke: var(--ink); stroke-dasharray: 2 3; fill: none }}
.line {{ stroke: var(--own); stroke-width: 2.2; fill: none; stroke-linejoin: round }}
.line.precision {{ stroke-dasharray: 6 3 }}
svg.key {{ display: inline-block; width: 30px; min-width: 30px; height: 8px; vertical-align: middle }}
"""
