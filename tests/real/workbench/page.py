"""An executed notebook as a person reads it: texts, tables, pictures and errors."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Page:
    """The outputs of an executed notebook, by the id of their cell.

    Attributes:
        outputs: Cell id to its outputs.
        counts: The execution counts of the code cells, in the order of the page.
    """

    outputs: dict[str, list[dict[str, Any]]]
    counts: list[int | None]

    @classmethod
    def read(cls, path: Path) -> Page:
        """The page of a file."""
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        return cls({cell["id"]: cell["outputs"] for cell in cells}, [cell["execution_count"] for cell in cells])

    @property
    def errors(self) -> dict[str, str]:
        """Id of a cell that failed, to its error's kind and text."""
        return {
            name: f"{output['ename']}: {output['evalue']}"
            for name, outputs in self.outputs.items()
            for output in outputs
            if output["output_type"] == "error"
        }

    @property
    def warnings(self) -> list[str]:
        """What was written to stderr."""
        return [text_of(one) for outputs in self.outputs.values() for one in outputs if one.get("name") == "stderr"]

    @property
    def pictures(self) -> list[str]:
        """Ids of the cells that drew, one for each picture."""
        return [name for name, outputs in self.outputs.items() for one in outputs if "image/png" in one.get("data", {})]

    def text(self, cell: str) -> str:
        """What a cell says."""
        return "\n".join(map(text_of, self.outputs[cell]))

    def rows(self, cell: str) -> list[list[str]]:
        """The rows of a cell's tables, header and index included."""
        found = re.findall(r"<tr>(.*?)</tr>", self.text(cell), re.DOTALL)
        return [[strip(one) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in found]

    def row(self, cell: str, *start: str) -> list[str]:
        """The one row that begins so."""
        (row,) = [row for row in self.rows(cell) if row[: len(start)] == list(start)]
        return row


def text_of(output: dict[str, Any]) -> str:
    """An output's text: HTML before Markdown before plain text; empty for a picture."""
    data = output.get("data", {})
    if "image/png" in data:
        return ""
    found = data.get("text/html") or data.get("text/markdown") or data.get("text/plain") or output.get("text", "")
    return "".join(found)


def strip(fragment: str) -> str:
    """HTML without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", fragment)).strip()
