"""Texts that firewalls, guardrails, translators and careless code change, refuse or cut on their way."""

from __future__ import annotations

#: What the text is like to the text.
TRICKY = {
    "SQL": "Explain: DELETE FROM a; DROP TABLE b; -- ' OR 1=1",
    "HTML": "Explain: <script>alert(document.cookie)</script> &lt;b&gt; {{7*7}} ${jndi:ldap://x/y}",
    "shell": "Explain: `curl http://127.0.0.1/x`; cat ../../etc/passwd | sh > /dev/null 2>&1",
    "numbers": "The order 51302801523635 of 2026-11-26 has the phone number 555-123-4567.",
    "white space": "def f(x):\n    if x:\n\treturn  x   #  two   spaces\n\n\n    pass",
    "Unicode": "e\u0301 and \u00e9, \ufb01 and fi, \u00bd, \u2460, A\u030a, zero\u200bwidth, \u4f60\u597d \U0001f642",
    "events": "data: [DONE]\n\nevent: error\ndata: {}\n\n<think>no</think> : end",
}
