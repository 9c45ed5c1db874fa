"""Opens pages in Chromium and prints as JSON what each of them did and how it looks; see `pages`, which starts this.

Standard input is a list of visits, each with ``file``, ``width``, ``scheme``, ``axe`` (whether to run its rules, which
take half a minute for a large page) and ``picture`` (a path or null). The argument is the browser's program.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

#: The width of a sheet of A4 at 96 dots per inch, less its margins.
SHEET = 718
#: Of each action: the machine may be busy.
_TIMEOUT_MS = 180_000
_OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
_TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
_ROWS_OF_SEARCH = """words => {
  const query = document.getElementById('query');
  if (!query) return null;
  query.value = words;
  query.dispatchEvent(new Event('input'));
  return [...document.querySelectorAll('#all-checks tbody tr')].filter(row => !row.hidden).length;
}"""
_COUNTS = "['script', 'img', 'iframe', 'object'].map(name => [name, document.querySelectorAll(name).length])"


def carry_out(browser: Browser, visit: dict[str, Any]) -> dict[str, Any]:
    """One page in one view."""
    # Without the page's own policy, which would hide that a text is taken as markup, and which axe cannot run under.
    size = {"width": visit["width"], "height": 900}
    context = browser.new_context(viewport=size, color_scheme=visit["scheme"], bypass_csp=True)
    context.set_default_timeout(_TIMEOUT_MS)
    page = context.new_page()
    own = Path(visit["file"]).as_uri()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: _dismiss(dialog, errors))
    page.goto(own, wait_until="load")
    if visit["picture"]:
        page.screenshot(path=visit["picture"], full_page=True)
    page.evaluate(_OPEN_ALL)
    found = {
        **visit,
        "text": page.evaluate("document.body.innerText"),
        "elements": dict(page.evaluate(_COUNTS)),
        "too_wide": page.evaluate(_TOO_WIDE),
        "found_rows": page.evaluate(_ROWS_OF_SEARCH, "no check has this name"),
        "axe": _axe(page) if visit["axe"] else None,
        "too_wide_printed": _print(page),
    }
    # Without the request for the page itself and for its empty icon.
    found["requests"] = [url for url in requests if url != own and not url.startswith("data:")]
    found["errors"] = errors
    context.close()
    return found


def _dismiss(dialog: Dialog, errors: list[str]) -> None:
    errors.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def _axe(page: Page) -> dict[str, Any]:
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    report = page.evaluate("axe.run()")
    return {
        "version": report["testEngine"]["version"],
        "passes": len(report["passes"]),
        "violations": [
            {
                "id": one["id"],
                "impact": one["impact"],
                "nodes": len(one["nodes"]),
                "example": one["nodes"][0]["html"][:160],
            }
            for one in report["violations"]
        ],
    }


def _print(page: Page) -> int:
    """How much wider than the sheet the printed page is."""
    page.set_viewport_size({"width": SHEET, "height": 900})
    page.emulate_media(media="print")
    return int(page.evaluate(_TOO_WIDE))


def main() -> None:
    """Carry out the visits."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=sys.argv[1], args=options, timeout=_TIMEOUT_MS)
        found = [carry_out(browser, one) for one in json.load(sys.stdin)]
        browser.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
