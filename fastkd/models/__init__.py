"What there is to know of any `nn.Module`: its layers, what they return, and how to pair, adapt and split them"
