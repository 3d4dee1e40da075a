"The distillation callback and its parts"
