"""A simulated engine: a STAND-IN for vLLM with known answers, known service times and scripted faults.

It speaks the OpenAI API and vLLM's own paths with real server-sent events, has a queue and a capacity, and publishes
the true times of every request, so that what measures a server can itself be measured. It generates no language: its
numbers say nothing about any model, and every response names it (`SERVER`).
"""

#: The ``server`` header of every response, and the mark by which a report knows that a result is simulated.
SERVER = "vllm-stage-sim"
