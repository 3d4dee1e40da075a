"Tools for any `nn.Module`: list, record, pair, adapt and split its layers"
