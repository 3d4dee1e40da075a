"Losses on predictions and on features: they know tensors and, for features, adapters"
