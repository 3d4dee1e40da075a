"Procedures without a trained teacher, or with several fits"
