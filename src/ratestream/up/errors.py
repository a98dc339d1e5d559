"""What keeps `ratestream up` from starting."""


class StartError(Exception):
    """One line: what is in the way, the setting, and what to do."""
