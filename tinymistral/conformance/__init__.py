"""What every backend is judged by: the oracle, and the laws that hold for any implementation."""
