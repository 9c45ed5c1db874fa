"""A STAND-IN for the Kubeflow Model Registry server: its REST contract over SQLite, for the local stage and tests.

It answers as the real server does on PostgreSQL, defects included, and names itself in every response (`SERVER`). It is
no registry to keep anything in. Left out, and 404: experiments, experiment runs, metric history and the catalog.
Modules, from the bottom up: `refusal`, `like`, `kinds`, `values`, `filters`, `conditions`, `store`, `paging`, `faults`,
`bodies`, `resources`, `exchange`, `routes`, `api`, `http`. Only the standard library is imported: a pod with nothing
but Python can run it.
"""

#: The ``server`` header of every response.
SERVER = "vllm-stage-registry-standin"
