"""What one writes first, to be measured beside ratestream's services: each module is a program."""
