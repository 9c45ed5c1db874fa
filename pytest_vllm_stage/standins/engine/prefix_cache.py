"""Which prefixes of prompts need no prefill: whole blocks, least recently used ones forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """The blocks that are remembered, each under the hash of the whole prefix up to its end."""

    def __init__(self, block_size: int, capacity_tokens: int) -> None:
        self._block_size = block_size
        self._capacity = max(capacity_tokens // block_size, 1)
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def look_up(self, prompt: Sequence[bytes]) -> int:
        """The number of leading tokens that are cached; the whole prompt is remembered from now on.

        The last token is always computed, as its logits are what the first token is drawn from.
        """
        size, blocks = self._block_size, self._blocks
        key, hits, missed = 0, 0, False
        for start in range(0, len(prompt) - size, size):
            key = hash((key, *prompt[start : start + size]))
            if key in blocks:
                blocks.move_to_end(key)
                hits += not missed
            else:
                missed = True
                blocks[key] = None
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)
        return hits * size

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
