"""Postgres: its tables, what db_loader writes, what api_gateway reads, and a server in a wheel."""
