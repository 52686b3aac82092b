"""Finding the mistake: the results of each known one are compared with a program's output."""
