"""The steps of benchmarks/device.py."""
