"""The steps of `first_ten_minutes` and `first_two_gpus`, each a function of a `Case`."""
