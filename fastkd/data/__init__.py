"Items and their loaders"
