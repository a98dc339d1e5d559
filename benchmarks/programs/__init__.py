"""The programs that are compared, each a process of its own that is started with the same plain
arguments (`arguments.py`) and does the same job (`job.py`): one of ratestream, one of each peer,
and loops without guarantees, which are the limit."""
