"""Property tests against a server: the same examples every time, few enough to pay for, shrunk when they fail.

Imports Hypothesis, so only suites import this, never the plugin.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: Texts of every script, with characters of one to four bytes. Left out are lone surrogates, which JSON cannot carry,
#: and control and unassigned characters: a tokenizer may lack a byte that only they need, as SmolLM2's does.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cn", "Co", "Cc"], include_characters="\n\t")
    | st.sampled_from("éßж中日🙂🙃𝒳𐍈"),
    min_size=1,
    max_size=40,
)


def examples(count: int, *, steps: int = 50) -> settings:
    """So many examples, derived from the test itself alone: a failure is a failure of the server, not of luck.

    Args:
        count: How many.
        steps: Of a stateful test: the most steps of each.
    """
    return settings(
        max_examples=count,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
