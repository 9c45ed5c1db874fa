"""GuideLLM 0.8.1 as a second load driver, and its report as an input and output format.

`run.measure` carries a step out with it, `reading.read_report` converts its report to a measurement,
`writing.write_report` writes a report that GuideLLM itself loads. GuideLLM runs from the engine's environment; nothing
here imports it. Each is imported from its own module, since a reader of documents needs no load driver.
"""
