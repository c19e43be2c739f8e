"""How the page of a sample looks. Colours of the light and the dark scheme have the same names."""

# Of modalities, in their order: hue and saturation.
HUES = ("214 75%", "24 85%", "276 55%", "176 70%", "338 65%", "48 85%")

STYLE = """
:root{--even:#f4f2ec;--odd:#ebe8e0;--learnt:#c9efd3;--learnt2:#b4e5c2;--learnt-ink:#0d4d27;--learnt-line:#2f9e5b;
--tint:94%;--deep:38%}
@media (prefers-color-scheme:dark){:root{--even:#24272b;--odd:#2c2f34;--learnt:#17432a;--learnt2:#1d5233;
--learnt-ink:#c4f3d3;--learnt-line:#4cc47d;--tint:17%;--deep:68%}}
main{max-width:66rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.35rem;line-height:1.3;margin:0 0 .15rem;overflow-wrap:anywhere}
p{margin:.3rem 0}
.figures{gap:.35rem 2rem}
.map{display:flex;height:14px;border-radius:4px;overflow:hidden;background:var(--odd)}
.map i{flex-basis:0;min-width:1px}
.map .l{background:var(--learnt-line)}
.map .m{background:hsl(var(--hue) var(--deep))}
.ends{display:flex;justify-content:space-between;font-size:.75rem;color:var(--soft);font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.82rem;color:var(--soft);margin:0 0 .7rem}
.legend span{display:inline-flex;align-items:center;gap:.4rem}
.legend i{width:1.1rem;height:1.1rem;border-radius:3px;display:inline-block}
.card+.card,.card.bad{margin-top:.8rem}
.bad{background:var(--bad-paper);border-color:var(--bad)}.bad b{color:var(--bad)}
.text{font:14px/2 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;
overflow-wrap:anywhere;tab-size:4}
.t{unicode-bidi:isolate;border-radius:3px;padding:.15em 0;background:var(--even)}
.t.o{background:var(--odd)}
.t.s{color:var(--soft);box-shadow:inset 0 0 0 1px var(--line)}
.t.l{background:var(--learnt);color:var(--learnt-ink);border-bottom:2px solid var(--learnt-line);
border-radius:3px 3px 0 0}
.t.l.o{background:var(--learnt2)}
.t:empty::before{content:"\\00B7";opacity:.4}
.t:hover{outline:2px solid var(--ink);outline-offset:1px}
.n::before{content:"\\21B5";opacity:.5}.h::before{content:"\\21E5";opacity:.5}
.c{font-size:.75em;border:1px dashed var(--bad);color:var(--bad);border-radius:3px;padding:0 .2em;margin:0 .1em}
.run{display:inline-flex;align-items:center;gap:.6rem;vertical-align:middle;margin:.25rem .15rem;
padding:.35rem .7rem .35rem .35rem;border-radius:8px;border:1px solid hsl(var(--hue) var(--deep));
background:hsl(var(--hue) var(--tint));color:var(--ink);text-decoration:none;line-height:1.35;max-width:100%}
.run img{width:auto;height:56px;max-width:104px;object-fit:cover;border-radius:5px;display:block;background:var(--odd)}
.run b{display:block;color:hsl(var(--hue) var(--deep))}
.run small{display:block;color:var(--soft);font:12px/1.35 system-ui,sans-serif}
.medium{border-left:4px solid hsl(var(--hue) var(--deep));scroll-margin-top:1rem}
.medium h3{margin:0;font-size:1rem}
.medium h3 em{font-style:normal;font-weight:400;color:var(--soft)}
.medium.out{opacity:.65}
.pair{display:flex;flex-wrap:wrap;gap:1rem 1.5rem;margin-top:.8rem;align-items:flex-start}
figure{margin:0;max-width:100%}
figcaption{font-size:.8rem;color:var(--soft);margin-bottom:.3rem}
figure img{display:block;max-width:100%;height:auto;border-radius:6px;border:1px solid var(--line)}
.whole img{max-height:320px;width:auto}
.small img{image-rendering:pixelated;width:160px}
.strip{display:flex;flex-wrap:wrap;gap:.4rem}
.strip img{height:112px;width:auto}.strip.small img{width:auto}
.wide{width:100%}
figure.wide{overflow-x:auto}
svg{display:block;width:100%;min-width:34rem;height:auto;color:var(--ink)}
.scroll{overflow-x:auto}
td{padding:.2rem 1.5rem .2rem 0;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:13px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.lost .t{text-decoration:line-through;text-decoration-thickness:1px;opacity:.75}
"""
