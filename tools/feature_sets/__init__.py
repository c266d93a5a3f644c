"""Sets of the features of very many images, on disk in shards: making them and looking after them."""
