"""Images and labels: where they come from, how they are cut, how they are kept."""
