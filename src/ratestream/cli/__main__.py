"""`python -m ratestream.cli`."""

from ratestream.cli import main

if __name__ == "__main__":
    main()
