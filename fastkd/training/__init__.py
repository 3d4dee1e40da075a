"One fit: the callback and what it is made of"
