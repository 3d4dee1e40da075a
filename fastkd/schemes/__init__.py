"Procedures of several fits"
