"""Benchmark results in the Kubeflow Model Registry: published without losing what is there, read back, and checked.

Everything goes over plain REST with httpx: the registry's Python client 0.3.18 speaks only ``/v1/``, the server of
OpenShift AI 2.24 only ``/v1alpha3/``, and the client fails on reading whole numbers of more than nine digits, also
those of others. One code path here serves both kinds of server.
"""
