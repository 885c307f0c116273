"""The command `status`: where runs are, by their folders alone, and where in the queue."""
