"""Names of places in the languages in which models answer by default."""

from __future__ import annotations

import re

_SPELLINGS = {
    "Paris": r"par[ií]s|parigi|parijs|párizs|paříž|paryż|pariisi|париж|παρίσι|巴黎|パリ|파리|باريس|पेरिस",
    "Japan": r"jap[aã]n|japão|japón|japon|giappone|япони|ιαπωνία|日本|일본|اليابان|जापान",
    "Tokyo": r"tok[iy]o|tóquio|токио|τόκιο|東京|东京|도쿄|طوكيو|टोक्यो",
    "Italy": r"ital(?:y|i[aeë]|ien|ië)|włochy|włoch|итали|ιταλία|意大利|義大利|イタリア|이탈리아|إيطاليا|इटली",
    "Rome": r"\brom[ae]?\b|rzym|řím|рим|ρώμη|罗马|羅馬|ローマ|로마|روما|रोम",
}


def mentions_place(text: str, place: str) -> bool:
    """Whether a text mentions a place, in any of the languages."""
    return re.search(_SPELLINGS[place], text, re.IGNORECASE) is not None
