"""``report.html``: one self-contained page per run; templates by jinja2, charts by matplotlib where it is installed."""
