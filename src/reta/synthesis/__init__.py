"""The parts of a recipe and the one loop that runs them over a block of classes."""
