"""Programs that are measured beside ratestream, each a process of its own."""
