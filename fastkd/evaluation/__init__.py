"Predictions, however they came about"
