"Evaluate any model: test-time augmentation, class masks, metrics"
