"""200 texts that run code where a page takes text for markup, and a few that look like something else.

Every one that ran would set `window.hostileRan`, open a dialog, or fetch /hostile.
"""

from __future__ import annotations

_CODES = (
    "window.hostileRan=1",
    "alert(1)",
    "fetch('/hostile')",
    "top.hostileRan=document.cookie",
    "import('/hostile.js')",
)
_FORMS = (
    "<script>{}</script>",
    "<ScRiPt >{}</sCrIpT >",
    '<script type="module">{}</script>',
    '"><script>{}</script>',
    "'><script>{}</script>",
    "</title><script>{}</script>",
    "</textarea><script>{}</script>",
    "</pre></code><script>{}</script>",
    "--><script>{}</script><!--",
    "]]><script>{}</script>",
    '<img src=x onerror="{}">',
    "<img src=x onerror={}//",
    "<IMG SRC=/static/none ONERROR={}>",
    '<image href=x onerror="{}">',
    '<svg onload="{}">',
    "<svg/onload={}>",
    "<svg><script>{}</script></svg>",
    '<svg><animate onbegin="{}" attributeName=x dur=1s>',
    '<svg><a xlink:href="javascript:{}"><text y=20>x</text></a></svg>',
    "<math><mtext><table><mglyph><style><img src=x onerror={}>",
    '<body onload="{}">',
    '<iframe src="javascript:{}"></iframe>',
    '<iframe srcdoc="<script>{}</script>"></iframe>',
    '<object data="javascript:{}"></object>',
    '<embed src="javascript:{}">',
    '<details open ontoggle="{}">x</details>',
    '<input autofocus onfocus="{}">',
    '<video><source onerror="{}"></video>',
    '<marquee onstart="{}">x</marquee>',
    '<meta http-equiv="refresh" content="0;url=javascript:{}">',
    '<form action="javascript:{}"><button autofocus>x</button></form>',
    '<a href="javascript:{}">x</a>',
    "[x](javascript:{})",
    '![x](x" onerror="{})',
    "$\\href{{javascript:{}}}{{x}}$",
    '$$\\htmlData{{x="onclick={}"}}{{y}}$$',
    "{{{{constructor.constructor('{}')()}}}}",
    "${{{}}}",
    '&lt;script&gt;{}&lt;/script&gt;<img src=x onerror="{}">',
    "\x1b[2J\u202e<script>{}</script>\u2066\u200b\x00\ufeff",
)
HOSTILE: tuple[str, ...] = tuple(
    form.replace("{}", code).replace("{{", "{").replace("}}", "}") for form in _FORMS for code in _CODES
)
assert len(set(HOSTILE)) == 200
