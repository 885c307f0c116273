"""An evaluation of pictures: the models that paint them, and how they are judged."""
