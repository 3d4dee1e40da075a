"Turn a `Learner`, a module or a list of them into a frozen teacher for the student's inputs and classes"
