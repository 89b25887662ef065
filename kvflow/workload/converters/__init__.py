"""Other systems' traces, and the service's recordings, as workloads."""

from kvflow.workload.converters.convert import FORMATS, TraceFormat, convert

__all__ = ["FORMATS", "TraceFormat", "convert"]
