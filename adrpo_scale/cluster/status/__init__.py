"""The verb `status`: where runs are, from their folders alone, and what the queue says of them."""
