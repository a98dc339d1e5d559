"""What an operator does to a deployment: topics, schema, dead letters, and a check of everything.

An operation is a struct of its arguments whose `run` does it and returns a struct of what came of
it. So the same one runs where the command is, against the Kafka and the Postgres of the settings,
and inside a running `ratestream up`, which alone may touch its own.
"""
