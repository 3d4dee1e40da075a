"Whatever is called a teacher, as one frozen predictor"
