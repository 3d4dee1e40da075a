"Loss functions on predictions and features, each with a class that holds its hyper-parameters"
