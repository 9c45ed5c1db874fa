"""A proxy that plants one defect of a gateway in front of any server: ``python -m tests.defects.proxy``."""
