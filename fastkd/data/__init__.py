"Data sets and data loaders"
