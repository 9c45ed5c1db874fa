"""A STAND-IN for the Kubeflow Model Registry server: its REST contract over SQLite, for the local stage and tests.

It answers as the real server does on PostgreSQL, defects included, and names itself in every response (`SERVER`). It
serves what the publisher, the suites and the official client's `ModelRegistry` ask for: registered models, versions,
and their model and doc artifacts. Everything else is 404; a ``filterQuery`` is 501. Only the standard library is
imported, so that a pod with nothing but Python can run it.
"""

#: The ``server`` header of every response.
SERVER = "vllm-stage-registry-standin"
