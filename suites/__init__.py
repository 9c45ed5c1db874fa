"""The validation that users run: ``pytest suites/``, or ``pytest --pyargs pytest_vllm_stage.suites`` from the wheel."""
