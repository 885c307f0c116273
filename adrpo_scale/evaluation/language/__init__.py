"""An evaluation of completions: the models that write them."""
