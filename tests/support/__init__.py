"""Servers and tools that tests share."""
