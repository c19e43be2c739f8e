"""5g. How the page of a report looks. Colours of the light and the dark scheme have the same names."""

STYLE = """
:root{--bar:#3b76c4;--warn:#8a5a00;--warn-paper:#fdf1d8}
@media (prefers-color-scheme:dark){:root{--bar:#6ea3e8;--warn:#f0bd62;--warn-paper:#352a14}}
main{max-width:72rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.5rem;line-height:1.3;margin:0 0 .15rem}
h3{font-size:.95rem;margin:0 0 .5rem}
p{margin:.3rem 0;overflow-wrap:anywhere}
.figures{gap:.5rem 2.25rem}
.figures b.error{color:var(--bad)}.figures b.warning{color:var(--warn)}
.card.bad{background:var(--bad-paper);border-color:var(--bad);margin-top:.8rem}.bad b{color:var(--bad)}
.scroll{overflow-x:auto;padding:.35rem 1.15rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(21rem,100%),1fr));gap:.8rem}
figure{margin:0}figcaption{font-size:.8rem;color:var(--soft);margin-top:.3rem}
svg{display:block;width:100%;height:auto}
.bar{fill:var(--bar)}.axis{stroke:var(--line)}.limit{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}
.kinds{width:100%;min-width:44rem}
.kinds td,.kinds th{padding:.5rem 1.2rem .5rem 0;vertical-align:top;text-align:left;border-top:1px solid var(--line)}
.kinds td{overflow-wrap:anywhere;min-width:4rem}
.kinds td:first-child{white-space:nowrap;overflow-wrap:normal}
.kinds thead th{border-top:0;color:var(--soft);font-weight:500;white-space:nowrap}
.kinds .n{text-align:right;font-variant-numeric:tabular-nums}
.badge{display:inline-block;padding:.05rem .55rem;border-radius:1rem;font-size:.82rem;font-weight:500}
.badge.error{background:var(--bad-paper);color:var(--bad)}.badge.warning{background:var(--warn-paper);color:var(--warn)}
.two{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;align-items:flex-start}
.two ul{flex:1 1 20rem;margin:0;padding-left:1.1rem;font-size:.85rem}
.plain th{font-weight:400;text-align:left;color:var(--soft);padding:.15rem 1.2rem .15rem 0;vertical-align:top;
white-space:nowrap}
.plain td{padding:.15rem 0;font-variant-numeric:tabular-nums}
"""
